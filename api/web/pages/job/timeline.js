/** @file What happened: the attempts, and every event as it comes. */

import { get } from "../../api.js";
import { h, named, put, sentence } from "../../elements.js";
import { duration, moment, NONE, number } from "../../format.js";

const MOST = 300;
const BAD = ["failed", "attempt_lost", "cannot_run"];
const GOOD = ["succeeded"];

/** @param {import("../job.js").Tab} tab */
export async function show({ root, id, feed, events, signal }) {
  const attempts = h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Attempts" });
  const list = h("ol", { class: "timeline" });
  const older = h("p", { class: "dim", hidden: true }, `Only the last ${MOST} events are shown; all are in GET /v1/jobs/ID/events.`);
  put(root, h("section", { class: "card" }, h("h2", {}, "Attempts"), attempts), h("section", { class: "card" }, h("h2", {}, "Events, the newest first"), list, older));

  async function load() {
    const { items } = await get(`jobs/${id}/attempts`, { signal });
    put(attempts, items.length === 0 ? h("p", { class: "dim" }, "No worker has taken this job yet.") : h("table", {},
      h("thead", {}, h("tr", {}, ["Attempt", "Host", "Device", "Started", "Took", "Steps", "Lost steps", "End"].map((title) => h("th", {}, title)))),
      h("tbody", {}, items.map((/** @type {any} */ attempt) => h("tr", {},
        h("td", {}, String(attempt.attempt)), h("td", {}, named(attempt.host)), h("td", {}, named(attempt.device ?? NONE)), h("td", {}, moment(attempt.started_at)),
        h("td", {}, duration((Date.parse(attempt.finished_at ?? new Date().toISOString()) - Date.parse(attempt.started_at)) / 1000)),
        h("td", { class: "number" }, String(attempt.steps_done)), h("td", { class: "number" }, String(attempt.lost_steps)),
        h("td", {}, attempt.outcome ? h("span", { class: `state ${attempt.outcome}` }, attempt.outcome.replaceAll("_", " ")) : "running", attempt.reason && h("div", { class: "dim" }, sentence(attempt.reason))))))));
  }

  /** @param {any} event */
  function add(event) {
    list.prepend(line(event));
    while (list.childElementCount > MOST) (list.lastElementChild?.remove(), (older.hidden = false));
  }

  for (const event of events.slice(-MOST)) add(event);
  older.hidden = events.length <= MOST;
  feed.addEventListener("event", (/** @type {any} */ event) => {
    add(event.detail);
    if (/claimed|started|lost|paused|succeeded|failed|cancelled|requeued/.test(event.detail.type)) load().catch(() => {});
  }, { signal });
  await load();
}

/** @param {any} event */
function line(event) {
  const kind = BAD.includes(event.type) ? "bad" : GOOD.includes(event.type) ? "good" : event.data.level === "warning" ? "warn" : null;
  return h("li", { class: kind }, h("time", { datetime: event.at }, moment(event.at)), h("div", {}, h("strong", {}, h("bdi", {}, title(event))), " ", sentence(words(event))));
}

/** @param {any} event */
function title(event) {
  return event.type.replace(/^(note:|job_)/, "").replaceAll("_", " ");
}

/** What an event says, in a line. @param {any} event @returns {string} */
function words({ type, data }) {
  if (data.message) return data.message;
  if (type === "phase") return data.phase.replaceAll("_", " ");
  if (type === "evaluated") return `${data.split}: AP ${number(data.values.ap)} after step ${data.step}, epoch ${data.epoch}`;
  if (type === "started") return `at step ${data.step} of ${data.total_steps} on ${data.device}, ${data.precision}${data.steps_lost ? `; ${data.steps_lost} steps are done again` : ""}`;
  if (type === "checkpoint_saved") return `after step ${data.step}${data.best ? ", the best so far" : ""}`;
  return Object.entries(data).filter(([, value]) => value !== null && typeof value !== "object").map(([name, value]) => `${name.replaceAll("_", " ")}: ${value}`).join(", ");
}
