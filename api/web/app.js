/** @file The shell: the menu, the page that the address names, and the form that asks for the key. */

import { ask, connection, Problem } from "./api.js";
import { button, h, isolated, put } from "./elements.js";
import { match, parse, setQuery } from "./router.js";
import { HOME, ROUTES } from "./routes.js";
import { key, lock, open, session, setTheme, showTheme, theme } from "./session.js";

const NAME = "Detector distillation";

const menu = h("nav", { "aria-label": "Pages" });
const main = h("main", { id: "main", tabindex: "-1" });
const offline = h("div", { class: "offline", role: "status", hidden: true }, "The server does not answer. This page tries again by itself.");
const themeButton = button("", () => (setTheme(theme() === "dark" ? "light" : "dark"), nameTheme()), { class: "quiet" });
const lockButton = button("Forget the key", lock, { class: "quiet" });
const reference = h("a", { href: "docs", class: "quiet" }, "API");

/** Ends what the page before had begun. */
let leaving = new AbortController();
let locked = false;

function nameTheme() {
  const other = theme() === "dark" ? "light" : "dark";
  themeButton.textContent = other === "dark" ? "☾" : "☀";
  themeButton.setAttribute("aria-label", `Switch to ${other} colours`);
  themeButton.title = `Switch to ${other} colours`;
}

function showMenu() {
  const { parts } = parse(location.hash);
  put(menu, ROUTES.filter((route) => route.menu).map((route) =>
    h("a", { href: `#/${route.path}`, "aria-current": route.path === parts[0] ? "page" : null }, route.menu)));
  lockButton.hidden = key() === null;
  reference.hidden = key() !== null; // a link sends no key
}

async function showPage() {
  if (locked) return;
  if (!location.hash) history.replaceState(null, "", HOME);
  const { parts, query } = parse(location.hash);
  const found = match(ROUTES, parts);
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  showMenu();
  const root = h("div", { class: "page" });
  if (!found) {
    document.title = NAME;
    put(main, h("div", { class: "page" }, h("h1", {}, "There is no such page"), h("p", {}, h("a", { href: HOME }, "To the jobs"))));
    return;
  }
  const { route, params } = found;
  const setTitle = (/** @type {string} */ text) => (document.title = `${isolated(text)} · ${NAME}`);
  setTitle(route.title);
  try {
    const page = await route.load();
    if (signal.aborted) return;
    put(main, root);
    await page.show({ root, params, query, signal, setQuery, setTitle });
  } catch (error) {
    if (signal.aborted) return;
    if (error instanceof Problem && error.status === 401) return;
    if (error instanceof Problem) {
      put(main, h("div", { class: "page" }, h("h1", {}, error.status === 404 ? "Not found" : "This page cannot be shown"), h("p", { role: "alert" }, error.message), button("Try again", showPage)));
    } else if (error instanceof TypeError && /import|module/i.test(error.message)) {
      put(main, h("div", { class: "page" }, h("h1", {}, "The server has another version now"), button("Load this page again", () => location.reload(), { class: "primary" })));
    } else {
      throw error;
    }
  }
}

/** The server wants a key: nothing else is shown until it has one. @param {string} [why] */
function askForKey(why = "") {
  leaving.abort();
  locked = true;
  showMenu();
  menu.hidden = true;
  document.title = `Key · ${NAME}`;
  const input = h("input", { type: "password", name: "key", autocomplete: "off", required: true, spellcheck: "false", "aria-describedby": "key-help" });
  const complaint = h("p", { class: "bad", role: "alert" }, why);
  put(main, h("form", { class: "page key", on: { submit: (/** @type {Event} */ event) => (event.preventDefault(), tryKey(input.value.trim())) } },
    h("h1", {}, "This server needs a key"),
    h("label", { class: "field" }, "Key", input),
    h("p", { id: "key-help", class: "dim" }, "The server's FGD_API_KEY. It stays in this tab and is forgotten when you close it."),
    complaint,
    h("button", { type: "submit", class: "primary" }, "Open")));
  input.focus();
}

/** @param {string} text */
async function tryKey(text) {
  if (!/^[\x21-\x7e]+$/.test(text)) return askForKey("A key has no blanks and only plain letters, digits and signs.");
  locked = false;
  open(text);
}

session.addEventListener("locked", () => askForKey(tried ? "The server does not accept this key." : ""));
session.addEventListener("opened", () => {
  tried = true;
  menu.hidden = false;
  showPage();
});
let tried = key() !== null;
lockButton.addEventListener("click", () => (tried = false), { capture: true });

connection.addEventListener("changed", () => (offline.hidden = connection.up));
addEventListener("hashchange", () => (showPage(), main.focus({ preventScroll: true }), scrollTo(0, 0)));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (showTheme(), nameTheme()));
document.addEventListener("click", (event) => closeMenus(event.target));
document.addEventListener("keydown", (event) => event.key === "Escape" && closeMenus(null));

/** Open menus, but for the one that was clicked in. @param {EventTarget | null} inside */
function closeMenus(inside) {
  for (const each of document.querySelectorAll("details.menu[open]")) {
    if (inside instanceof Node && each.contains(inside) && !(inside instanceof Element && inside.closest("button"))) continue;
    each.removeAttribute("open");
  }
}

showTheme();
nameTheme();
document.body.append(
  h("a", { href: "#main", class: "skip", on: { click: (/** @type {Event} */ event) => (event.preventDefault(), main.focus()) } }, "To the page's content"),
  h("header", { class: "top" }, h("a", { href: HOME, class: "brand" }, NAME), menu, h("div", { class: "tools" }, reference, themeButton, lockButton)),
  offline,
  main,
);
// Whether a key is needed is known before a page is begun: without one nothing of it flashes up.
ask("summaries?limit=1").then(() => showPage(), (error) => !(error instanceof Problem && error.status === 401) && showPage());
