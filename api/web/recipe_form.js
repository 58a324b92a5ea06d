/** @file Parts of a form that a job's and a study's have in common: data set, teacher, methods, schedule, the same request. */

import { get, Problem, query as address } from "./api.js";
import { complain, copy } from "./dialogs.js";
import { button, h, isolated, put, write } from "./elements.js";
import { group, network, pick, resolved, same, showFaults, slot } from "./form.js";
import { ap, count } from "./format.js";

/** @typedef {import("./form.js").Form} Form */
/** @typedef {import("./form.js").Field} Field */

const MOST = 1000;
const SCHEDULE = ["epochs", "batch_size", "min_size", "max_size", "optimizer"];
export const STUDENT = ["backbone", "fpn_channels"];
export const RESOURCES = ["device", "devices"];

/** What is chosen of a schedule at once. @type {readonly {title: string, why: string, schedule: any}[]} */
const PRESETS = [
  { title: "Standard", why: "12 epochs with AdamW at 240 to 320 pixels", schedule: {} },
  { title: "Quick look", why: "2 epochs: does it run, and does it learn?", schedule: { epochs: 2 } },
  { title: "Long", why: "36 epochs, averaged weights", schedule: { epochs: 36, ema: {} } },
  { title: "As in the paper", why: "24 epochs with SGD at 800 to 1333 pixels; the rate falls after epochs 16 and 22", schedule: { epochs: 24, min_size: 800, max_size: 1333, optimizer: { kind: "sgd" }, lr_schedule: { kind: "step" } } },
];

/** What a form offers: the catalogue, the data sets that are ready, and networks that can teach. @param {AbortSignal} signal */
export async function offered(signal) {
  const [catalogue, datasets, models, jobs] = await Promise.all([get("catalogue", { signal }), all("datasets", signal), all("models", signal), get("summaries?state=succeeded&limit=200", { signal })]);
  const networks = [
    ...jobs.items.map((/** @type {import("./jobs.js").Summary} */ job) => ({ value: { job: job.id }, label: `${isolated(job.name)} · ${job.student}${job.ap === null ? "" : ` · AP ${ap(job.ap)}`}`, group: "Finished jobs" })),
    ...models.map((model) => ({ value: { model: model.id }, label: `${isolated(model.name)} · ${model.recipe?.detector?.kind ?? "model"}`, group: "Models" })),
  ];
  return { catalogue, datasets, networks };
}

/** All that are ready. @param {"datasets" | "models"} noun @param {AbortSignal} signal @returns {Promise<any[]>} */
async function all(noun, signal) {
  const found = [];
  let cursor = null;
  do {
    const page = await get(`${noun}${address({ state: "ready", limit: 200, cursor })}`, { signal });
    found.push(...page.items);
    cursor = page.next;
  } while (cursor && found.length < MOST);
  return found;
}

/** With a line about its images. @param {Form} form @param {any[]} datasets @param {any} value */
export function datasetField(form, datasets, value) {
  const field = pick(form, [{ value: null, label: datasets.length ? "Choose one" : "There is none that is ready" }, ...datasets.map((each) => ({ value: each.id, label: `${isolated(each.name)} · ${each.classes?.length === 1 ? "1 class" : `${count(each.classes?.length ?? 0)} classes`}` }))],
    value ?? null, () => "/dataset", { label: "Data set" }, null);
  const images = h("p", { class: "dim small", "aria-live": "polite" });
  const none = datasets.length === 0 && h("p", {}, h("a", { href: "#/datasets" }, "Upload a data set first"));
  const refresh = () => {
    const chosen = datasets.find((each) => each.id === field.read());
    write(images, chosen?.splits ? Object.entries(chosen.splits).map(([split, each]) => `${split}: ${count(each.images)} images`).join(" · ") : "");
  };
  return { element: [field.element, images, none], read: field.read, refresh };
}

/** @param {Form} form @param {any} schema of the field @param {any} value */
export function teacherField(form, schema, value) {
  return network(form, schema, schema.anyOf.map((/** @type {any} */ each) => resolved(form, each)), value, () => "/teacher", { label: "Teacher", help: "A finished job, or a model that was uploaded or promoted." }, "No teacher: plain training");
}

/** The schedule, which a preset fills. @param {Form} form @param {any} schema of the field @param {any} value */
export function scheduleField(form, schema, value) {
  const place = h("div", {});
  /** @type {Field} */
  let inside;
  /** @param {any} now */
  function fill(now) {
    inside = group(form, resolved(form, schema), now, () => "/schedule", { first: SCHEDULE });
    put(place, inside.element);
  }
  fill(value);
  const presets = h("div", { class: "chips", role: "group", "aria-label": "Presets of the schedule" }, PRESETS.map((each) =>
    button(each.title, () => (fill(each.schedule), form.changed()), { title: each.why })));
  const refresh = () => {
    for (const [n, each] of PRESETS.entries()) presets.children[n].setAttribute("aria-pressed", String(same(each.schedule, inside.read() ?? {})));
  };
  return { element: [presets, place], read: () => inside.read(), refresh };
}

/**
 * A list of methods that grows and shrinks. What stands in empty fields depends on the student's family.
 * @param {Form} form @param {any} catalogue @param {any} items the schema of one @param {any[]} value @param {() => string} at pointer of the list
 * @param {(kind: string) => boolean} fits whether all families can learn by it @param {string} family whose numbers count for what is left empty; "" for none
 */
export function methodsField(form, catalogue, items, value, at, fits, family) {
  /** @type {{kind: string, part: Field, element: HTMLElement}[]} */
  let methods = [];
  const list = h("div", { class: "methods" });
  const adding = h("select", {});
  const element = h("div", {}, list, h("div", { class: "bar" }, h("label", { class: "inline" }, "Add a method", adding), button("Add", () => (add({ kind: adding.value }), form.changed()))));

  /** @param {any} each */
  function add(each) {
    const entry = catalogue.methods.find((/** @type {any} */ one) => one.kind === each.kind);
    if (!entry) return;
    const path = () => `${at()}/${methods.findIndex((one) => one.element === article)}`;
    const part = group(form, resolved(form, { $ref: items.discriminator.mapping[each.kind] }), each, path, { first: ["rho"], hints: entry.presets[family] ?? {} });
    const fault = h("p", { class: "bad fault", role: "alert", hidden: true });
    const article = h("article", { class: "method" }, h("div", { class: "bar" }, h("h3", {}, each.kind), button("Remove", () => {
      methods = methods.filter((one) => one.element !== article);
      article.remove();
      adding.focus();
      form.changed();
    }, { class: "quiet", "aria-label": `Remove ${each.kind}` })), h("p", { class: "dim small" }, entry.summary.split("\n\n")[0]), fault, part.element);
    methods.push({ kind: each.kind, part, element: article });
    list.append(article);
    slot(form, path, article, fault);
  }

  /** @param {string} now */
  function refresh(now) {
    put(adding, catalogue.methods.map((/** @type {any} */ each) => h("option", { value: each.kind, disabled: !fits(each.kind) }, each.kind, fits(each.kind) ? "" : " (not for this student)")));
    if (now === family) return;
    family = now;
    const before = read();
    methods = [];
    put(list);
    before.forEach(add);
  }
  const read = () => methods.map(({ kind, part }) => ({ kind, ...part.read() }));
  value.forEach(add);
  refresh(family);
  return { element, read, add, refresh, focus: () => adding.focus() };
}

/** A form's request in other words, which the address remembers. @param {any} view with query and setQuery @param {(body: any) => Record<"curl" | "Python" | "fgd", string>} words */
export function sameRequest({ query, setQuery }, words) {
  const shown = h("pre", { class: "log code mono", tabindex: "0", role: "region", "aria-label": "The same request" });
  const ways = h("div", { class: "chips", role: "group", "aria-label": "The same request in" });
  let way = query.get("as") ?? "";
  /** @param {any} body */
  function refresh(body) {
    const all = words(body);
    if (!(way in all)) way = "curl";
    put(ways, Object.keys(all).map((each) => button(each, () => ((way = each), setQuery({ as: way === "curl" ? "" : way }), refresh(body), ways.querySelector('[aria-pressed="true"]')?.focus()), { "aria-pressed": String(each === way) })));
    write(shown, all[/** @type {"curl"} */ (way)]);
  }
  return { element: card("The same request", h("div", { class: "bar" }, ways, button("Copy", () => copy(shown.textContent, "The request"))), shown), refresh };
}

/** @param {string} title @param {...any} inside */
export function card(title, ...inside) {
  return h("section", { class: "card" }, h("h2", {}, title), inside);
}

/** Shows what was wrong with a request: at its fields, else in the notice. @param {Form} form @param {HTMLElement} notice @param {unknown} error */
export function showProblem(form, notice, error) {
  if (!(error instanceof Problem)) throw error;
  const left = showFaults(form, error.errors.filter((each) => !each.parameter));
  const texts = error.errors.length ? left.map((each) => (each.pointer ? `${each.pointer}: ${each.detail}` : each.detail)) : [error.message];
  notice.hidden = texts.length === 0;
  put(notice, texts.map((each) => h("p", {}, each)));
  if (texts.length && left.length === error.errors.length) notice.scrollIntoView({ block: "center" });
  if (error.status === 401) complain(error);
}

/** The spec that an address holds; null if it holds none. @param {URLSearchParams} query @returns {any} */
export function specOf(query) {
  try {
    const spec = JSON.parse(query.get("spec") ?? "null");
    if (typeof spec === "object" && spec !== null && !Array.isArray(spec)) return spec;
  } catch {
    // an address that was cut: an empty form is better than none
  }
  return null;
}
