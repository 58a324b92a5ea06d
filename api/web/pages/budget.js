/**
 * @file Which student answers within a time? The question, how far a worker is with it, and the students that it found:
 * latency against capacity. The address holds the question and the plan that answers it.
 */

import { get, make, Problem, watch } from "../api.js";
import { logTicks, scale, ticks } from "../charts.js";
import { button, h, named, put, svg, write } from "../elements.js";
import { ap, count, number, NONE, several } from "../format.js";
import { to } from "../router.js";

const EVERY_MS = 1000;
const FIELDS = ["dataset", "teacher", "latency_budget_ms", "runtime", "threads", "seconds"];
const [WIDTH, HEIGHT] = [640, 320];
const PAD = { left: 60, right: 20, top: 16, bottom: 44 };
const WORDS = { fits: "fits", tight: "just fits", over: "too slow" };

/** @param {import("../router.js").View} view */
export async function show({ root, query, signal, setQuery }) {
  const [datasets, jobs, models] = await Promise.all([get("datasets?state=ready&limit=200", { signal }), get("summaries?state=succeeded&limit=200", { signal }), get("models?state=ready&limit=200", { signal })]);
  let plan = query.get("plan") ?? "";
  let picked = query.get("row") ?? "";
  /** @type {any} */
  let shown = null;
  let round = new AbortController();

  const dataset = h("select", { name: "dataset", required: true }, h("option", { value: "" }, datasets.items.length ? "Choose one" : "There is none that is ready"), datasets.items.map((/** @type {any} */ each) => h("option", { value: each.id }, each.name)));
  const teacher = h("select", { name: "teacher" }, h("option", { value: "" }, "No teacher: plain training"),
    jobs.items.length > 0 && h("optgroup", { label: "Finished jobs" }, jobs.items.map((/** @type {any} */ each) => h("option", { value: each.id }, `${each.name} · ${each.student}${each.ap === null ? "" : ` · AP ${ap(each.ap)}`}`))),
    models.items.length > 0 && h("optgroup", { label: "Models" }, models.items.map((/** @type {any} */ each) => h("option", { value: each.id }, each.name))));
  const budget = h("input", { name: "latency_budget_ms", type: "number", required: true, min: 0.01, step: "any", inputmode: "decimal", value: "15" });
  const runtime = h("select", { name: "runtime" }, h("option", { value: "onnxruntime" }, "ONNX Runtime"), h("option", { value: "torch" }, "PyTorch"));
  const threads = h("input", { name: "threads", type: "number", min: 1, max: 1024, placeholder: "all of a slot" });
  const seconds = h("input", { name: "seconds", type: "number", min: 10, max: 3600, required: true, value: "300" });
  /** @type {Record<string, any>} */
  const inputs = { dataset, teacher, latency_budget_ms: budget, runtime, threads, seconds };
  for (const [name, input] of Object.entries(inputs)) if (query.get(name)) input.value = query.get(name);
  if (!dataset.value && datasets.items.length === 1) dataset.value = datasets.items[0].id;
  for (const each of [dataset, teacher, runtime]) if (each.selectedIndex < 0) each.selectedIndex = 0;
  const ask = h("button", { type: "submit", class: "primary" }, "Find students");
  const complaint = h("p", { class: "bad", role: "alert", hidden: true });
  const status = h("p", { role: "status" });
  const bar = h("progress", { "aria-label": "Search", hidden: true });
  const answer = h("div", { class: "panel" });
  const form = h("form", { class: "card", on: { submit: (/** @type {Event} */ event) => (event.preventDefault(), submit()), change: () => setQuery(Object.fromEntries(FIELDS.map((name) => [name, inputs[name].value]))) } },
    h("div", { class: "fields" }, field("Milliseconds for one image", budget, "From pixels to final boxes."), field("Data set", dataset, "Its images say how large the input is."), field("Teacher", teacher, "Who will teach the student by FGD."),
      field("It will run in", runtime), field("Processor threads", threads), field("Seconds to search", seconds, "More time finds students that use the budget better.")),
    h("div", { class: "actions" }, ask));
  put(root, h("div", { class: "heading" }, h("h1", {}, "Budget")), h("p", { class: "dim" }, "You know how long a detector may take. A worker builds, exports and times untrained students on its own machine, and shows which are large and fast enough."), form, complaint, status, bar, answer);

  async function submit() {
    complaint.hidden = true;
    ask.disabled = true;
    const reference = teacher.value && { [teacher.value.startsWith("job_") ? "job" : "model"]: teacher.value };
    const body = { dataset: dataset.value, ...(reference ? { teacher: reference } : {}), latency_budget_ms: budget.valueAsNumber, runtime: runtime.value, seconds: seconds.valueAsNumber, ...(threads.value ? { threads: threads.valueAsNumber } : {}) };
    try {
      const made = await make("plans", body);
      if (signal.aborted) return;
      [plan, picked, shown] = [made.id, "", null];
      setQuery({ ...Object.fromEntries(FIELDS.map((name) => [name, inputs[name].value])), plan, row: "" });
      put(answer);
      follow();
    } catch (error) {
      if (!signal.aborted) fail(error);
    } finally {
      ask.disabled = false;
    }
  }

  /** @param {unknown} error */
  function fail(error) {
    if (!(error instanceof Problem)) throw error;
    if (error.status === 401 || (error.status === 0 && plan)) return; // the page says so
    complaint.hidden = false;
    const faults = error.errors.filter((each) => each.pointer).map((each) => `${each.pointer.slice(1).replaceAll("_", " ")}: ${each.detail}`);
    write(complaint, error.status === 404 ? "That search is forgotten: plans are kept for seven days. Ask once more." : faults.join("; ") || error.message);
    if (error.status === 404) (bar.hidden = true), write(status, "");
  }

  function follow() {
    round.abort();
    round = new AbortController();
    const mine = round;
    watch({
      path: () => `plans/${encodeURIComponent(plan)}`, every: EVERY_MS, signal: AbortSignal.any([signal, mine.signal]), fail,
      show: (/** @type {any} */ data) => {
        bar.hidden = data.state !== "measuring";
        write(status, data.state !== "measuring" ? "" : data.phase ?? (data.waiting_reason ? `Waits: ${data.waiting_reason}` : "A worker begins …"));
        if (data.state === "measuring") return;
        mine.abort();
        if (data.error) (complaint.hidden = false), write(complaint, `The search failed: ${data.error.message}`);
        else if (!data.students) (complaint.hidden = false), write(complaint, "That plan is of a job, and asked for no student.");
        else (shown = data), showAnswer();
      },
    });
  }

  function showAnswer() {
    const found = shown.students;
    const focused = answer.contains(document.activeElement) ? document.activeElement?.getAttribute("data-row") : null;
    const notes = [`${count(found.timed)} of ${several(found.candidates, "student")} were timed in ${Math.round(found.seconds)} s on ${found.device}, ${found.runtime} with ${several(found.threads, "thread")}.`,
      found.noise > 1.25 && `The machine was busy: slow runs took ${number(found.noise)} times as long as fast ones.`,
      found.trainings_beside > 0 && `${several(found.trainings_beside, "training")} ran beside it.`, ...found.warnings];
    put(answer, h("section", { class: "card" }, h("h2", {}, "Students"), h("p", { class: found.fits ? "" : "warn" }, found.message),
      found.rows.length > 0 && [plot(found), h("p", { class: "dim small" }, "Capacity is the geometric mean of parameters (millions) and GFLOPs, times the share of the largest input. It stands for what a student can learn; only a training shows that: try two or three. The bar spans the 10th to the 90th percentile of the runs.")]),
      found.rows.length > 0 && h("section", { class: "card" }, table(found)),
      h("p", { class: "dim small" }, notes.filter(Boolean).map((each, place) => [place > 0 && " ", each])));
    if (focused) answer.querySelector(`button[data-row="${focused}"]`)?.focus();
  }

  /** The link to a form that is filled in with the row's job. @param {any} row */
  const formOf = (row) => to(["new"], { spec: JSON.stringify(row.spec) });

  /** @param {any} found */
  function plot({ rows, latency_budget_ms: limit, teacher: timed }) {
    const times = rows.flatMap((/** @type {any} */ row) => [row.latency.p10_ms, row.latency.p90_ms, row.latency.median_ms]);
    const teachers = timed?.latency ? [timed.latency.median_ms] : [];
    const all = [...times, limit, ...teachers];
    const spread = Math.max(...all) / Math.min(...all) > 8;
    const room = spread ? [Math.min(...all) / 1.15, Math.max(...all) * 1.15] : [0, Math.max(...all) * 1.08];
    const x = scale(/** @type {[number, number]} */ (room), PAD.left, WIDTH - PAD.right, spread);
    const y = scale([0, Math.max(...rows.map((/** @type {any} */ row) => row.capacity)) * 1.12], HEIGHT - PAD.bottom, PAD.top, false);
    const bottom = HEIGHT - PAD.bottom;
    return h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Plot of students" }, svg("svg", { class: "pareto", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": `Latency against capacity of ${several(rows.length, "student")}; the budget is ${number(limit)} ms` },
      svg("rect", { class: "within", x: PAD.left, y: PAD.top, width: Math.max(0, x.to_px(limit) - PAD.left), height: bottom - PAD.top }),
      (spread ? logTicks(x.from, x.to) : ticks(x.from, x.to, 6)).map((value) => [svg("line", { class: "grid", x1: x.to_px(value), x2: x.to_px(value), y1: PAD.top, y2: bottom }), svg("text", { x: x.to_px(value), y: bottom + 15, "text-anchor": "middle" }, number(value))]),
      ticks(y.from, y.to, 5).map((value) => [svg("line", { class: "grid", x1: PAD.left, x2: WIDTH - PAD.right, y1: y.to_px(value), y2: y.to_px(value) }), svg("text", { x: PAD.left - 6, y: y.to_px(value) + 4, "text-anchor": "end" }, number(value))]),
      svg("text", { x: (PAD.left + WIDTH - PAD.right) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, "milliseconds for one image"),
      svg("text", { transform: `translate(14 ${(PAD.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, "capacity"),
      svg("line", { class: "limit", x1: x.to_px(limit), x2: x.to_px(limit), y1: PAD.top, y2: bottom }), svg("text", { class: "limit", x: x.to_px(limit) - 4, y: PAD.top + 11, "text-anchor": "end" }, `${number(limit)} ms`),
      teachers.map((ms) => [svg("line", { class: "teacher", x1: x.to_px(ms), x2: x.to_px(ms), y1: PAD.top, y2: bottom }), svg("text", { class: "teacher", x: x.to_px(ms) - 4, y: bottom - 6, "text-anchor": "end" }, "teacher")]),
      rows.map((/** @type {any} */ row, /** @type {number} */ place) => {
        const { median_ms: ms, p10_ms: low, p90_ms: high } = row.latency;
        return svg("a", { href: formOf(row), class: `candidate ${row.verdict}${picked === String(place) ? " picked" : ""}`, "aria-label": `${place + 1}. ${row.title}: ${number(ms)} ms, capacity ${number(row.capacity)}, ${WORDS[row.verdict]}; make the job`, on: { click: () => choose(place), mouseenter: () => mark(place, true), mouseleave: () => mark(place, false), focus: () => mark(place, true), blur: () => mark(place, false) } },
          svg("title", {}, `${row.title}: ${number(ms)} ms`), svg("line", { x1: x.to_px(low), x2: x.to_px(high), y1: y.to_px(row.capacity), y2: y.to_px(row.capacity) }),
          svg("circle", { cx: x.to_px(ms), cy: y.to_px(row.capacity), r: 9 }), svg("text", { x: x.to_px(ms), y: y.to_px(row.capacity) + 4, "text-anchor": "middle" }, place + 1));
      })));
  }

  /** The row of the table that belongs to a point. @param {number} place @param {boolean} on */
  function mark(place, on) {
    answer.querySelector(`tr[data-row="${place}"]`)?.classList.toggle("marked", on);
  }

  /** @param {any} found */
  function table({ rows, teacher: timed }) {
    const head = ["#", "Student", "Input", "ms", "10th to 90th", "", "Capacity", "Parameters", "GFLOPs", "MB", "Small box", "Levels taught", ""];
    return h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Table of students" }, h("table", {},
      h("thead", {}, h("tr", {}, head.map((each, place) => h("th", { scope: "col", class: place > 2 && place !== 5 ? "number" : null }, each || h("span", { class: "unseen" }, place === 5 ? "Within the budget" : "Job"))))),
      h("tbody", {}, rows.map((/** @type {any} */ row, /** @type {number} */ place) => h("tr", { data: { row: place }, "aria-current": picked === String(place) ? "true" : null },
        h("td", {}, place + 1), h("th", { scope: "row" }, named(row.title)), h("td", {}, `${row.input[0]}×${row.input[1]}`), h("td", { class: "number" }, number(row.latency.median_ms)), h("td", { class: "number dim" }, `${number(row.latency.p10_ms)}–${number(row.latency.p90_ms)}`),
        h("td", {}, h("span", { class: { fits: "good", tight: "warn", over: "bad" }[row.verdict] }, WORDS[row.verdict])), h("td", { class: "number" }, number(row.capacity)), h("td", { class: "number" }, `${number(row.parameters / 1e6)} M`), h("td", { class: "number" }, number(row.gflops)), h("td", { class: "number" }, number(row.mb)),
        h("td", { class: "number" }, row.small_box_px === null ? NONE : `${number(row.small_box_px)} px`), h("td", { class: "number" }, row.levels_shared === null ? NONE : `${row.levels_shared} of ${row.levels}`),
        h("td", { class: "number" }, h("a", { class: "button", href: formOf(row), "aria-label": `Make the job of ${row.title}`, on: { click: () => choose(place) } }, "Make the job")))),
      timed && h("tr", {}, h("td", {}), h("th", { scope: "row" }, "teacher: ", named(timed.title)), h("td", {}, `${timed.input[0]}×${timed.input[1]}`), h("td", { class: "number" }, timed.latency ? number(timed.latency.median_ms) : NONE), h("td", { class: "number dim" }, timed.latency ? `${number(timed.latency.p10_ms)}–${number(timed.latency.p90_ms)}` : ""), h("td", { colspan: 2 }), h("td", { class: "number" }, `${number(timed.parameters / 1e6)} M`), h("td", { colspan: 5 })))));
  }

  /** On the way back the row is marked. @param {number} place */
  function choose(place) {
    picked = String(place);
    setQuery({ row: picked });
  }

  if (/^plan_[0-9a-f]{32}$/.test(plan)) follow();
}

/** @param {string} label @param {any} input @param {string} [help] */
function field(label, input, help = "") {
  const id = `help-${input.name}`;
  if (help) input.setAttribute("aria-describedby", id);
  return h("div", { class: "field" }, h("label", { for: (input.id = `ask-${input.name}`) }, label), input, help && h("small", { class: "dim", id }, help));
}
