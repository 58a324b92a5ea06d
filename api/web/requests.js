/** @file A request in the words of a shell and of Python. */

import { key } from "./session.js";

/** The address of the service, as seen from here. */
function service() {
  return new URL(".", document.baseURI).href.replace(/\/$/, "");
}

/** JSON as a Python literal. @param {any} value @param {string} [indent] @returns {string} */
export function python(value, indent = "") {
  const deeper = `${indent}    `;
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return json(value);
  const list = Array.isArray(value);
  const parts = list ? value.map((each) => python(each, deeper)) : Object.entries(value).map(([name, each]) => `${json(name)}: ${python(each, deeper)}`);
  const [open, close] = list ? "[]" : "{}";
  const short = parts.join(", ");
  return short.length < 60 && !short.includes("\n") ? open + short + close : `${open}\n${parts.map((each) => `${deeper}${each},\n`).join("")}${indent}${close}`;
}

/** JSON as text to copy: marks that would turn the text around them are written as what they are. @param {any} value */
export function json(value) {
  return JSON.stringify(value, null, 2).replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (mark) => `\\u${mark.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/**
 * Makes something of a body, in three ways.
 * @param {any} body @param {{path: string, python: string, fgd: string}} how below v1/; what the client is asked for; the command
 * @returns {Record<"curl" | "Python" | "fgd", string>}
 */
function requests(body, how) {
  const text = json(body);
  const locked = key() !== null;
  const url = service();
  return {
    curl: [
      `curl -X POST '${url}/v1/${how.path}' -H 'Content-Type: application/json' \\`,
      locked ? `  -H "Authorization: Bearer $FGD_API_KEY" \\` : null,
      `  --data-binary @- <<'END'`,
      text,
      "END",
    ].filter((line) => line !== null).join("\n"),
    Python: [
      locked ? "import os\n" : null,
      "from fgd.client import Client\n",
      `spec = ${python(body)}`,
      `with Client(${JSON.stringify(url)}${locked ? ', api_key=os.environ["FGD_API_KEY"]' : ""}) as client:`,
      `    print(client.${how.python}(spec).id)`,
    ].filter((line) => line !== null).join("\n"),
    fgd: [`fgd ${how.fgd} - --url '${url}' <<'END'`, text, "END"].join("\n"),
  };
}

/** @param {any} body */
export function jobRequests(body) {
  return requests(body, { path: "jobs", python: "submit", fgd: "job submit" });
}

/** @param {any} body */
export function studyRequests(body) {
  return requests(body, { path: "studies", python: "submit_study", fgd: "study submit" });
}
