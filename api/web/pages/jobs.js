/** @file All jobs: a live table. Its filters and its order stand in the address. */

import { query as address, watch } from "../api.js";
import { button, following, h, named, put, unseen, write } from "../elements.js";
import { ago, ap, count, duration, gain, moment, NONE, several } from "../format.js";
import { act, ACTIONS, doing, jobMenu, link, recipe, STATES } from "../jobs.js";
import { to } from "../router.js";

/** @typedef {import("../jobs.js").Summary} Summary */

const EVERY_MS = 2000;
const LIMIT = 50;
const TYPING_MS = 250;
/** Columns that can be sorted by, and which way first. */
const SORTED = { name: "name", state: "state", ap: "-ap", gain: "-gain", created: "-created" };

/** @param {import("../router.js").View} view */
export function show({ root, query, signal, setQuery }) {
  const wanted = {
    search: query.get("search") ?? "",
    state: query.getAll("state").filter((state) => STATES.includes(state)),
    worse: query.has("worse"),
    sort: Object.keys(SORTED).includes((query.get("sort") ?? "").replace("-", "")) ? query.get("sort") : "-created",
    offset: Math.max(0, Number(query.get("offset")) || 0),
  };
  /** @type {Map<string, Summary>} those chosen, wherever in the table they are */
  const chosen = new Map();
  /** @type {Summary[]} */
  let shown = [];

  const search = h("input", { type: "search", class: "search", placeholder: "Search names and labels", "aria-label": "Search jobs by name or label", value: wanted.search, on: { input: () => (clearTimeout(typing), (typing = setTimeout(() => change({ search: search.value.trim() }), TYPING_MS))) } });
  let typing = 0;
  const chips = h("div", { class: "chips", role: "group", "aria-label": "States" });
  const worse = button("▼ Worse than control", () => change({ worse: !wanted.worse }));
  const head = h("tr", { role: "row" });
  const body = h("tbody", { role: "rowgroup" });
  const table = h("table", { class: "jobs", role: "table", "aria-label": "Jobs" }, h("thead", { role: "rowgroup" }, head), body);
  const nothing = h("div", { class: "card empty", hidden: true });
  const complaint = h("p", { class: "bad", role: "alert", hidden: true });
  const places = h("div", { class: "bar" });
  const bulk = h("div", { class: "bulk bar", role: "region", "aria-label": "Chosen jobs", hidden: true });
  put(root, h("div", { class: "heading" }, h("h1", {}, "Jobs"), search, chips, worse), complaint, table, nothing, places, bulk);

  const follow = following(body, (/** @type {Summary} */ job) => job.id, line);
  const look = watch({
    path: () => `summaries${address({ ...wanted, limit: LIMIT })}`,
    every: EVERY_MS,
    signal,
    show: (/** @type {{items: Summary[], total: number, states: Record<string, number>}} */ data) => {
      complaint.hidden = true;
      if (data.items.length === 0 && wanted.offset > 0) return change({ offset: 0 });
      shown = data.items;
      for (const job of shown) if (chosen.has(job.id)) chosen.set(job.id, job);
      follow(shown);
      showHead();
      showChips(data.states);
      showPlaces(data.total);
      showBulk();
      showNothing(data);
    },
    fail: (problem) => {
      if (problem.status === 0) return; // the page says so
      complaint.hidden = false;
      write(complaint, problem.message);
    },
  });
  document.addEventListener("keydown", (event) => {
    const typed = event.target instanceof Element && event.target.closest("input, textarea, select, dialog");
    if (event.key === "/" && !typed) (event.preventDefault(), search.focus());
  }, { signal });

  /** @param {Partial<typeof wanted>} changes */
  function change(changes) {
    Object.assign(wanted, { offset: 0 }, changes);
    setQuery({ ...wanted, sort: wanted.sort === "-created" ? "" : wanted.sort, offset: wanted.offset || "" });
    showHead();
    look();
  }

  function showHead() {
    const all = h("input", { type: "checkbox", "aria-label": "Choose all jobs of this page", props: { checked: shown.length > 0 && shown.every((job) => chosen.has(job.id)) }, on: { change: () => chooseAll(all.checked) } });
    const focused = head.contains(document.activeElement) ? document.activeElement?.getAttribute("data-sort") : null;
    put(head,
      h("th", { class: "select", role: "columnheader" }, all),
      column("name", "Name", "what"), column("state", "State", "state-cell"),
      h("th", { class: "done", role: "columnheader" }, "Progress"), h("th", { class: "left number", role: "columnheader" }, "Left"),
      column("ap", "AP", "ap number"), column("gain", "Gain", "gain number"), column("created", "Created", "created number"),
      h("th", { class: "more", role: "columnheader" }, unseen("Actions")));
    if (focused) head.querySelector(`[data-sort="${focused}"]`)?.focus();
  }

  /** @param {"name" | "state" | "ap" | "gain" | "created"} name @param {string} title @param {string} kind */
  function column(name, title, kind) {
    const sorted = (wanted.sort ?? "").replace("-", "") === name;
    const falling = (wanted.sort ?? "").startsWith("-");
    const turn = () => change({ sort: sorted ? (falling ? name : `-${name}`) : SORTED[name] });
    return h("th", { class: kind, role: "columnheader", "aria-sort": sorted ? (falling ? "descending" : "ascending") : null }, button([title, sorted && (falling ? " ↓" : " ↑")], turn, { data: { sort: name } }));
  }

  /** @param {Record<string, number>} states */
  function showChips(states) {
    const focused = chips.contains(document.activeElement) ? document.activeElement?.getAttribute("data-state") : null;
    put(chips, STATES.filter((state) => states[state] || wanted.state.includes(state)).map((state) => {
      const on = wanted.state.includes(state);
      const toggle = () => change({ state: on ? wanted.state.filter((each) => each !== state) : [...wanted.state, state] });
      return button(`${state} ${count(states[state] ?? 0)}`, toggle, { "aria-pressed": String(on), data: { state } });
    }));
    if (focused) chips.querySelector(`[data-state="${focused}"]`)?.focus();
    worse.setAttribute("aria-pressed", String(wanted.worse));
  }

  /** @param {number} total */
  function showPlaces(total) {
    const last = Math.min(wanted.offset + LIMIT, total);
    put(places, total > 0 && h("span", { class: "dim" }, total > LIMIT ? `${count(wanted.offset + 1)}–${count(last)} of ${several(total, "job")}` : several(total, "job")),
      total > LIMIT && [
        button("Previous", () => change({ offset: Math.max(0, wanted.offset - LIMIT) }), { disabled: wanted.offset === 0 }),
        button("Next", () => change({ offset: wanted.offset + LIMIT }), { disabled: last >= total }),
      ]);
  }

  /** @param {{total: number, states: Record<string, number>}} data */
  function showNothing(data) {
    nothing.hidden = table.hidden = false;
    if (data.total > 0) return (nothing.hidden = true);
    table.hidden = true;
    const filtered = wanted.search || wanted.state.length || wanted.worse;
    put(nothing, filtered
      ? [h("p", {}, "No job matches these filters."), button("Show all jobs", () => ((search.value = ""), change({ search: "", state: [], worse: false })))]
      : [h("p", {}, "There are no jobs yet."), h("p", {}, h("a", { href: "#/datasets" }, "Upload a data set"), ", then ", h("a", { href: "#/new" }, "make a job"), "; or see how it all works with ", h("code", {}, "make demo"), ".")]);
  }

  /** @param {boolean} on */
  function chooseAll(on) {
    for (const job of shown) on ? chosen.set(job.id, job) : chosen.delete(job.id);
    follow(shown);
    showBulk();
  }

  function showBulk() {
    const jobs = [...chosen.values()];
    bulk.hidden = jobs.length === 0;
    if (bulk.hidden) return;
    const can = (/** @type {string} */ name) => jobs.filter((job) => ACTIONS[name].of.includes(job.state));
    const focused = bulk.contains(document.activeElement) ? document.activeElement?.textContent : null;
    put(bulk, h("strong", {}, `${several(jobs.length, "job")} chosen`),
      jobs.length > 1 && h("a", { class: "button", href: to(["compare"], { id: jobs.map((job) => job.id) }) }, "Compare"),
      ["pause", "resume", "cancel", "delete"].filter((name) => can(name).length).map((name) =>
        button(ACTIONS[name].word, async () => (await act(name, can(name))) && (name === "delete" && chosen.clear(), look()))),
      button("Choose none", () => (chosen.clear(), follow(shown), showHead(), showBulk()), { class: "quiet" }));
    if (focused) [...bulk.querySelectorAll("button, a")].find((each) => each.textContent === focused)?.focus();
  }

  /** @param {Summary} first */
  function line(first) {
    let job = first;
    const box = h("input", { type: "checkbox", on: { change: () => (box.checked ? chosen.set(job.id, job) : chosen.delete(job.id), element.setAttribute("aria-selected", String(box.checked)), showHead(), showBulk()) } });
    const title = h("div", {});
    const under = h("div", { class: "under" });
    const state = h("span", { class: "state" });
    const what = h("small", {});
    const bar = h("progress", { max: 1 });
    const steps = h("small", {});
    const [left, score, better, created] = [h("td", { class: "left number" }), h("td", { class: "ap number" }), h("td", { class: "gain number" }), h("td", { class: "created number dim" })];
    const more = jobMenu(() => job, look);
    const element = h("tr", { role: "row", data: { job: job.id } }, h("td", { class: "select" }, box), h("td", { class: "what" }, title, under), h("td", { class: "state-cell" }, state, what), h("td", { class: "done" }, bar, steps), left, score, better, created, h("td", { class: "more number" }, more.element));
    for (const cell of element.children) cell.setAttribute("role", "cell");
    let seen = "";
    return {
      element,
      update: (/** @type {Summary} */ now) => {
        job = now;
        box.checked = chosen.has(job.id);
        element.setAttribute("aria-selected", String(box.checked));
        write(created, ago(job.created_at));
        const text = JSON.stringify(job);
        if (text === seen) return;
        seen = text;
        box.setAttribute("aria-label", `Choose ${job.name}`);
        more.name(job.name);
        put(title, link(job));
        put(under, recipe(job), h("span", {}, named(job.dataset_name)), Object.entries(job.metadata).map(([key, value]) => h("span", { class: "label" }, named(key), "=", named(value))));
        state.className = `state ${job.state}`;
        write(state, job.state);
        write(what, doing(job) || job.why || "");
        what.title = job.why ?? "";
        showProgress(job);
        write(left, job.state === "running" ? duration(job.left_s) : NONE);
        left.classList.toggle("known", job.state === "running" && job.left_s !== null);
        write(score, ap(job.ap));
        put(better, job.gain === null ? NONE : [
          h("a", { href: to(["jobs", job.control ?? ""]), class: job.gain < 0 ? "bad" : "good", title: `The control has AP ${ap(job.control_ap)}` }, gain(job.gain)),
          job.gain < 0 && [" ", h("span", { class: "flag bad" }, "▼", unseen(" worse than its control"))]]);
        created.title = moment(job.created_at);
      },
    };

    /** @param {Summary} job */
    function showProgress(job) {
      const done = job.state === "succeeded" ? 1 : job.total_steps ? job.step / job.total_steps : 0;
      bar.hidden = !job.total_steps;
      bar.value = done;
      bar.setAttribute("aria-label", `Progress of ${job.name}`);
      write(steps, job.total_steps ? `${Math.floor(done * 100)} %${job.epochs ? ` · epoch ${job.epoch}/${job.epochs}` : ""}` : "");
    }
  }
}
