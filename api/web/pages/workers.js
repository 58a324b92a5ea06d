/** @file The workers: what each has and what it runs. Whether silent ones are shown stands in the address. */

import { watch } from "../api.js";
import { following, h, named, put, write } from "../elements.js";
import { ago, bytes, duration, moment, several } from "../format.js";
import { link } from "../jobs.js";

/**
 * @typedef {object} Worker as GET workers answers
 * @property {string} id @property {string} host @property {number} pid @property {boolean} live @property {string | null} complaint
 * @property {number} slots @property {number} free_slots @property {any[]} devices @property {Record<string, string>} versions
 * @property {Record<string, any>} facts @property {string} started_at @property {string} last_beat
 * @property {{job: string, name: string, attempt: number, phase: string | null, device: string | null, since: string}[]} running
 */

const EVERY_MS = 3000;

/** @param {import("../router.js").View} view */
export function show({ root, query, signal, setQuery }) {
  let silent = query.has("silent");
  /** @type {Worker[]} */
  let all = [];
  const box = h("input", { type: "checkbox", props: { checked: silent }, on: { change: () => ((silent = box.checked), setQuery({ silent }), draw()) } });
  const summary = h("p", { class: "dim", role: "status" });
  const complaint = h("p", { class: "bad", role: "alert", hidden: true });
  const nothing = h("div", { class: "card empty", hidden: true }, h("p", {}, "No worker is running, so no job begins."), h("p", {}, "Start one with ", h("code", {}, "fgd worker"), "; ", h("code", {}, "fgd serve"), " and ", h("code", {}, "make serve"), " start one by themselves."));
  const cards = h("div", { class: "columns" });
  put(root, h("div", { class: "heading" }, h("h1", {}, "Workers"), h("label", { class: "inline" }, box, "Show silent ones")), complaint, summary, nothing, cards);
  const follow = following(cards, (/** @type {Worker} */ worker) => worker.id, card);
  watch({
    path: () => "workers", every: EVERY_MS, signal,
    show: (/** @type {{items: Worker[]}} */ { items }) => ((all = items), (complaint.hidden = true), draw()),
    fail: (problem) => {
      if (problem.status === 0) return; // the page says so
      complaint.hidden = false;
      write(complaint, problem.message);
    },
  });

  function draw() {
    const live = all.filter((worker) => worker.live);
    const sum = (/** @type {(worker: Worker) => number} */ of) => live.reduce((total, worker) => total + of(worker), 0);
    const gpus = sum((worker) => worker.devices.length);
    write(summary, [`${several(live.length, "worker")} on ${several(new Set(live.map((worker) => worker.host)).size, "host")}`, gpus > 0 && several(gpus, "GPU"), `${sum((worker) => worker.free_slots)} of ${several(sum((worker) => worker.slots), "place")} free`, all.length > live.length && `${all.length - live.length} silent`].filter(Boolean).join(" · "));
    nothing.hidden = live.length > 0;
    follow(silent ? all : live);
  }

  function card() {
    const state = h("span", { class: "state" });
    const title = h("h2", {});
    const why = h("p", { class: "warn", hidden: true });
    const facts = h("dl", { class: "facts" });
    const beat = h("p", { class: "dim small" });
    const runs = h("tbody", {});
    const table = h("div", { class: "wide", tabindex: "0", role: "region" }, h("table", {}, h("thead", {}, h("tr", {}, ["Runs", "Does", "On", "Since"].map((each) => h("th", { scope: "col" }, each)))), runs));
    const idle = h("p", { class: "dim" }, "It runs no job.");
    const element = h("section", { class: "card worker" }, h("div", { class: "bar" }, title, state), why, facts, table, idle, beat);
    let seen = "";
    return {
      element,
      update: (/** @type {Worker} */ worker) => {
        write(beat, `Heard of ${ago(worker.last_beat)}${worker.live ? ` · runs for ${duration((Date.now() - Date.parse(worker.started_at)) / 1000)}` : ""} · process ${worker.pid} · ${worker.id}`);
        beat.title = moment(worker.last_beat);
        const { last_beat: _, ...rest } = worker;
        const text = JSON.stringify(rest);
        if (text === seen) return;
        seen = text;
        const focused = runs.contains(document.activeElement) ? document.activeElement?.getAttribute("href") : null;
        element.setAttribute("aria-label", `Worker on ${worker.host}, process ${worker.pid}`);
        table.setAttribute("aria-label", `What runs on ${worker.host}, process ${worker.pid}`);
        put(title, named(worker.host));
        const working = worker.running.length > 0;
        state.className = `state ${!worker.live ? "failed" : worker.complaint ? "paused" : working ? "running" : "ready"}`;
        write(state, !worker.live ? "silent" : worker.complaint ? "takes no jobs" : working ? "working" : "ready");
        why.hidden = !worker.complaint || !worker.live;
        write(why, worker.complaint ?? "");
        put(facts, factsOf(worker));
        table.hidden = !working;
        idle.hidden = working;
        put(runs, worker.running.map((run) => h("tr", {}, h("td", {}, link({ id: run.job, name: run.name }), run.attempt > 1 && h("div", { class: "dim small" }, `attempt ${run.attempt}`)), h("td", {}, (run.phase ?? "begins").replaceAll("_", " ")), h("td", {}, named(run.device ?? "")), h("td", { title: moment(run.since) }, ago(run.since)))));
        if (focused) [...runs.querySelectorAll("a")].find((each) => each.getAttribute("href") === focused)?.focus();
      },
    };
  }
}

/** @param {Worker} worker */
function factsOf({ devices, facts, versions, slots, free_slots: free }) {
  const known = (/** @type {string} */ name, /** @type {any} */ value) => value !== null && value !== undefined && h("div", {}, h("dt", {}, name), h("dd", {}, value));
  return [
    known("Free", `${free} of ${several(slots, "place")}`),
    devices.map((gpu, place) => known(`GPU ${place}`, [named(gpu.name ?? "?"), gpu.memory ? h("span", { class: "dim" }, ` ${bytes(gpu.memory)}${gpu.bf16 ? ", bfloat16" : ""}`) : null])),
    known("Processor", facts.cpu && [named(facts.cpu), facts.cores ? h("span", { class: "dim" }, ` ${several(facts.cores, "core")}`) : null]),
    known("Threads for a training", facts.threads),
    known("Memory", facts.memory && bytes(facts.memory)),
    known("Free disk at its start", facts.free_disk && bytes(facts.free_disk)),
    known("System", facts.system && named(facts.system)),
    Object.keys(versions).length > 0 && known("Versions", Object.entries(versions).map(([name, version]) => `${name} ${version}`).join(", ")),
  ];
}
