/** @file The picture that a defect concerns, with the box that was wrong. */

import { ask, get, query as address } from "./api.js";
import { complain } from "./dialogs.js";
import { button, h, named, put, sentence } from "./elements.js";
import { sample as line, scene } from "./scenes.js";

/** @param {any} dataset @param {{file: string, message: string, action: string, split: string, n: number, box: number[] | null}} defect @param {AbortSignal} signal */
export async function showDefect(dataset, defect, signal) {
  const leaving = new AbortController();
  const mine = AbortSignal.any([signal, leaving.signal]);
  const inside = h("div", { class: "panel" }, h("p", { class: "dim" }, "The picture is being read …"));
  const box = h("dialog", { class: "box picture-of", "aria-labelledby": "dialog-title", on: { close: () => leaving.abort() } },
    h("h2", { id: "dialog-title" }, named(defect.file)), h("p", {}, sentence(defect.message)), inside, h("div", { class: "actions" }, button("Close", () => box.close())));
  let url = "";
  mine.addEventListener("abort", () => (box.remove(), URL.revokeObjectURL(url)));
  document.body.append(box);
  box.showModal();
  try {
    const where = `datasets/${dataset.id}/samples/${defect.n}`;
    const [sample, picture] = await Promise.all([get(`${where}${address({ split: defect.split })}`, { signal: mine }), ask(`${where}/image${address({ split: defect.split })}`, { signal: mine }).then((answer) => answer.blob())]);
    if (mine.aborted) return;
    url = URL.createObjectURL(picture);
    const drawing = scene(sample, mine);
    drawing.picture(url);
    const kept = sample.boxes.map((/** @type {any} */ each) => ({ box: each.box, kind: each.crowd ? "truth crowd" : "truth", text: each.name, title: each.name }));
    const wrong = defect.box ? [{ box: defect.box, kind: "false", text: defect.action.replaceAll("_", " "), title: defect.message, above: false }] : [];
    put(inside, drawing.element, h("div", { class: "bar dim small" }, kept.length > 0 && line("truth", "boxes of the data set"), wrong.length > 0 && line("false", `the box as it was written (${defect.action.replaceAll("_", " ")})`), h("span", {}, `${defect.split}, image ${defect.n + 1}`)));
    drawing.draw([...wrong, ...kept], `${sample.name}: ${defect.message}`);
  } catch (error) {
    if (mine.aborted) return;
    box.close();
    complain(error);
  }
}
