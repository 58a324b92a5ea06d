/** @file What a job learns from: where teacher and student look, and under which masks they are compared, over the training. */

import { get, Problem, watch } from "../../api.js";
import { button, h, named, put, write } from "../../elements.js";
import { bars, figure, means, paint, pictureOf, valuesOf } from "../../focus.js";

const PLAY_MS = 700;
const LOOK_MS = 4000;
/** Between two looks whether there is more, while the page is seen. */
const KEPT = 80;
/** Evaluations that are held in memory: all that a job has. */

/** @typedef {import("../../focus.js").Shown} Shown */

/** @param {import("../job.js").Tab} tab */
export async function show({ root, id, line, signal, query, setQuery }) {
  const how = { photo: Number(query.get("photo")) || 0, method: query.get("method") ?? "", name: query.get("what") ?? "", level: query.get("level") ?? "", opacity: 0.65, boxes: true };
  /** @type {{step: number, epoch: number, sha256: string}[]} */
  let steps = [];
  /** @type {import("../../focus.js").Photo[]} */
  let photos = [];
  /** @type {(ImageBitmap | null)[]} */
  let pictures = [];
  /** @type {Map<string, Promise<any>>} by the digest of a step's file */
  const files = new Map();
  let at = 0;
  let playing = 0;
  let drawing = 0;

  const hint = h("p", { class: "dim", role: "status" }, "");
  const empty = h("section", { class: "card" }, h("h2", {}, "What it learns from"), hint);
  const pick = h("div", { class: "photos", role: "group", "aria-label": "Image" });
  const method = select("Method", (value) => change({ method: value, name: "", level: "" }));
  const name = select("Show", (value) => change({ name: value }));
  const level = select("Level", (value) => change({ level: value }));
  const opacity = h("input", { type: "range", min: 0, max: 1, step: 0.05, value: how.opacity, on: { input: () => change({ opacity: Number(opacity.value) }) } });
  const boxes = h("input", { type: "checkbox", props: { checked: true }, on: { change: () => change({ boxes: boxes.checked }) } });
  const slider = h("input", { type: "range", min: 0, max: 0, step: 1, value: 0, "aria-label": "Evaluation", class: "long", on: { input: () => (stop(), go(Number(slider.value))) } });
  const play = button("Play", () => (playing ? stop() : start()), { "aria-pressed": "false" });
  const when = h("output", { class: "number" });
  const maps = h("div", { class: "looks" });
  const channels = h("section", { class: "card", hidden: true });
  const whole = h("div", { class: "panel", hidden: true },
    h("section", { class: "card" }, h("h2", {}, "Where teacher and student look"), pick,
      h("div", { class: "bar" }, method.label, name.label, level.label, h("label", { class: "inline" }, "Opacity", opacity), h("label", { class: "inline" }, boxes, "Boxes")),
      h("div", { class: "bar" }, play, slider, when), maps),
    channels);
  put(root, empty, whole);

  /** @param {string} label @param {(value: string) => void} chosen */
  function select(label, chosen) {
    const element = h("select", { on: { change: () => chosen(element.value) } });
    return { element, label: h("label", { class: "inline" }, label, element) };
  }

  /** @param {HTMLSelectElement} element @param {string[]} options @param {string} wanted */
  function offer(element, options, wanted) {
    if (element.dataset.known !== options.join("\n")) {
      element.dataset.known = options.join("\n");
      put(element, options.map((each) => h("option", { value: each }, each)));
    }
    element.value = options.includes(wanted) ? wanted : (options[0] ?? "");
    return element.value;
  }

  /** @param {Partial<typeof how>} changes */
  function change(changes) {
    Object.assign(how, changes);
    setQuery({ photo: how.photo || "", method: how.method, what: how.name, level: how.level });
    draw();
  }

  /** @param {number} place */
  function go(place) {
    at = Math.max(0, Math.min(steps.length - 1, place));
    slider.value = String(at);
    draw();
  }

  function start() {
    play.setAttribute("aria-pressed", "true");
    write(play, "Stop");
    if (at === steps.length - 1) go(0);
    playing = setInterval(() => (at < steps.length - 1 ? go(at + 1) : stop()), PLAY_MS);
  }
  function stop() {
    clearInterval(playing);
    playing = 0;
    play.setAttribute("aria-pressed", "false");
    write(play, "Play");
  }
  signal.addEventListener("abort", stop);

  /** @param {number} place @returns {Promise<any>} */
  function file(place) {
    const { step, sha256 } = steps[place];
    const found = files.get(sha256) ?? get(`jobs/${id}/focus/${step}`, { signal });
    files.set(sha256, found);
    found.catch(() => files.delete(sha256));
    for (const key of [...files.keys()].slice(0, -KEPT)) files.delete(key);
    return found;
  }

  async function draw() {
    if (!steps.length) return;
    const mine = ++drawing;
    const { step, epoch } = steps[at];
    const told = step === 0 ? "before the first step" : `epoch ${epoch}, step ${step}`;
    write(when, told);
    slider.setAttribute("aria-valuetext", told);
    const content = await file(at).catch((/** @type {any} */ error) => {
      if (!signal.aborted && !(error instanceof Problem)) throw error;
    });
    if (!content || mine !== drawing || signal.aborted) return;
    const image = content.images.find((/** @type {any} */ each) => each.photo === how.photo);
    [...pick.children].forEach((each, n) => each.setAttribute("aria-pressed", String(n === how.photo)));
    if (!image) return put(maps, h("p", { class: "dim" }, "This image could not be shown."));
    /** @type {Shown[]} */
    const all = image.shown;
    how.method = offer(method.element, [...new Set(all.map((each) => each.method))], how.method);
    const of = all.filter((each) => each.method === how.method);
    const flat = of.filter((each) => each.shape.length === 2);
    how.name = offer(name.element, [...new Set(flat.map((each) => each.name))], how.name || (flat.some((each) => each.name === "spatial attention") ? "spatial attention" : ""));
    how.level = offer(level.element, [...new Set(of.map((each) => each.level))], how.level);
    for (const option of level.element.options) option.text = `${option.value} (stride ${content.strides[option.value] ?? "?"})`;
    drawMaps(image, flat.filter((each) => each.name === how.name && each.level === how.level));
    drawChannels(of.filter((each) => each.shape.length === 1 && each.level === how.level));
    if (at + 1 < steps.length) file(at + 1).catch(() => null); // the next one is there when it is asked for
  }

  /** @param {any} image @param {Shown[]} shown */
  function drawMaps(image, shown) {
    const values = new Map(shown.map((each) => [each.network, valuesOf(each)]));
    const low = Math.min(...shown.map((each) => each.low));
    const high = Math.max(...shown.map((each) => each.high));
    /** @type {{title: string, map: any}[]} */
    const parts = shown.map((each) => ({
      title: each.network ? `The ${each.network}'s ${each.name}` : `${each.name[0].toUpperCase()}${each.name.slice(1)}`,
      map: { shape: each.shape, values: values.get(each.network), low, high, byMagnitude: each.by_magnitude },
    }));
    const [theirs, ours] = [values.get("teacher"), values.get("student")];
    if (theirs && ours) {
      const apart = theirs.map((value, n) => value - ours[n]);
      parts.push({ title: "Difference", map: { shape: shown[0].shape, values: apart, low: Math.min(...apart), high: Math.max(...apart), apart: true } });
    }
    const photo = photos[how.photo];
    while (maps.children.length > parts.length) maps.lastChild.remove();
    if (maps.firstElementChild?.tagName !== "FIGURE") put(maps);
    parts.forEach(({ title, map }, n) => {
      const known = maps.children[n] ?? maps.appendChild(h("figure", {}, h("canvas", { role: "img" }), h("figcaption", {}, h("h3", {}), h("p", { class: "dim" }))));
      const [canvas, caption] = known.children;
      paint(canvas, { photo, picture: pictures[how.photo], image, boxes: how.boxes, opacity: how.opacity }, map);
      write(caption.children[0], title);
      write(caption.children[1], words(image, photo, map));
      canvas.setAttribute("aria-label", `${title} at ${how.level}, on image ${how.photo + 1}: ${words(image, photo, map)}`);
    });
  }

  /** @param {any} image @param {any} photo @param {any} map */
  function words(image, photo, map) {
    const { inside, outside } = means(photo, image, map.shape, map.apart ? map.values.map(Math.abs) : map.values);
    const what = map.apart ? "violet where the teacher looks more, orange where the student does; " : "";
    const boxed = inside === null ? "" : `mean ${figure(inside)} in boxes, `;
    return `${what}${boxed}${outside === null ? "" : `${figure(outside)} outside; `}${figure(map.low)} to ${figure(map.high)}, ${map.shape[1]} x ${map.shape[0]} cells`;
  }

  /** @param {Shown[]} shown */
  function drawChannels(shown) {
    const [theirs, ours] = ["teacher", "student"].map((network) => shown.find((each) => each.network === network));
    channels.hidden = !theirs || !ours;
    if (!theirs || !ours) return;
    const [teacher, student] = [valuesOf(theirs), valuesOf(ours)];
    const apart = teacher.reduce((sum, value, n) => sum + Math.abs(value - student[n]), 0) / teacher.length;
    const strongest = [...teacher.keys()].sort((a, b) => teacher[b] - teacher[a]).slice(0, 5);
    const told = `${teacher.length} channels, the teacher's strongest first: the teacher's upward, the student's downward. Mean difference ${figure(apart)}; the teacher's strongest are channels ${strongest.map((n) => `${n} (${figure(teacher[n])}, the student's ${figure(student[n])})`).join(", ")}`;
    if (!channels.firstChild) put(channels, h("h2", {}), h("canvas", { role: "img", class: "bars" }), h("p", { class: "dim" }));
    const [title, canvas, text] = channels.children;
    write(title, `${theirs.name[0].toUpperCase()}${theirs.name.slice(1)} at ${how.level}`);
    bars(canvas, teacher, student);
    canvas.setAttribute("aria-label", told);
    write(text, told);
  }

  /** @param {any} data */
  async function found({ items }) {
    if (!items.length) {
      write(hint, line().methods.length ? "Here you see what teacher and student look at, as soon as the training has begun." : "A job without a teacher has nothing to show here.");
      return;
    }
    const newest = at >= steps.length - 1;
    steps = items;
    if (!photos.length) {
      try {
        photos = (await get(`jobs/${id}/focus/photos`, { signal })).photos;
      } catch (error) {
        if (signal.aborted || !(error instanceof Problem)) throw error;
        steps = []; // they come in a moment
        return;
      }
      pictures = await Promise.all(photos.map((photo) => pictureOf(photo).catch(() => null)));
      if (how.photo >= photos.length) how.photo = 0;
      put(pick, photos.map((photo, n) => button([thumb(n), h("span", { class: "unseen" }, `Image ${n + 1}: `, named(photo.name))], () => change({ photo: n }), { class: "photo", "aria-pressed": "false", title: photo.name })));
    }
    empty.hidden = true;
    whole.hidden = false;
    slider.max = String(steps.length - 1);
    go(newest && !playing ? steps.length - 1 : at);
  }

  /** @param {number} n */
  function thumb(n) {
    const canvas = h("canvas", { "aria-hidden": "true" });
    paint(canvas, { photo: photos[n], picture: pictures[n], image: /** @type {any} */ ({ size: [1, 1], padded: [1, 1] }), boxes: false, opacity: 0 }, null);
    return canvas;
  }

  watch({ path: () => `jobs/${id}/focus`, every: LOOK_MS, signal, show: found, fail: (problem) => write(hint, problem.message) });
}
