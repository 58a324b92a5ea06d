/** @file One data set: its import, classes, box sizes, pictures with their boxes, and what was wrong with it. */

import { ask, get, query as address, watch } from "../api.js";
import { remove, rename, stateOf, uploadLine } from "../datasets.js";
import { button, h, isolated, named, put, sentence, svg, write } from "../elements.js";
import { count, moment } from "../format.js";
import { to } from "../router.js";
import { showDefect } from "../defects.js";
import { uploads } from "../uploads.js";

const EVERY_MS = 1500;
const PICTURES = 12;
const CLASSES = 30;
const DEFECTS = 100;
const COLOURS = 7;
const SIZES = { small: "small, below 32² pixels", medium: "medium, below 96² pixels", large: "large" };

/** @param {import("../router.js").View} view */
export async function show({ root, params, query, signal, setQuery, setTitle }) {
  const id = encodeURIComponent(params.id);
  let dataset = await get(`datasets/${id}`, { signal });
  const title = h("h1", {});
  const state = h("span", { class: "state" });
  const actions = h("div", { class: "actions" });
  const notice = h("div", { class: "notice", role: "status", hidden: true });
  const facts = h("dl", { class: "facts" });
  const upload = h("div", {});
  const inside = h("div", { class: "panel" });
  put(root, h("div", { class: "heading" }, h("a", { href: "#/datasets" }, "‹ Data sets"), title, state, actions), notice, h("div", { class: "card" }, upload, facts), inside);

  let filled = "";
  function refresh() {
    setTitle(dataset.name);
    put(title, named(dataset.name));
    state.className = `state ${dataset.state === "verifying" ? "running" : dataset.state === "awaiting_upload" ? "queued" : dataset.state}`;
    write(state, stateOf(dataset));
    notice.hidden = !dataset.error;
    write(notice, dataset.error ?? "");
    put(facts, fact("Format", dataset.format === "auto" ? "found by its content" : dataset.format), fact("Source", dataset.path ? named(dataset.path) : "an upload"), fact("Created", moment(dataset.created_at)), fact("Imported", moment(dataset.finished_at)), fact("Id", h("code", {}, dataset.id)));
    const key = `${dataset.state} ${dataset.version}`;
    if (key !== filled) {
      filled = key;
      put(actions, dataset.state === "ready" && h("a", { class: "button", href: to(["new"], { dataset: dataset.id }) }, "Train on it …"), button("Rename …", async () => (await rename(dataset)) && look()), button("Delete …", async () => (await remove(dataset)) && (location.hash = "#/datasets"), { class: "danger" }));
      if (dataset.state === "ready" || dataset.state === "rejected") fill();
    }
    showUpload();
  }

  function showUpload() {
    const focused = upload.contains(document.activeElement);
    put(upload, dataset.state === "awaiting_upload" ? uploadLine(dataset) : dataset.state === "verifying" ? h("p", { class: "dim" }, "A worker reads every image and box. This page shows when it is done.") : null);
    if (focused) upload.querySelector("button")?.focus();
  }
  uploads.addEventListener("changed", () => (write(state, stateOf(dataset)), showUpload()), { signal });

  let shownState = "";
  async function fill() {
    if (shownState === dataset.state) return; // renamed: its content is the same
    shownState = dataset.state;
    const report = await get(`datasets/${id}/report`, { signal }).catch((error) => (dataset.state === "rejected" ? null : Promise.reject(error)));
    if (signal.aborted) return;
    put(inside, dataset.state === "ready" ? [pictures(dataset, report.defects, query, setQuery, signal), h("div", { class: "columns" }, classes(report), sizes(report))] : null, report ? [h("div", { class: "columns" }, splits(report)), defects(dataset, report, query, setQuery, signal)] : null);
  }

  const look = watch({ path: () => `datasets/${id}`, every: EVERY_MS, signal, show: (data) => ((dataset = data), refresh()), fail: (problem) => problem.status === 404 && (put(inside), (notice.hidden = false), write(notice, problem.message)) });
  refresh();
}

/** @param {string} name @param {any} value */
function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}

/** @param {string} title @param {...any} inside */
function card(title, ...inside) {
  return h("section", { class: "card", "aria-label": title }, h("h2", {}, title), inside);
}

/**
 * Bars with their numbers, in one table.
 * @param {{name: any, values: number[]}[]} rows @param {string[]} columns
 */
function bars(rows, columns) {
  const most = Math.max(1, ...rows.flatMap((row) => row.values));
  return h("table", { class: "bars" },
    h("thead", {}, h("tr", {}, h("th", {}, h("span", { class: "unseen" }, "What")), columns.map((each) => h("th", {}, each)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, h("th", { scope: "row" }, row.name), row.values.map((value) => h("td", {},
      svg("svg", { class: "bar-of", "aria-hidden": "true" }, svg("rect", { width: `${(100 * value) / most}%`, height: "100%", rx: 2 })), h("span", { class: "small" }, count(value))))))));
}

/** @param {any} report */
function classes(report) {
  const names = Object.keys(report.splits);
  const all = report.classes.map((/** @type {string} */ name) => ({ name: named(name), values: names.map((split) => report.splits[split].boxes_per_class[name] ?? 0) }))
    .sort((/** @type {any} */ a, /** @type {any} */ b) => sum(b.values) - sum(a.values));
  const place = h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Boxes of each class" }, bars(all.slice(0, CLASSES), names));
  const more = all.length > CLASSES && button(`Show all ${count(all.length)}`, () => (put(place, bars(all, names)), more.remove()));
  return card("Boxes of each class", place, more);
}

/** By COCO's three sizes, and by the side in pixels. @param {any} report */
function sizes(report) {
  const names = Object.keys(report.splits);
  const sides = names.map((split) => report.splits[split].box_sides ?? []);
  const rows = Object.entries(SIZES).map(([size, name]) => ({ name, values: names.map((split) => report.splits[split].box_sizes[size] ?? 0) }));
  const bySide = Array.from({ length: Math.max(0, ...sides.map((each) => each.length)) }, (_, k) => ({ name: h("span", { class: "number" }, `${k === 0 ? 0 : 2 ** k}–${2 ** (k + 1)} px`), values: sides.map((each) => each[k] ?? 0) }));
  const begins = bySide.findIndex((row) => sum(row.values) > 0);
  return card("Sizes of boxes", h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Sizes of boxes" }, bars(rows, names),
    begins >= 0 && [h("p", { class: "dim small" }, "By the square root of their area:"), bars(bySide.slice(begins), names)]));
}

/** @param {number[]} values */
function sum(values) {
  return values.reduce((all, each) => all + each, 0);
}

/** @param {any} report */
function splits(report) {
  const { carved } = report;
  return card("Splits", h("p", { class: "dim small" }, `Read as ${report.format}.`), h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Splits" }, h("table", {},
    h("thead", {}, h("tr", {}, ["Split", "Images", "Without boxes", "Boxes", "Width", "Height"].map((each, place) => h("th", { class: place ? "number" : null }, each)))),
    h("tbody", {}, Object.entries(report.splits).map(([split, each]) => h("tr", {}, h("th", { scope: "row" }, split), [count(each.images), count(each.empty_images), count(each.boxes), each.width.join("–"), each.height.join("–")].map((value) => h("td", { class: "number" }, value))))))),
    carved && h("p", { class: "dim" }, `It had no val split: ${count(carved.images)} of the train images became one.`));
}

/** What was wrong, by code; the code that is chosen stands in the address. @param {any} dataset @param {any} report @param {URLSearchParams} query @param {(changes: Record<string, any>) => void} setQuery @param {AbortSignal} signal */
function defects(dataset, report, query, setQuery, signal) {
  const codes = Object.entries(report.defect_counts);
  if (codes.length === 0) return card("Defects", h("p", { class: "good" }, "Nothing was wrong with it."));
  let chosen = query.get("defect") ?? "";
  let most = DEFECTS;
  const chips = h("div", { class: "chips", role: "group", "aria-label": "Kinds of defects" });
  const list = h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Defects" });
  const more = h("div", { class: "bar" });
  function refresh() {
    const focused = chips.contains(document.activeElement) ? document.activeElement?.getAttribute("data-code") : null;
    put(chips, codes.map(([code, number]) => button(`${code.replaceAll("_", " ")} ${count(number)}`, () => ((chosen = chosen === code ? "" : code), (most = DEFECTS), setQuery({ defect: chosen }), refresh()), { "aria-pressed": String(code === chosen), data: { code } })));
    if (focused) chips.querySelector(`[data-code="${CSS.escape(focused)}"]`)?.focus();
    const found = report.defects.filter((/** @type {any} */ each) => !chosen || each.code === chosen);
    put(list, h("table", {}, h("thead", {}, h("tr", {}, ["File", "What is wrong", "What was done"].map((each) => h("th", {}, each)))),
      h("tbody", {}, found.slice(0, most).map((/** @type {any} */ each) => h("tr", {}, h("td", {}, shown(each)), h("td", {}, sentence(each.message)), h("td", {}, each.action.replaceAll("_", " ")))))));
    const total = chosen ? report.defect_counts[chosen] : sum(codes.map(([, number]) => number));
    put(more, h("span", { class: "dim" }, `${count(Math.min(most, found.length))} of ${count(total)}`), found.length > most && button("Show more", () => ((most += DEFECTS), refresh())), found.length < total && found.length <= most && h("span", { class: "dim" }, "The report holds the first 1000 in all."));
  }
  /** A file's name, which opens the picture where there is one. @param {any} defect */
  function shown(defect) {
    const there = dataset.state === "ready" && defect.split && defect.n !== null;
    return there ? button(named(defect.file), () => showDefect(dataset, defect, signal), { class: "quiet left", "aria-haspopup": "dialog" }) : named(defect.file);
  }
  refresh();
  return card("Defects", chips, list, more);
}

/** Whether a defect is of this picture. @param {any} defect @param {string} split @param {number} n @param {string} name */
function isOf({ file, split: of, n: place }, split, n, name) {
  if (of) return of === split && place === n;
  // Reports of earlier versions; the others say it themselves.
  return file === name || (file.endsWith(`/${name}`) && (file.split("/").includes(split) || !/(^|\/)(train|valid|val|test|unlabelled)\w*\//.test(file)));
}

/** Pictures of a split with their boxes and what was wrong with them, a dozen at a time. @param {any} dataset @param {any[]} defects @param {URLSearchParams} query @param {(changes: Record<string, any>) => void} setQuery @param {AbortSignal} signal */
function pictures(dataset, defects, query, setQuery, signal) {
  const names = Object.keys(dataset.splits ?? {}).filter((split) => dataset.splits[split].images > 0);
  let split = names.includes(query.get("split") ?? "") ? /** @type {string} */ (query.get("split")) : names[0];
  let first = Math.max(0, Math.floor((Number(query.get("first")) || 0) / PICTURES) * PICTURES);
  const search = h("input", { type: "search", placeholder: "Find by file name", "aria-label": "Find pictures by file name", value: query.get("name") ?? "", on: { change: () => turn(split, 0) } });
  const chips = h("div", { class: "chips", role: "group", "aria-label": "Split" });
  const grid = h("div", { class: "pictures" });
  const places = h("div", { class: "bar" });
  let leaving = new AbortController();
  /** @type {string[]} */
  let made = [];
  const forget = () => (made.forEach((each) => URL.revokeObjectURL(each)), (made = []));
  signal.addEventListener("abort", () => (leaving.abort(), forget()));

  function turn(/** @type {string} */ nextSplit, /** @type {number} */ nextFirst) {
    [split, first] = [nextSplit, nextFirst];
    setQuery({ split: split === names[0] ? "" : split, first: first || "", name: search.value });
    refresh();
  }

  function refresh() {
    leaving.abort();
    leaving = new AbortController();
    forget();
    const total = dataset.splits[split].images;
    if (first >= total) first = 0;
    put(chips, names.map((each) => button(`${each} ${count(dataset.splits[each].images)}`, () => (turn(each, 0), chips.querySelector('[aria-pressed="true"]')?.focus()), { "aria-pressed": String(each === split) })));
    if (search.value) return void find(search.value);
    const last = Math.min(total, first + PICTURES);
    put(places, h("span", { class: "dim" }, `${count(first + 1)}–${count(last)} of ${count(total)}`), button("Previous", () => turn(split, Math.max(0, first - PICTURES)), { disabled: first === 0 }), button("Next", () => turn(split, first + PICTURES), { disabled: last >= total }));
    put(grid, Array.from({ length: last - first }, (_, place) => picture(first + place)));
  }

  /** @param {string} name */
  async function find(name) {
    const of = AbortSignal.any([signal, leaving.signal]);
    put(places, h("span", { class: "dim", role: "status" }, "Looking …"));
    try {
      const { items } = await get(`datasets/${dataset.id}/samples${address({ name, split, limit: PICTURES })}`, { signal: of });
      if (of.aborted) return;
      put(places, h("span", { class: "dim", role: "status" }, items.length === PICTURES ? `the first ${PICTURES} with this name` : items.length ? `${items.length} with this name` : "none with this name"), button("Show all", () => ((search.value = ""), turn(split, 0))));
      put(grid, items.map((/** @type {{n: number}} */ each) => picture(each.n)));
    } catch (error) {
      if (of.aborted) return;
      if (error.status === undefined) throw error;
      put(places, h("span", { class: "bad", role: "alert" }, error.message));
    }
  }

  /** @param {number} n */
  function picture(n) {
    const element = h("figure", { class: "picture" });
    const of = AbortSignal.any([signal, leaving.signal]);
    fill().catch((error) => {
      if (!of.aborted) put(element, h("p", { class: "bad" }, error.message));
    });
    return element;

    async function fill() {
      const where = `datasets/${dataset.id}/samples/${n}`;
      const [sample, image] = await Promise.all([get(`${where}${address({ split })}`, { signal: of }), ask(`${where}/image${address({ split })}`, { signal: of }).then((answer) => answer.blob())]);
      if (of.aborted) return;
      const url = URL.createObjectURL(image);
      made.push(url);
      const { width, height } = sample;
      const found = [...new Set(sample.boxes.map((/** @type {any} */ each) => each.name))];
      const text = `${sample.name}: ${sample.box_count === 1 ? "1 box" : `${count(sample.box_count)} boxes`}${found.length ? `, ${found.slice(0, 8).join(", ")}` : ""}`;
      put(element, svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": text }, svg("image", { href: url, width, height }),
        sample.boxes.map((/** @type {any} */ each) => svg("rect", { class: `box-of c${((each.label - 1) % COLOURS) + 1}${each.crowd ? " crowd" : ""}`, x: each.box[0], y: each.box[1], width: each.box[2] - each.box[0], height: each.box[3] - each.box[1] }, svg("title", {}, each.crowd ? `${isolated(each.name)} (crowd)` : each.name)))),
      h("figcaption", { class: "small" }, named(sample.name), h("div", { class: "dim" }, found.length ? found.slice(0, 6).map((name, place) => [place > 0 && ", ", h("span", { class: "key-of" }, h("i", { class: `c${((sample.boxes.find((/** @type {any} */ each) => each.name === name).label - 1) % COLOURS) + 1}` }), named(name))]) : "no boxes", sample.box_count > sample.boxes.length && `; the first ${count(sample.boxes.length)} of ${count(sample.box_count)} are drawn`),
        defects.filter((each) => isOf(each, split, n, sample.name)).slice(0, 5).map((each) => h("div", { class: "warn" }, "⚠ ", sentence(each.message)))));
    }
  }
  if (!split) return null;
  refresh();
  return card("Pictures", h("div", { class: "bar" }, chips, search, places), grid);
}
