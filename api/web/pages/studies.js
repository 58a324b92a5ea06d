/** @file All studies. What is searched for stands in the address. */

import { query as address, watch } from "../api.js";
import { button, following, h, named, put, write } from "../elements.js";
import { ago, moment, several } from "../format.js";
import { STATES } from "../jobs.js";
import { to } from "../router.js";
import { progress } from "../studies.js";

/** @typedef {import("../studies.js").Study} Study */

const EVERY_MS = 3000;
const LIMIT = 50;
const TYPING_MS = 250;

/** @param {import("../router.js").View} view */
export function show({ root, query, signal, setQuery }) {
  const wanted = { search: query.get("search") ?? "", state: STATES.includes(query.get("state") ?? "") ? query.get("state") : "", limit: Math.min(200, Math.max(LIMIT, Number(query.get("limit")) || LIMIT)) };
  let typing = 0;
  const search = h("input", { type: "search", class: "search", placeholder: "Search names", "aria-label": "Search studies by name", value: wanted.search, on: { input: () => (clearTimeout(typing), (typing = setTimeout(() => change({ search: search.value.trim() }), TYPING_MS))) } });
  const state = h("select", { on: { change: () => change({ state: state.value }) } }, h("option", { value: "" }, "any"), STATES.map((each) => h("option", { value: each }, each)));
  state.value = wanted.state;
  const body = h("tbody", {});
  const table = h("div", { class: "card wide", tabindex: "0", role: "region", "aria-label": "Studies" }, h("table", { class: "studies" },
    h("thead", {}, h("tr", {}, ["Study", "State", "Arms", "Created"].map((each) => h("th", { scope: "col" }, each)))), body));
  const nothing = h("div", { class: "card empty", hidden: true });
  const complaint = h("p", { class: "bad", role: "alert", hidden: true });
  const more = button("Show more", () => change({ limit: 200 }), { hidden: true });
  put(root, h("div", { class: "heading" }, h("h1", {}, "Studies"), search, h("label", { class: "inline" }, "State", state), h("div", { class: "actions" }, h("a", { class: "button", href: to(["studies", "new"]) }, "New study"))),
    h("p", { class: "dim" }, "A study trains arms, students and seeds beside each other, and says what a method adds and how sure that is."), complaint, table, nothing, more);

  const follow = following(body, (/** @type {Study} */ study) => study.id, line);
  const look = watch({
    // "*" has a meaning in the API's pattern, and no way to be meant as it is
    path: () => `studies${address({ name: wanted.search && `*${wanted.search.replaceAll("*", "")}*`, state: wanted.state, limit: wanted.limit })}`,
    every: EVERY_MS,
    signal,
    show: (/** @type {{items: Study[], next: string | null}} */ page) => {
      complaint.hidden = true;
      follow(page.items);
      more.hidden = page.next === null || wanted.limit >= 200;
      table.hidden = page.items.length === 0;
      nothing.hidden = !table.hidden;
      put(nothing, wanted.search || wanted.state ? [h("p", {}, "No study matches."), button("Show all studies", () => ((search.value = state.value = ""), change({ search: "", state: "" })))]
        : [h("p", {}, "There are no studies yet."), h("p", {}, h("a", { href: to(["studies", "new"]) }, "Make one here"), ", or of a job's spec: ", h("code", {}, "fgd study submit job.json --arm fgd --arm mimic --seeds 0-2"), ".")]);
    },
    fail: (problem) => {
      if (problem.status === 0) return; // the page says so
      complaint.hidden = false;
      write(complaint, problem.message);
    },
  });
  signal.addEventListener("abort", () => clearTimeout(typing));

  /** @param {Partial<typeof wanted>} changes */
  function change(changes) {
    Object.assign(wanted, changes);
    setQuery({ ...wanted, limit: wanted.limit === LIMIT ? "" : wanted.limit });
    look();
  }

  function line() {
    const title = h("a", { class: "title" });
    const under = h("div", { class: "dim" });
    const shown = h("span", { class: "state" });
    const bar = h("progress", { max: 1 });
    const arms = h("td", {});
    const created = h("td", { class: "dim" });
    const element = h("tr", {}, h("td", {}, title, under), h("td", {}, shown, bar), arms, created);
    let seen = "";
    return {
      element,
      update: (/** @type {Study} */ study) => {
        write(created, ago(study.created_at));
        const text = JSON.stringify(study);
        if (text === seen) return;
        seen = text;
        element.setAttribute("data-study", study.id);
        title.setAttribute("href", to(["studies", study.id]));
        put(title, named(study.name));
        write(under, progress(study));
        shown.className = `state ${study.state}`;
        write(shown, study.state);
        bar.value = study.jobs.total ? study.jobs.succeeded / study.jobs.total : 0;
        bar.setAttribute("aria-label", `Jobs of ${study.name} that have succeeded`);
        put(arms, study.arms.map((arm, place) => [place > 0 && ", ", named(arm.name)]), h("div", { class: "dim" }, several(study.students.length, "student"), " · ", several(study.seeds.length, "seed")));
        created.title = moment(study.created_at);
      },
    };
  }
}
