/** @file The trainer's log, which follows. Only its end is read at first. */

import { ask, get, pause, Problem, query as address } from "../../api.js";
import { button, h, put } from "../../elements.js";
import { bytes } from "../../format.js";
import { download } from "../../downloads.js";
import { ENDED } from "../../jobs.js";

const FIRST_BYTES = 64_000;
const MOST_CHARS = 400_000;
const EVERY_MS = 1500;

/** @param {import("../job.js").Tab} tab */
export async function show({ root, id, line, signal }) {
  const { items } = await get(`jobs/${id}/attempts`, { signal });
  const log = h("pre", { class: "log mono", tabindex: "0", role: "log", "aria-label": "Log", "aria-live": "off" });
  const size = h("span", { class: "dim" });
  const follow = h("input", { type: "checkbox", props: { checked: true }, on: { change: toEnd } });
  const choice = h("select", { on: { change: () => read(Number(choice.value)) } }, items.map((/** @type {any} */ each) => h("option", { value: each.attempt, selected: each.attempt === items.length }, `Attempt ${each.attempt}`)));
  put(root, h("section", { class: "card" },
    h("div", { class: "bar" }, h("h2", {}, "Log"), items.length > 1 && h("label", { class: "inline" }, h("span", { class: "unseen" }, "Of"), choice), h("label", { class: "inline" }, follow, "Follow"), size,
      items.length > 0 && button("Download", () => download(`jobs/${id}/logs${address({ attempt: choice.value })}`, `${id}.log`))),
    log));
  if (!items.length) return put(log, "No worker has taken this job yet.");

  function toEnd() {
    if (follow.checked) log.scrollTop = log.scrollHeight;
  }
  log.addEventListener("scroll", () => (follow.checked = log.scrollTop + log.clientHeight >= log.scrollHeight - 30));

  let round = new AbortController();
  /** @param {number} attempt */
  async function read(attempt) {
    round.abort();
    round = new AbortController();
    const mine = AbortSignal.any([signal, round.signal]);
    put(log);
    const head = await ask(`jobs/${id}/logs${address({ attempt })}`, { method: "HEAD", signal: mine });
    let offset = Math.max(0, Number(head.headers.get("Content-Length")) - FIRST_BYTES);
    if (offset > 0) log.append("… (the beginning is in the download)\n");
    const decoder = new TextDecoder();
    while (!mine.aborted) {
      const ended = ENDED.includes(line().state);
      try {
        const answer = await ask(`jobs/${id}/logs${address({ attempt, after_offset: offset })}`, { signal: mine });
        const text = decoder.decode(await answer.arrayBuffer(), { stream: true });
        offset = Number(answer.headers.get("X-Next-Offset"));
        if (text) append(text);
        size.textContent = bytes(offset);
        if (!text && (ended || attempt < items.length)) return;
        if (text) continue;
      } catch (error) {
        if (mine.aborted) return;
        if (!(error instanceof Problem) || (error.status >= 400 && error.status < 500)) throw error;
      }
      await pause(EVERY_MS, mine);
    }
  }

  /** @param {string} text */
  function append(text) {
    log.append(text);
    while (log.textContent.length > MOST_CHARS && log.firstChild !== log.lastChild) log.firstChild?.remove();
    toEnd();
  }

  await Promise.race([read(items.length), pause(0, signal)]);
}
