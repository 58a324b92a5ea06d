/** @file One study: its leaderboard, with intervals drawn on one scale, and its jobs. */

import { get, watch } from "../api.js";
import { button, h, named, put, unseen, write } from "../elements.js";
import { ap, count, duration, gain, moment, NONE, several } from "../format.js";
import { namesOf } from "../jobs.js";
import { to } from "../router.js";
import { act, ACTIONS, axis, bounds, common, drawing, extend, progress, verdict } from "../studies.js";

const EVERY_MS = 3000;
const MOST_COMPARED = 12;
/** What the rows are sorted by; the greatest first. @type {Record<string, {title: string, of: ((row: any) => number | null) | null}>} */
const ORDERS = {
  "": { title: "the study's order", of: null },
  ap: { title: "AP", of: (row) => row.ap },
  difference: { title: "difference", of: (row) => row.difference?.value ?? null },
};

/** @param {import("../router.js").View} view */
export async function show({ root, params, query, signal, setQuery, setTitle }) {
  const path = `studies/${encodeURIComponent(params.id)}`;
  /** @type {import("../studies.js").Study} */
  let study = await get(path, { signal });
  /** @type {any} */
  let board = null;
  /** @type {Map<string, string> | null} of teachers */
  let names = null;
  const wanted = { split: query.get("split") === "test" ? "test" : "val", sort: ORDERS[query.get("sort") ?? ""] ? query.get("sort") ?? "" : "" };
  setTitle(study.name);

  const title = h("h1", {}, named(study.name));
  const state = h("span", { class: "state" });
  const actions = h("div", { class: "actions" });
  const bar = h("progress", { max: 1, "aria-label": "Jobs that have succeeded" });
  const facts = h("dl", { class: "facts" });
  const complaint = h("p", { class: "bad", role: "alert", hidden: true });
  const split = h("select", { on: { change: () => change({ split: split.value }) } }, h("option", { value: "val" }, "validation"), h("option", { value: "test" }, "test"));
  const sort = h("select", { on: { change: () => change({ sort: sort.value }) } }, Object.entries(ORDERS).map(([value, order]) => h("option", { value }, order.title)));
  [split.value, sort.value] = [wanted.split, wanted.sort];
  const pending = h("p", { class: "dim", role: "status" });
  const table = h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Leaderboard" });
  put(root, h("div", { class: "heading" }, h("a", { href: "#/studies" }, "‹ Studies"), title, state, actions), complaint,
    h("div", { class: "card" }, bar, facts),
    h("section", { class: "card" }, h("div", { class: "bar" }, h("h2", {}, "Leaderboard"), h("label", { class: "inline" }, "Images", split), h("label", { class: "inline" }, "Order", sort)), pending, table,
      h("p", { class: "dim small" }, "A difference is the mean of pairs of jobs with the same seed, in AP points. Thick: its 95 % interval over seeds. Thin: over seeds and images, which is wider: with other images it would have been another one too. An interval that spans zero may be chance.")));

  let shownActions = "";
  function showStudy() {
    write(title.firstChild, study.name);
    state.className = `state ${study.state}`;
    write(state, study.state);
    bar.value = study.jobs.total ? study.jobs.succeeded / study.jobs.total : 0;
    const open = Object.entries(ACTIONS).filter(([, action]) => action.when(study));
    const key = open.map(([name]) => name).join();
    if (key !== shownActions || !actions.firstChild) {
      shownActions = key;
      put(actions, open.map(([name, action]) => button(action.word, () => asked(name), { class: action.sure ? "danger" : null })), button("Add seeds …", async () => (await extend(study)) && again()), h("a", { class: "button", href: to(["studies", "new"], { copy: study.id }) }, "Copy …"));
    }
    put(facts, fact("Jobs", progress(study)), fact("Arms", several(study.arms.length, "arm")), fact("Students", study.students.map((each, place) => [place > 0 && ", ", named(each.name)])),
      fact("Seeds", study.seeds.slice(0, 12).join(", ") + (study.seeds.length > 12 ? ` and ${study.seeds.length - 12} more` : "")), fact("Created", moment(study.created_at)), study.finished_at && fact("Ended", moment(study.finished_at)),
      board?.teachers.map((/** @type {any} */ each) => fact("Teacher", [each.teacher?.job ? h("a", { href: to(["jobs", each.teacher.job]) }, names?.has(each.teacher.job) ? named(names.get(each.teacher.job)) : `${each.teacher.job.slice(0, 12)}…`) : named(each.teacher?.model ?? "torchvision's"), each.ap === null ? h("span", { class: "dim" }, " AP not known") : ` AP ${ap(each.ap)}`])));
  }

  /** @param {string} name */
  async function asked(name) {
    if (!(await act(name, study))) return;
    if (name === "delete") location.hash = "#/studies";
    else again();
  }

  function showBoard() {
    const by = ORDERS[wanted.sort].of;
    const rows = by ? [...board.rows].sort((a, b) => (by(b) ?? -Infinity) - (by(a) ?? -Infinity) || 0) : board.rows;
    const scale = common(rows.flatMap((/** @type {any} */ row) => [row.difference, row.difference_over_images]));
    const focused = table.contains(document.activeElement) ? document.activeElement?.getAttribute("href") : null;
    write(pending, board.pending ? `Intervals over images are being worked out: ${several(board.pending, "run")} to go.` : "");
    pending.hidden = !board.pending;
    put(table, h("table", { class: "leaderboard" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Arm"), h("th", { scope: "col", class: "number" }, "AP"), h("th", { scope: "col" }, "Difference", h("span", { class: "dim" }, " AP points"), axis(scale)), h("th", { scope: "col", class: "number", title: "Of the gap between control and teacher" }, "Gap closed"),
        h("th", { scope: "col", class: "number", title: "Share of the control's steps after which its final AP was reached" }, "Steps to control's AP"), h("th", { scope: "col", class: "number" }, "Time a run"), h("th", { scope: "col" }, "Jobs"))),
      h("tbody", {}, rows.map((/** @type {any} */ row) => line(row, scale)))));
    if (focused) [...table.querySelectorAll("a")].find((each) => each.getAttribute("href") === focused)?.focus();
  }

  /** @param {any} row @param {ReturnType<typeof common>} scale */
  function line(row, scale) {
    const jobs = row.runs.flatMap((/** @type {any} */ run) => run.job ?? []);
    const others = board.rows.filter((/** @type {any} */ each) => each.arm === row.against && each.student === row.student).flatMap((/** @type {any} */ each) => each.runs.flatMap((/** @type {any} */ run) => run.job ?? []));
    const together = [...jobs, ...others].slice(0, MOST_COMPARED);
    return h("tr", {}, h("th", { scope: "row" }, named(row.arm), h("div", { class: "dim small" }, named(row.student))),
      h("td", { class: "number" }, ap(row.ap), h("div", { class: "dim small" }, `${row.succeeded} of ${several(row.runs.length, "run")}`)),
      h("td", { class: "difference" }, row.against === null ? h("span", { class: "dim" }, "the others are compared with it") : row.difference === null ? h("span", { class: "dim" }, "no pair of runs has ended") : [
        drawing(scale, row.difference, row.difference_over_images),
        h("div", { class: "small" }, h("strong", { class: verdict(row.difference) }, gain(row.difference.value)), bounds(row.difference) ? ` (${bounds(row.difference)})` : h("span", { class: "dim" }, " one seed has no interval"), " ", h("span", { class: "dim" }, "against ", named(row.against))),
        row.difference_over_images ? h("div", { class: "small dim" }, `over images ${bounds(row.difference_over_images)}`) : row.images_reason && h("div", { class: "small dim" }, row.images_reason)]),
      h("td", { class: "number" }, row.gap_closed === null ? NONE : `${Math.round(100 * row.gap_closed.value)} %`),
      h("td", { class: "number" }, row.against === null || row.quality?.steps_ratio == null ? NONE : `${Math.round(100 * row.quality.steps_ratio)} %`, row.against !== null && row.quality && h("div", { class: "dim small" }, `${row.quality.reached} of ${count(row.quality.runs)} reached it`)),
      h("td", { class: "number" }, duration(row.device_seconds)),
      h("td", {}, h("div", { class: "runs" }, row.runs.map(run), together.length > 1 && h("a", { class: "small", href: to(["compare"], { id: together }), "aria-label": `Curves of ${row.arm}, ${row.student}` }, "curves"))));
  }

  /** @param {any} run */
  function run({ seed, job, state: of, ap: value, failure, step, total_steps: total }) {
    const text = [h("span", { class: `state ${of ?? ""}` }, `seed ${seed}`), " ", h("span", { class: "dim" }, of === "succeeded" ? ap(value) : of === "running" && total ? `${Math.floor((100 * (step ?? 0)) / total)} %` : failure?.replaceAll("_", " ") ?? of ?? "deleted"), of && unseen(` ${of}`)];
    return job ? h("a", { href: to(["jobs", job]), class: "run" }, text) : h("span", { class: "run" }, text);
  }

  /** @param {any} problem */
  function fail(problem) {
    if (problem.status === 0) return; // the page says so
    complaint.hidden = false;
    write(complaint, problem.message);
  }

  showStudy();
  const looks = [
    watch({ path: () => path, every: EVERY_MS, signal, fail, show: (data) => ((study = data), (complaint.hidden = true), showStudy()) }),
    watch({ path: () => `${path}/leaderboard?split=${wanted.split}`, every: EVERY_MS, signal, fail, show: (data) => ((board = data), showBoard(), showStudy(), names ?? nameTeachers()) }),
  ];
  async function nameTeachers() {
    names = new Map(); // they are asked for once
    names = await namesOf(board.teachers.map((/** @type {any} */ each) => each.teacher?.job).filter(Boolean), signal);
    if (!signal.aborted) showStudy();
  }
  const again = () => looks.forEach((look) => look());

  /** @param {Partial<typeof wanted>} changes */
  function change(changes) {
    Object.assign(wanted, changes);
    setQuery({ split: wanted.split === "val" ? "" : wanted.split, sort: wanted.sort });
    if (changes.sort !== undefined && board) showBoard();
    else again();
  }
}

/** @param {string} name @param {any} value */
function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}
