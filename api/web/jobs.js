/** @file What is done with jobs, on whatever page: ask for something, copy one, and how a state is shown. */

import { get, query as address, send } from "./api.js";
import { complain, confirmed, say } from "./dialogs.js";
import { button, h, named, put } from "./elements.js";
import { to } from "./router.js";

/**
 * @typedef {object} Summary a line of GET summaries
 * @property {string} id @property {string} name @property {string} state @property {string | null} phase
 * @property {string | null} requested @property {Record<string, string>} metadata @property {number} version
 * @property {string} created_at @property {string | null} started_at @property {string | null} finished_at
 * @property {number} step @property {number | null} total_steps @property {number} epoch @property {number | null} epochs
 * @property {number | null} left_s @property {number | null} ap @property {number | null} ap_step
 * @property {string | null} control @property {number | null} control_ap @property {number | null} gain
 * @property {string} student @property {string[]} methods @property {string[]} teachers
 * @property {string} dataset @property {string} dataset_name @property {string | null} why
 */

export const STATES = ["queued", "running", "paused", "succeeded", "failed", "cancelled"];
export const ENDED = ["succeeded", "failed", "cancelled"];
const ASKED = { cancel: "cancelling", cancel_now: "cancelling", pause: "pausing", stop: "finishing early" };

/** In words: what was asked of it, else what it does. @param {{state: string, phase: string | null, requested: string | null}} job */
export function doing(job) {
  return ASKED[job.requested ?? ""] ?? (job.state === "running" ? (job.phase ?? "").replaceAll("_", " ") : "");
}

/** What a phase means, for who waits for its end. */
const PHASES = {
  staging: "A worker copies the data set and the networks to its disk.",
  loading: "The trainer starts and builds the network. This takes seconds, on a busy machine a minute or two.",
  checking_teacher: "The teacher is measured on the validation images before it teaches.",
  calibrating: "The scale of the teacher's maps is measured.",
  balancing: "The strength of the methods is measured against the detection loss.",
  training: "The first step is under way.",
  exporting: "The result is written and checked.",
};

/** Why there is nothing to see yet. @param {Summary} job */
export function waits(job) {
  if (job.state === "queued") return job.why ?? "The job waits until a worker takes it.";
  if (job.state === "running") return PHASES[job.phase ?? ""] ?? "A worker begins.";
  return job.state === "paused" ? "The job was paused before." : "The job ended before.";
}

/** Who learns from whom. @param {Summary} job */
export function recipe(job) {
  return job.methods.length ? `${job.student} · ${job.methods.join(" + ")}` : `${job.student} · no teacher`;
}

/** The names of jobs, of those that are still there; their ids say enough where they cannot be had. @param {string[]} ids @param {AbortSignal} signal @returns {Promise<Map<string, string>>} */
export async function namesOf(ids, signal) {
  if (!ids.length) return new Map();
  const { items } = await get(`summaries${address({ id: ids })}`, { signal }).catch(() => ({ items: [] }));
  return new Map(items.map((/** @type {Summary} */ each) => [each.id, each.name]));
}

/** @param {{id: string, name: string}} job */
export function link(job) {
  return h("a", { href: to(["jobs", job.id]), class: "title" }, named(job.name));
}

/** @typedef {{word: string, of: string[], act: (job: {id: string, name: string}) => Promise<any>}} Action */

/** @param {string} word @param {string} path */
const asks = (word, path) => (/** @type {{id: string, name: string}} */ job) => send("POST", `jobs/${job.id}/${path}`).then(() => word);

/** What can be asked of a job, by the states in which the API hears it. @type {Record<string, Action>} */
export const ACTIONS = {
  pause: { word: "Pause", of: ["queued", "running"], act: asks("is being paused", "pause") },
  resume: { word: "Resume", of: ["paused"], act: asks("is queued again", "resume") },
  stop: { word: "Finish early", of: ["running", "paused"], act: asks("finishes early", "stop") },
  cancel: { word: "Cancel", of: ["queued", "running", "paused"], act: asks("is being cancelled", "cancel") },
  delete: { word: "Delete", of: ENDED, act: (job) => send("DELETE", `jobs/${job.id}`).then(() => "is deleted") },
};

const SURE = {
  cancel: "The training ends without a result.",
  delete: "Its events, curves, log and files are deleted with it.",
};

/** Does it, asks first where it cannot be undone, and says how it went. True if it was done. @param {string} name @param {{id: string, name: string}[]} jobs */
export async function act(name, jobs) {
  const action = ACTIONS[name];
  const of = jobs.length === 1 ? named(jobs[0].name) : `${jobs.length} jobs`;
  if (SURE[name]) {
    const sure = await confirmed({ title: `${action.word} ${jobs.length === 1 ? "this job" : of}?`, text: [jobs.length === 1 && of, jobs.length === 1 && ": ", SURE[name]], action: `${action.word}${jobs.length > 1 ? ` ${jobs.length}` : ""}`, danger: true });
    if (!sure) return false;
  }
  let done = 0;
  for (const job of jobs) {
    try {
      const told = await action.act(job);
      done += 1;
      if (jobs.length === 1) say([of, ` ${told}`]);
    } catch (error) {
      complain(error);
    }
  }
  if (jobs.length > 1 && done) say(`${action.word}: ${done} of ${jobs.length} jobs`);
  return done > 0;
}

/** The form of a job like this one. @param {{id: string}} job */
export function copyOf(job) {
  return to(["new"], { copy: job.id });
}

/** A menu of what can be asked of a job now. @param {() => Summary} job @param {() => void} changed */
export function jobMenu(job, changed) {
  const list = h("div", {});
  const summary = h("summary", {}, "⋯");
  const element = h("details", { class: "menu", on: { toggle: fill } }, summary, list);
  function fill() {
    if (!element.open) return;
    const now = job();
    put(list, Object.entries(ACTIONS).filter(([, action]) => action.of.includes(now.state)).map(([name, action]) =>
      button(action.word, async () => (await act(name, [now])) && changed(), { class: SURE[name] ? "bad" : null })),
    h("a", { class: "button", href: copyOf(now) }, "Copy …"));
  }
  return { element, name: (/** @type {string} */ text) => summary.setAttribute("aria-label", `Actions for ${text}`) };
}
