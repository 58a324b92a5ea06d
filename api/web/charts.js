/**
 * @file Curves on a canvas: axes, a logarithmic scale, zoom, gaps, smoothing, a band of extremes and a crosshair.
 *
 * A curve is {key, name, color, x, y}: steps that rise, and values; null is a gap. Colours are names of style.css. The
 * server sends the least and the greatest of each of many buckets, so that a curve of a million points keeps its peaks;
 * where several points fall on one column of pixels, the line spans them all, which shows the band.
 */

import { button, h, named, put, unseen } from "./elements.js";
import { number } from "./format.js";
import { session } from "./session.js";

/**
 * @typedef {object} Curve
 * @property {string} key @property {string} name @property {string} color a variable of style.css, as in "--student"
 * @property {number[]} x @property {(number | null)[]} y
 * @property {boolean} [dashed] @property {boolean} [dotted] @property {boolean} [flat] a level, drawn from edge to edge: one value @property {boolean} [dots] each point is marked
 */

const PAD = { top: 12, right: 14, bottom: 30, left: 58 };
const LEAST_DRAG_PX = 6;
const DASHES = { solid: [], dashed: [6, 4], dotted: [2, 3] };
/** For curves that are no job's part. None of them is the student's, the control's or the teacher's colour. */
export const TERMS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7"];

/**
 * @param {{name: string, axis?: string, height?: number, zoomed?: (range: [number, number] | null) => void}} of
 *   `name`: for those who cannot see it; `zoomed`: a part of the steps was chosen, or all again
 */
export function chart({ name, axis = "step", height = 260, zoomed = () => {} }) {
  const canvas = h("canvas", { class: "plot", role: "img", tabindex: "0", "aria-label": name });
  const legend = h("div", { class: "legend" });
  const readout = h("div", { class: "readout", hidden: true });
  const whole = button("Show all", () => zoomTo(null), { class: "whole", hidden: true });
  const element = h("figure", { class: "chart" }, h("div", { class: "plot-box" }, canvas, readout, whole), legend);
  /** @type {Curve[]} */
  let curves = [];
  let options = { log: false, smooth: 0 };
  /** @type {[number, number] | null} */
  let zoom = null;
  /** @type {Set<string>} */
  const hidden = new Set();
  /** @type {number | null} */
  let at = null;
  /** @type {[number, number] | null} pixels */
  let drag = null;
  let frame = 0;
  /** @type {{x: Scale, y: Scale, drawn: {curve: Curve, y: (number | null)[]}[]} | null} what the crosshair reads */
  let last = null;

  const again = () => (cancelAnimationFrame(frame), (frame = requestAnimationFrame(draw)));
  new ResizeObserver(again).observe(canvas);
  session.addEventListener("theme", again);

  /** @param {[number, number] | null} range */
  function zoomTo(range) {
    zoom = range;
    whole.hidden = range === null;
    zoomed(range);
    again();
  }

  function draw() {
    const width = canvas.clientWidth;
    if (width === 0) return;
    const ratio = devicePixelRatio || 1;
    canvas.style.height = `${height}px`;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const style = getComputedStyle(canvas);
    const color = (/** @type {string} */ variable) => resolved(style, variable);
    const shown = curves.filter((curve) => !hidden.has(curve.key) && (curve.flat || curve.x.length));
    const drawn = shown.map((curve) => ({ curve, y: curve.flat ? curve.y : smoothed(curve.y, options.smooth) }));
    const box = { left: PAD.left, right: width - PAD.right, top: PAD.top, bottom: height - PAD.bottom };
    const x = scale(zoom ?? extent(shown.filter((curve) => !curve.flat).map((curve) => curve.x)) ?? [0, 1], box.left + 4, box.right - 4, false);
    const values = drawn.flatMap(({ curve, y }) => within(curve, y, x.from, x.to)).filter((each) => !options.log || each > 0);
    const y = scale(padded(values, options.log), box.bottom, box.top, options.log);
    last = { x, y, drawn };
    grid(pen, box, x, y, color);
    pen.save();
    pen.beginPath();
    pen.rect(box.left, box.top - 2, box.right - box.left, box.bottom - box.top + 4);
    pen.clip();
    for (const { curve, y: line } of drawn) {
      pen.strokeStyle = pen.fillStyle = color(curve.color);
      pen.setLineDash(DASHES[strokeOf(curve)]);
      if (curve.flat) level(pen, box, y, curve.y[0]);
      else {
        if (options.smooth > 0) (pen.globalAlpha = 0.25), stroke(pen, x, y, curve.x, curve.y, 1), (pen.globalAlpha = 1);
        stroke(pen, x, y, curve.x, line, 1.7);
        if (curve.dots && curve.x.length <= 200) points(pen, x, y, curve.x, curve.y);
      }
    }
    pen.setLineDash([]);
    if (at !== null && !drag) crosshair(pen, box, x, color("--dim"));
    if (drag) (pen.fillStyle = color("--accent")), (pen.globalAlpha = 0.18), pen.fillRect(Math.min(...drag), box.top, Math.abs(drag[1] - drag[0]), box.bottom - box.top), (pen.globalAlpha = 1);
    pen.restore();
  }

  /** @param {CanvasRenderingContext2D} pen @param {Box} box @param {Scale} x @param {string} color */
  function crosshair(pen, box, x, color) {
    pen.strokeStyle = color;
    pen.lineWidth = 1;
    pen.beginPath();
    const place = Math.round(x.to_px(/** @type {number} */ (at))) + 0.5;
    pen.moveTo(place, box.top);
    pen.lineTo(place, box.bottom);
    pen.stroke();
  }

  /** What the curves say at a step. @param {number | null} step */
  function read(step) {
    at = step;
    readout.hidden = step === null || last === null;
    if (step !== null && last) {
      const lines = last.drawn.map(({ curve, y }) => {
        const place = curve.flat ? 0 : nearest(curve.x, step);
        const value = place < 0 ? null : y[place];
        return h("div", {}, swatch(curve), named(curve.name), `: ${number(value)}`, curve.flat || place < 0 || curve.x[place] === Math.round(step) ? null : h("span", { class: "dim" }, ` at ${curve.x[place]}`));
      });
      put(readout, h("strong", {}, `${axis} ${Math.round(step).toLocaleString("en")}`), lines);
      paint(readout);
      readout.classList.toggle("leftward", last.x.to_px(step) > canvas.clientWidth / 2);
    }
    again();
  }

  const place = (/** @type {PointerEvent} */ event) => Math.min(Math.max(event.clientX - canvas.getBoundingClientRect().left, PAD.left), canvas.clientWidth - PAD.right);
  canvas.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
    if (event.button !== 0 || event.pointerType === "touch") return;
    drag = [place(event), place(event)];
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    if (drag) (drag = [drag[0], place(event)]), again();
    else if (last) read(last.x.from_px(place(event)));
  });
  canvas.addEventListener("pointerup", () => {
    const [a, b] = drag ?? [0, 0];
    drag = null;
    if (last && Math.abs(a - b) >= LEAST_DRAG_PX) zoomTo([last.x.from_px(Math.min(a, b)), last.x.from_px(Math.max(a, b))]);
    else again();
  });
  canvas.addEventListener("pointercancel", () => ((drag = null), again()));
  canvas.addEventListener("pointerleave", () => !drag && read(null));
  canvas.addEventListener("blur", () => read(null));
  canvas.addEventListener("dblclick", () => zoomTo(null));
  canvas.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (!last) return;
    const [from, to] = [last.x.from, last.x.to];
    const middle = at ?? (from + to) / 2;
    const acts = {
      ArrowLeft: () => read(Math.max(from, middle - (to - from) / 50)),
      ArrowRight: () => read(Math.min(to, middle + (to - from) / 50)),
      "+": () => zoomTo([middle - (middle - from) / 2, middle + (to - middle) / 2]),
      "-": () => zoomTo(null),
      Escape: () => read(null),
    };
    const act = acts[event.key === "=" ? "+" : event.key];
    if (act) (event.preventDefault(), act());
  });

  function showLegend() {
    const focused = legend.contains(document.activeElement) ? document.activeElement?.getAttribute("data-key") : null;
    put(legend, curves.map((curve) => {
      const shown = !hidden.has(curve.key);
      const lastValue = curve.y.findLast((value) => value !== null);
      return button([swatch(curve), named(curve.name), h("span", { class: "dim" }, number(lastValue)), !shown && unseen(" (hidden)")], () => {
        shown ? hidden.add(curve.key) : hidden.delete(curve.key);
        showLegend();
        again();
      }, { class: shown ? "quiet" : "quiet off", "aria-pressed": null, data: { key: curve.key } });
    }));
    paint(legend);
    if (focused) [...legend.children].find((each) => each.getAttribute("data-key") === focused)?.focus();
  }

  return {
    element,
    /** @param {Curve[]} given @param {{log?: boolean, smooth?: number}} [how] */
    show(given, how = {}) {
      curves = given;
      options = { ...options, ...how };
      const text = `${name}. ${given.map((curve) => `${curve.name}: ${number(curve.y.findLast((value) => value !== null))}`).join(", ") || "no values yet"}`;
      if (canvas.getAttribute("aria-label") !== text) canvas.setAttribute("aria-label", text);
      showLegend();
      again();
    },
    zoomTo,
    get zoom() {
      return zoom;
    },
  };
}

/** How its line is drawn. @param {Curve} curve @returns {"solid" | "dashed" | "dotted"} */
function strokeOf(curve) {
  return curve.dashed || curve.flat ? "dashed" : curve.dotted ? "dotted" : "solid";
}

/** A piece of its line, for legends. @param {Curve} curve */
function swatch(curve) {
  return h("span", { class: `swatch ${strokeOf(curve)}`, data: { color: curve.color } });
}

/** Swatches have their curve's colour; an attribute cannot, under our policy. @param {Element} parent */
function paint(parent) {
  for (const each of parent.querySelectorAll(".swatch")) /** @type {HTMLElement} */ (each).style.background = `var(${each.getAttribute("data-color")})`;
}

/** light-dark() is not resolved in a variable; in a colour it is. @param {CSSStyleDeclaration} _ @param {string} variable */
export function resolved(_, variable) {
  const probe = document.createElement("span");
  probe.style.color = `var(${variable})`;
  document.body.append(probe);
  const color = getComputedStyle(probe).color;
  probe.remove();
  return color;
}

// --- numbers ------------------------------------------------------------------------------------------------------

/** @typedef {{left: number, right: number, top: number, bottom: number}} Box */
/** @typedef {{from: number, to: number, log: boolean, to_px: (value: number) => number, from_px: (px: number) => number}} Scale */

/** @param {[number, number]} range @param {number} start @param {number} end @param {boolean} log @returns {Scale} */
export function scale([from, to], start, end, log) {
  if (from === to) [from, to] = log ? [from / 2, to * 2] : [from - 0.5, to + 0.5];
  const f = log ? Math.log10 : (/** @type {number} */ value) => value;
  const back = log ? (/** @type {number} */ value) => 10 ** value : (/** @type {number} */ value) => value;
  const [a, b] = [f(from), f(to)];
  return {
    from, to, log,
    to_px: (value) => start + ((f(value) - a) / (b - a)) * (end - start),
    from_px: (px) => back(a + ((px - start) / (end - start)) * (b - a)),
  };
}

/** @param {number[][]} lists that rise @returns {[number, number] | null} */
function extent(lists) {
  const full = lists.filter((list) => list.length);
  return full.length ? [Math.min(...full.map((list) => list[0])), Math.max(...full.map((list) => list[list.length - 1]))] : null;
}

/** @param {number[]} values @param {boolean} log @returns {[number, number]} */
function padded(values, log) {
  if (!values.length) return log ? [0.1, 10] : [0, 1];
  let [least, greatest] = [Infinity, -Infinity];
  for (const value of values) (least = Math.min(least, value)), (greatest = Math.max(greatest, value));
  if (log) return [least / 1.1, greatest * 1.1];
  const room = (greatest - least) * 0.06 || Math.abs(greatest) * 0.1 || 0.5;
  return [least >= 0 && least - room < 0 ? 0 : least - room, greatest + room];
}

/** The values between two steps. @param {Curve} curve @param {(number | null)[]} y @param {number} from @param {number} to @returns {number[]} */
function within(curve, y, from, to) {
  if (curve.flat) return y.filter((value) => value !== null);
  return /** @type {number[]} */ (y.filter((value, place) => value !== null && curve.x[place] >= from && curve.x[place] <= to));
}

/** The mean of what came before, which forgets; without a bias at the beginning. Gaps stay. @param {(number | null)[]} y @param {number} weight 0 to 1 @returns {(number | null)[]} */
export function smoothed(y, weight) {
  if (weight <= 0) return y;
  let [mean, share] = [0, 0];
  return y.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    share = weight * share + (1 - weight);
    return mean / share;
  });
}

/** The place of the step nearest to one; -1 of none. @param {number[]} steps @param {number} step */
export function nearest(steps, step) {
  let [low, high] = [0, steps.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1;
    else high = middle;
  }
  if (low === steps.length) return low - 1;
  return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
}

/** Round values that divide a range into about so many parts. @param {number} from @param {number} to @param {number} many */
export function ticks(from, to, many) {
  const rough = (to - from) / many;
  const power = 10 ** Math.floor(Math.log10(rough));
  const each = [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= rough) ?? rough;
  const found = [];
  for (let value = Math.ceil(from / each) * each; value <= to + each * 1e-9; value += each) found.push(Math.abs(value) < each * 1e-9 ? 0 : value);
  return found;
}

/** @param {number} from @param {number} to */
export function logTicks(from, to) {
  const found = [];
  const few = Math.log10(to / from) < 1.5;
  for (let power = Math.floor(Math.log10(from)); power <= Math.log10(to); power += 1) {
    for (const digit of few ? [1, 2, 3, 5, 7] : [1]) if (digit * 10 ** power >= from && digit * 10 ** power <= to) found.push(digit * 10 ** power);
  }
  return found.length > 1 ? found : ticks(from, to, 4).filter((value) => value > 0);
}

// --- drawing ------------------------------------------------------------------------------------------------------

/** @param {CanvasRenderingContext2D} pen @param {Box} box @param {Scale} x @param {Scale} y @param {(name: string) => string} color */
function grid(pen, box, x, y, color) {
  pen.font = "11px system-ui, sans-serif";
  pen.lineWidth = 1;
  pen.strokeStyle = color("--line");
  pen.fillStyle = color("--dim");
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  for (const value of y.log ? logTicks(y.from, y.to) : ticks(y.from, y.to, 5)) {
    const place = Math.round(y.to_px(value)) + 0.5;
    line(pen, box.left, place, box.right, place);
    pen.fillText(number(value), box.left - 8, place);
  }
  pen.textAlign = "center";
  pen.textBaseline = "top";
  for (const value of ticks(x.from, x.to, Math.max(2, (box.right - box.left) / 110))) {
    const place = Math.round(x.to_px(value)) + 0.5;
    line(pen, place, box.bottom, place, box.bottom + 4);
    pen.fillText(value >= 1e5 ? `${number(value / 1000)}k` : String(Number(value.toPrecision(6))), place, box.bottom + 8);
  }
  line(pen, box.left, box.bottom + 0.5, box.right, box.bottom + 0.5);
}

/** @param {CanvasRenderingContext2D} pen @param {number} x @param {number} y @param {number} to_x @param {number} to_y */
function line(pen, x, y, to_x, to_y) {
  pen.beginPath();
  pen.moveTo(x, y);
  pen.lineTo(to_x, to_y);
  pen.stroke();
}

/** @param {CanvasRenderingContext2D} pen @param {Box} box @param {Scale} y @param {number | null} value */
function level(pen, box, y, value) {
  if (value === null || (y.log && value <= 0)) return;
  pen.lineWidth = 1.5;
  line(pen, box.left, y.to_px(value), box.right, y.to_px(value));
}

/** @param {CanvasRenderingContext2D} pen @param {Scale} x @param {Scale} y @param {number[]} steps @param {(number | null)[]} values @param {number} width */
function stroke(pen, x, y, steps, values, width) {
  pen.lineWidth = width;
  pen.lineJoin = "round";
  pen.beginPath();
  let drawing = false;
  values.forEach((value, place) => {
    if (value === null || (y.log && value <= 0)) {
      drawing = false;
      return;
    }
    const [px, py] = [x.to_px(steps[place]), y.to_px(value)];
    if (drawing) pen.lineTo(px, py);
    else {
      pen.moveTo(px, py);
      const alone = values[place + 1] === null || place === values.length - 1;
      if (alone) pen.lineTo(px + 0.1, py); // a value between two gaps is a dot
    }
    drawing = true;
  });
  pen.stroke();
}

/** @param {CanvasRenderingContext2D} pen @param {Scale} x @param {Scale} y @param {number[]} steps @param {(number | null)[]} values */
function points(pen, x, y, steps, values) {
  values.forEach((value, place) => {
    if (value === null || (y.log && value <= 0)) return;
    pen.beginPath();
    pen.arc(x.to_px(steps[place]), y.to_px(value), 2.6, 0, 7);
    pen.fill();
  });
}
