/** @file A plan as people read it. */

import { h, named } from "./elements.js";
import { count, duration, NONE, number, several } from "./format.js";

const FEW_STEPS = 150;
/** The demo's teacher had AP 14 after 150 and 31 after 300. */
const ENOUGH_STEPS = 300;

/** @param {any} plan as GET plans/ID answers */
export function showPlan(plan) {
  const { outline, measured, error } = plan;
  return [
    outline && facts([
      ["Steps", `${count(outline.total_steps)}: ${count(outline.steps_per_epoch)} in each epoch, of ${count(outline.images_per_step)} images each`],
      ["Images", Object.entries(outline.images).map(([split, images]) => `${split} ${count(images)}`).join(", ")],
      outline.left_over > 0 && ["Left over in each epoch", count(outline.left_over)],
      outline.unlabelled_per_step > 0 && ["Without labels in each step", count(outline.unlabelled_per_step)],
      ["Evaluated", `${count(outline.evaluations)} times`],
      ["Sizes", `${outline.sizes.map((/** @type {any} */ size) => `${size.min_size} to ${size.max_size}`).join(", ")} px`],
      ["Levels", outline.levels.map((/** @type {any} */ level) => `${level.name}: ${level.student_channels}${level.teacher_channels === null ? "" : ` of ${level.teacher_channels}`} channels`).join(", ")],
      ...outline.teachers.map((/** @type {any} */ each) => ["Teacher", [each.teacher && [named(each.teacher), ": "], `${each.network}: ${each.methods.join(", ")}; ${each.head_for.length ? "trunk, neck and head" : "trunk and neck"} run`]]),
      outline.adapters.length > 0 && ["Adapters", [...new Set(outline.adapters.map((/** @type {any} */ each) => `${each.method}: ${each.layer}, ${each.from_channels} to ${each.to_channels} channels`))].join("; ")],
    ]),
    outline?.warnings.length > 0 && h("ul", { class: "warn" }, outline.warnings.map((/** @type {any} */ each) => h("li", {}, h("code", {}, each.pointer), ": ", each.message))),
    measured && facts([
      ["Time", h("strong", {}, duration(measured.hours * 3600))],
      ["Of it training", duration(measured.training_hours * 3600)],
      ["One step", `${number(measured.s_per_step)} s on ${measured.device}, ${measured.precision}`],
      ["Memory", `${count(Math.round(measured.memory_peak_mb))} MiB, and ${count(Math.round(measured.cache_mb))} MiB of images`],
      ["Disk", `${count(Math.round(measured.disk_mb))} MiB at most`],
      ["Parameters", `student ${millions(measured.student_parameters)}${measured.teacher_parameters === null ? "" : `, teacher ${millions(measured.teacher_parameters)}`}`],
      measured.trainings_beside > 0 && ["Beside it", `${measured.trainings_beside} other trainings ran; alone it may be faster`],
    ]),
    error && h("p", { class: "bad" }, `It could not be measured, and the job would probably fail in the same way: ${error.message}`),
    plan.state === "measuring" && h("p", { class: "dim" }, plan.waiting_reason ? `Time and memory are not measured yet: ${plan.waiting_reason}` : "A worker measures time and memory …"),
  ];
}

/** What to do where a network that begins with random weights would hardly learn. @param {any} outline @param {any} spec as it was sent */
export function fewSteps(outline, spec) {
  const random = (spec.student?.weights ?? "none") === "none" && !spec.teacher && !spec.teachers;
  if (!outline || !random || outline.total_steps >= FEW_STEPS) return null;
  return h("p", { class: "warn" }, `${several(outline.total_steps, "step")} are few for a network that begins with random weights: it will find almost nothing, and be refused as a teacher. Set epochs to ${Math.ceil(ENOUGH_STEPS / outline.steps_per_epoch)} or more, or begin with trained weights (Student, Advanced).`);
}

/** @param {any[]} pairs */
function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value || NONE))));
}

/** @param {number} parameters */
function millions(parameters) {
  return `${(parameters / 1e6).toFixed(2)} M`;
}
