/** @file The files of the result. */

import { get } from "../../api.js";
import { download } from "../../downloads.js";
import { button, h, named, put } from "../../elements.js";
import { bytes } from "../../format.js";

const WHAT = {
  "student.safetensors": "the student's weights after the last step",
  "best.safetensors": "its weights with the best AP on the validation images",
  "model.py": "builds the network, with torchvision alone",
  "predict.py": "says what it finds in a picture, and draws it",
  "recipe.json": "the network, its classes and sizes",
  "manifest.json": "digests, versions and scores",
  "detections.npz": "what it found on the validation images",
  "README.md": "a model card",
};

const LOAD = `from model import CLASSES, load
from torchvision.io import read_image

image = read_image("photo.jpg") / 255
found = load()([image])[0]  # boxes, scores and labels; label k means CLASSES[k - 1]`;

/** @param {import("../job.js").Tab} tab */
export async function show({ root, id, feed, signal }) {
  const list = h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Files" });
  const use = h("section", { class: "card", hidden: true }, h("h2", {}, "Use them"),
    h("p", {}, "Download ", h("code", {}, "student.safetensors"), ", ", h("code", {}, "model.py"), " and ", h("code", {}, "predict.py"), " into one folder. They need torchvision and safetensors, nothing of this service."),
    h("p", { class: "dim" }, "What it finds in a picture, printed and drawn:"), h("pre", { class: "log code" }, "python predict.py photo.jpg found.jpg"),
    h("p", { class: "dim" }, "In a program of yours:"), h("pre", { class: "log code" }, LOAD));
  put(root, h("section", { class: "card" }, h("h2", {}, "Files"), list), use);
  async function load() {
    const { items } = await get(`jobs/${id}/artifacts`, { signal });
    use.hidden = !["student.safetensors", "model.py"].every((name) => items.some((/** @type {any} */ file) => file.name === name));
    put(list, items.length === 0 ? h("p", { class: "dim" }, "The files of the result are here when the job has succeeded.") : h("table", {},
      h("thead", {}, h("tr", {}, h("th", {}, "File"), h("th", { class: "number" }, "Size"), h("th", {}, "SHA-256"), h("th", {}, h("span", { class: "unseen" }, "Download")))),
      h("tbody", {}, items.map((/** @type {any} */ file) => h("tr", {},
        h("td", {}, named(file.name), WHAT[file.name] && h("div", { class: "dim" }, WHAT[file.name])), h("td", { class: "number" }, bytes(file.size)),
        h("td", {}, h("code", { title: file.sha256 }, file.sha256.slice(0, 16), "…")),
        h("td", { class: "number" }, button("Download", () => download(`artifacts/${file.id}/content`, file.name), { "aria-label": `Download ${file.name}` })))))));
  }
  feed.addEventListener("event", (/** @type {any} */ event) => event.detail.type === "succeeded" && load(), { signal });
  await load();
}
