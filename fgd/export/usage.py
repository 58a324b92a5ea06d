"""Finds objects with an exported student; needs onnxruntime, numpy and pillow.

    python THIS_FILE student.onnx photo.jpg [score]        # the least score that is shown; 0.3 without it

The graph takes RGB in 0..1 as float32 N x 3 x H x W and normalises by itself. To keep the AP that was evaluated, give
it images as evaluation did:

1. Scale both sides by min(min_size / shorter side, max_size / longer side), rounded down. Where that is larger than
   H x W, the scale is min(H / height, W / width).
2. Interpolate bilinearly, pixel centres at halves, without antialiasing (cv2.INTER_LINEAR does, PIL's resize does not).
3. Lay it into the upper left corner of an H x W canvas of the mean colour, which the graph turns into zeros.

Boxes are x1 y1 x2 y2 in pixels of the canvas, best first; rows of score 0 are empty. `detect` does all that.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]


@dataclass(frozen=True)
class Inputs:
    """What the graph wants, as its metadata says."""

    height: int
    width: int
    min_size: int
    max_size: int
    image_mean: tuple[float, ...]
    classes: tuple[str, ...]
    """Label k means classes[k - 1]."""


def inputs_of(session: onnxruntime.InferenceSession) -> Inputs:
    about = session.get_modelmeta().custom_metadata_map
    height, width = json.loads(about["size"])
    mean, classes = (tuple(json.loads(about[key])) for key in ("image_mean", "classes"))
    return Inputs(height, width, int(about["min_size"]), int(about["max_size"]), mean, classes)


def size_on_canvas(inputs: Inputs, height: int, width: int) -> tuple[int, int]:
    """(height, width) that an image of that size gets."""
    scale = min(inputs.min_size / min(height, width), inputs.max_size / max(height, width))
    scaled = int(height * scale), int(width * scale)
    if scaled[0] > inputs.height or scaled[1] > inputs.width:
        scale = min(inputs.height / height, inputs.width / width)
        # the side that fits exactly must not fall short of it by rounding
        scaled = int(height * scale + 1e-6), int(width * scale + 1e-6)
    return max(1, scaled[0]), max(1, scaled[1])


def resize(pixels_HWC: Array, height: int, width: int) -> Array:
    rows, columns = pixels_HWC.shape[:2]
    top, bottom, down = _between(rows, height)
    left, right, across = _between(columns, width)
    lines = pixels_HWC[top] * (1 - down)[:, None, None] + pixels_HWC[bottom] * down[:, None, None]
    return lines[:, left] * (1 - across)[:, None] + lines[:, right] * across[:, None]  # type: ignore[no-any-return]


def _between(old: int, new: int) -> tuple[Array, Array, Array]:
    """Of each new pixel the two old ones that it lies between, and how far it is from the first."""
    at = np.maximum((np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5), 0)
    first = np.minimum(at.astype(np.int64), old - 1)
    return first, np.minimum(first + 1, old - 1), at - first.astype(np.float32)


def canvas_of(inputs: Inputs, pixels_HWC: Array) -> tuple[Array, int, int]:
    """uint8 RGB -> float32 1 x 3 x H x W, and the height and width that the image takes of it."""
    height, width = size_on_canvas(inputs, *pixels_HWC.shape[:2])
    canvas_HWC = np.empty((inputs.height, inputs.width, 3), np.float32)
    canvas_HWC[:] = np.array(inputs.image_mean, np.float32)
    canvas_HWC[:height, :width] = resize(pixels_HWC.astype(np.float32) / np.float32(255), height, width)
    return np.ascontiguousarray(canvas_HWC.transpose(2, 0, 1))[None], height, width


def detect(session: onnxruntime.InferenceSession, pixels_HWC: Array) -> tuple[Array, Array, Array]:
    """Boxes in pixels of the image, scores and labels."""
    canvas_1CHW, height, width = canvas_of(inputs_of(session), pixels_HWC)
    batch = session.get_inputs()[0].shape[0]  # a name where it is dynamic
    images_NCHW = np.repeat(canvas_1CHW, batch, axis=0) if isinstance(batch, int) else canvas_1CHW
    boxes, scores, labels = (each[0] for each in session.run(["boxes", "scores", "labels"], {"images": images_NCHW}))
    there = (scores > 0) & (boxes[:, 0] <= width) & (boxes[:, 1] <= height)  # not in the padding
    boxes, scores, labels = boxes[there], scores[there], labels[there]
    old_height, old_width = pixels_HWC.shape[:2]
    limits = np.array([width, height, width, height], np.float32)
    ratios = np.array([old_width / width, old_height / height] * 2, np.float32)
    return np.minimum(boxes, limits) * ratios, scores, labels


if __name__ == "__main__":
    student = onnxruntime.InferenceSession(sys.argv[1], providers=onnxruntime.get_available_providers())
    with Image.open(sys.argv[2]) as photo:
        found = detect(student, np.array(photo.convert("RGB")))
    names = ("background", *inputs_of(student).classes)
    least = float(sys.argv[3]) if len(sys.argv) > 3 else 0.3
    for box, score, label in zip(*(each.tolist() for each in found), strict=True):
        if score >= least:
            name = repr(names[label])[1:-1]  # a stranger's: what would steer the terminal is shown, not obeyed
            print(f"{name} {score:.2f} {[round(x, 1) for x in box]}")
