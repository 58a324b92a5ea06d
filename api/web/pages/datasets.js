/** @file All data sets, and a place to drop a zip on. The search stands in the address. */

import { query as address, watch } from "../api.js";
import { datasetMenu, dropZone, stateOf, uploadLine } from "../datasets.js";
import { button, following, h, named, put, write } from "../elements.js";
import { ago, count, moment, NONE } from "../format.js";
import { to } from "../router.js";
import { uploads } from "../uploads.js";

const EVERY_MS = 2000;
const LIMIT = 50;
const TYPING_MS = 250;
const SPLITS = ["train", "val", "test", "unlabelled"];

/** @param {import("../router.js").View} view */
export function show({ root, query, signal, setQuery }) {
  const wanted = { search: query.get("search") ?? "", cursor: query.get("cursor") ?? "" };
  const search = h("input", { type: "search", class: "search", placeholder: "Search names", "aria-label": "Search data sets by name", value: wanted.search, on: { input: () => (clearTimeout(typing), (typing = setTimeout(() => change({ search: search.value.trim(), cursor: "" }), TYPING_MS))) } });
  let typing = 0;
  signal.addEventListener("abort", () => clearTimeout(typing));
  const body = h("tbody", {});
  const table = h("div", { class: "card" }, h("table", { class: "datasets", "aria-label": "Data sets" },
    h("thead", {}, h("tr", {}, h("th", {}, "Name"), h("th", {}, "State"), h("th", { class: "number minor" }, "Classes"), SPLITS.map((split) => h("th", { class: split === "train" ? "number" : "number minor" }, split)), h("th", { class: "number minor" }, "Created"), h("th", {}, h("span", { class: "unseen" }, "Actions")))), body));
  const nothing = h("p", { class: "card empty", hidden: true });
  const complaint = h("p", { class: "bad", role: "alert", hidden: true });
  const places = h("div", { class: "bar" });
  put(root, h("div", { class: "heading" }, h("h1", {}, "Data sets"), search), dropZone({ signal, taken: () => look() }), complaint, table, nothing, places);

  const follow = following(body, (/** @type {any} */ dataset) => dataset.id, line);
  /** @type {any[]} */
  let shown = [];
  const look = watch({
    path: () => `datasets${address({ limit: LIMIT, name: wanted.search && `*${wanted.search.replaceAll("*", "")}*`, cursor: wanted.cursor })}`,
    every: EVERY_MS,
    signal,
    show: (/** @type {{items: any[], next: string | null}} */ data) => {
      complaint.hidden = true;
      shown = data.items;
      follow(shown);
      table.hidden = shown.length === 0;
      nothing.hidden = shown.length > 0;
      write(nothing, wanted.search || wanted.cursor ? "No data set matches." : "There are no data sets yet. Drop a zip above.");
      put(places, wanted.cursor && button("First page", () => change({ cursor: "" })), data.next && button("Older ones", () => change({ cursor: data.next })));
    },
    fail: (problem) => {
      if (problem.status === 0) return;
      complaint.hidden = false;
      write(complaint, problem.message);
    },
  });
  uploads.addEventListener("changed", () => follow(shown), { signal });

  /** @param {Partial<typeof wanted>} changes */
  function change(changes) {
    Object.assign(wanted, changes);
    setQuery(wanted);
    look();
  }

  /** @param {any} first */
  function line(first) {
    let dataset = first;
    const title = h("a", { class: "title", href: to(["datasets", first.id]) });
    const state = h("span", { class: "state" });
    const what = h("div", { class: "small" });
    const classes = h("td", { class: "number minor" });
    const images = SPLITS.map((split) => h("td", { class: split === "train" ? "number" : "number minor" }));
    const created = h("td", { class: "number minor dim" });
    const menu = datasetMenu(() => dataset, look);
    const element = h("tr", { data: { dataset: first.id } }, h("td", {}, title), h("td", {}, state, what), classes, images, created, h("td", { class: "number" }, menu.element));
    let seen = "";
    return {
      element,
      update: (/** @type {any} */ now) => {
        dataset = now;
        write(created, ago(now.created_at));
        const text = JSON.stringify([now, uploads.of.get(now.id)]);
        if (text === seen) return;
        seen = text;
        put(title, named(now.name));
        menu.name(now.name);
        state.className = `state ${now.state === "verifying" ? "running" : now.state === "awaiting_upload" ? "queued" : now.state}`;
        write(state, stateOf(now));
        const focused = what.contains(document.activeElement);
        put(what, now.state === "awaiting_upload" ? uploadLine(now) : h("span", { class: "dim" }, now.error));
        if (focused) what.querySelector("button")?.focus();
        write(classes, now.classes ? count(now.classes.length) : NONE);
        for (const [place, split] of SPLITS.entries()) write(images[place], now.splits?.[split] ? count(now.splits[split].images) : NONE);
        created.title = moment(now.created_at);
      },
    };
  }
}
