/**
 * @file Try it: what the networks of a job find in a picture that is dropped here. The picture stays in this tab; the
 * answer's address can be opened again, and shows the boxes without it.
 */

import { ask, get, newKey, query as address, watch } from "../../api.js";
import { h, isolated, named, put, svg, write } from "../../elements.js";
import { number, several } from "../../format.js";

/** Below it nothing is asked for: the slider looks among what came. */
const LOWEST = 0.05;
const USUAL = 0.3;
const EVERY_MS = 500;
const MOST_LINES = 200;
const LETTERS_PX = 12;
/** What is drawn first. */
const LAYERS = ["student", "model", "control", "teacher"];

/** @param {import("../job.js").Tab} tab */
export function show({ root, id, line, feed, query, setQuery, signal }) {
  const place = h("div", { class: "panel" });
  put(root, place);
  let open = false;
  const look = () => {
    if (open) return;
    open = line().state === "succeeded";
    if (open) fill();
    else put(place, h("section", { class: "card" }, h("h2", {}, "Try it"), h("p", { class: "dim" }, "When the job has succeeded you can drop a picture here and see what its student finds in it.")));
  };
  feed.addEventListener("changed", look, { signal });
  look();

  function fill() {
    const wanted = { score: within(Number(query.get("score") || USUAL)), which: query.get("which") === "best" ? "best" : "last", hide: new Set(query.getAll("hide")), prediction: query.get("prediction") ?? "" };
    /** @type {any} */
    let answer = null;
    let picture = "";
    let round = new AbortController();

    const input = h("input", { type: "file", accept: "image/*", class: "unseen", id: "picture", on: { change: () => input.files[0] && take(input.files[0]) } });
    const drop = h("div", { class: "card drop" }, input, h("label", { for: "picture", class: "button" }, "Choose a picture"), h("p", {}, "or drop one anywhere on this page. The server forgets it soon after the networks have looked at it."));
    const which = h("select", { on: { change: () => change({ which: which.value }) } }, h("option", { value: "last" }, "after the last step"), h("option", { value: "best" }, "best on validation"));
    const score = h("input", { type: "range", min: LOWEST, max: 1, step: 0.01, on: { input: () => change({ score: Number(score.value) }) } });
    const said = h("output", { class: "number" });
    const status = h("p", { role: "status", class: "dim", hidden: true });
    const complaint = h("p", { role: "alert", class: "bad", hidden: true });
    const legend = h("div", { class: "bar", role: "group", "aria-label": "Networks" });
    const scene = h("div", { class: "scene" });
    const list = h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Found" });
    const result = h("section", { class: "card panel", hidden: true }, h("div", { class: "bar" }, h("h2", {}, "Found"), h("label", { class: "inline" }, "Score from", score, said)), legend, scene, list);
    [which.value, score.value] = [wanted.which, wanted.score];
    put(place, drop, h("div", { class: "bar" }, h("label", { class: "inline" }, "Weights", which)), status, complaint, result);

    // Anywhere on the page: beside the card the browser would leave it for the picture.
    document.addEventListener("dragover", (event) => event.dataTransfer?.types.includes("Files") && (event.preventDefault(), drop.classList.add("over")), { signal });
    document.addEventListener("dragleave", (event) => event.relatedTarget === null && drop.classList.remove("over"), { signal });
    document.addEventListener("drop", (event) => {
      drop.classList.remove("over");
      if (!event.dataTransfer?.files.length) return;
      event.preventDefault();
      take(event.dataTransfer.files[0]);
    }, { signal });
    const sized = new ResizeObserver(letters);
    sized.observe(scene);
    signal.addEventListener("abort", () => (round.abort(), sized.disconnect(), URL.revokeObjectURL(picture)));

    /** @param {Partial<typeof wanted>} changes */
    function change(changes) {
      Object.assign(wanted, changes);
      setQuery({ score: wanted.score === USUAL ? "" : wanted.score, which: wanted.which === "last" ? "" : wanted.which, hide: [...wanted.hide], prediction: wanted.prediction });
      if (answer) draw();
    }

    /** @param {File} file */
    async function take(file) {
      round.abort();
      round = new AbortController();
      const mine = AbortSignal.any([signal, round.signal]);
      URL.revokeObjectURL(picture);
      picture = URL.createObjectURL(file);
      input.value = "";
      result.hidden = complaint.hidden = true;
      tell("The picture is sent …");
      try {
        const headers = { "Content-Type": file.type.startsWith("image/") ? file.type : "application/octet-stream", "Idempotency-Key": newKey() };
        const made = await (await ask(`predictions${address({ job: id, which: wanted.which, score: LOWEST })}`, { method: "POST", body: file, headers, signal: mine })).json();
        if (!mine.aborted) follow(made);
      } catch (error) {
        if (!mine.aborted) fail(error);
      }
    }

    /** Until it has ended. @param {any} made */
    function follow(made) {
      change({ prediction: made.id });
      if (showAnswer(made)) return;
      const mine = round;
      watch({ path: () => `predictions/${encodeURIComponent(made.id)}`, every: EVERY_MS, signal: AbortSignal.any([signal, mine.signal]), fail, show: (/** @type {any} */ now) => showAnswer(now) && mine.abort() });
    }

    /** True when there is nothing to wait for. @param {any} now */
    function showAnswer(now) {
      if (now.state === "pending") tell(now.waiting_reason ? `Waits: ${now.waiting_reason}` : `A worker looks at the picture with ${several(now.networks.length, "network")} …`);
      else if (now.result) {
        answer = now.result;
        status.hidden = complaint.hidden = true;
        result.hidden = false;
        frame();
        draw();
      } else fail(now.error);
      return now.state !== "pending";
    }

    /** @param {string} text */
    function tell(text) {
      status.hidden = false;
      write(status, text);
    }

    /** @param {any} problem */
    function fail(problem) {
      if (typeof problem?.message !== "string" || (problem instanceof Error && problem.status === undefined)) throw problem;
      if (problem.status === 401) return; // the page asks for the key
      status.hidden = true;
      complaint.hidden = false;
      write(complaint, problem.message);
    }

    // --- the picture and what is over it ---
    const boxes = svg("svg", { role: "img", preserveAspectRatio: "none" });

    function frame() {
      const { width, height } = answer;
      boxes.setAttribute("viewBox", `0 0 ${width} ${height}`);
      scene.style.aspectRatio = `${width} / ${height}`;
      scene.style.width = `min(100%, calc(75vh * ${width / height}))`;
      const missing = (/** @type {string} */ why) => h("p", { class: "dim missing" }, why);
      const image = picture && h("img", { src: picture, alt: "", on: { error: () => image.replaceWith(missing("This browser cannot show pictures of this format; the boxes are where they belong.")) } });
      put(scene, image || missing("The picture is not kept. Choose it once more to see the boxes over it."), boxes);
    }

    function draw() {
      const seen = answer.networks.map((/** @type {any} */ each) => ({ ...each, kind: each.role.split(" ")[0], found: each.detections.filter((/** @type {any} */ one) => one.score >= wanted.score) }));
      const shown = seen.filter((/** @type {any} */ each) => !wanted.hide.has(each.role));
      write(said, wanted.score.toFixed(2));
      score.setAttribute("aria-valuetext", wanted.score.toFixed(2));
      showLegend(seen);
      // Dashes over whole lines: where boxes agree, each can be seen. The surest of a network lie above its others.
      put(boxes, shown.toSorted((/** @type {any} */ a, /** @type {any} */ b) => LAYERS.indexOf(a.kind) - LAYERS.indexOf(b.kind)).flatMap((/** @type {any} */ each) => each.found.toReversed().map((/** @type {any} */ one) => mark(each.kind, one))));
      boxes.setAttribute("aria-label", shown.map((/** @type {any} */ each) => `${each.role}: ${each.found.length === 1 ? "1 box" : `${each.found.length} boxes`}`).join(", ") || "no network is shown");
      letters();
      const lines = shown.flatMap((/** @type {any} */ each) => each.found.map((/** @type {any} */ one) => ({ each, one })));
      put(list, lines.length === 0 ? h("p", { class: "dim" }, "Nothing is found with this score.") : h("table", {},
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Network"), h("th", { scope: "col" }, "Class"), h("th", { scope: "col", class: "number" }, "Score"), h("th", { scope: "col", class: "number" }, "Left, top, right, bottom"))),
        h("tbody", {}, lines.slice(0, MOST_LINES).map(({ each, one }) => h("tr", {}, h("td", {}, named(each.role)), h("td", {}, named(one.name)), h("td", { class: "number" }, one.score.toFixed(2)), h("td", { class: "number" }, one.box.map((/** @type {number} */ side) => Math.round(side)).join(", ")))))),
        lines.length > MOST_LINES && h("p", { class: "dim" }, `The first ${MOST_LINES} of ${lines.length}.`));
    }

    /** @param {any[]} seen */
    function showLegend(seen) {
      const focused = legend.contains(document.activeElement) ? document.activeElement?.getAttribute("data-role") : null;
      put(legend, seen.map((each) => {
        const box = h("input", { type: "checkbox", data: { role: each.role }, props: { checked: !wanted.hide.has(each.role) }, on: { change: () => (box.checked ? wanted.hide.delete(each.role) : wanted.hide.add(each.role), change({})) } });
        return h("label", { class: "inline" }, box, svg("svg", { class: "sample", viewBox: "0 0 24 8", "aria-hidden": "true" }, svg("line", { class: `found ${each.kind}`, x1: 0, x2: 24, y1: 4, y2: 4 })), named(each.role), h("span", { class: "dim" }, `${each.found.length} found in ${number(each.seconds)} s`));
      }));
      if (focused) [...legend.querySelectorAll("input")].find((each) => each.getAttribute("data-role") === focused)?.focus();
    }

    /** @param {string} kind @param {any} detection */
    function mark(kind, { box: [left, top, right, bottom], name, score: sure }) {
      const text = `${isolated(name)} ${sure.toFixed(2)}`;
      return svg("g", { class: `of ${kind}` }, svg("rect", { class: `found ${kind}`, x: left, y: top, width: Math.max(0, right - left), height: Math.max(0, bottom - top) }, svg("title", {}, `${kind}: ${text}`)),
        svg("text", { x: left, y: top, data: { top, bottom, kind } }, text));
    }

    /** Letters keep their size on the screen, whatever the size of the picture. */
    function letters() {
      if (!answer || !scene.clientWidth) return;
      const pixel = answer.width / scene.clientWidth;
      for (const text of boxes.querySelectorAll("text")) {
        const [top, bottom, kind] = ["top", "bottom", "kind"].map((name) => text.getAttribute(`data-${name}`) ?? "");
        const size = LETTERS_PX * pixel;
        text.setAttribute("font-size", String(size));
        text.setAttribute("stroke-width", String(3 * pixel));
        text.setAttribute("y", String(placed(kind, Number(top), Number(bottom), size)));
      }
    }

    if (/^pred_[0-9a-f]{32}$/.test(wanted.prediction)) {
      tell("The answer is looked up …");
      get(`predictions/${wanted.prediction}`, { signal }).then((made) => (made.job === id && !picture ? follow(made) : (status.hidden = true)), (error) => {
        if (signal.aborted || picture) return;
        if (error.status !== 404) return fail(error);
        tell("That answer is forgotten: answers are kept for a day. Choose a picture.");
      });
    }
  }
}

/** @param {number} score */
function within(score) {
  return Number.isFinite(score) ? Math.min(1, Math.max(LOWEST, score)) : USUAL;
}

/** Where the letters of a box stand: each network has its own place, since their boxes often agree. @param {string} kind @param {number} top @param {number} bottom @param {number} size */
function placed(kind, top, bottom, size) {
  if (kind === "control") return bottom - size * 0.3;
  return kind === "teacher" || top <= size * 1.3 ? top + size * (kind === "teacher" && top <= size * 1.3 ? 2.2 : 1.1) : top - size * 0.3;
}
