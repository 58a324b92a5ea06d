/** @file What is done with a study, and its intervals as text and as a drawing. */

import { make, send } from "./api.js";
import { ticks } from "./charts.js";
import { complain, confirmed, filledIn, say } from "./dialogs.js";
import { named, svg } from "./elements.js";
import { gain, number, several } from "./format.js";

/**
 * @typedef {object} Study as GET studies/ID answers
 * @property {string} id @property {string} name @property {string} state
 * @property {{total: number, queued: number, running: number, paused: number, succeeded: number, failed: number, cancelled: number}} jobs
 * @property {{name: string, methods: {kind: string}[], against: string | null}[]} arms @property {{name: string}[]} students
 * @property {number[]} seeds @property {string} created_at @property {string | null} finished_at
 */

/** @typedef {{value: number, low: number | null, high: number | null, seeds: number[]}} Interval */

const MOST_SEEDS = 200;

/** What can be asked of a study, and when. @type {Record<string, {word: string, when: (study: Study) => boolean, sure?: string, done: string}>} */
export const ACTIONS = {
  pause: { word: "Pause", when: ({ jobs }) => jobs.queued + jobs.running > 0, done: "is being paused" },
  resume: { word: "Resume", when: ({ jobs }) => jobs.paused > 0, done: "goes on" },
  retry: { word: "Retry", when: (study) => study.jobs.failed + study.jobs.cancelled + deleted(study) > 0, done: "has new jobs in place of those without a result" },
  cancel: { word: "Cancel", when: ({ jobs }) => jobs.queued + jobs.running + jobs.paused > 0, sure: "All its jobs that have not ended end without a result. Those that have ended keep theirs.", done: "is being cancelled" },
  delete: { word: "Delete", when: ({ state }) => ["succeeded", "failed", "cancelled"].includes(state), sure: "Its leaderboard is deleted. Its jobs stay, as ordinary jobs.", done: "is deleted" },
};

/** Jobs of it that somebody deleted. @param {Study} study */
export function deleted({ jobs }) {
  const { total, ...states } = jobs;
  return total - Object.values(states).reduce((sum, each) => sum + each, 0);
}

/** In words. @param {Study} study */
export function progress(study) {
  const { total, succeeded, ...others } = study.jobs;
  const rest = Object.entries({ ...others, deleted: deleted(study) }).filter(([, many]) => many > 0).map(([state, many]) => `${many} ${state}`);
  return [`${succeeded} of ${several(total, "job")} succeeded`, ...rest].join(" · ");
}

/** Asks first where it cannot be undone. True if it was done. @param {string} name @param {Study} study */
export async function act(name, study) {
  const { word, sure, done } = ACTIONS[name];
  if (sure && !(await confirmed({ title: `${word} this study?`, text: [named(study.name), ": ", sure], action: word, danger: true }))) return false;
  try {
    await (name === "delete" ? send("DELETE", `studies/${study.id}`) : send("POST", `studies/${study.id}/${name}`));
    say([named(study.name), ` ${done}`]);
    return true;
  } catch (error) {
    complain(error);
    return false;
  }
}

/** More seeds for all of it. True if it was done. @param {Study} study */
export async function extend(study) {
  const next = Math.max(...study.seeds) + 1;
  const values = await filledIn({
    title: "Add seeds",
    text: `Each seed adds ${several(study.arms.length * study.students.length, "job")}: one for each arm and student. What is there stays as it is.`,
    action: "Add them",
    fields: [{ name: "seeds", label: "Seeds, such as 3, 4 or 3-6", value: `${next}, ${next + 1}` }],
  });
  if (!values) return false;
  const seeds = seedsOf(values.seeds);
  if (!seeds) {
    say(`${values.seeds} is no list of seeds; write whole numbers such as 3, 4 or 3-6, at most ${MOST_SEEDS}`, "bad");
    return false;
  }
  try {
    await make(`studies/${study.id}/extend`, { seeds });
    say([named(study.name), ` has ${several(seeds.length, "more seed")}`]);
    return true;
  } catch (error) {
    complain(error);
    return false;
  }
}

/** "3, 4, 7-9" as numbers; null if it says something else. @param {string} text @returns {number[] | null} */
export function seedsOf(text) {
  const found = [];
  for (const part of text.split(/[\s,]+/).filter(Boolean)) {
    const [, first, last = first] = /^(\d{1,10})(?:-(\d{1,10}))?$/.exec(part) ?? [];
    if (first === undefined || Number(last) < Number(first) || Number(last) - Number(first) >= MOST_SEEDS) return null;
    for (let seed = Number(first); seed <= Number(last); seed += 1) found.push(seed);
  }
  return found.length && found.length <= MOST_SEEDS ? [...new Set(found)] : null;
}

// --- intervals ----------------------------------------------------------------------------------------------------

const [WIDTH, HEIGHT, EDGE] = [240, 30, 10];

/** "−0.3 to +2.7" @param {Interval | null} interval */
export function bounds(interval) {
  return !interval || interval.low === null || interval.high === null ? "" : `${gain(interval.low)} to ${gain(interval.high)}`;
}

/** What an interval says of zero. @param {Interval | null} interval */
export function verdict(interval) {
  if (!interval || interval.low === null || interval.high === null) return "";
  return interval.low > 0 ? "good" : interval.high < 0 ? "bad" : "";
}

/** Where AP points lie, for all drawings of a table: zero is among them. @param {(Interval | null)[]} intervals */
export function common(intervals) {
  const values = intervals.flatMap((each) => (each ? [each.value, each.low ?? each.value, each.high ?? each.value] : []));
  const [least, greatest] = [Math.min(0, ...values), Math.max(0, ...values)];
  const room = (greatest - least) * 0.05 || 0.5;
  const [from, to] = [least - room, greatest + room];
  return { from, to, px: (/** @type {number} */ value) => EDGE + ((value - from) / (to - from)) * (WIDTH - 2 * EDGE) };
}

/** @param {ReturnType<typeof common>} scale */
export function axis(scale) {
  return svg("svg", { class: "interval", viewBox: `0 0 ${WIDTH} 20`, "aria-hidden": "true" }, ticks(scale.from, scale.to, 4).map((value) => [
    svg("line", { class: "tick", x1: scale.px(value), x2: scale.px(value), y1: 15, y2: 20 }),
    svg("text", { x: scale.px(value), y: 12, "text-anchor": "middle" }, value === 0 ? "0" : `${value < 0 ? "−" : "+"}${number(Math.abs(value))}`)]));
}

/** A point with its interval over seeds (thick), and over seeds and images (thin, below). @param {ReturnType<typeof common>} scale @param {Interval} seeds @param {Interval | null} images */
export function drawing(scale, seeds, images) {
  const between = (/** @type {Interval | null} */ each, /** @type {string} */ kind, /** @type {number} */ y) =>
    each && each.low !== null && each.high !== null && svg("line", { class: kind, x1: scale.px(each.low), x2: scale.px(each.high), y1: y, y2: y });
  const text = `${gain(seeds.value)} AP${bounds(seeds) && `, over seeds ${bounds(seeds)}`}${bounds(images) && `, over seeds and images ${bounds(images)}`}`;
  return svg("svg", { class: `interval ${verdict(seeds)}`, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": text },
    svg("line", { class: "zero", x1: scale.px(0), x2: scale.px(0), y1: 0, y2: HEIGHT }),
    between(seeds, "seeds", 12), between(images, "images", 23),
    svg("circle", { cx: scale.px(seeds.value), cy: 12, r: 5 }));
}
