/** @file What this browser keeps: the server's key, for as long as the tab is open, and the colours. */

const KEY = "fgd.key";
const THEME = "fgd.theme";

/** Tells "locked" when the server wants a key that is not here, "opened" when one has been given. */
export const session = new EventTarget();

/** @returns {string | null} */
export function key() {
  return sessionStorage.getItem(KEY);
}

/** @param {string} text */
export function open(text) {
  sessionStorage.setItem(KEY, text);
  session.dispatchEvent(new Event("opened"));
}

export function lock() {
  sessionStorage.removeItem(KEY);
  session.dispatchEvent(new Event("locked"));
}

/** "light" or "dark": what was chosen, else what the system has. */
export function theme() {
  const chosen = localStorage.getItem(THEME);
  if (chosen === "light" || chosen === "dark") return chosen;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

/** Tells "theme" as well: what is drawn on a canvas has to be drawn again. @param {string} chosen */
export function setTheme(chosen) {
  localStorage.setItem(THEME, chosen);
  showTheme();
}

export function showTheme() {
  document.documentElement.dataset.theme = theme();
  session.dispatchEvent(new Event("theme"));
}
