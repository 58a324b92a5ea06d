/**
 * @file Fields made from a JSON Schema. A field that is left as it is stays out of what is read, so a request holds only
 * what somebody chose; the default stands in the field as a hint. Text that is no number is read as text: the server
 * says what is wrong with it, at the field's pointer.
 */

import { h, put } from "./elements.js";

/**
 * @typedef {{element: HTMLElement, read: () => any}} Field `read` gives undefined for what is left as it is
 * @typedef {{at: () => string, element: HTMLElement, show: (text: string) => void}} Slot where the faults of a pointer are shown
 * @typedef {{value: any, label: string, group?: string}} Option
 * @typedef {{defs: Record<string, any>, slots: Slot[], changed: () => void, networks: Option[]}} Form
 */

let ids = 0;
const LONG = 200;
/** Letters of a help that stands over the whole width. */

/** @param {Record<string, any>} defs @param {Option[]} networks jobs and models that a field may name @param {() => void} changed @returns {Form} */
export function newForm(defs, networks, changed) {
  return { defs, slots: [], changed, networks };
}

/** Of fields whose own names say little. @type {Record<string, string>} */
const NAMES = { rho: "Strength (rho)", lr: "Learning rate (lr)" };

/** "fpn_channels" as a label. @param {string} name */
export function words(name) {
  const text = NAMES[name] ?? name.replaceAll("_", " ");
  return text[0].toUpperCase() + text.slice(1);
}

/** @param {string} pointer @param {string | number} name */
function below(pointer, name) {
  return `${pointer}/${String(name).replaceAll("~", "~0").replaceAll("/", "~1")}`;
}

/** With what its $ref stands for. @param {Form} form @param {any} schema */
export function resolved(form, schema) {
  return schema.$ref ? { ...form.defs[schema.$ref.replace("#/$defs/", "")], ...schema } : schema;
}

/** What a value is if it is not null, and whether it may be. @param {Form} form @param {any} schema */
function plain(form, schema) {
  const variants = schema.anyOf ?? [];
  const others = variants.filter((/** @type {any} */ each) => each.type !== "null");
  const nullable = others.length < variants.length;
  if (nullable && others.length === 1) return { schema: { ...resolved(form, others[0]), title: schema.title, default: schema.default, description: schema.description ?? resolved(form, others[0]).description }, nullable };
  return { schema: resolved(form, schema), nullable };
}

/** @param {any} a @param {any} b */
export function same(a, b) {
  if (a === b) return true;
  if (typeof a !== "object" || typeof b !== "object" || !a || !b || Array.isArray(a) !== Array.isArray(b)) return false;
  const [mine, theirs] = [Object.keys(a), Object.keys(b)];
  return mine.length === theirs.length && mine.every((key) => same(a[key], b[key]));
}

/**
 * A labelled control with its help and a place for a fault.
 * @param {Form} form @param {HTMLElement} control @param {string} label @param {string | undefined} help @param {() => string} at
 */
export function labelled(form, control, label, help, at) {
  const id = `f${(ids += 1)}`;
  control.id = id;
  const fault = h("p", { class: "bad fault", id: `${id}e`, role: "alert", hidden: true });
  control.setAttribute("aria-describedby", help ? `${id}h ${id}e` : `${id}e`);
  const tick = control instanceof HTMLInputElement && control.type === "checkbox";
  const element = h("div", { class: ["field", tick && "tick", help?.length > LONG && "long"].filter(Boolean).join(" ") }, tick ? h("span", { class: "inline" }, control, h("label", { for: id }, label)) : [h("label", { for: id }, label), control],
    fault, help && h("small", { class: "dim", id: `${id}h` }, help));
  slot(form, at, element, fault, control);
  return element;
}

/** @param {Form} form @param {() => string} at @param {HTMLElement} element @param {HTMLElement} fault @param {HTMLElement} [control] */
export function slot(form, at, element, fault, control) {
  form.slots.push({
    at,
    element,
    show: (text) => {
      fault.textContent = text;
      fault.hidden = text === "";
      control?.setAttribute("aria-invalid", String(text !== ""));
    },
  });
}

/** Shows each fault at its field, and gives those that have none. @param {Form} form @param {{pointer: string, detail: string}[]} faults */
export function showFaults(form, faults) {
  form.slots = form.slots.filter((each) => each.element.isConnected);
  for (const each of form.slots) each.show("");
  const told = new Map();
  const left = [];
  for (const fault of faults) {
    const place = placeOf(form, fault.pointer ?? "");
    if (place) told.set(place, [...(told.get(place) ?? []), place.at() === fault.pointer ? fault.detail : `${fault.pointer}: ${fault.detail}`]);
    else left.push(fault);
  }
  for (const [place, texts] of told) {
    place.show(texts.join("; "));
    for (let above = place.element.parentElement; above; above = above.parentElement) if (above instanceof HTMLDetailsElement) above.open = true;
  }
  const first = [...told.keys()].map((place) => place.element).sort((a, b) => (a.compareDocumentPosition(b) & Node.DOCUMENT_POSITION_FOLLOWING ? -1 : 1))[0];
  first?.querySelector("input, select, textarea, button")?.focus();
  return left;
}

/** The field itself, else the nearest one that it is a part of. @param {Form} form @param {string} pointer @returns {Slot | undefined} */
function placeOf(form, pointer) {
  for (let at = pointer; at; at = at.slice(0, at.lastIndexOf("/"))) {
    const found = form.slots.find((each) => each.at() === at);
    if (found) return found;
  }
  return undefined;
}

/**
 * All properties of an object: the `first` ones in sight, the others folded.
 * @param {Form} form @param {any} schema of an object @param {any} value @param {() => string} at
 * @param {{first?: string[], skip?: string[], hints?: Record<string, any>, advanced?: string}} [how] `hints`: what counts where a field is left empty
 * @returns {Field}
 */
export function group(form, schema, value, at, { first, skip = [], hints = {}, advanced = "Advanced" } = {}) {
  const names = Object.keys(schema.properties ?? {}).filter((name) => !skip.includes(name) && schema.properties[name].const === undefined);
  const seen = first ? first.filter((name) => names.includes(name)) : names;
  const fields = Object.fromEntries(names.map((name) => [name, field(form, name, schema.properties[name], value?.[name], () => below(at(), name), hints[name])]));
  const folded = names.filter((name) => !seen.includes(name));
  const element = h("div", { class: "fields" }, seen.map((name) => fields[name].element),
    folded.length > 0 && h("details", { class: "advanced" }, h("summary", {}, advanced), h("div", { class: "fields" }, folded.map((name) => fields[name].element))));
  return {
    element,
    read: () => {
      const read = Object.entries(fields).map(([name, each]) => [name, each.read()]).filter(([, each]) => each !== undefined);
      return read.length ? Object.fromEntries(read) : undefined;
    },
  };
}

/**
 * @param {Form} form @param {string} name @param {any} given its schema @param {any} value @param {() => string} at @param {any} [hint]
 * @returns {Field}
 */
export function field(form, name, given, value, at, hint) {
  const { schema, nullable } = plain(form, given);
  const refs = (given.anyOf ?? []).map((/** @type {any} */ each) => resolved(form, each));
  const text = { label: words(name), help: schema.description?.trim() };
  if (refs.some((/** @type {any} */ each) => each.properties?.job) && refs.some((/** @type {any} */ each) => each.properties?.model)) return network(form, given, refs, value, at, text);
  if (schema.discriminator) return choice(form, schema, value, at, text);
  if (schema.properties) return nullable ? optional(form, schema, value, at, text) : nested(form, text, group(form, schema, value, at), at);
  if (schema.type === "boolean") return checkbox(form, schema, value, at, text);
  if (schema.enum) return select(form, schema, nullable, value, at, text);
  const numbers = schema.type === "number" || schema.type === "integer" || (schema.oneOf ?? []).some((/** @type {any} */ each) => each.type === "number");
  if (numbers || schema.type === "string") return input(form, schema, numbers, value, at, text, hint);
  if (schema.type === "array" && ["integer", "number"].includes(schema.items?.type)) return list(form, schema, value, at, text);
  return json(form, schema, value, at, text);
}

/** @typedef {{label: string, help?: string}} Text */

/** @param {Form} form @param {Text} text @param {Field} inside @param {() => string} at @returns {Field} */
function nested(form, text, inside, at) {
  const fault = h("p", { class: "bad fault", role: "alert", hidden: true });
  const element = h("fieldset", { class: "group" }, h("legend", {}, text.label), text.help && h("small", { class: "dim" }, text.help), fault, inside.element);
  slot(form, at, element, fault);
  return { element, read: inside.read };
}

/** An object that may be null. @param {Form} form @param {any} schema @param {any} value @param {() => string} at @param {Text} text @returns {Field} */
function optional(form, schema, value, at, text) {
  const inside = group(form, schema, value, at);
  const on = h("input", { type: "checkbox", props: { checked: Boolean(value) }, on: { change: () => ((inside.element.hidden = !on.checked), form.changed()) } });
  inside.element.hidden = !on.checked;
  const element = h("div", { class: "group" }, labelled(form, on, text.label, text.help, at), inside.element);
  return { element, read: () => (on.checked ? inside.read() ?? {} : undefined) };
}

/**
 * One of several objects, by its kind.
 * @param {Form} form @param {any} schema @param {any} value @param {() => string} at @param {Text} text @param {{first?: string[]}} [how]
 * @returns {Field & {control: HTMLSelectElement}}
 */
export function choice(form, schema, value, at, text, how) {
  const order = schema.oneOf.map((/** @type {any} */ each) => each.$ref);
  const kinds = Object.keys(schema.discriminator.mapping).sort((a, b) => order.indexOf(schema.discriminator.mapping[a]) - order.indexOf(schema.discriminator.mapping[b]));
  const usual = schema.default?.kind;
  const control = h("select", { on: { change: () => (fill({}), form.changed()) } }, kinds.map((kind) => h("option", { value: kind }, kind)));
  control.value = value?.kind ?? usual ?? kinds[0];
  const place = h("div", {});
  /** @type {Field} */
  let inside;
  /** @param {any} now */
  function fill(now) {
    inside = group(form, resolved(form, { $ref: schema.discriminator.mapping[control.value] }), now, at, how);
    put(place, inside.element);
  }
  fill(value ?? {});
  const read = () => {
    const chosen = inside.read();
    return chosen === undefined && control.value === usual ? undefined : { kind: control.value, ...chosen };
  };
  return { element: h("div", { class: "group" }, labelled(form, control, text.label, text.help, at), place), read, control };
}

/** @param {Form} form @param {any} schema @param {any} value @param {() => string} at @param {Text} text @returns {Field} */
function checkbox(form, schema, value, at, text) {
  const control = h("input", { type: "checkbox", props: { checked: value ?? schema.default ?? false }, on: { change: form.changed } });
  return { element: labelled(form, control, text.label, text.help, at), read: () => (control.checked === (schema.default ?? false) ? undefined : control.checked) };
}

/** @param {Form} form @param {any} schema @param {boolean} nullable @param {any} value @param {() => string} at @param {Text} text @returns {Field} */
function select(form, schema, nullable, value, at, text) {
  const usual = schema.default ?? null;
  const options = [...(nullable || usual === null ? [{ value: null, label: "default" }] : []), ...schema.enum.map((/** @type {any} */ each) => ({ value: each, label: String(each) }))];
  return pick(form, options, value ?? usual, at, text, usual);
}

/**
 * One of a list of values; one that is not in the list stands there as it is.
 * @param {Form} form @param {Option[]} options @param {any} value @param {() => string} at @param {Text} text @param {any} [usual] is read as undefined
 * @returns {Field & {control: HTMLSelectElement}}
 */
export function pick(form, options, value, at, text, usual) {
  const all = options.some((each) => same(each.value, value)) || value === undefined || value === null ? options : [...options, { value, label: typeof value === "string" ? value : JSON.stringify(value) }];
  const groups = new Map();
  for (const [place, each] of all.entries()) groups.set(each.group ?? "", [...(groups.get(each.group ?? "") ?? []), h("option", { value: String(place) }, each.label)]);
  const control = h("select", { on: { change: form.changed } }, [...groups].map(([label, each]) => (label ? h("optgroup", { label }, each) : each)));
  control.value = String(Math.max(0, all.findIndex((each) => same(each.value, value))));
  const read = () => {
    const chosen = all[Number(control.value)]?.value;
    return chosen === undefined || same(chosen, usual) ? undefined : chosen;
  };
  return { element: labelled(form, control, text.label, text.help, at), read, control };
}

/** @param {string} text */
function numberOf(text) {
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

/** @param {Form} form @param {any} schema @param {boolean} numbers @param {any} value @param {() => string} at @param {Text} text @param {any} hint @returns {Field} */
function input(form, schema, numbers, value, at, text, hint) {
  const usual = hint ?? schema.default;
  const control = h("input", { type: "text", autocomplete: "off", inputmode: numbers ? "decimal" : null, placeholder: usual === undefined || usual === null ? "" : String(usual), props: { value: value === undefined || value === null ? "" : String(value) }, on: { input: form.changed } });
  const read = () => {
    const typed = numbers ? numberOf(control.value.trim()) : control.value;
    return typed === "" || typed === schema.default ? undefined : typed;
  };
  return { element: labelled(form, control, text.label, text.help, at), read };
}

/** Numbers with commas between. @param {Form} form @param {any} schema @param {any} value @param {() => string} at @param {Text} text @returns {Field} */
function list(form, schema, value, at, text) {
  const control = h("input", { type: "text", autocomplete: "off", placeholder: (schema.default ?? []).join(", "), props: { value: (value ?? []).join(", ") }, on: { input: form.changed } });
  const read = () => {
    const typed = control.value.split(/[\s,]+/).filter(Boolean).map(numberOf);
    return typed.length === 0 || same(typed, schema.default) ? undefined : typed;
  };
  return { element: labelled(form, control, `${text.label} (with commas)`, text.help, at), read };
}

/** Whatever else there is. @param {Form} form @param {any} schema @param {any} value @param {() => string} at @param {Text} text @returns {Field} */
function json(form, schema, value, at, text) {
  const control = h("textarea", { rows: 2, spellcheck: "false", class: "mono", placeholder: JSON.stringify(schema.default ?? null), props: { value: value === undefined || value === null || same(value, schema.default) ? "" : JSON.stringify(value) }, on: { input: form.changed } });
  const read = () => {
    const typed = control.value.trim();
    if (typed === "") return undefined;
    try {
      const found = JSON.parse(typed);
      return same(found, schema.default) ? undefined : found;
    } catch {
      return typed;
    }
  };
  return { element: labelled(form, control, `${text.label} (JSON)`, text.help, at), read };
}

const IDS = ["job", "model", "path"];

/**
 * A network: a word such as "none", a finished job, a model, or a folder on the server.
 * @param {Form} form @param {any} given @param {any[]} refs @param {any} value @param {() => string} at @param {Text} text @param {string} [nothing] what null is called
 * @returns {Field}
 */
export function network(form, given, refs, value, at, text, nothing = "none") {
  const nullable = refs.some((each) => each.type === "null");
  const usual = given.default ?? null;
  const FOLDER = { path: "" };
  const options = [
    ...(nullable ? [{ value: null, label: nothing }] : []),
    ...refs.flatMap((each) => each.enum ?? []).map((each) => ({ value: each, label: String(each) })),
    ...form.networks,
    { value: FOLDER, label: "A folder on the server …", group: "Elsewhere" },
  ];
  const isObject = typeof value === "object" && value !== null;
  const [id, others] = isObject ? split(value) : [value ?? usual, {}];
  const chosen = pick(form, options, id?.path !== undefined ? FOLDER : id, at, text);
  const path = input(form, {}, false, id?.path, () => below(at(), "path"), { label: "Folder", help: "Below one of FGD_DATA_ROOTS on the server." }, "");
  const object = refs.find((each) => each.properties?.job);
  const more = group(form, object, others, at, { skip: IDS });
  const show = () => {
    const now = chosen.read();
    path.element.hidden = !(typeof now === "object" && now !== null && "path" in now);
    more.element.hidden = typeof now !== "object" || now === null;
  };
  chosen.control.addEventListener("change", show);
  show();
  const read = () => {
    const now = chosen.read() ?? null;
    if (same(now, usual) && "default" in given) return undefined;
    if (typeof now !== "object" || now === null) return now;
    return { ...("path" in now ? { path: path.read() ?? "" } : now), ...more.read() };
  };
  return { element: h("div", { class: "group" }, chosen.element, path.element, more.element), read };
}

/** What it names, and what else is said of it. @param {Record<string, any>} value */
function split(value) {
  const entries = Object.entries(value);
  return [Object.fromEntries(entries.filter(([name]) => IDS.includes(name))), Object.fromEntries(entries.filter(([name]) => !IDS.includes(name)))];
}
