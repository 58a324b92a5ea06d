/**
 * @file A form for a study: what is compared, on which students, with which seeds. Its plan says how many jobs that is and
 * what they cost. What was chosen stands in the address.
 */

import { get, make, pause, Problem, send } from "../api.js";
import { button, h, named, put, sentence } from "../elements.js";
import { choice, field, group, labelled, newForm, resolved, showFaults, slot } from "../form.js";
import { count, duration, NONE, several } from "../format.js";
import { card, datasetField, methodsField, offered, RESOURCES, sameRequest, scheduleField, showProblem, specOf, STUDENT, teacherField } from "../recipe_form.js";
import { studyRequests } from "../requests.js";
import { to } from "../router.js";
import { seedsOf } from "../studies.js";

const TYPING_MS = 250;
const PLAN_MS = 1500;
const FULL_MS = 5000;
/** Until a plan is tried again for which there was no place. */
const AT_ONCE = 4;
/** Plans that are measured beside each other, one by each worker that is free. */
const MOST_MEASURED = 32;
const MORE = ["metadata", "priority", "unlabelled", "latency_budget_ms", "latency", "teachers", "limits"];
const OWN = ["epochs", "against", "teacher", "inherit", "unlabelled"];

/** @typedef {{arm: string, student: string, against: string | null, jobs: number, spec: any}} Run of POST studies?dry_run=true */

/** @param {import("../router.js").View} view */
export async function show({ root, query, signal, setQuery }) {
  const [{ catalogue, datasets, networks }, given] = await Promise.all([offered(signal), begun(query, signal)]);
  const schema = catalogue.study;
  const of = schema.properties;
  let ready = false;
  const form = newForm(schema.$defs, networks, () => ready && changed());

  const name = field(form, "name", { ...of.name, description: "Its jobs are called NAME / ARM / seed N." }, given.name, () => "/name");
  const dataset = datasetField(form, datasets, given.dataset);
  const teacher = teacherField(form, of.teacher, given.teacher);
  const schedule = scheduleField(form, of.schedule, given.schedule);
  const resources = group(form, resolved(form, of.resources), given.resources, () => "/resources", { first: RESOURCES });
  const more = group(form, { properties: Object.fromEntries(MORE.filter((each) => of[each]).map((each) => [each, of[each]])) }, given, () => "", { first: [], advanced: "Labels, priority, limits, latency, images without labels, several teachers" });
  const control = field(form, "control", of.control, given.control, () => "/control");
  const typed = h("input", { type: "text", autocomplete: "off", props: { value: [given.seeds ?? "0-2"].flat().join(", ") }, on: { input: () => form.changed() } });
  const seeds = labelled(form, typed, "Seeds, such as 0, 1 or 0-4", "Every arm trains every student once with each of them. An interval needs at least two.", () => "/seeds");
  const students = listOf("Student", "/students", (value, at) => {
    const part = choice(form, of.students.items, value, at, { label: "Family" }, { first: STUDENT });
    return { element: part.element, read: () => part.read() ?? {}, control: part.control, refresh: () => {} };
  }, { fresh: () => students.parts.at(-1)?.read() ?? {} });
  (given.students?.length ? given.students : [{}]).forEach(students.add);

  // --- arms ---
  const fits = (/** @type {string} */ kind) => students.parts.every((part) => catalogue.methods.find((/** @type {any} */ each) => each.kind === kind).families.includes(part.control.value));
  const family = () => (new Set(students.parts.map((part) => part.control.value)).size === 1 ? students.parts[0].control.value : "");
  const armSchema = resolved(form, of.arms.items);
  const arms = listOf("Arm", "/arms", (value, at) => {
    const title = field(form, "name", { ...armSchema.properties.name, description: "What the leaderboard calls it." }, value.name, () => `${at()}/name`);
    const methods = methodsField(form, catalogue, armSchema.properties.methods.items, value.methods ?? [], () => `${at()}/methods`, fits, family());
    const own = group(form, { properties: Object.fromEntries(OWN.map((each) => [each, armSchema.properties[each]])) }, value, at, { first: [], advanced: "Its own epochs, teacher, weights to begin with; what it is compared with" });
    return { element: h("div", {}, title.element, methods.element, own.element), read: () => ({ name: title.read() ?? "", methods: methods.read(), ...own.read() }), refresh: () => methods.refresh(family()) };
  }, { fresh: freshArm });
  const chosen = h("select", {});
  const choosing = h("div", { class: "bar" }, h("label", { class: "inline" }, "Compare", chosen));
  arms.buttons.prepend(choosing);
  (given.arms ?? []).forEach(arms.add);

  /** Named by the method that was chosen; a second one has a number. */
  function freshArm() {
    const kind = chosen.value;
    const names = arms.parts.map((part) => part.read().name);
    const base = kind || "plain";
    let title = base;
    for (let n = 2; names.includes(title); n += 1) title = `${base} ${n}`;
    return { name: title, methods: kind ? [{ kind }] : [] };
  }

  // --- the whole ---
  const complaint = h("div", { class: "notice", role: "alert", hidden: true });
  const planned = h("div", { "aria-live": "polite" });
  const stale = h("p", { class: "warn", hidden: true }, "The form has changed since this plan was made.");
  const planButton = button("Show the plan", plan);
  const start = button("Start the study", submit, { class: "primary" });
  const request = sameRequest({ query, setQuery }, studyRequests);
  put(root, h("div", { class: "heading" }, h("a", { href: "#/studies" }, "‹ Studies"), h("h1", {}, "New study")), complaint,
    h("form", { class: "newjob", novalidate: true, on: { submit: (/** @type {Event} */ event) => event.preventDefault() } },
      h("div", { class: "panel" }, card("Study", name.element, dataset.element, teacher.element), card("What is compared", h("p", { class: "dim small" }, "An arm is one method, or several together, or none."), arms.element, control.element), card("Students", students.element), card("Seeds", seeds), card("Schedule", schedule.element), card("Resources", resources.element), card("More", more.element)),
      h("div", { class: "panel side" }, card("Plan", h("p", { class: "dim small" }, "How many jobs it would be is known at once; a worker then tries a few real steps of each arm and student and says what they cost. Nothing is started."), planButton, stale, planned), h("div", { class: "actions" }, start),
        request.element)));
  /** @type {string} of the plan in sight */
  let plannedOf = "";
  let planning = new AbortController();
  let typing = 0;
  ready = true;
  refresh();
  signal.addEventListener("abort", () => (clearTimeout(typing), planning.abort()));

  /**
   * Parts of one kind, which are added and removed.
   * @param {string} word @param {string} pointer @param {(value: any, at: () => string) => any} make @param {{fresh: () => any}} how
   */
  function listOf(word, pointer, make, { fresh }) {
    /** @type {any[]} */
    const parts = [];
    const list = h("div", {});
    const buttons = h("div", { class: "bar" }, button(`Add ${word === "Arm" ? "an arm" : "a student"}`, () => (add(fresh()), form.changed())));
    const fault = h("p", { class: "bad fault", role: "alert", hidden: true });
    const element = h("div", {}, fault, list, buttons);
    slot(form, () => pointer, element, fault);
    /** @param {any} value */
    function add(value) {
      const at = () => `${pointer}/${parts.indexOf(part)}`;
      const inside = make(value, at);
      const title = h("h3", {});
      const wrong = h("p", { class: "bad fault", role: "alert", hidden: true });
      const remove = button("Remove", () => {
        parts.splice(parts.indexOf(part), 1);
        part.box.remove();
        buttons.querySelector("button")?.focus();
        form.changed();
      }, { class: "quiet" });
      const part = { ...inside, box: h("article", { class: "method" }, h("div", { class: "bar" }, title, remove), wrong, inside.element), title, remove };
      parts.push(part);
      list.append(part.box);
      slot(form, at, part.box, wrong);
    }
    function refresh() {
      for (const [n, part] of parts.entries()) {
        part.title.textContent = `${word} ${n + 1}`;
        part.remove.setAttribute("aria-label", `Remove ${word.toLowerCase()} ${n + 1}`);
        part.remove.hidden = parts.length === 1;
        part.refresh();
      }
    }
    return { element, parts, add, refresh, buttons };
  }

  function body() {
    const whole = {
      name: name.read(), dataset: dataset.read(), teacher: teacher.read() ?? undefined, arms: arms.parts.map((part) => part.read()), students: students.parts.map((part) => part.read()),
      seeds: seedsOf(typed.value) ?? typed.value, schedule: schedule.read(), resources: resources.read(), control: control.read(), ...more.read(),
    };
    return Object.fromEntries(Object.entries(whole).filter(([, value]) => value !== undefined));
  }

  function changed() {
    refresh();
    clearTimeout(typing);
    typing = setTimeout(keep, TYPING_MS);
  }

  function keep() {
    clearTimeout(typing);
    setQuery({ spec: JSON.stringify(body()), copy: "", dataset: "" });
  }

  function refresh() {
    students.refresh();
    arms.refresh();
    const kind = chosen.value || "mimic";
    put(chosen, catalogue.methods.map((/** @type {any} */ each) => h("option", { value: each.kind, disabled: !fits(each.kind), selected: each.kind === kind }, each.kind, fits(each.kind) ? "" : " (not for every student)")), h("option", { value: "" }, "plain training"));
    const now = body();
    stale.hidden = plannedOf === "" || plannedOf === JSON.stringify(now);
    schedule.refresh();
    dataset.refresh();
    request.refresh(now);
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
      if (!signal.aborted) showProblem(form, complaint, error);
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
    const outline = await tried((wanted) => send("POST", "studies?dry_run=true", wanted, { signal }));
    if (!outline || mine.signal.aborted) return;
    plannedOf = of;
    /** @type {any[]} a plan of each run, as far as there is one */
    const plans = outline.runs.map(() => null);
    const draw = () => put(planned, planOf(outline, plans));
    draw();
    let next = 0;
    const lane = async () => {
      while (next < Math.min(outline.runs.length, MOST_MEASURED)) {
        const place = next++;
        await measured(outline.runs[place].spec, (now) => ((plans[place] = now), draw()), mine.signal);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, lane)).catch((error) => {
      if (!mine.signal.aborted) showProblem(form, complaint, error);
    });
  }

  async function submit() {
    const made = await tried((wanted) => make("studies", wanted));
    if (made && !signal.aborted) location.hash = to(["studies", made.id]);
  }
}

/** What the form begins with: a spec in the address, a study to copy, or one arm. @param {URLSearchParams} query @param {AbortSignal} signal @returns {Promise<any>} */
async function begun(query, signal) {
  const copied = query.get("copy");
  if (!copied) return specOf(query) ?? { dataset: query.get("dataset"), arms: [{ name: "fgd", methods: [{ kind: "fgd" }] }] };
  const { spec, name } = await get(`studies/${encodeURIComponent(copied)}`, { signal });
  return { ...spec, name: `${[...name].slice(0, 93).join("")} (copy)` };
}

/** A plan of one job, until it has ended. @param {any} spec @param {(plan: any) => void} told @param {AbortSignal} signal */
async function measured(spec, told, signal) {
  let plan = null;
  while (!signal.aborted && plan?.state !== "measured" && plan?.state !== "failed") {
    let wait = PLAN_MS;
    try {
      plan = await (plan ? get(`plans/${plan.id}`, { signal }) : send("POST", "plans", spec, { signal }));
      told(plan);
    } catch (error) {
      if (!(error instanceof Problem) || (error.status >= 400 && error.status < 500 && error.status !== 429)) throw error;
      wait = FULL_MS;
    }
    if (plan?.state === "measuring" || !plan) await pause(wait, signal);
  }
}

/** How many jobs, and what is known of their cost. @param {{jobs: number, runs: Run[]}} outline @param {any[]} plans */
function planOf({ jobs, runs }, plans) {
  const arms = new Set(runs.map((run) => run.arm)).size;
  const known = runs.flatMap((run, n) => (plans[n]?.measured ? [{ jobs: run.jobs, ...plans[n].measured }] : []));
  const hours = known.reduce((sum, each) => sum + each.hours * each.jobs, 0);
  const waits = plans.find((each) => each?.state === "measuring" && each.waiting_reason)?.waiting_reason;
  const going = plans.some((each, n) => n < MOST_MEASURED && (!each || each.state === "measuring"));
  const failed = runs.flatMap((run, n) => (plans[n]?.error ? [{ run, error: plans[n].error }] : []));
  return [
    h("p", {}, h("strong", {}, several(jobs, "job")), `: ${several(arms, "arm")} × ${several(runs.length / arms, "student")} × ${several(runs[0].jobs, "seed")}`),
    known.length > 0 && h("dl", { class: "facts" },
      fact(known.length === runs.length ? "Time, one job after the other" : `Time of the ${count(known.length)} of ${count(runs.length)} that are measured`, h("strong", {}, duration(hours * 3600))),
      fact("Memory of one, at most", `${count(Math.round(Math.max(...known.map((each) => each.memory_peak_mb))))} MiB`),
      fact("Disk of one, at most", `${count(Math.round(Math.max(...known.map((each) => each.disk_mb))))} MiB`)),
    h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Jobs of the study" }, h("table", {},
      h("thead", {}, h("tr", {}, ["Arm", "Student", "Against"].map((each) => h("th", { scope: "col" }, each)), ["Jobs", "One takes"].map((each) => h("th", { scope: "col", class: "number" }, each)))),
      h("tbody", {}, runs.map((run, n) => h("tr", {}, h("th", { scope: "row" }, named(run.arm)), h("td", {}, named(run.student)), h("td", {}, run.against ? named(run.against) : NONE), h("td", { class: "number" }, count(run.jobs)),
        h("td", { class: "number" }, plans[n]?.measured ? duration(plans[n].measured.hours * 3600) : plans[n]?.error ? h("span", { class: "bad" }, "fails") : NONE)))))),
    failed.map(({ run, error }) => h("p", { class: "bad" }, named(run.arm), ": ", sentence(error.message))),
    going && h("p", { class: "dim" }, waits ? ["Time and memory are not measured yet: ", sentence(waits)] : "A worker measures time and memory …"),
    runs.length > MOST_MEASURED && h("p", { class: "dim" }, `The first ${MOST_MEASURED} are measured.`),
  ];
}

/** @param {string} name @param {any} value */
function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}
