/**
 * @file A form for a job, made from the catalogue's schemas; the plan for it, and the same request in other words. What
 * was chosen stands in the address as a spec: a link to a form that is filled in.
 */

import { get, make, Problem, query as address, send, watch } from "../api.js";
import { complain, copy } from "../dialogs.js";
import { button, h, named, put, write } from "../elements.js";
import { choice, field, group, network, newForm, pick, resolved, same, showFaults, slot } from "../form.js";
import { ap, count } from "../format.js";
import { showPlan } from "../plans.js";
import { jobRequests } from "../requests.js";
import { to } from "../router.js";

const TYPING_MS = 250;
const PLAN_MS = 1500;
const MOST = 1000;
const STUDENT = ["backbone", "fpn_channels"];
const SCHEDULE = ["epochs", "batch_size", "min_size", "max_size", "optimizer"];
const RESOURCES = ["device", "devices"];
const MORE = ["seed", "priority", "metadata", "unlabelled", "latency_budget_ms", "latency", "teachers", "limits"];

/** What is chosen of a schedule at once. @type {readonly {title: string, why: string, schedule: any}[]} */
const PRESETS = [
  { title: "Standard", why: "12 epochs with AdamW at 240 to 320 pixels", schedule: {} },
  { title: "Quick look", why: "2 epochs: does it run, and does it learn?", schedule: { epochs: 2 } },
  { title: "Long", why: "36 epochs, averaged weights", schedule: { epochs: 36, ema: {} } },
  { title: "As in the paper", why: "24 epochs with SGD at 800 to 1333 pixels; the rate falls after epochs 16 and 22", schedule: { epochs: 24, min_size: 800, max_size: 1333, optimizer: { kind: "sgd" }, lr_schedule: { kind: "step" } } },
];

/** @param {import("../router.js").View} view */
export async function show({ root, query, signal, setQuery }) {
  const [catalogue, datasets, models, jobs, given] = await Promise.all([
    get("catalogue", { signal }), all("datasets", signal), all("models", signal), get("summaries?state=succeeded&limit=200", { signal }), begun(query, signal),
  ]);
  const schema = catalogue.job;
  const networks = [
    ...jobs.items.map((/** @type {import("../jobs.js").Summary} */ job) => ({ value: { job: job.id }, label: `${job.name} · ${job.student}${job.ap === null ? "" : ` · AP ${ap(job.ap)}`}`, group: "Finished jobs" })),
    ...models.map((model) => ({ value: { model: model.id }, label: `${model.name} · ${model.recipe?.detector?.kind ?? "model"}`, group: "Models" })),
  ];
  let ready = false;
  const form = newForm(schema.$defs, networks, () => ready && changed());
  const of = schema.properties;

  const name = field(form, "name", { ...of.name, description: "What you will find it by." }, given.name, () => "/name");
  const dataset = pick(form, [{ value: null, label: datasets.length ? "Choose one" : "There is none that is ready" }, ...datasets.map((each) => ({ value: each.id, label: `${each.name} · ${each.classes?.length === 1 ? "1 class" : `${count(each.classes?.length ?? 0)} classes`}` }))],
    given.dataset ?? null, () => "/dataset", { label: "Data set" }, null);
  const images = h("p", { class: "dim small", "aria-live": "polite" });
  const teacher = network(form, of.teacher, of.teacher.anyOf.map((/** @type {any} */ each) => resolved(form, each)), given.teacher, () => "/teacher", { label: "Teacher", help: "A finished job, or a model that was uploaded or promoted." }, "No teacher: plain training");
  const student = choice(form, of.student, given.student, () => "/student", { label: "Family" }, { first: STUDENT });
  const resources = group(form, resolved(form, of.resources), given.resources, () => "/resources", { first: RESOURCES });
  const more = group(form, { properties: Object.fromEntries(MORE.filter((each) => of[each]).map((each) => [each, of[each]])) }, given, () => "", { first: ["seed"], advanced: "Labels, priority, limits, latency, images without labels, several teachers" });

  // --- the schedule, which a preset fills ---
  const schedulePlace = h("div", {});
  /** @type {import("../form.js").Field} */
  let schedule;
  /** @param {any} value */
  function fillSchedule(value) {
    schedule = group(form, resolved(form, of.schedule), value, () => "/schedule", { first: SCHEDULE });
    put(schedulePlace, schedule.element);
  }
  fillSchedule(given.schedule);
  const presets = h("div", { class: "chips", role: "group", "aria-label": "Presets of the schedule" }, PRESETS.map((each) =>
    button(each.title, () => (fillSchedule(each.schedule), changed()), { title: each.why })));

  // --- methods ---
  /** @type {{kind: string, part: import("../form.js").Field, element: HTMLElement}[]} */
  let methods = [];
  const methodList = h("div", { class: "methods" });
  const methodFault = h("p", { class: "bad fault", role: "alert", hidden: true });
  const adding = h("select", { id: "add-method" });
  const methodCard = h("section", { class: "card", "aria-label": "Methods" }, h("h2", {}, "Methods"), methodFault, methodList,
    h("div", { class: "bar" }, h("label", { for: "add-method" }, "Add a method"), adding, button("Add", () => (addMethod({ kind: adding.value }), changed()))));
  slot(form, () => "/methods", methodCard, methodFault);
  const noMethods = h("p", { class: "dim card" }, "Without a teacher the student is trained by itself: a teacher to be, or a control. Choose a teacher, and methods of distillation appear here.");

  /** @param {any} value */
  function addMethod(value) {
    const entry = catalogue.methods.find((/** @type {any} */ each) => each.kind === value.kind);
    if (!entry) return;
    const path = () => `/methods/${methods.findIndex((each) => each.element === element)}`;
    const part = group(form, resolved(form, { $ref: of.methods.items.discriminator.mapping[value.kind] }), value, path, { first: [], hints: entry.presets[student.control.value] ?? {} });
    const fault = h("p", { class: "bad fault", role: "alert", hidden: true });
    const element = h("article", { class: "method" }, h("div", { class: "bar" }, h("h3", {}, value.kind), button("Remove", () => {
      methods = methods.filter((each) => each.element !== element);
      element.remove();
      adding.focus();
      changed();
    }, { class: "quiet", "aria-label": `Remove ${value.kind}` })), h("p", { class: "dim small" }, entry.summary.split("\n\n")[0]), fault, part.element);
    methods.push({ kind: value.kind, part, element });
    methodList.append(element);
    slot(form, path, element, fault);
  }
  for (const each of given.methods ?? []) addMethod(each);

  let family = "";
  function showFamily() {
    if (family === student.control.value) return;
    family = student.control.value;
    put(adding, catalogue.methods.map((/** @type {any} */ each) => h("option", { value: each.kind, disabled: !each.families.includes(family) }, each.kind, each.families.includes(family) ? "" : ` (not for ${family})`)));
    const before = methods.map(({ kind, part }) => ({ kind, ...part.read() })); // what stands in empty fields depends on the family
    methods = [];
    put(methodList);
    before.forEach(addMethod);
  }

  // --- the whole ---
  const complaint = h("div", { class: "notice", role: "alert", hidden: true });
  const planned = h("div", { "aria-live": "polite" });
  const stale = h("p", { class: "warn", hidden: true }, "The form has changed since this plan was made.");
  const planButton = button("Show the plan", plan);
  const start = button("Start the job", submit, { class: "primary" });
  const shown = h("pre", { class: "log mono", tabindex: "0", role: "region", "aria-label": "The same request" });
  const ways = h("div", { class: "chips", role: "group", "aria-label": "The same request in" });
  let way = /** @type {"curl" | "Python" | "fgd"} */ (["curl", "Python", "fgd"].includes(query.get("as") ?? "") ? query.get("as") : "curl");
  /** @param {string} title @param {...any} inside */
  const card = (title, ...inside) => h("section", { class: "card" }, h("h2", {}, title), inside);
  put(root, h("div", { class: "heading" }, h("h1", {}, "New job"), given.of ? h("span", { class: "dim" }, "as ", h("a", { href: to(["jobs", given.of.id]) }, named(given.of.name))) : null), complaint,
    h("form", { class: "newjob", novalidate: true, on: { submit: (/** @type {Event} */ event) => event.preventDefault() } },
      h("div", { class: "panel" }, card("Job", name.element, dataset.element, images, datasets.length === 0 ? h("p", {}, h("a", { href: "#/datasets" }, "Upload a data set first")) : null, teacher.element), noMethods, methodCard, card("Student", student.element), card("Schedule", presets, schedulePlace), card("Resources", resources.element), card("More", more.element)),
      h("div", { class: "panel side" }, card("Plan", h("p", { class: "dim small" }, "What the job would do is worked out at once; a worker then tries a few real steps and says what it costs. Nothing is started."), planButton, stale, planned), h("div", { class: "actions" }, start),
        card("The same request", h("div", { class: "bar" }, ways, button("Copy", () => copy(shown.textContent, "The request"))), shown))));
  /** @type {string} of the plan in sight */
  let plannedOf = "";
  let planning = new AbortController();
  showFamily();
  ready = true;
  let typing = 0;
  let hadTeacher = given.teacher !== null && given.teacher !== undefined;
  refresh();
  signal.addEventListener("abort", () => (clearTimeout(typing), planning.abort()));

  function distils() {
    return teacher.read() !== null || Object.keys(more.read()?.teachers ?? {}).length > 0;
  }

  function body() {
    const whole = {
      name: name.read(), dataset: dataset.read(), teacher: teacher.read(), student: student.read(),
      methods: distils() ? methods.map(({ kind, part }) => ({ kind, ...part.read() })) : [],
      schedule: schedule.read(), resources: resources.read(), ...more.read(),
    };
    return Object.fromEntries(Object.entries(whole).filter(([, value]) => value !== undefined));
  }

  function changed() {
    showFamily();
    if (!hadTeacher && distils() && methods.length === 0) addMethod({ kind: "fgd" });
    hadTeacher = distils();
    refresh();
    clearTimeout(typing);
    typing = setTimeout(keep, TYPING_MS);
  }

  function keep() {
    clearTimeout(typing);
    setQuery({ spec: JSON.stringify(body()), copy: "", dataset: "" });
  }

  function refresh() {
    methodCard.hidden = !distils();
    noMethods.hidden = distils();
    const now = body();
    stale.hidden = plannedOf === "" || plannedOf === JSON.stringify(now);
    for (const [place, each] of PRESETS.entries()) presets.children[place].setAttribute("aria-pressed", String(same(each.schedule, schedule.read() ?? {})));
    const chosen = datasets.find((each) => each.id === now.dataset);
    write(images, chosen?.splits ? Object.entries(chosen.splits).map(([split, each]) => `${split}: ${count(each.images)} images`).join(" · ") : "");
    put(ways, Object.keys(jobRequests(now)).map((each) => button(each, () => ((way = /** @type {any} */ (each)), setQuery({ as: way === "curl" ? "" : way }), refresh(), ways.querySelector('[aria-pressed="true"]')?.focus()), { "aria-pressed": String(each === way) })));
    write(shown, jobRequests(now)[way]);
  }

  /** @param {unknown} error */
  function told(error) {
    if (!(error instanceof Problem)) throw error;
    const left = showFaults(form, error.errors.filter((each) => !each.parameter));
    const texts = error.errors.length ? left.map((each) => (each.pointer ? `${each.pointer}: ${each.detail}` : each.detail)) : [error.message];
    complaint.hidden = texts.length === 0;
    put(complaint, texts.map((each) => h("p", {}, each)));
    if (texts.length && left.length === error.errors.length) complaint.scrollIntoView({ block: "center" });
    if (error.status === 401) complain(error);
  }

  /** @template T @param {(wanted: any) => Promise<T>} ask @returns {Promise<T | null>} */
  async function tried(ask) {
    planButton.disabled = start.disabled = true;
    complaint.hidden = true;
    keep();
    try {
      const answer = await ask(body());
      showFaults(form, []);
      return answer;
    } catch (error) {
      if (!signal.aborted) told(error);
      return null;
    } finally {
      planButton.disabled = start.disabled = false;
    }
  }

  async function plan() {
    const of = JSON.stringify(body());
    planning.abort();
    planning = new AbortController();
    const mine = planning;
    put(planned);
    plannedOf = "";
    stale.hidden = true;
    const made = await tried((wanted) => send("POST", "plans", wanted, { signal }));
    if (!made || mine.signal.aborted) return;
    plannedOf = of;
    const update = (/** @type {any} */ now) => {
      put(planned, showPlan(now));
      if (now.state !== "measuring") mine.abort();
      if (now.error?.pointer) showFaults(form, [{ pointer: now.error.pointer, detail: now.error.message }]);
    };
    update(made);
    if (!mine.signal.aborted) watch({ path: () => `plans/${made.id}`, every: PLAN_MS, signal: mine.signal, show: update, fail: (problem) => problem.status !== 0 && told(problem) });
  }

  async function submit() {
    const made = await tried((wanted) => make("jobs", wanted));
    if (made && !signal.aborted) location.hash = to(["jobs", made.id]);
  }
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

/** What the form begins with: a spec in the address, a job to copy, a data set, or nothing. @param {URLSearchParams} query @param {AbortSignal} signal @returns {Promise<any>} */
async function begun(query, signal) {
  const copied = query.get("copy");
  if (copied) {
    const job = await get(`jobs/${encodeURIComponent(copied)}`, { signal });
    const { metadata, priority, limits } = job;
    return { ...job.spec, name: `${job.name.slice(0, 93)} (copy)`, metadata, priority, limits, of: job };
  }
  try {
    const spec = JSON.parse(query.get("spec") ?? "null");
    if (typeof spec === "object" && spec !== null && !Array.isArray(spec)) return spec;
  } catch {
    // an address that was cut: an empty form is better than none
  }
  return { dataset: query.get("dataset") };
}
