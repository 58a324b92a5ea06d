/** @file A job's curves: its AP beside the control's and the teacher's, and every other number that it reports. */

import { get } from "../../api.js";
import { chart, TERMS } from "../../charts.js";
import { add, addProgress, curvesOf, FIGURES, GROUPS, groupOf } from "../../curves.js";
import { h, put, write } from "../../elements.js";
import { ENDED, waits } from "../../jobs.js";

/** @param {import("../job.js").Tab} tab */
export async function show({ root, id, job, line, feed, events, signal, query, setQuery }) {
  const how = { figure: query.get("figure") ?? "ap", group: query.get("group") ?? "loss", smooth: Number(query.get("smooth")) || 0, log: query.has("log") };
  const score = chart({ name: "Average precision on the validation images, by step", zoomed: (range) => load(range, "score") });
  const rest = chart({ name: "What the training reports, by step", zoomed: (range) => load(range, "rest") });

  const figure = choice("Figure", FIGURES, how.figure, (value) => change({ figure: value }));
  const group = h("select", { on: { change: () => change({ group: group.value }) } });
  const smooth = h("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: how.smooth, on: { input: () => change({ smooth: Number(smooth.value) }) } });
  const log = h("input", { type: "checkbox", props: { checked: how.log }, on: { change: () => change({ log: log.checked }) } });
  const noScore = h("p", { class: "dim", role: "status", hidden: true });
  const noStep = h("p", { class: "dim", role: "status", hidden: true });
  put(root,
    h("section", { class: "card" }, h("div", { class: "bar" }, h("h2", {}, "On the validation images"), figure), noScore, score.element),
    h("section", { class: "card" },
      h("div", { class: "bar" }, h("h2", {}, "In training"), h("label", { class: "inline" }, "Show", group), h("label", { class: "inline" }, "Smooth", smooth), h("label", { class: "inline" }, log, "Logarithmic")),
      noStep, rest.element),
    h("p", { class: "dim" }, "Drag over a chart to see a part of it; a double click, “Show all” or the - key shows all again. Arrow keys move the crosshair, + looks closer."));

  /** @type {Record<"score" | "rest", {student: Map<string, any>, control: Map<string, any>}>} */
  const data = { score: { student: new Map(), control: new Map() }, rest: { student: new Map(), control: new Map() } };
  /** @type {Record<string, number | null>[]} */
  let teachers = [];

  /** @param {Partial<typeof how>} changes */
  function change(changes) {
    Object.assign(how, changes);
    setQuery({ figure: how.figure === "ap" ? "" : how.figure, group: how.group === "loss" ? "" : how.group, smooth: how.smooth || "", log: how.log });
    draw();
  }

  function draw() {
    const name = how.figure;
    const student = data.score.student.get(`val/${name}`);
    const control = data.score.control.get(`val/${name}`);
    const taught = line().methods.length > 0;
    const known = teachers.map((each) => each[name] ?? null).filter((each) => each !== null);
    const levels = known.length || name !== "ap50" ? known : checked();
    score.show([
      student && { ...student, key: "student", name: taught ? "student" : "this job", color: "--student", dots: true },
      control && { ...control, key: "control", name: "control", color: "--control", dots: true, dashed: true },
      ...levels.map((level, place) => ({ key: `teacher ${place}`, name: levels.length > 1 ? `teacher ${place + 1}` : "teacher", color: "--teacher", flat: true, x: [], y: [level] })),
    ].filter(Boolean));
    noScore.hidden = [...data.score.student.values()].some((each) => each.split === "val");
    const every = job.spec.schedule.evaluate_every ?? 1;
    write(noScore, ENDED.includes(line().state) ? "Nothing was evaluated." : `Nothing is evaluated yet. The first point comes after epoch ${Math.min(every, line().epochs ?? every)}.`);
    const names = [...data.rest.student.values()].filter((each) => each.split === "train");
    noStep.hidden = names.length > 0;
    write(noStep, `No step is reported yet. ${waits(line())}`);
    const groups = [...new Set(names.map((each) => groupOf(each.name)))];
    if (!groups.includes(how.group) && groups.length) how.group = groups[0];
    if (group.dataset.known !== groups.join()) {
      group.dataset.known = groups.join();
      put(group, groups.map((each) => h("option", { value: each }, GROUPS[each] ?? each)));
    }
    group.value = how.group;
    const chosen = names.filter((each) => groupOf(each.name) === how.group);
    const theirs = data.rest.control.get("train/loss/detection");
    rest.show([
      ...chosen.map((each, place) => ({ key: each.name, name: each.name.replace(/^loss\//, ""), color: TERMS[place % TERMS.length], dotted: place >= TERMS.length, x: each.x, y: each.y })),
      ...(how.group === "loss" && theirs ? [{ key: "control", name: "detection, of the control", color: "--control", dashed: true, x: theirs.x, y: theirs.y }] : []),
    ], { log: how.log, smooth: how.smooth });
  }

  /** Of teachers, on this job's own images, as its trainer measured it. */
  const checked = () => events.filter((event) => event.type === "note:teacher_checked").map((event) => event.data.data?.ap50).filter((ap50) => typeof ap50 === "number").slice(-1);

  /** Reads the curves, of all steps or of a part. @param {[number, number] | null} range @param {"score" | "rest" | "both"} which */
  async function load(range, which) {
    const control = line().control;
    const [student, other] = await Promise.all([curvesOf(id, { signal, range }), control ? beside(control, range).catch(() => new Map()) : new Map()]);
    for (const each of /** @type {const} */ (["score", "rest"])) if (which === each || which === "both") data[each] = { student, control: other };
    if (!range) for (const event of events) hear(event); // what came while they were read
    draw();
  }

  /** What is drawn of a control. @param {string} control @param {[number, number] | null} range */
  async function beside(control, range) {
    const both = await Promise.all([curvesOf(control, { signal, range, split: "val" }), curvesOf(control, { signal, range, split: "train", name: "loss/detection" })]);
    return new Map(both.flatMap((each) => [...each]));
  }

  /** @param {any} event */
  function hear({ type, data: told }) {
    if (type === "evaluated" && !score.zoom) for (const [name, value] of Object.entries(told.values)) add(data.score.student, told.split, name, told.step, value);
  }

  feed.addEventListener("progress", (/** @type {any} */ event) => {
    if (event.detail.progress && !rest.zoom) (addProgress(data.rest.student, event.detail.progress), draw());
  }, { signal });
  feed.addEventListener("event", (/** @type {any} */ event) => {
    const { type, data: told } = event.detail;
    hear(event.detail);
    if (type === "started" && told.steps_lost > 0) load(score.zoom, "both"); // steps that are done again are no more
    if (type === "evaluated" || type === "note:teacher_checked") draw();
  }, { signal });

  feed.addEventListener("changed", draw, { signal });

  await load(null, "both");
  teachers = await Promise.all(line().teachers.map((teacher) => scoresOf(teacher, job, signal)));
  draw();
}

/** What a teacher that is a job scored at its end, if that was on the same data. @param {string | undefined} teacher @param {any} job @param {AbortSignal} signal @returns {Promise<Record<string, number | null>>} */
export async function scoresOf(teacher, job, signal) {
  if (!teacher?.startsWith("job_")) return {};
  try {
    const [of, latest] = await Promise.all([get(`jobs/${teacher}`, { signal }), get(`jobs/${teacher}/metrics/latest`, { signal })]);
    if (of.spec.dataset !== job.spec.dataset) return {};
    return Object.fromEntries(latest.items.filter((/** @type {any} */ point) => point.split === "val").map((/** @type {any} */ point) => [point.name, point.value]));
  } catch (error) {
    if (signal.aborted || error.status === undefined) throw error;
    return {}; // it was deleted
  }
}

/** @param {string} label @param {Record<string, string>} options @param {string} value @param {(value: string) => void} chosen */
function choice(label, options, value, chosen) {
  const select = h("select", { on: { change: () => chosen(select.value) } }, Object.entries(options).map(([key, text]) => h("option", { value: key, selected: key === value }, text)));
  return h("label", { class: "inline" }, label, select);
}
