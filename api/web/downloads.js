/** @file Downloads: the browser follows a link that works once, for a link sends no key. */

import { make } from "./api.js";
import { complain } from "./dialogs.js";
import { h } from "./elements.js";

/** @param {string} path below v1/ @param {string} name of the file */
export async function download(path, name) {
  try {
    const { url } = await make("tickets", { path: `/v1/${path}` });
    const link = h("a", { href: url.slice(1), download: name });
    document.body.append(link);
    link.click();
    link.remove();
  } catch (error) {
    complain(error);
  }
}
