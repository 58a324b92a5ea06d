/** @file What is done with data sets, on the list as on a page of one. */

import { send } from "./api.js";
import { complain, confirmed, filledIn, say } from "./dialogs.js";
import { button, h, named, put, sentence } from "./elements.js";
import { bytes } from "./format.js";
import { to } from "./router.js";
import { begin, differs, go, refusal, stop, uploads } from "./uploads.js";

const STATES = { awaiting_upload: "waiting for its zip", verifying: "being imported", ready: "ready", rejected: "rejected" };

/** In words. @param {any} dataset */
export function stateOf(dataset) {
  const upload = uploads.of.get(dataset.id);
  if (dataset.state === "awaiting_upload" && upload && ["sending", "waiting"].includes(upload.state)) return "uploading";
  return STATES[dataset.state] ?? dataset.state;
}

/** @param {any} dataset @returns {Promise<boolean>} */
export async function rename(dataset) {
  const values = await filledIn({ title: "Rename this data set", action: "Rename", fields: [{ name: "name", label: "Name", value: dataset.name }] });
  if (!values || values.name === dataset.name) return false;
  return done(() => send("PATCH", `datasets/${dataset.id}`, { name: values.name }), [named(values.name), " is its name now"]);
}

/** @param {any} dataset @returns {Promise<boolean>} */
export async function remove(dataset) {
  const sure = await confirmed({ title: "Delete this data set?", text: [named(dataset.name), ": its images and boxes are deleted with it. It is refused while a job uses it."], action: "Delete", danger: true });
  if (!sure) return false;
  stop(dataset.id);
  return done(() => send("DELETE", `datasets/${dataset.id}`), [named(dataset.name), " is deleted"]);
}

/** @param {() => Promise<any>} act @param {any} told */
async function done(act, told) {
  try {
    await act();
    say(told);
    return true;
  } catch (error) {
    complain(error);
    return false;
  }
}

/** @param {() => any} dataset @param {() => void} changed */
export function datasetMenu(dataset, changed) {
  const list = h("div", {});
  const summary = h("summary", {}, "⋯");
  const element = h("details", { class: "menu", on: { toggle: fill } }, summary, list);
  function fill() {
    if (!element.open) return;
    const now = dataset();
    put(list, now.state === "ready" && h("a", { class: "button", href: to(["new"], { dataset: now.id }) }, "Train on it …"),
      button("Rename …", async () => (await rename(now)) && changed()), button("Delete …", async () => (await remove(now)) && changed(), { class: "bad" }));
  }
  return { element, name: (/** @type {string} */ text) => summary.setAttribute("aria-label", `Actions for ${text}`) };
}

/** How far its upload is, and what can be done about it. @param {any} dataset */
export function uploadLine(dataset) {
  const upload = uploads.of.get(dataset.id);
  const goes = upload && ["sending", "waiting"].includes(upload.state);
  const input = h("input", { type: "file", accept: ".zip,application/zip", class: "unseen", "aria-label": `The zip of ${dataset.name}`, tabindex: "-1", on: { change: () => input.files?.[0] && resume(dataset.id, input.files[0]) } });
  return [
    upload && h("progress", { max: upload.size, value: upload.sent, "aria-label": `Upload of ${dataset.name}` }),
    upload && h("div", { class: upload.state === "failed" ? "bad" : "dim" }, `${bytes(upload.sent)} of ${bytes(upload.size)}`, upload.why && [" · ", sentence(upload.why)], upload.state === "waiting" && " · it is tried again"),
    upload?.state === "done" ? null : goes ? button("Pause", () => stop(dataset.id), { class: "quiet", "aria-label": `Pause the upload of ${dataset.name}` })
      : [input, button("Go on with the upload …", () => input.click(), { class: "quiet", "aria-label": `Go on with the upload of ${dataset.name}` })],
  ];
}

/** @param {string} id @param {File} file */
async function resume(id, file) {
  const why = (await refusal(file)) || differs(id, file);
  if (why) say(why, "bad");
  else go(id, file);
}

/** Takes zips that are dropped anywhere on the page, or chosen. @param {{signal: AbortSignal, taken: () => void}} of */
export function dropZone({ signal, taken }) {
  const input = h("input", { type: "file", accept: ".zip,application/zip", multiple: true, class: "unseen", id: "zip", on: { change: () => (take([...(input.files ?? [])]), (input.value = "")) } });
  const element = h("div", { class: "card drop" }, input, h("label", { for: "zip", class: "button" }, "Choose a zip"), h("span", {}, " or drop it anywhere on this page. COCO, YOLO, Pascal VOC and others are found by their content."));
  let inside = 0;
  const over = (/** @type {boolean} */ on) => element.classList.toggle("over", on);
  document.addEventListener("dragenter", (event) => hasFiles(event) && ((inside += 1), over(true)), { signal });
  document.addEventListener("dragleave", (event) => hasFiles(event) && (inside -= 1) <= 0 && over(false), { signal });
  document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault(), { signal });
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    inside = 0;
    over(false);
    take([...(event.dataTransfer?.files ?? [])]);
  }, { signal });
  return element;

  /** @param {File[]} files */
  async function take(files) {
    for (const file of files) {
      const why = await refusal(file);
      if (why) {
        say(why, "bad");
        continue;
      }
      try {
        await begin(file);
        taken();
      } catch (error) {
        complain(error);
      }
    }
  }
}

/** @param {DragEvent} event */
function hasFiles(event) {
  return event.dataTransfer?.types.includes("Files") ?? false;
}
