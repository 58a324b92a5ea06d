/**
 * @file One job: what it does, and a tab for each side of it. One stream of events feeds the page and its tabs.
 */

import { get, query as address, stream } from "../api.js";
import { button, h, named, put, unseen, write } from "../elements.js";
import { costOf } from "../cost.js";
import { ap, duration, gain, moment, NONE, number } from "../format.js";
import { act, ACTIONS, copyOf, doing, ENDED, namesOf, recipe } from "../jobs.js";
import { to } from "../router.js";

/**
 * @typedef {object} Tab what a tab is given
 * @property {HTMLElement} root where it puts its elements
 * @property {string} id of the job
 * @property {any} job as GET jobs/ID answers; `line` is its line of GET summaries
 * @property {() => import("../jobs.js").Summary} line the newest
 * @property {EventTarget} feed tells "event" and "progress", each with the message as `detail`, and "changed" when `line` is new
 * @property {any[]} events all that were told until now
 * @property {AbortSignal} signal ends when the tab is left
 * @property {URLSearchParams} query @property {(changes: Record<string, any>) => void} setQuery
 */

/** @type {readonly {name: string, title: string, load: () => Promise<{show: (tab: Tab) => void | Promise<void>}>}[]} */
const TABS = [
  { name: "curves", title: "Curves", load: () => import("./job/curves.js") },
  { name: "learns", title: "What it learns from", load: () => import("./job/learns.js") },
  { name: "detections", title: "Detections", load: () => import("./job/detections.js") },
  { name: "classes", title: "Classes and sizes", load: () => import("./job/classes.js") },
  { name: "try", title: "Try it", load: () => import("./job/try.js") },
  { name: "timeline", title: "Timeline", load: () => import("./job/timeline.js") },
  { name: "log", title: "Log", load: () => import("./job/log.js") },
  { name: "files", title: "Files", load: () => import("./job/files.js") },
  { name: "spec", title: "Spec", load: () => import("./job/spec.js") },
];
const SUMMARY_MS = 1000;
/** Between two looks at the summary, however many events come. */

/** @param {import("../router.js").View} view */
export async function show({ root, params, query, signal, setQuery, setTitle }) {
  const { id } = params;
  const [job, table] = await Promise.all([get(`jobs/${encodeURIComponent(id)}`, { signal }), get(`summaries${address({ id })}`, { signal })]);
  /** @type {import("../jobs.js").Summary} */
  let line = table.items[0];
  const feed = new EventTarget();
  /** @type {any[]} */
  const events = [];
  setTitle(job.name);

  const title = h("h1", {}, named(job.name));
  const state = h("span", { class: "state" });
  const what = h("span", { class: "dim" });
  const actions = h("div", { class: "actions" });
  const bar = h("progress", { max: 1, "aria-label": "Progress" });
  const facts = h("dl", { class: "facts" });
  const failure = h("div", { class: "notice", role: "status", hidden: true });
  const tabs = h("div", { class: "tabs", role: "tablist", "aria-label": "About this job" });
  const panel = h("div", { class: "panel", role: "tabpanel", id: "panel", "aria-labelledby": "tab-curves", tabindex: "0" });
  put(root, h("div", { class: "heading" }, h("a", { href: "#/jobs" }, "‹ Jobs"), title, state, what, actions), failure, h("div", { class: "card" }, bar, facts), tabs, panel);

  /** @type {Awaited<ReturnType<typeof costOf>>} */
  let cost = null;
  /** @type {Map<string, string>} names of those that are jobs here */
  let teachers = new Map();
  let shownActions = "";
  function showLine() {
    write(title.firstChild, line.name);
    state.className = `state ${line.state}`;
    write(state, line.state);
    write(what, doing(line));
    const open = Object.entries(ACTIONS).filter(([, action]) => action.of.includes(line.state));
    const key = open.map(([name]) => name).join();
    if (key !== shownActions) {
      shownActions = key;
      put(actions, open.map(([name, action]) => button(action.word, async () => {
        if (!(await act(name, [line]))) return;
        if (name === "delete") location.hash = "#/jobs";
        else refresh();
      }, { class: name === "delete" || name === "cancel" ? "danger" : null })), line.state === "succeeded" ? h("a", { class: "button", href: to(["new"], { teach: id }) }, "Teach with it …") : null, h("a", { class: "button", href: copyOf(line) }, "Copy …"));
    }
    const done = line.state === "succeeded" ? 1 : line.total_steps ? line.step / line.total_steps : 0;
    bar.value = done;
    const took = line.started_at ? (Date.parse(line.finished_at ?? new Date().toISOString()) - Date.parse(line.started_at)) / 1000 : null;
    put(facts,
      fact("AP", ap(line.ap), true),
      line.methods.length ? fact("Gain over its control", line.gain === null ? h("span", { class: "dim" }, "no control yet ", h("a", { href: to(["new"], { control: id }), class: "small" }, "make it")) : [
        h("span", { class: line.gain < 0 ? "bad" : "good" }, gain(line.gain)), line.gain < 0 && [" ", h("span", { class: "flag bad" }, "▼", unseen(" worse than its control"))], " ",
        h("a", { href: to(["compare"], { id: [line.id, line.control] }), class: "small" }, "compare")], true) : null,
      fact("Done", [`${Math.floor(done * 100)} %`, line.epochs ? h("span", { class: "dim" }, ` epoch ${line.epoch}/${line.epochs}`) : null], true),
      fact(line.state === "running" ? "Left" : "Took", duration(line.state === "running" ? line.left_s : took), true),
      fact("Learns", recipe(line)), fact("Data set", named(line.dataset_name)),
      line.teachers.map((teacher) => fact("Teacher", teacher.startsWith("job_") ? h("a", { href: to(["jobs", teacher]) }, teachers.has(teacher) ? named(teachers.get(teacher)) : `${teacher.slice(0, 12)}…`) : teacher)),
      line.control && fact("Control", h("a", { href: to(["jobs", line.control]) }, `AP ${ap(line.control_ap)}`)),
      cost && fact("Teacher costs", h("span", { title: `Middle of what both reported on ${cost.device}; evaluations and checkpoints are not in it. Other trainings on the same host may have slowed either.` }, `${Math.round(100 * cost.share)} % of a step`, h("span", { class: "dim" }, ` ${number(cost.ours)} images/s, control ${number(cost.theirs)}`))),
      fact("Created", moment(line.created_at)),
      Object.entries(line.metadata).map(([key, value]) => fact(key, named(value))));
    failure.hidden = line.state !== "failed" && !(line.state === "queued" && line.why);
    put(failure, line.why ?? "", line.state === "failed" && job.failure?.advice ? [h("br"), h("span", { class: "dim" }, job.failure.advice)] : null);
  }

  let due = 0;
  function refresh() {
    if (due) return;
    due = setTimeout(async () => {
      due = 0;
      try {
        const [now, whole] = await Promise.all([get(`summaries${address({ id })}`, { signal }), line.state === "running" ? null : get(`jobs/${id}`, { signal })]);
        if (!now.items.length || signal.aborted) return;
        const ended = !ENDED.includes(line.state) && ENDED.includes(now.items[0].state);
        line = now.items[0];
        if (whole) Object.assign(job, whole);
        if (ended) Object.assign(job, await get(`jobs/${id}`, { signal }));
        showLine();
        feed.dispatchEvent(new Event("changed"));
      } catch (error) {
        if (!signal.aborted && error.status === undefined) throw error;
      }
    }, SUMMARY_MS);
  }
  signal.addEventListener("abort", () => clearTimeout(due));

  let leaving = new AbortController();
  /** @param {string} name */
  async function open(name) {
    const found = TABS.find((tab) => tab.name === name) ?? TABS[0];
    leaving.abort();
    leaving = new AbortController();
    const mine = leaving;
    for (const each of tabs.children) {
      const on = each.id === `tab-${found.name}`;
      each.setAttribute("aria-selected", String(on));
      each.tabIndex = on ? 0 : -1;
    }
    panel.setAttribute("aria-labelledby", `tab-${found.name}`);
    const { show: fill } = await found.load();
    if (mine.signal.aborted || signal.aborted) return;
    const inside = h("div", { class: "panel" });
    put(panel, inside);
    try {
      await fill({ root: inside, id, job, line: () => line, feed, events, query, setQuery, signal: AbortSignal.any([signal, mine.signal]) });
    } catch (error) {
      if (!mine.signal.aborted && !signal.aborted) put(inside, h("p", { class: "bad", role: "alert" }, error.message));
    }
  }
  put(tabs, TABS.map(({ name, title: text }) => button(text, () => (setQuery({ tab: name === TABS[0].name ? "" : name }), open(name)), { role: "tab", id: `tab-${name}`, "aria-controls": "panel", "aria-selected": "false" })));
  tabs.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const all = [...tabs.children];
    const place = all.indexOf(/** @type {Element} */ (document.activeElement));
    if (step && place >= 0) (event.preventDefault(), all[(place + step + all.length) % all.length].focus(), all[(place + step + all.length) % all.length].click());
  });

  showLine();
  costOf(line, signal).then((found) => ((cost = found), showLine()), (error) => {
    if (!signal.aborted) throw error;
  });
  open(query.get("tab") ?? "");
  follow();
  nameTeachers();

  async function nameTeachers() {
    teachers = await namesOf(line.teachers.filter((each) => each.startsWith("job_")), signal);
    if (!signal.aborted) showLine();
  }

  async function follow() {
    for await (const { event, data } of stream(`jobs/${id}/events?progress=true`, { signal })) {
      if (event === "message") events.push(data);
      if (event === "progress" && data.version <= line.version) continue;
      if (event !== "end") feed.dispatchEvent(new CustomEvent(event === "message" ? "event" : event, { detail: data }));
      if (event === "progress") {
        Object.assign(line, { version: data.version, phase: data.phase, requested: data.requested, state: data.state }, data.progress ? { step: data.progress.step, epoch: data.progress.epoch } : {});
        showLine();
      }
      if (event === "end" || event === "progress" || Date.parse(data.at) > Date.now() - 60000) refresh();
    }
  }
}

/** @param {string} name @param {any} value @param {boolean} [big] */
function fact(name, value, big = false) {
  return h("div", {}, h("dt", {}, h("bdi", {}, name)), h("dd", { class: big ? "big" : null }, value));
}
