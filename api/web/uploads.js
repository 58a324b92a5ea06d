/**
 * @file Files on their way to the server, in pieces. They go on while other pages are looked at; what a break or a
 * closed tab leaves is gone on with where it stopped.
 */

import { ask, make, pause, Problem } from "./api.js";

const PIECE = 4 * 2 ** 20;
const LONGEST_WAIT_MS = 15000;
/** Marks that no name may have. */
const INVISIBLE = /[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g;
const BEGUN = "fgd.upload.";
/** Codes of answers after which another look at the offset helps. */
const PASSING = ["upload_offset_mismatch", "upload_in_progress", "upload_cut"];

/**
 * @typedef {object} Upload
 * @property {string} id of the data set @property {string} name of the file @property {number} size @property {number} sent
 * @property {"sending" | "waiting" | "done" | "stopped" | "failed"} state @property {string} why @property {AbortController} stop
 */

/** Tells "changed". */
export const uploads = Object.assign(new EventTarget(), { /** @type {Map<string, Upload>} */ of: new Map() });

/** What is wrong with the file, as far as a look at it says; "" if nothing is. @param {File} file */
export async function refusal(file) {
  let head;
  try {
    head = new Uint8Array(await file.slice(0, 4).arrayBuffer());
  } catch {
    return `${file.name} cannot be read: if it is a folder, pack it into a .zip and drop that`;
  }
  if (head.length === 0) return `${file.name} is empty`;
  return String.fromCharCode(...head.slice(0, 2)) === "PK" ? "" : `${file.name} is no zip: pack the folder with images and annotations into a .zip`;
}

/** Makes a data set of a zip and begins to send it. @param {File} file @param {any} [more] fields of the request @returns {Promise<any>} the data set */
export async function begin(file, more = {}) {
  const name = [...file.name.replace(/\.zip$/i, "").replace(INVISIBLE, "")].slice(0, 100).join("") || "data";
  const dataset = await make("datasets", { name, ...more });
  localStorage.setItem(BEGUN + dataset.id, fingerprint(file));
  go(dataset.id, file);
  return dataset;
}

/** Why this cannot be the file that was begun; "" if it can. @param {string} id @param {File} file */
export function differs(id, file) {
  const begun = localStorage.getItem(BEGUN + id);
  return begun !== null && begun !== fingerprint(file) ? `${file.name} is another file than the one whose upload was begun; choose that one, or delete this data set and begin again` : "";
}

/** @param {File} file */
function fingerprint(file) {
  return JSON.stringify([file.size, file.lastModified]);
}

/** @param {string} id */
export function stop(id) {
  uploads.of.get(id)?.stop.abort();
}

/** Sends what is not there yet. @param {string} id @param {File} file */
export async function go(id, file) {
  stop(id);
  /** @type {Upload} */
  const upload = { id, name: file.name, size: file.size, sent: 0, state: "sending", why: "", stop: new AbortController() };
  uploads.of.set(id, upload);
  const { signal } = upload.stop;
  const tell = (/** @type {Partial<Upload>} */ changes) => {
    Object.assign(upload, changes);
    uploads.dispatchEvent(new Event("changed"));
  };
  let wait = 500;
  tell({});
  while (!signal.aborted) {
    try {
      const there = await offset(id, signal);
      if (there === null) return over({ state: "done", sent: file.size });
      if (there > file.size) return over({ state: "failed", why: `the server has ${there} bytes already, and ${file.name} has ${file.size}: it is another file` });
      for (let at = there; at < file.size; ) {
        tell({ state: "sending", sent: at, why: "" });
        at = await send(id, file, at, signal);
        wait = 500;
      }
    } catch (error) {
      if (signal.aborted) break;
      if (!(error instanceof Problem)) return over({ state: "failed", why: `${file.name} can no longer be read; choose it once more` });
      if (error.status >= 400 && error.status < 500 && error.status !== 429 && !PASSING.includes(error.code)) return over({ state: "failed", why: error.message });
      tell({ state: "waiting", why: error.message });
      await pause(wait, signal);
      wait = Math.min(wait * 2, LONGEST_WAIT_MS);
    }
  }
  tell({ state: "stopped" });

  /** @param {Partial<Upload>} changes */
  function over(changes) {
    if (changes.state === "done") localStorage.removeItem(BEGUN + id);
    tell(changes);
  }
}

/** How many bytes are there; null: all. @param {string} id @param {AbortSignal} signal */
async function offset(id, signal) {
  const { headers } = await ask(`datasets/${id}/content`, { method: "HEAD", signal });
  return headers.get("Upload-Complete") === "?1" ? null : Number(headers.get("Upload-Offset"));
}

/** One piece; where it ends. @param {string} id @param {File} file @param {number} at @param {AbortSignal} signal */
async function send(id, file, at, signal) {
  const piece = await file.slice(at, at + PIECE).arrayBuffer();
  const headers = { "Content-Type": "application/partial-upload", "Upload-Offset": String(at), "Upload-Length": String(file.size), ...(await digest(piece)) };
  await ask(`datasets/${id}/content`, { method: "PATCH", headers, body: piece, signal });
  return at + piece.byteLength;
}

/** A header that lets the server compare; a page over plain http cannot work it out. @param {ArrayBuffer} piece @returns {Promise<Record<string, string>>} */
async function digest(piece) {
  if (!crypto.subtle) return {};
  const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", piece));
  return { "Content-Digest": `sha-256=:${btoa(String.fromCharCode(...sum))}:` };
}

addEventListener("beforeunload", (event) => {
  if ([...uploads.of.values()].some((each) => each.state === "sending" || each.state === "waiting")) event.preventDefault();
});
