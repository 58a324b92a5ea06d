"""Splits with invented boxes and detections: to check by hand, and to compare with COCO's code."""

from __future__ import annotations

from typing import Any

import numpy as np

from fgd.statistics.detections import SplitDetections
from fgd.statistics.matching import with_sides

Row = tuple[Any, ...]
"""Of the ground truth: image, box, label, and True for a crowd. Of a detection: image, box, label, score."""


def split(truth: list[Row], found: list[Row], images: int = 1, classes: int = 1, first_id: int = 1) -> SplitDetections:
    return SplitDetections.of(
        [f"class {k}" for k in range(1, classes + 1)],
        [f"{first_id + n}.png" for n in range(images)],
        image_id=range(first_id, first_id + images),
        size=[(400, 300)] * images,
        truth_image=[row[0] for row in truth],
        truth_box=[row[1] for row in truth],
        truth_label=[row[2] for row in truth],
        truth_crowd=[len(row) > 3 and row[3] for row in truth],
        found_image=[row[0] for row in found],
        found_box=[row[1] for row in found],
        found_label=[row[2] for row in found],
        found_score=[row[3] for row in found],
    )


def random_scene(seed: int, images: int = 12, classes: int = 4, first_id: int = 1) -> SplitDetections:
    """Crowds, boxes of all sizes, several guesses at a box, strays, equal scores; the last class has no box."""
    draw = np.random.default_rng(seed)
    truth: list[Row] = []
    found: list[Row] = []
    for image in range(images):
        for _ in range(draw.integers(0, 9)):
            x, y, w, h = *draw.uniform(0, 300, 2), *draw.uniform(4, 180, 2)
            label = int(draw.integers(1, classes))
            truth.append((image, (x, y, x + w, y + h), label, draw.random() < 0.1))
            for _ in range(draw.integers(0, 4)):
                dx, dy = draw.normal(0, 0.1, 2) * (w, h)
                guess = label if draw.random() < 0.9 else int(draw.integers(1, classes + 1))
                box = (x + dx, y + dy, x + dx + w, y + dy + h)
                found.append((image, box, guess, round(draw.random(), 2)))
    return split(truth, found, images, classes, first_id)


def coco_truth(told: SplitDetections) -> dict[str, Any]:
    boxes = with_sides(told.truth_box)
    return {
        "info": {},
        "images": [{"id": int(id_), "width": 400, "height": 300, "file_name": str(id_)} for id_ in told.image_id],
        "annotations": [
            {
                "id": n + 1,
                "image_id": int(told.image_id[told.truth_image[n]]),
                "category_id": int(told.truth_label[n]),
                "bbox": boxes[n].tolist(),
                "area": float(boxes[n, 2] * boxes[n, 3]),
                "iscrowd": int(told.truth_crowd[n]),
            }
            for n in range(len(boxes))
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(told.classes, start=1)],
    }
