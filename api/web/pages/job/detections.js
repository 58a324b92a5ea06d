/** @file Detections: what teacher, control and student find on each image beside the ground truth, where they differ most first. */

import { ask, get, make, pause, query as address } from "../../api.js";
import { complain, say } from "../../dialogs.js";
import { button, h, isolated, named, put, sentence, unseen, write } from "../../elements.js";
import { count, several } from "../../format.js";
import { to } from "../../router.js";
import { sample, scene } from "../../scenes.js";

/** Below it nothing is answered. */
const LOWEST = 0.05;
const USUAL = 0.3;
const LIMIT = 50;
const EVERY_MS = 2000;
/** Images that are held in memory. */
const KEPT = 6;
const ONLY = { "": "all images", worse: "where the student is worse", better: "where the student is better" };

/**
 * @typedef {{role: string, job: string | null, model: string | null, evaluation: string | null, reason: string | null, evaluate: any, unknown: string[]}} Network
 * @typedef {{image_id: number, name: string, boxes: number, apart: number | null, worse_by: number | null, counts: {role: string, found: number, missed: number, false: number}[]}} Line
 * @typedef {{dataset: string, split: string, splits: string[], classes: string[], score: number, against: string | null, networks: Network[], worse: number, better: number, total: number, items: Line[]}} Table
 * @typedef {{box: number[], name: string, label: number, crowd: boolean}} Truth
 * @typedef {{role: string, detections: {box: number[], name: string, label: number, score: number, hit: boolean | null}[], found_at: (number | null)[], counted: boolean[]}} Boxes
 * @typedef {{image_id: number, name: string, width: number, height: number, sample: number | null, image_url: string | null, boxes: Truth[], networks: Boxes[]}} Shown
 */

/** @param {import("../job.js").Tab} tab */
export function show({ root, id, line, feed, query, setQuery, signal }) {
  const place = h("div", { class: "panel" });
  put(root, place);
  let open = false;
  const look = () => {
    if (open) return;
    open = line().state === "succeeded";
    if (open) compare({ root: place, id, taught: line().methods.length > 0, query, setQuery, signal });
    else put(place, h("section", { class: "card" }, h("h2", {}, "Detections"), h("p", { class: "dim" }, "When the job has succeeded you see here what it finds on each validation image, beside its control, its teacher and the ground truth.")));
  };
  feed.addEventListener("changed", look, { signal });
  look();
}

/** @param {{root: HTMLElement, id: string, taught: boolean, query: URLSearchParams, setQuery: (changes: Record<string, any>) => void, signal: AbortSignal}} of */
function compare({ root, id, taught, query, setQuery, signal }) {
  const wanted = {
    against: ["control", "teacher"].includes(query.get("against") ?? "") ? query.get("against") : "",
    class: query.get("class") ?? "",
    only: query.get("only") && ONLY[query.get("only") ?? ""] ? query.get("only") : "",
    split: query.get("split") === "test" ? "test" : "val",
    image: query.get("image") ?? "",
    first: Math.max(0, Math.floor((Number(query.get("first")) || 0) / LIMIT) * LIMIT),
    score: within(Number(query.get("score") || USUAL)),
  };
  /** What the list was sorted at. */
  let sorted = wanted.score;
  /** @type {Table | null} */
  let table = null;
  /** @type {Shown | null} */
  let shown = null;
  let round = new AbortController();
  let turn = 0;
  /** @type {Map<string, Promise<{boxes: Shown, url: string}>>} */
  const images = new Map();
  signal.addEventListener("abort", () => (round.abort(), [...images.values()].forEach(forget)));

  const against = select("Compare with", (value) => change({ against: value }));
  const of = select("Class", (value) => change({ class: value }));
  const only = select("Show", (value) => change({ only: value }));
  const split = select("Split", (value) => change({ split: value, image: "" }));
  const measure = h("p", { class: "dim small", role: "status" });
  const complaint = h("div", { role: "alert", class: "bad", hidden: true });
  const [back, next] = [button("‹ Previous", () => step(-1), { "aria-keyshortcuts": "k" }), button("Next ›", () => step(1), { "aria-keyshortcuts": "j" })];
  const where = h("span", { role: "status" });
  const score = h("input", { type: "range", min: LOWEST, max: 1, step: 0.01, value: wanted.score, on: { input: () => slide(Number(score.value)) } });
  const said = h("output", { class: "number" });
  const again = button("", () => ((sorted = wanted.score), change({})), { hidden: true });
  const letters = h("input", { type: "checkbox", props: { checked: true }, on: { change: draw } });
  const panes = h("div", { class: "sides" });
  const stage = h("section", { class: "card", "aria-label": "Image", tabindex: "0", hidden: true },
    h("div", { class: "bar" }, back, next, where),
    h("div", { class: "bar" }, h("label", { class: "inline" }, "Score from", score, said), again, h("label", { class: "inline" }, letters, "Letters"), h("span", { class: "bar dim small" }, sample("hit", "found"), sample("false", "false"), sample("missed", "missed"), sample("beside", "in a crowd, not counted"))),
    panes);
  const list = h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Images" });
  const places = h("div", { class: "bar" });
  put(root, h("section", { class: "card" }, h("h2", {}, "Detections side by side"), h("div", { class: "bar" }, against.label, of.label, only.label, split.label), measure, complaint), stage, h("section", { class: "card" }, h("h2", {}, taught ? "Where they differ most" : "Where it errs most"), list, places));

  document.addEventListener("keydown", (event) => {
    if (event.target instanceof Element && event.target.closest("input, textarea, select, dialog")) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrows = event.target === stage ? { ArrowRight: 1, ArrowLeft: -1 } : {};
    const by = { j: 1, k: -1, ...arrows }[event.key];
    if (by) (event.preventDefault(), step(by));
  }, { signal });
  load();

  /** @param {Partial<typeof wanted>} changes */
  function change(changes) {
    Object.assign(wanted, changes, { first: changes.first ?? 0 }, "image" in changes ? {} : { image: "" });
    tell();
    load();
  }

  function tell() {
    setQuery({ against: wanted.against, class: wanted.class, only: wanted.only, split: wanted.split === "val" ? "" : wanted.split, image: wanted.image, first: wanted.first || "", score: wanted.score === USUAL ? "" : wanted.score });
  }

  /** Of a page of the list. @param {"first" | "last"} [from] which image is shown where none is chosen */
  async function load(from = "first") {
    round.abort();
    round = new AbortController();
    const mine = AbortSignal.any([signal, round.signal]);
    if (!table) write(measure, "The detections are being read …");
    try {
      const found = await get(`jobs/${id}/detections${address({ against: wanted.against, class: wanted.class, only: wanted.only, split: wanted.split === "val" ? "" : wanted.split, score: sorted, offset: wanted.first, limit: LIMIT })}`, { signal: mine });
      if (mine.aborted) return;
      table = found;
      complaint.hidden = true;
      showTable();
      const known = found.items.some((/** @type {Line} */ each) => String(each.image_id) === wanted.image);
      const chosen = known || wanted.image ? wanted.image : String((from === "first" ? found.items[0] : found.items.at(-1))?.image_id ?? "");
      if (chosen) choose(chosen);
      else stage.hidden = true;
      wait(found.networks, mine);
    } catch (error) {
      if (mine.aborted) return;
      if (error.status === undefined) throw error;
      fail(error);
    }
  }

  /** @param {any} problem */
  function fail(problem) {
    if (problem.status === 401) return; // the page asks for the key
    write(measure, "");
    complaint.hidden = false;
    const filtered = wanted.against || wanted.class || wanted.only || wanted.split !== "val";
    put(complaint, h("p", {}, problem.message), filtered && button("Show all images", () => change({ against: "", class: "", only: "", split: "val" })));
  }

  /** Until evaluations have ended. @param {Network[]} networks @param {AbortSignal} mine */
  async function wait(networks, mine) {
    const waits = networks.filter((each) => each.evaluation && each.reason);
    while (waits.length && !mine.aborted) {
      await pause(EVERY_MS, mine);
      for (const { evaluation } of mine.aborted ? [] : waits) {
        const now = await get(`evaluations/${evaluation}`, { signal: mine }).catch(() => null); // the next look may find it
        if (!now || now.state === "pending" || mine.aborted) continue;
        if (now.error) say(["The evaluation failed: ", sentence(now.error.message)], "bad");
        images.forEach(forget);
        images.clear();
        load();
        return;
      }
    }
  }

  function showTable() {
    const now = /** @type {Table} */ (table);
    const others = [...new Set(now.networks.filter((each) => !each.reason && each.role !== "student").map((each) => each.role.split(" ")[0]))];
    offer(against, Object.fromEntries(others.map((each) => [each, each])), (now.against ?? "").split(" ")[0]);
    against.label.hidden = others.length < 2;
    offer(of, { "": "all classes", ...Object.fromEntries(now.classes.map((each) => [each, each])) }, wanted.class ?? "");
    offer(only, ONLY, wanted.only ?? "");
    only.label.hidden = !now.against;
    offer(split, { val: "validation", test: "test" }, wanted.split);
    split.label.hidden = now.splits.length < 2;
    const [worse, better] = [several(now.worse, "image"), several(now.better, "image")];
    put(measure, now.against
      ? [`The student makes more mistakes than the ${now.against} on ${worse}, fewer on ${better}. First come images on which the two differ most: counted are the boxes that one of them alone finds, and how many false detections one has more, with scores from ${now.score.toFixed(2)}. A box is found by a detection of its class with an IoU of 0.5.`]
      : [`Images with the most missed boxes and false detections come first, with scores from ${now.score.toFixed(2)}. A box is found by a detection of its class with an IoU of 0.5.`]);
    const roles = now.items[0]?.counts.map((each) => each.role) ?? [];
    put(list, now.items.length === 0 ? h("p", { class: "dim" }, wanted.only || wanted.class ? "No image passes these filters." : "There are no images.") : h("table", { class: "differing" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Image"), h("th", { scope: "col", class: "number" }, "Boxes"), now.against && h("th", { scope: "col", class: "number" }, "Differ by"), roles.map((role) => h("th", { scope: "col", class: "number" }, title(role), h("span", { class: "dim small" }, " missed, false"))))),
      h("tbody", {}, now.items.map((each) => h("tr", { data: { image: each.image_id } }, h("th", { scope: "row" }, button(named(each.name), () => (choose(String(each.image_id)), stage.scrollIntoView({ block: "nearest" })), { class: "quiet left" })), h("td", { class: "number" }, each.boxes),
        now.against && h("td", { class: "number" }, each.apart, each.worse_by ? h("span", { class: each.worse_by > 0 ? "bad" : "good" }, each.worse_by > 0 ? " ▼" : " ▲", unseen(each.worse_by > 0 ? " the student is worse" : " the student is better")) : h("span", { class: "dim" }, " =", unseen(" as many mistakes"))),
        each.counts.map((network) => h("td", { class: "number" }, `${network.missed}, ${network.false}`)))))));
    const last = Math.min(now.total, wanted.first + LIMIT);
    put(places, now.total > 0 && h("span", { class: "dim" }, `${count(wanted.first + 1)}–${count(last)} of ${several(now.total, "image")}`), now.total > LIMIT && [
      button("Previous page", () => change({ first: Math.max(0, wanted.first - LIMIT) }), { disabled: wanted.first === 0 }), button("Next page", () => change({ first: wanted.first + LIMIT }), { disabled: last >= now.total })]);
  }

  /** To the next image of the list, over its pages. @param {number} by */
  function step(by) {
    if (!table) return;
    const at = table.items.findIndex((each) => String(each.image_id) === wanted.image) + by;
    if (table.items[at]) return choose(String(table.items[at].image_id));
    const first = wanted.first + by * LIMIT;
    if (first < 0 || first >= table.total) return;
    Object.assign(wanted, { first, image: "" });
    tell();
    load(by > 0 ? "first" : "last");
  }

  /** @param {string} image */
  async function choose(image) {
    const mine = ++turn;
    wanted.image = image;
    tell();
    const now = /** @type {Table} */ (table);
    const at = now.items.findIndex((each) => String(each.image_id) === image);
    for (const row of list.querySelectorAll("tr[data-image]")) row.setAttribute("aria-current", String(row.getAttribute("data-image") === image));
    [back.disabled, next.disabled] = [wanted.first + at <= 0, at >= 0 && wanted.first + at >= now.total - 1];
    try {
      const { boxes, url } = await image_(image);
      if (mine !== turn || signal.aborted) return;
      stage.hidden = false;
      put(where, at >= 0 && h("span", { class: "dim" }, `${count(wanted.first + at + 1)} of ${count(now.total)}: `), named(boxes.name), boxes.sample !== null && [" ", h("a", { class: "small", href: to(["datasets", now.dataset], { split: wanted.split, first: boxes.sample }) }, "in the data set")]);
      frame(boxes, url);
      const after = now.items[at + 1];
      if (after) image_(String(after.image_id)).catch(() => null); // it is there when it is asked for
    } catch (error) {
      if (signal.aborted || mine !== turn) return;
      if (error.status === undefined) throw error;
      fail(error);
    }
  }

  /** @param {string} image */
  function image_(image) {
    const known = images.get(image);
    const found = known ?? fetched(image);
    images.delete(image);
    images.set(image, found); // the last of the map is the newest
    if (!known) found.catch(() => images.delete(image));
    for (const [key, old] of [...images].slice(0, -KEPT)) (images.delete(key), forget(old));
    return found;
  }

  /** @param {string} image @returns {Promise<{boxes: Shown, url: string}>} */
  async function fetched(image) {
    const boxes = await get(`jobs/${id}/detections/${encodeURIComponent(image)}${address({ split: wanted.split === "val" ? "" : wanted.split })}`, { signal });
    const picture = boxes.image_url && (await ask(boxes.image_url.replace("/v1/", ""), { signal }).then((answer) => answer.blob()).catch(() => null)); // boxes are seen without it
    return { boxes, url: picture ? URL.createObjectURL(picture) : "" };
  }

  /** @type {{role: string, scene: ReturnType<typeof scene>, caption: HTMLElement}[]} */
  let sides = [];
  let leaving = new AbortController();

  /** @param {Shown} boxes @param {string} url */
  function frame(boxes, url) {
    shown = boxes;
    leaving.abort();
    leaving = new AbortController();
    const mine = AbortSignal.any([signal, leaving.signal]);
    const figure = (/** @type {string} */ role, /** @type {any} */ head, /** @type {any} */ under) => {
      const drawing = scene(boxes, mine);
      drawing.picture(url);
      const caption = h("p", { class: "small" });
      sides.push({ role, scene: drawing, caption });
      return h("figure", { data: { role } }, h("h3", {}, head), drawing.element, h("figcaption", {}, caption, under));
    };
    sides = [];
    const networks = /** @type {Table} */ (table).networks;
    put(panes, figure("truth", "Ground truth", null), networks.map((each) => {
      const head = each.job && each.job !== id ? h("a", { href: to(["jobs", each.job]) }, title(each.role)) : taught || each.role !== "student" ? title(each.role) : "This job";
      const unknown = each.unknown.length > 0 && h("p", { class: "dim small" }, "It does not know ", each.unknown.slice(0, 8).map((name, n) => [n > 0 && ", ", named(name)]), each.unknown.length > 8 && ` and ${each.unknown.length - 8} more`, ".");
      if (boxes.networks.some(({ role }) => role === each.role)) return figure(each.role, head, unknown);
      return h("figure", { data: { role: each.role } }, h("h3", {}, head), h("div", { class: "lacking" }, h("p", { class: "dim" }, sentence(each.reason ?? "Nothing is known of what it finds.")), each.evaluate && button("Evaluate it", () => evaluate(each), { class: "primary" })));
    }));
    draw();
  }

  /** @param {Network} network */
  async function evaluate(network) {
    try {
      await make("evaluations", network.evaluate);
      say("A worker evaluates it; its detections appear here");
      load();
    } catch (error) {
      complain(error);
    }
  }

  /** @param {number} value */
  function slide(value) {
    wanted.score = value;
    tell();
    draw();
  }

  function draw() {
    write(said, wanted.score.toFixed(2));
    score.setAttribute("aria-valuetext", wanted.score.toFixed(2));
    again.hidden = wanted.score === sorted;
    write(again, `Sort at ${wanted.score.toFixed(2)}`);
    if (!shown) return;
    const { boxes, networks } = shown;
    const ofClass = (/** @type {{name: string}} */ each) => !wanted.class || each.name === wanted.class;
    for (const { role, scene: drawing, caption } of sides) {
      const network = networks.find((each) => each.role === role);
      if (!network) {
        const marks = boxes.filter(ofClass).map((each) => ({ box: each.box, kind: each.crowd ? "truth crowd" : "truth", text: each.name, title: each.crowd ? `${isolated(each.name)} (crowd)` : each.name }));
        const told = marks.length === 1 ? "1 box" : `${count(marks.length)} boxes`;
        drawing.draw(marks, `Ground truth: ${told}`, letters.checked);
        write(caption, told);
        continue;
      }
      const sure = network.detections.filter((each) => each.score >= wanted.score && ofClass(each));
      const missed = boxes.filter((each, n) => network.counted[n] && ofClass(each) && (network.found_at[n] ?? -1) < wanted.score);
      const found = boxes.filter((each, n) => network.counted[n] && ofClass(each)).length - missed.length;
      const told = `${found} found, ${missed.length} missed, ${sure.filter((each) => each.hit === false).length} false`;
      drawing.draw([
        ...sure.map((each) => ({ box: each.box, kind: each.hit ? "hit" : each.hit === false ? "false" : "beside", text: `${isolated(each.name)} ${each.score.toFixed(2)}`, title: `${each.hit ? "found" : each.hit === false ? "false" : "in a crowd"}: ${isolated(each.name)} ${each.score.toFixed(2)}` })),
        ...missed.map((each) => ({ box: each.box, kind: "missed", text: each.name, title: `missed: ${each.name}`, above: false })),
      ], `${title(role)}: ${told}`, letters.checked);
      write(caption, told);
    }
  }
}

/** @param {Promise<{url: string}>} held */
function forget(held) {
  held.then(({ url }) => url && URL.revokeObjectURL(url), () => null);
}

/** @param {string} role */
function title(role) {
  return role[0].toUpperCase() + role.slice(1);
}

/** @param {number} score */
function within(score) {
  return Number.isFinite(score) ? Math.min(1, Math.max(LOWEST, Math.round(score * 100) / 100)) : USUAL;
}

/** @param {string} label @param {(value: string) => void} chosen */
function select(label, chosen) {
  const element = h("select", { on: { change: () => chosen(element.value) } });
  return { element, label: h("label", { class: "inline" }, label, element) };
}

/** @param {{element: HTMLSelectElement}} of @param {Record<string, string>} options @param {string} value */
function offer({ element }, options, value) {
  const key = JSON.stringify(options);
  if (element.dataset.known !== key) {
    element.dataset.known = key;
    put(element, Object.entries(options).map(([each, text]) => h("option", { value: each }, text)));
  }
  element.value = value;
}
