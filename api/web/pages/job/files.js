/** @file The files of the result. */

import { get } from "../../api.js";
import { download } from "../../downloads.js";
import { button, h, named, put } from "../../elements.js";
import { bytes } from "../../format.js";

const WHAT = {
  "student.safetensors": "the student's weights after the last step",
  "best.safetensors": "its weights with the best AP on the validation images",
  "model.py": "builds the network, with torchvision alone",
  "recipe.json": "the network, its classes and sizes",
};

/** @param {import("../job.js").Tab} tab */
export async function show({ root, id, feed, signal }) {
  const list = h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Files" });
  put(root, h("section", { class: "card" }, h("h2", {}, "Files"), list));
  async function load() {
    const { items } = await get(`jobs/${id}/artifacts`, { signal });
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
