/** @file What a teacher costs: how much longer a step takes than in the control, as both measured it. */

import { get } from "./api.js";

const LOOKED_AT = 100;
/** Points of the curve, of which the middle counts. */

/**
 * Null where it is not known, or the two ran on different devices.
 * @param {{id: string, control: string | null}} job @param {AbortSignal} signal @returns {Promise<{share: number, ours: number, theirs: number, device: string} | null>}
 */
export async function costOf({ id, control }, signal) {
  if (!control) return null;
  try {
    const [ours, theirs] = await Promise.all([id, control].map((each) => speedOf(each, signal)));
    if (!ours || !theirs || ours.device !== theirs.device || ours.value >= theirs.value) return null;
    return { share: 1 - ours.value / theirs.value, ours: ours.value, theirs: theirs.value, device: ours.device };
  } catch (error) {
    if (signal.aborted || error.status === undefined) throw error;
    return null; // the control was deleted
  }
}

/** Images a second, and where. @param {string} job @param {AbortSignal} signal */
async function speedOf(job, signal) {
  const [curve, attempts] = await Promise.all([get(`jobs/${job}/metrics?name=images_per_s&split=train&max_points=${LOOKED_AT}`, { signal }), get(`jobs/${job}/attempts`, { signal })]);
  const device = attempts.items.at(-1)?.device;
  const values = curve.items.map((/** @type {any} */ point) => point.value).filter((/** @type {any} */ value) => value > 0).sort((/** @type {number} */ a, /** @type {number} */ b) => a - b);
  return device && values.length ? { device, value: values[Math.floor(values.length / 2)] } : null;
}
