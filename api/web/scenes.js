/** @file A picture with boxes over it, as a drawing that scales: letters keep their size on the screen. */

import { h, svg } from "./elements.js";

/** @typedef {{box: number[], kind: string, text: string, title: string, above?: boolean}} Mark kind: a class of style.css */

const LETTERS_PX = 12;
/** Around a box that lies beyond its picture, of the picture's longer side. */
const MARGIN = 0.02;

/**
 * A drawing of this size, and what changes its boxes.
 * @param {{width: number, height: number}} size @param {AbortSignal} signal
 */
export function scene({ width, height }, signal) {
  const image = svg("image", { width, height });
  const layer = svg("g", {});
  const element = svg("svg", { class: "boxed", role: "img", viewBox: `0 0 ${width} ${height}` }, image, layer);
  const sized = new ResizeObserver(letters);
  sized.observe(element);
  signal.addEventListener("abort", () => sized.disconnect());

  function letters() {
    if (!element.clientWidth) return;
    const [, , wide] = element.getAttribute("viewBox").split(" ").map(Number);
    const pixel = wide / element.clientWidth;
    for (const text of layer.querySelectorAll("text")) {
      const [top, bottom] = [Number(text.getAttribute("data-top")), Number(text.getAttribute("data-bottom"))];
      const size = LETTERS_PX * pixel;
      text.setAttribute("font-size", String(size));
      text.setAttribute("stroke-width", String(3 * pixel));
      text.setAttribute("y", String(text.hasAttribute("data-below") ? Math.min(height, bottom) - size * 0.3 : top > size * 1.2 ? top - size * 0.3 : top + size * 1.1));
    }
  }

  return {
    element,
    /** @param {string} url of the picture; "" takes it away */
    picture: (url) => (url ? image.setAttribute("href", url) : image.removeAttribute("href")),
    /** The first lie on top. @param {Mark[]} marks @param {string} label @param {boolean} [lettered] */
    draw: (marks, label, lettered = true) => {
      element.setAttribute("aria-label", label);
      element.setAttribute("viewBox", framed(width, height, marks).join(" "));
      layer.replaceChildren(...marks.toReversed().map((mark) => drawn(mark, lettered)));
      letters();
    },
  };
}

/** The picture, and boxes beyond it. @param {number} width @param {number} height @param {Mark[]} marks */
function framed(width, height, marks) {
  const [left, top] = [0, 1].map((side) => Math.min(0, ...marks.map(({ box }) => box[side])));
  const [right, bottom] = [Math.max(width, ...marks.map(({ box }) => box[2])), Math.max(height, ...marks.map(({ box }) => box[3]))];
  if (left === 0 && top === 0 && right === width && bottom === height) return [0, 0, width, height];
  const margin = MARGIN * Math.max(width, height);
  // Of a box that lies far away its side of the picture is shown.
  const [far, low] = [Math.max(left, -width), Math.max(top, -height)].map((side) => side - margin);
  return [far, low, Math.min(right, 2 * width) + margin - far, Math.min(bottom, 2 * height) + margin - low];
}

/** @param {Mark} mark @param {boolean} lettered */
function drawn({ box: [left, top, right, bottom], kind, text, title, above = true }, lettered) {
  const d = `M${left} ${top}H${right}V${bottom}H${left}Z`; // a rectangle without area would not be drawn at all
  return svg("g", { class: `mark ${kind}` }, svg("path", { class: "halo", d }), svg("path", { d }, svg("title", {}, title)),
    lettered && text && svg("text", { x: Math.max(0, left), y: top, data: { top, bottom, ...(above ? {} : { below: "" }) } }, text));
}

/** A line of the legend. @param {string} kind @param {string} words */
export function sample(kind, words) {
  return h("span", { class: "inline" }, svg("svg", { class: `sample mark ${kind}`, viewBox: "0 0 24 8", "aria-hidden": "true" }, svg("path", { d: "M0 4H24" })), words);
}
