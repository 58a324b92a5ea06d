/** @file The curves of jobs: read from the API, and followed while a job trains. */

import { get, query } from "./api.js";

/** @typedef {{name: string, split: string, x: number[], y: (number | null)[]}} Series */

export const MOST_POINTS = 500;
/** Of one series: about what a screen can show. */

export const FIGURES = { ap: "AP", ap50: "AP50", ap75: "AP75", ap_s: "AP, small boxes", ap_m: "AP, medium boxes", ap_l: "AP, large boxes" };
const EVALUATED = /^(val|test|train)\//;

/**
 * By "split/name". @param {string} job @param {{signal: AbortSignal, name?: string, split?: string, range?: [number, number] | null}} of
 * @returns {Promise<Map<string, Series>>}
 */
export async function curvesOf(job, { signal, name, split, range = null }) {
  const window = range ? { from: Math.max(0, Math.floor(range[0])), to: Math.max(0, Math.ceil(range[1])) } : {};
  const { items } = await get(`jobs/${job}/metrics${query({ name, split, max_points: MOST_POINTS, ...window })}`, { signal });
  /** @type {Map<string, Series>} */
  const found = new Map();
  for (const point of items) add(found, point.split, point.name, point.step, point.value);
  return found;
}

/** A point behind the last one; an earlier one changes nothing. @param {Map<string, Series>} curves @param {string} split @param {string} name @param {number} step @param {number | null} value */
export function add(curves, split, name, step, value) {
  const key = `${split}/${name}`;
  let series = curves.get(key);
  if (!series) curves.set(key, (series = { name, split, x: [], y: [] }));
  if (series.x.length && step <= series.x[series.x.length - 1]) return;
  series.x.push(step);
  series.y.push(value);
}

/** What a stream told of a training's steps. @param {Map<string, Series>} curves @param {{step: number, values: Record<string, number | null>}} progress */
export function addProgress(curves, { step, values }) {
  for (const [name, value] of Object.entries(values)) if (!EVALUATED.test(name)) add(curves, "train", name, step, value);
}

/** Groups of what a trainer reports, by the beginning of the name. @param {string} name */
export function groupOf(name) {
  const [group, rest] = name.split(/\/(.*)/s);
  return rest === undefined ? name : group;
}

export const GROUPS = { loss: "Loss terms", share: "Shares of the detection loss", lr: "Learning rate", images_per_s: "Images per second", device: "Device", data: "Waiting for data", checkpoint: "Saving", evaluate: "Evaluating", teacher: "Teacher" };
