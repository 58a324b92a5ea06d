/** @file The job as it runs, with every number filled in, and what its parts are known by. */

import { get } from "../../api.js";
import { copy } from "../../dialogs.js";
import { button, h, named, put } from "../../elements.js";
import { json } from "../../requests.js";

/** @param {import("../job.js").Tab} tab */
export async function show({ root, job, id, signal }) {
  const text = json(job.spec);
  const { items } = await get(`jobs/${id}/artifacts`, { signal });
  const digests = [
    ["Job", id],
    ["Data set", job.spec.dataset],
    ...Object.entries(job.inputs ?? {}).flatMap(([role, files]) => Object.entries(files).map(([name, digest]) => [`${role}: ${name}`, digest])),
    ["Tensors of the student", job.weights_digest],
    ...items.map((/** @type {any} */ file) => [file.name, file.sha256]),
  ].filter(([, value]) => value);
  put(root,
    h("section", { class: "card" }, h("h2", {}, "Digests (SHA-256)"), h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Digests" }, h("table", {}, h("tbody", {}, digests.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, named(name)), h("td", {}, h("code", {}, value)))))))),
    h("section", { class: "card" },
      h("div", { class: "bar" }, h("h2", {}, "Resolved spec"), button("Copy", () => copy(text, "The spec"))),
      h("pre", { class: "log code mono", tabindex: "0", role: "region", "aria-label": "Resolved spec" }, text)));
}
