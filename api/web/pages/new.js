/**
 * @file A form for a job, made from the catalogue's schemas; the plan for it, and the same request in other words. What
 * was chosen stands in the address as a spec: a link to a form that is filled in.
 */

import { get, make, send, watch } from "../api.js";
import { button, h, named, put } from "../elements.js";
import { choice, field, group, newForm, resolved, showFaults, slot } from "../form.js";
import { fewSteps, showPlan } from "../plans.js";
import { card, datasetField, methodsField, offered, RESOURCES, sameRequest, scheduleField, showProblem, specOf, STUDENT, teacherField } from "../recipe_form.js";
import { jobRequests } from "../requests.js";
import { to } from "../router.js";

const TYPING_MS = 250;
const PLAN_MS = 1500;
const MORE = ["seed", "priority", "metadata", "unlabelled", "latency_budget_ms", "latency", "teachers", "limits"];

/** @param {import("../router.js").View} view */
export async function show({ root, query, signal, setQuery }) {
  const { catalogue, datasets, networks } = await offered(signal);
  const given = await begun(query, datasets, signal);
  const schema = catalogue.job;
  let ready = false;
  const form = newForm(schema.$defs, networks, () => ready && changed());
  const of = schema.properties;

  const name = field(form, "name", { ...of.name, description: "What you will find it by." }, given.name, () => "/name");
  const dataset = datasetField(form, datasets, given.dataset);
  const teacher = teacherField(form, of.teacher, given.teacher);
  const student = choice(form, of.student, given.student, () => "/student", { label: "Family" }, { first: STUDENT });
  const schedule = scheduleField(form, of.schedule, given.schedule);
  const resources = group(form, resolved(form, of.resources), given.resources, () => "/resources", { first: RESOURCES });
  const more = group(form, { properties: Object.fromEntries(MORE.filter((each) => of[each]).map((each) => [each, of[each]])) }, given, () => "", { first: ["seed"], advanced: "Labels, priority, limits, latency, images without labels, several teachers" });

  const fits = (/** @type {string} */ kind) => catalogue.methods.find((/** @type {any} */ each) => each.kind === kind).families.includes(student.control.value);
  const methods = methodsField(form, catalogue, of.methods.items, given.methods ?? [], () => "/methods", fits, student.control.value);
  const methodFault = h("p", { class: "bad fault", role: "alert", hidden: true });
  const methodCard = h("section", { class: "card", "aria-label": "Methods" }, h("h2", {}, "Methods"), methodFault, methods.element);
  slot(form, () => "/methods", methodCard, methodFault);
  const noMethods = h("p", { class: "dim card" }, "Without a teacher this job trains one network by itself. Make such a job first for a large network, your teacher to be. When it has succeeded, make a job with a smaller network and choose the teacher above: methods of distillation then appear here. The small network without a teacher is the control that shows what distillation adds.");

  // --- the whole ---
  const complaint = h("div", { class: "notice", role: "alert", hidden: true });
  const planned = h("div", { "aria-live": "polite" });
  const stale = h("p", { class: "warn", hidden: true }, "The form has changed since this plan was made.");
  const planButton = button("Show the plan", plan);
  const start = button("Start the job", submit, { class: "primary" });
  const request = sameRequest({ query, setQuery }, jobRequests);
  put(root, h("div", { class: "heading" }, h("h1", {}, "New job"), given.of ? h("span", { class: "dim" }, ROLES[given.role], " ", h("a", { href: to(["jobs", given.of.id]) }, named(given.of.name))) : null), complaint,
    h("form", { class: "newjob", novalidate: true, on: { submit: (/** @type {Event} */ event) => event.preventDefault() } },
      h("div", { class: "panel" }, card("Job", name.element, dataset.element, teacher.element), noMethods, methodCard, card("Student", student.element), card("Schedule", schedule.element), card("Resources", resources.element), card("More", more.element)),
      h("div", { class: "panel side" }, card("Plan", h("p", { class: "dim small" }, "What the job would do is worked out at once; a worker then tries a few real steps and says what it costs. Nothing is started."), planButton, stale, planned), h("div", { class: "actions" }, start),
        request.element)));
  /** @type {string} of the plan in sight */
  let plannedOf = "";
  let planning = new AbortController();
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
      methods: distils() ? methods.read() : [],
      schedule: schedule.read(), resources: resources.read(), ...more.read(),
    };
    return Object.fromEntries(Object.entries(whole).filter(([, value]) => value !== undefined));
  }

  function changed() {
    methods.refresh(student.control.value);
    if (!hadTeacher && distils() && methods.read().length === 0) methods.add({ kind: "fgd" });
    hadTeacher = distils();
    refresh();
    clearTimeout(typing);
    typing = setTimeout(keep, TYPING_MS);
  }

  function keep() {
    clearTimeout(typing);
    setQuery({ spec: JSON.stringify(body()), copy: "", control: "", teach: "", dataset: "" });
  }

  function refresh() {
    methodCard.hidden = !distils();
    noMethods.hidden = distils();
    const now = body();
    stale.hidden = plannedOf === "" || plannedOf === JSON.stringify(now);
    schedule.refresh();
    dataset.refresh();
    request.refresh(now);
  }

  const told = (/** @type {unknown} */ error) => showProblem(form, complaint, error);

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
      put(planned, showPlan(now), fewSteps(now.outline, JSON.parse(of)));
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

/**
 * What the form begins with: a spec in the address, a job to copy, to learn from or to be the control of, a data set, or the only one there is.
 * @param {URLSearchParams} query @param {any[]} datasets @param {AbortSignal} signal @returns {Promise<any>}
 */
async function begun(query, datasets, signal) {
  for (const [role, like] of Object.entries(LIKE)) {
    const id = query.get(role);
    if (!id) continue;
    const job = await get(`jobs/${encodeURIComponent(id)}`, { signal });
    return { ...like(job), of: job, role };
  }
  return specOf(query) ?? { dataset: query.get("dataset") ?? (datasets.length === 1 ? datasets[0].id : null) };
}

/** Specs like that of a job. @type {Record<string, (job: any) => any>} */
const LIKE = {
  copy: ({ spec, name, metadata, priority, limits }) => ({ ...spec, name: shortened(name, " (copy)"), metadata, priority, limits }),
  /** The same network, data, schedule and seed: what else would make another control. */
  control: ({ spec, name }) => ({ name: shortened(name, " (control)"), dataset: spec.dataset, student: spec.student, schedule: spec.schedule, seed: spec.seed, resources: { ...spec.resources, teacher_cache_gib: undefined }, teacher: null, methods: [] }),
  teach: ({ id, spec }) => ({ dataset: spec.dataset, student: { kind: spec.student.kind }, schedule: spec.schedule, seed: spec.seed, resources: spec.resources, teacher: { job: id }, methods: [{ kind: "fgd" }] }),
};
const ROLES = { copy: "as", control: "control of", teach: "learns from" };
const LONGEST = 100;

/** @param {string} name @param {string} suffix */
function shortened(name, suffix) {
  return [...name].slice(0, LONGEST - suffix.length).join("") + suffix;
}
