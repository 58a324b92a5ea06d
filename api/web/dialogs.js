/** @file Asks the reader, and tells what was done. */

import { button, h } from "./elements.js";
import { Problem } from "./api.js";

/**
 * A question with one answer. True if it was given.
 * @param {{title: string, text: any, action: string, danger?: boolean}} of @returns {Promise<boolean>}
 */
export async function confirmed({ title, text, action, danger = false }) {
  return (await filledIn({ title, text, action, danger, fields: [] })) !== null;
}

/**
 * A small form; its values by name, or null if it was closed.
 * @param {{title: string, text?: any, action: string, danger?: boolean, fields: {name: string, label: string, value?: string, type?: string, required?: boolean, min?: number}[]}} of
 * @returns {Promise<Record<string, string> | null>}
 */
export function filledIn({ title, text, action, danger = false, fields }) {
  return new Promise((answer) => {
    const inputs = fields.map(({ name, label, value = "", type = "text", required = true, min }) => {
      const input = h("input", { name, type, required, min, autocomplete: "off", props: { value } });
      return { name, input, element: h("label", { class: "field" }, label, input) };
    });
    const box = h("dialog", { class: "box", "aria-labelledby": "dialog-title" },
      h("form", {
        method: "dialog",
        on: {
          submit: (/** @type {Event} */ event) => {
            event.preventDefault();
            done(Object.fromEntries(inputs.map(({ name, input }) => [name, input.value])));
          },
        },
      },
        h("h2", { id: "dialog-title" }, title),
        text && h("p", {}, text),
        inputs.map(({ element }) => element),
        h("div", { class: "actions" },
          button("Close", () => done(null), { class: "quiet" }),
          h("button", { type: "submit", class: danger ? "danger" : "primary" }, action))));
    /** @param {Record<string, string> | null} values */
    function done(values) {
      box.close();
      box.remove();
      answer(values);
    }
    box.addEventListener("cancel", (/** @type {Event} */ event) => (event.preventDefault(), done(null)));
    document.body.append(box);
    box.showModal();
    inputs[0]?.input.select();
  });
}

const LASTS_MS = 6000;

/** A line at the edge of the page. @param {any} text @param {"good" | "bad"} [kind] */
export function say(text, kind = "good") {
  const line = h("div", { class: `toast ${kind}`, role: kind === "bad" ? "alert" : "status" }, h("span", {}, text), button("×", () => line.remove(), { class: "quiet", "aria-label": "Close this message" }));
  toasts().append(line);
  if (kind === "good") setTimeout(() => line.remove(), LASTS_MS);
}

function toasts() {
  const there = document.querySelector(".toasts");
  if (there) return there;
  const made = h("div", { class: "toasts" });
  document.body.append(made);
  return made;
}

/** What went wrong, with the fields that are at fault. @param {unknown} error */
export function complain(error) {
  if (!(error instanceof Problem)) throw error;
  if (error.status === 401) return; // the page asks for the key
  const faults = error.errors.filter((each) => each.pointer).map((each) => `${each.pointer}: ${each.detail}`);
  say(faults.length ? faults.join("; ") : error.message, "bad");
}

/** Puts text into the clipboard. @param {string} text @param {string} what it is called */
export async function copy(text, what) {
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyPlainly(text); // a page over plain http has no clipboard
    say(`${what} is in the clipboard`);
  } catch {
    say("The browser does not let this page use the clipboard: select the text and copy it", "bad");
  }
}

/** @param {string} text */
function copyPlainly(text) {
  const area = h("textarea", { props: { value: text } });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("not copied");
}
