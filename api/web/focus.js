/** @file What methods look at: reads the files of an evaluation, and draws maps over pictures and channels as bars. */

import { resolved } from "./charts.js";

/**
 * @typedef {{method: string, name: string, network: "teacher" | "student" | null, level: string, shape: number[], of: number[], low: number, high: number, by_magnitude: boolean, values: string}} Shown
 * @typedef {{photo: number, size: [number, number], padded: [number, number], shown: Shown[]}} FocusImage
 * @typedef {{position: number, name: string, width: number, height: number, boxes: number[][], labels: string[], jpeg: string | null}} Photo
 */

const HOT = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];
/** Dark to bright, for values from low to high. */
const SHARP = 512;
/** Pixels of a picture at least, for the lines on it. */
const TEACHER = [109, 75, 214];
const STUDENT = [232, 126, 4];

/** @param {string} base64 */
export function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
}

/** The numbers as they were. @param {Shown} shown @returns {Float32Array} */
export function valuesOf({ low, high, by_magnitude: byMagnitude, values }) {
  const span = byMagnitude && high > 0 ? Math.log(high / low) : high - low;
  return Float32Array.from(bytesOf(values), (byte) => (!byMagnitude ? low + (byte / 255) * span : byte && high > 0 ? low * Math.exp(((byte - 1) / 254) * span) : 0));
}

/** A picture that can be drawn. @param {Photo} photo @returns {Promise<ImageBitmap | null>} */
export async function pictureOf(photo) {
  if (!photo.jpeg) return null;
  return createImageBitmap(new Blob([bytesOf(photo.jpeg)], { type: "image/jpeg" }));
}

/** @param {number} share 0 to 1 */
function hot(share) {
  const at = Math.min(Math.max(share, 0), 1) * (HOT.length - 1);
  const [from, to] = [HOT[Math.floor(at)], HOT[Math.ceil(at)]];
  return from.map((each, n) => each + (to[n] - each) * (at % 1));
}

/**
 * The picture, a map over it, and the boxes.
 * @param {HTMLCanvasElement} canvas
 * @param {{photo: Photo, picture: ImageBitmap | null, image: FocusImage, boxes: boolean, opacity: number}} on
 * @param {{shape: number[], values: Float32Array, low: number, high: number, byMagnitude?: boolean, apart?: boolean} | null} map apart: of teacher less student
 */
export function paint(canvas, { photo, picture, image, boxes, opacity }, map) {
  canvas.width = Math.max(SHARP, picture?.width ?? 0);
  canvas.height = Math.max(1, Math.round((canvas.width * photo.height) / photo.width));
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  if (picture) pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  if (map) {
    const [height, width] = map.shape;
    const cells = new ImageData(width, height);
    const most = Math.max(Math.abs(map.low), Math.abs(map.high)) || 1;
    map.values.forEach((value, n) => {
      if (map.apart) {
        cells.data.set([...(value > 0 ? TEACHER : STUDENT), 255 * opacity * Math.min(1, Math.abs(value) / most)], 4 * n);
      } else {
        const share = map.byMagnitude ? (value > 0 ? Math.log(value / map.low) / (Math.log(map.high / map.low) || 1) : 0) : (value - map.low) / (map.high - map.low || 1);
        cells.data.set([...hot(map.high > map.low ? share : Number(value > 0)), 255 * opacity], 4 * n);
      }
    });
    const small = new OffscreenCanvas(width, height);
    /** @type {OffscreenCanvasRenderingContext2D} */ (small.getContext("2d")).putImageData(cells, 0, 0);
    pen.imageSmoothingEnabled = false;
    // The map covers the padded input; the picture is the part without padding.
    pen.drawImage(small, 0, 0, (canvas.width * image.padded[1]) / image.size[1], (canvas.height * image.padded[0]) / image.size[0]);
  }
  if (!boxes) return;
  const [right, down] = [canvas.width / photo.width, canvas.height / photo.height];
  for (const [x1, y1, x2, y2] of photo.boxes) {
    for (const [color, width] of /** @type {const} */ ([["#000", 3], ["#fff", 1.5]])) {
      [pen.strokeStyle, pen.lineWidth] = [color, width];
      pen.strokeRect(x1 * right, y1 * down, (x2 - x1) * right, (y2 - y1) * down);
    }
  }
}

/** Mean over the cells whose middle lies in a box, and over the others of the picture. @param {Photo} photo @param {FocusImage} image @param {number[]} shape @param {Float32Array} values */
export function means(photo, image, [height, width], values) {
  const sums = { inside: 0, insides: 0, outside: 0, outsides: 0 };
  for (let line = 0; line < height; line++) {
    for (let column = 0; column < width; column++) {
      const x = (((column + 0.5) / width) * image.padded[1] * photo.width) / image.size[1];
      const y = (((line + 0.5) / height) * image.padded[0] * photo.height) / image.size[0];
      if (x > photo.width || y > photo.height) continue;
      const where = photo.boxes.some(([x1, y1, x2, y2]) => x >= x1 && x < x2 && y >= y1 && y < y2) ? "inside" : "outside";
      sums[where] += values[line * width + column];
      sums[`${where}s`] += 1;
    }
  }
  return { inside: sums.insides ? sums.inside / sums.insides : null, outside: sums.outsides ? sums.outside / sums.outsides : null };
}

/**
 * A bar a channel, the teacher's strongest first: the teacher's upward, the student's downward.
 * @param {HTMLCanvasElement} canvas @param {Float32Array} teacher @param {Float32Array} student
 */
export function bars(canvas, teacher, student) {
  const order = [...teacher.keys()].sort((a, b) => teacher[b] - teacher[a]);
  const most = Math.max(...teacher, ...student) || 1;
  const style = getComputedStyle(canvas);
  const wide = Math.max(1, Math.floor(1024 / order.length));
  [canvas.width, canvas.height] = [wide * order.length, 160];
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const [theirs, ours] = [resolved(style, "--teacher"), resolved(style, "--student")];
  order.forEach((channel, n) => {
    pen.fillStyle = theirs;
    pen.fillRect(n * wide, 80 - (78 * teacher[channel]) / most, Math.max(1, wide - 1), (78 * teacher[channel]) / most);
    pen.fillStyle = ours;
    pen.fillRect(n * wide, 82, Math.max(1, wide - 1), (78 * student[channel]) / most);
  });
}

/** @param {number} value */
export function figure(value) {
  return value === 0 ? "0" : Math.abs(value) >= 100 || Math.abs(value) < 0.01 ? value.toExponential(1) : value.toPrecision(3);
}
