/** @file Numbers, times and sizes as people read them. "–" stands for what is not known. */

export const NONE = "–";

/** AP, 0-100. @param {number | null | undefined} value */
export function ap(value) {
  return value === null || value === undefined ? NONE : value.toFixed(1);
}

/** With its sign, and the real minus. @param {number | null | undefined} value */
export function gain(value) {
  if (value === null || value === undefined) return NONE;
  const text = Math.abs(value).toFixed(1);
  if (Number(text) === 0) return "±0.0";
  return (value < 0 ? "−" : "+") + text;
}

/** With four digits that say something. @param {number | null | undefined} value */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-3)) return value.toExponential(2).replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

/** 12,345 @param {number} value */
export function count(value) {
  return value.toLocaleString("en");
}

/** "1 job", "2 jobs" @param {number} value @param {string} noun */
export function several(value, noun) {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

/** @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return NONE;
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.round(whole / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${String(minutes % 60).padStart(2, "0")}` : `${Math.round(hours / 24)} days`;
}

/** @param {string | null | undefined} iso */
export function ago(iso) {
  if (!iso) return NONE;
  const seconds = (Date.now() - Date.parse(iso)) / 1000;
  return seconds < 5 ? "now" : `${duration(seconds)} ago`;
}

/** In the reader's own zone. @param {string | null | undefined} iso */
export function moment(iso) {
  if (!iso) return NONE;
  return new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

/** @param {number} size */
export function bytes(size) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let place = 0;
  while (size >= 1000 && place < units.length - 1) {
    size /= 1000;
    place += 1;
  }
  return `${place === 0 ? size : size.toPrecision(3)} ${units[place]}`;
}
