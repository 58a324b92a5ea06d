/**
 * @file Asks the API. Addresses are relative to the page, so that it works below any prefix of a proxy; the key goes in
 * a header and never into an address. Errors are problem details, as the API words them.
 */

import { key, lock } from "./session.js";

/** Tells "changed" when the server begins or ceases to answer; `up` says which. */
export const connection = Object.assign(new EventTarget(), { up: true });

/** What went wrong, in the API's words. */
export class Problem extends Error {
  /** @param {number} status 0: there was no answer @param {any} body */
  constructor(status, body) {
    super(body?.detail || `the server answered ${status}`);
    this.status = status;
    this.code = body?.code || "";
    /** @type {{pointer: string, detail: string, parameter?: string}[]} */
    this.errors = body?.errors || [];
    this.requestId = body?.request_id || "";
  }
}

/** The full address of what lies below v1/. @param {string} path */
export function address(path) {
  return new URL(`v1/${path}`, document.baseURI);
}

/** @param {Record<string, any>} parameters lists repeat the name; null, "" and false are left out */
export function query(parameters) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== null && each !== undefined && each !== "" && each !== false) found.append(name, String(each));
    }
  }
  const text = found.toString();
  return text && `?${text}`;
}

/**
 * A request, and its answer when its head is there. Raises Problem.
 * @param {string} path @param {RequestInit & {headers?: Record<string, string>}} [options]
 */
export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  const mine = key();
  if (mine) headers.Authorization = `Bearer ${mine}`;
  let answer;
  try {
    answer = await fetch(address(path), { ...options, headers, cache: "no-store", redirect: "follow" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    setUp(false);
    throw new Problem(0, { code: "no_answer", detail: "the server does not answer" });
  }
  setUp(answer.status !== 502 && answer.status !== 504);
  if (answer.ok || answer.status === 304) return answer;
  const body = await answer.json().catch(() => null);
  if (answer.status === 401) lock();
  throw new Problem(answer.status, body);
}

/** @param {boolean} up */
function setUp(up) {
  if (connection.up !== up) {
    connection.up = up;
    connection.dispatchEvent(new Event("changed"));
  }
}

/** JSON. @param {string} path @param {{signal?: AbortSignal}} [options] @returns {Promise<any>} */
export async function get(path, { signal } = {}) {
  return (await ask(path, { signal })).json();
}

/**
 * A request with a JSON body, or none.
 * @param {"POST" | "PATCH" | "PUT" | "DELETE"} method @param {string} path @param {any} [body]
 * @param {{signal?: AbortSignal, headers?: Record<string, string>}} [options] @returns {Promise<any>}
 */
export async function send(method, path, body, { signal, headers } = {}) {
  const json = body === undefined ? {} : { "Content-Type": "application/json" };
  const answer = await ask(path, { method, signal, headers: { ...json, ...headers }, body: body === undefined ? undefined : JSON.stringify(body) });
  return answer.status === 204 ? null : answer.json();
}

/** Makes something once, though the request may be sent twice. @param {string} path @param {any} body */
export function make(path, body) {
  return send("POST", path, body, { headers: { "Idempotency-Key": newKey() } });
}

/** For a request that is made once, though it may be sent twice. */
export function newKey() {
  // crypto.randomUUID is not there for pages over plain http from another host
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Waits; less if the signal ends it. @param {number} ms @param {AbortSignal} signal @returns {Promise<void>} */
export function pause(ms, signal) {
  return new Promise((done) => {
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
  });
}

/**
 * Shows what is at a path now and whenever it changes, until the signal ends it: asks every few seconds, with the ETag
 * of what it has, not while the page is hidden, and less often while the server does not answer.
 * @param {{path: () => string, every: number, signal: AbortSignal, show: (data: any) => void, fail: (problem: Problem) => void}} of
 * @returns {() => void} asks at once
 */
export function watch({ path, every, signal, show, fail }) {
  let round = new AbortController();
  let tag = "";
  let tagOf = "";
  let failures = 0;
  async function look() {
    const mine = new AbortController();
    round.abort();
    round = mine;
    while (!signal.aborted && !mine.signal.aborted) {
      if (!document.hidden) {
        const at = path();
        try {
          const headers = tag && tagOf === at ? { "If-None-Match": tag } : {};
          const answer = await ask(at, { headers, signal: AbortSignal.any([signal, mine.signal]) });
          if (answer.status !== 304) {
            const data = await answer.json();
            if (mine.signal.aborted || signal.aborted) return;
            [tag, tagOf] = [answer.headers.get("ETag") ?? "", at];
            show(data);
          }
          failures = 0;
        } catch (error) {
          if (signal.aborted || mine.signal.aborted) return;
          if (!(error instanceof Problem)) throw error;
          failures += 1;
          if (error.status === 401) return;
          fail(error);
          if (error.status >= 400 && error.status < 500 && error.status !== 429) return;
        }
      }
      await pause(every * Math.min(8, 2 ** failures), AbortSignal.any([signal, mine.signal]));
    }
  }
  document.addEventListener("visibilitychange", () => !document.hidden && look(), { signal });
  look();
  return look;
}

/**
 * A stream of server-sent events, without end: it connects again after a break, behind the last event that it saw.
 * EventSource could send no key. Ends with the stream's own "end", or with the signal.
 * @param {string} path @param {{signal: AbortSignal, after?: number}} options
 * @returns {AsyncGenerator<{event: string, data: any}>}
 */
export async function* stream(path, { signal, after = 0 }) {
  let last = String(after);
  let wait = 1000;
  while (!signal.aborted) {
    try {
      const headers = { Accept: "text/event-stream", "Last-Event-ID": last };
      const answer = await ask(path, { signal, headers });
      if (answer.status === 204 || !answer.body) return;
      for await (const { id, event, data } of messages(answer.body)) {
        wait = 1000;
        if (id) last = id;
        yield { event, data: JSON.parse(data) };
        if (event === "end") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
    }
    await pause(wait, signal);
    wait = Math.min(wait * 2, 15000);
  }
}

/** @param {ReadableStream<Uint8Array>} body @returns {AsyncGenerator<{id: string, event: string, data: string}>} */
async function* messages(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop() ?? "";
      for (const part of parts) {
        const message = { id: "", event: "message", data: "" };
        for (const line of part.split(/\r?\n/)) {
          const [, name, text] = /^(\w+): ?(.*)$/.exec(line) ?? [];
          if (name === "data") message.data += (message.data && "\n") + text;
          else if (name === "id" || name === "event") message[name] = text;
        }
        if (message.data) yield message;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
