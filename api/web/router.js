/**
 * @file The address: "#/jobs/job_1?tab=log" is a path and a query. They stand behind the "#", so that no server and no
 * proxy needs to know them.
 */

/** @typedef {{path: string, title: string, menu?: string, load: () => Promise<{show: (view: View) => void | Promise<void>}>}} Route */

/**
 * @typedef {object} View what a page is given
 * @property {HTMLElement} root where it puts its elements
 * @property {Record<string, string>} params what stands for :names of its path
 * @property {URLSearchParams} query what stands behind the "?"
 * @property {AbortSignal} signal ends when the page is left: for requests, listeners, timers
 * @property {(changes: Record<string, any>) => void} setQuery changes the query in the address; null and "" take one out
 * @property {(text: string) => void} setTitle of the tab
 */

/** @param {string} hash @returns {{parts: string[], query: URLSearchParams}} */
export function parse(hash) {
  const [path, query] = hash.replace(/^#?\/?/, "").split(/\?(.*)/s);
  return { parts: path.split("/").filter(Boolean).map(decoded), query: new URLSearchParams(query ?? "") };
}

/** @param {string} text */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** @param {readonly Route[]} routes @param {string[]} parts @returns {{route: Route, params: Record<string, string>} | null} */
export function match(routes, parts) {
  for (const route of routes) {
    const names = route.path.split("/");
    if (names.length !== parts.length || !names.every((name, place) => name.startsWith(":") || name === parts[place])) continue;
    const params = Object.fromEntries(names.flatMap((name, place) => (name.startsWith(":") ? [[name.slice(1), parts[place]]] : [])));
    return { route, params };
  }
  return null;
}

/** The address of a page. @param {string[]} parts @param {Record<string, any>} [query] */
export function to(parts, query = {}) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const each of Array.isArray(value) ? value : [value]) if (each !== null && each !== undefined && each !== "") found.append(name, String(each));
  }
  const text = found.toString();
  return `#/${parts.map(encodeURIComponent).join("/")}${text && `?${text}`}`;
}

/** @param {Record<string, any>} changes lists repeat the name */
export function setQuery(changes) {
  const { parts, query } = parse(location.hash);
  for (const [name, value] of Object.entries(changes)) {
    query.delete(name);
    for (const each of Array.isArray(value) ? value : [value]) if (each !== null && each !== undefined && each !== "" && each !== false) query.append(name, String(each));
  }
  const text = query.toString();
  history.replaceState(null, "", `#/${parts.map(encodeURIComponent).join("/")}${text && `?${text}`}`);
}
