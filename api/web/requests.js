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
  if (typeof value !== "object") return JSON.stringify(value);
  const list = Array.isArray(value);
  const parts = list ? value.map((each) => python(each, deeper)) : Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${python(each, deeper)}`);
  const [open, close] = list ? "[]" : "{}";
  const short = parts.join(", ");
  return short.length < 60 && !short.includes("\n") ? open + short + close : `${open}\n${parts.map((each) => `${deeper}${each},\n`).join("")}${indent}${close}`;
}

/** Makes a job, in three ways. @param {any} body @returns {Record<"curl" | "Python" | "fgd", string>} */
export function jobRequests(body) {
  const text = JSON.stringify(body, null, 2);
  const locked = key() !== null;
  const url = service();
  return {
    curl: [
      `curl -X POST '${url}/v1/jobs' -H 'Content-Type: application/json' \\`,
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
      "    print(client.submit(spec).id)",
    ].filter((line) => line !== null).join("\n"),
    fgd: [`fgd job submit - --url '${url}' <<'END'`, text, "END"].join("\n"),
  };
}
