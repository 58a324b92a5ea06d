/** @file Several jobs beside each other: their curves in one chart, their figures in one table. */

import { get, query as address } from "../api.js";
import { chart, TERMS } from "../charts.js";
import { curvesOf, FIGURES, GROUPS, groupOf } from "../curves.js";
import { button, h, named, put } from "../elements.js";
import { ap, gain } from "../format.js";
import { link, recipe } from "../jobs.js";

const MOST = 12;
const EVERY_MS = 5000;

/** @param {import("../router.js").View} view */
export async function show({ root, query, signal, setQuery }) {
  const wanted = [...new Set(query.getAll("id").filter((id) => /^job_[0-9a-f]{32}$/.test(id)))];
  let ids = wanted.slice(0, MOST);
  const how = { metric: query.get("metric") ?? "val/ap", smooth: Number(query.get("smooth")) || 0, log: query.has("log") };
  const plot = chart({ name: "Chosen jobs, by step", height: 340, zoomed: (range) => load(range) });
  const metric = h("select", { on: { change: () => change({ metric: metric.value }) } });
  const smooth = h("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: how.smooth, on: { input: () => change({ smooth: Number(smooth.value) }) } });
  const log = h("input", { type: "checkbox", props: { checked: how.log }, on: { change: () => change({ log: log.checked }) } });
  const table = h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Figures" });
  put(root, h("div", { class: "heading" }, h("a", { href: "#/jobs" }, "‹ Jobs"), h("h1", {}, "Compare"), wanted.length > MOST && h("p", { class: "warn", role: "status" }, `The first ${MOST} of ${wanted.length} chosen jobs are compared.`)),
    h("section", { class: "card" }, h("div", { class: "bar" }, h("label", { class: "inline" }, "Show", metric), h("label", { class: "inline" }, "Smooth", smooth), h("label", { class: "inline" }, log, "Logarithmic")), plot.element),
    h("section", { class: "card" }, table));
  if (!ids.length) return put(root, h("h1", {}, "Compare"), h("p", {}, "Choose two jobs or more in the ", h("a", { href: "#/jobs" }, "table of jobs"), "."));

  /** @type {import("../jobs.js").Summary[]} */
  let lines = [];
  /** @type {Map<string, Map<string, import("../curves.js").Series>>} */
  const curves = new Map();

  /** @param {Partial<typeof how>} changes */
  function change(changes) {
    Object.assign(how, changes);
    setQuery({ id: ids, metric: how.metric === "val/ap" ? "" : how.metric, smooth: how.smooth || "", log: how.log });
    draw();
  }

  function draw() {
    const names = [...new Set([...curves.values()].flatMap((each) => [...each.keys()]))].filter((key) => !key.includes("/ap/")).sort();
    if (metric.dataset.known !== names.join()) {
      metric.dataset.known = names.join();
      put(metric, names.map((key) => h("option", { value: key }, titled(key))));
    }
    metric.value = how.metric;
    plot.show(lines.flatMap((job, place) => {
      const series = curves.get(job.id)?.get(how.metric);
      return series ? [{ key: job.id, name: job.name, color: TERMS[place % TERMS.length], dashed: place >= TERMS.length, dots: !how.metric.startsWith("train/"), x: series.x, y: series.y }] : [];
    }), { log: how.log, smooth: how.metric.startsWith("train/") ? how.smooth : 0 });
    put(table, h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, "Job"), h("th", {}, "State"), h("th", { class: "number" }, "AP"), h("th", { class: "number" }, "Gain"), h("th", {}, h("span", { class: "unseen" }, "Leave out")))),
      h("tbody", {}, lines.map((job) => h("tr", {}, h("td", {}, link(job), h("div", { class: "dim" }, recipe(job), " · ", named(job.dataset_name))), h("td", {}, h("span", { class: `state ${job.state}` }, job.state)),
        h("td", { class: "number" }, ap(job.ap)), h("td", { class: `number ${job.gain === null ? "" : job.gain < 0 ? "bad" : "good"}` }, gain(job.gain)),
        h("td", { class: "number" }, button("×", () => ((ids = ids.filter((id) => id !== job.id)), (lines = lines.filter((each) => each !== job)), change({})), { class: "quiet", "aria-label": `Leave out ${job.name}` })))))));
  }

  /** @param {[number, number] | null} range */
  async function load(range) {
    const [found, ...read] = await Promise.all([get(`summaries${address({ id: ids })}`, { signal }), ...ids.map((id) => curvesOf(id, { signal, range }).catch((error) => (error.status ? new Map() : Promise.reject(error))))]);
    ids.forEach((id, place) => curves.set(id, read[place]));
    lines = ids.flatMap((id) => found.items.filter((/** @type {any} */ each) => each.id === id));
    draw();
  }

  await load(null);
  const timer = setInterval(() => !document.hidden && !plot.zoom && lines.some((job) => job.state === "running") && load(null).catch(() => {}), EVERY_MS);
  signal.addEventListener("abort", () => clearInterval(timer));
}

/** @param {string} key "split/name" */
function titled(key) {
  const [split, name] = key.split(/\/(.*)/s);
  if (split !== "train") return `${FIGURES[name] ?? name} (${split})`;
  const group = GROUPS[groupOf(name)];
  return group && groupOf(name) !== name ? `${group}: ${name.split(/\/(.*)/s)[1]}` : group ?? name;
}
