/** @file What the student finds of each class and size, beside its teacher and its control. */

import { get } from "../../api.js";
import { FIGURES } from "../../curves.js";
import { button, h, named, put } from "../../elements.js";
import { ap, gain, several } from "../../format.js";
import { scoresOf } from "./curves.js";

const FEW = 50;

/** @param {import("../job.js").Tab} tab */
export async function show({ root, id, job, line, feed, signal }) {
  const teacher = await scoresOf(line().teachers[0], job, signal);
  let all = false;
  let falling = false;
  const split = h("span", { class: "dim" });
  const table = h("table", {});
  const more = h("div", { class: "bar" });
  put(root, h("section", { class: "card" }, h("div", { class: "bar" }, h("h2", {}, "Average precision"), split), h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Average precision by class and size" }, table), more));

  async function load() {
    const control = line().control;
    const [mine, theirs] = await Promise.all([evaluations(id, signal), control ? evaluations(control, signal).catch(() => new Map()) : new Map()]);
    const last = Math.min(...[mine, theirs].filter((each) => each.size).map((each) => Math.max(...each.keys())));
    draw(at(mine, last), at(theirs, last), last);
  }

  /** Both after the same step. @param {Record<string, number | null>} mine @param {Record<string, number | null>} theirs @param {number} step */
  function draw(mine, theirs, step) {
    const columns = { teacher: Object.keys(teacher).length > 0, control: Object.keys(theirs).length > 0 };
    split.textContent = Object.keys(mine).length ? `on the validation images, after step ${step.toLocaleString("en")}` : "nothing has been evaluated yet";
    const difference = (/** @type {string} */ name) => (mine[name] ?? null) === null || (theirs[name] ?? null) === null ? null : mine[name] - theirs[name];
    const classes = Object.keys(mine).filter((name) => name.startsWith("ap/"));
    if (columns.control) classes.sort((a, b) => ((difference(a) ?? Infinity) - (difference(b) ?? Infinity)) * (falling ? -1 : 1));
    else classes.sort((a, b) => ((mine[a] ?? Infinity) - (mine[b] ?? Infinity)) * (falling ? -1 : 1));
    const turn = button([columns.control ? "Gain" : "AP", falling ? " ↓" : " ↑"], () => ((falling = !falling), draw(mine, theirs, step)));
    const head = h("thead", {}, h("tr", {}, h("th", {}, "Of"), columns.teacher && h("th", { class: "number" }, "Teacher"), columns.control && h("th", { class: "number" }, "Control"),
      columns.control ? [h("th", { class: "number" }, line().methods.length ? "Student" : "This job"), h("th", { class: "number", "aria-sort": falling ? "descending" : "ascending" }, turn)] : h("th", { class: "number", "aria-sort": falling ? "descending" : "ascending" }, turn)));
    const row = (/** @type {string} */ name, /** @type {any} */ title) => {
      const by = difference(name);
      return h("tr", {}, h("th", { scope: "row" }, title), columns.teacher && h("td", { class: "number" }, ap(teacher[name])), columns.control && h("td", { class: "number" }, ap(theirs[name])),
        h("td", { class: "number" }, ap(mine[name])), columns.control && h("td", { class: `number ${by === null ? "" : by < 0 ? "bad" : "good"}` }, gain(by)));
    };
    const shown = all ? classes : classes.slice(0, FEW);
    put(table, head, h("tbody", {}, Object.entries(FIGURES).filter(([name]) => name in mine).map(([name, title]) => row(name, title))),
      h("tbody", {}, shown.map((name) => row(name, named(name.slice("ap/".length))))));
    put(more, classes.length > shown.length && button(`Show all ${several(classes.length, "class")}`.replace(/classs$/, "classes"), () => ((all = true), draw(mine, theirs, step))));
  }

  feed.addEventListener("event", (/** @type {any} */ event) => event.detail.type === "evaluated" && load(), { signal });
  await load();
}

/** @typedef {Map<number, Record<string, number | null>>} Evaluations by step: the figures by name */

/** Those on the validation images. @param {string} job @param {AbortSignal} signal @returns {Promise<Evaluations>} */
async function evaluations(job, signal) {
  const { items } = await get(`jobs/${job}/metrics?split=val`, { signal });
  /** @type {Evaluations} */
  const found = new Map();
  for (const { name, step, value } of items) found.set(step, Object.assign(found.get(step) ?? {}, { [name]: value }));
  return found;
}

/** The last one up to a step. @param {Evaluations} of @param {number} step @returns {Record<string, number | null>} */
function at(of, step) {
  const steps = [...of.keys()].filter((each) => each <= step);
  return (steps.length && of.get(Math.max(...steps))) || {};
}
