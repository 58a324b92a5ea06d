/**
 * @file Makes elements. Text is text: nothing here, or anywhere else below web/, makes markup of a string.
 */

/** @typedef {Node | string | number | null | undefined | false} Child */

const ADDRESS = /^(#|\.{0,2}\/|web\/|v1\/|docs$|openapi\.json$|blob:|data:image\/)/;
const SVG = "http://www.w3.org/2000/svg";

/**
 * An element. Attributes are set as they are; null and false leave one out, true sets it without a value. `on` has
 * listeners by event, `data` becomes data-* attributes, `props` are properties of the object.
 * @param {string} tag @param {Record<string, any>} [attributes] @param {...(Child | Child[])} children
 * @returns {any}
 */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for a part of a drawing. @param {string} tag @param {Record<string, any>} [attributes] @param {...(Child | Child[])} children @returns {any} */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/** @param {Element} element @param {Record<string, any>} attributes @param {any[]} children */
function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (name === "data") {
      for (const [key, each] of Object.entries(value)) element.setAttribute(`data-${key}`, String(each));
    } else if (name === "props") {
      Object.assign(element, value);
    } else {
      if (/^(on|style$|srcdoc$)/.test(name)) throw new Error(`${name} is code; use on, a class or a property`);
      if (/^(href|src|action|formaction)$/.test(name) && !ADDRESS.test(value)) throw new Error(`an address of ours is expected, not ${value}`);
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...nodes(children));
  return element;
}

/** @param {any[]} children @returns {(Node | string)[]} */
function nodes(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false).map((child) => (child instanceof Node ? child : String(child)));
}

/** In place of what is there. @param {Element} parent @param {...(Child | Child[])} children */
export function put(parent, ...children) {
  parent.replaceChildren(...nodes(children));
}

/** Sets the text, if it differs: what is selected stays selected. @param {Element} element @param {string} text */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Marks that could end an isolation. */
const MARKS = /[\u202a-\u202e\u2066-\u2069]/g;

/**
 * A name that somebody gave: whatever its direction, it leaves the text around it in order. One with marks that could
 * end the isolation is a box of its own.
 * @param {string} text
 */
export function named(text) {
  return h("bdi", { class: text.search(MARKS) >= 0 ? "name boxed" : "name" }, text);
}

const TURNS = /[\u0590-\u08ff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufb1d-\ufdff\ufe70-\ufefe\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

/** A name among other words where no element can stand, as in an option or a label. @param {string} text */
export function isolated(text) {
  return TURNS.test(text) ? `\u2068${text.replaceAll(MARKS, "")}\u2069` : text;
}

/** A sentence of ours that may quote names: it begins on the left, whatever it quotes first. @param {string} text */
export function sentence(text) {
  return h("bdi", { class: "name", dir: "ltr" }, text);
}

/** What only a screen reader says. @param {string} text */
export function unseen(text) {
  return h("span", { class: "unseen" }, text);
}

/** @param {Child | Child[]} label @param {() => void} act @param {Record<string, any>} [attributes] */
export function button(label, act, attributes = {}) {
  return h("button", { type: "button", ...attributes, on: { click: act } }, label);
}

/**
 * @template T
 * @typedef {{element: HTMLElement, update: (item: T) => void}} Part
 */

/**
 * Children that follow a list: each item keeps its element, and with it focus, selection and open menus.
 * @template T
 * @param {HTMLElement} parent @param {(item: T) => string} keyOf @param {(item: T) => Part<T>} make
 * @returns {(items: T[]) => void}
 */
export function following(parent, keyOf, make) {
  /** @type {Map<string, Part<T>>} */
  const parts = new Map();
  return (items) => {
    const keys = new Set(items.map(keyOf));
    for (const [key, part] of parts) {
      if (!keys.has(key)) {
        part.element.remove();
        parts.delete(key);
      }
    }
    let before = /** @type {Element | null} */ (parent.firstElementChild);
    for (const item of items) {
      const key = keyOf(item);
      const part = parts.get(key) ?? make(item);
      parts.set(key, part);
      part.update(item);
      if (part.element === before) before = before.nextElementSibling;
      else parent.insertBefore(part.element, before);
    }
  };
}
