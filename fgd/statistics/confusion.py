"""Which class is taken for which: detections and boxes paired one to one, whatever their classes."""

# C classes, G boxes of an image, P detections of an image

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fgd.statistics.detections import SplitDetections
from fgd.statistics.matching import Ints, by_image, overlaps, with_sides


@dataclass(frozen=True)
class Confusion:
    """Counts of pairs. The place behind the last class is the background."""

    classes: tuple[str, ...]
    counts: Ints
    """C+1 x C+1: row, the class of the box; column, the class that was found. The last column has boxes that were not
    found, the last row detections of no box; the last of both is 0."""
    iou: float
    score: float


def confusion(split: SplitDetections, *, score: float, iou: float = 0.5) -> Confusion:
    """Detections with at least `score`, the highest first, take the free box that they overlap most, if the
    intersection over union reaches `iou`; of equal overlaps one of their own class.

    Crowd regions are no boxes that can be missed. A detection without a box, `iou` of which lies in a crowd region,
    is left out.
    """
    classes = len(split.classes)
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    truth = np.argsort(split.truth_image, kind="stable")
    sure = np.flatnonzero(split.found_score >= score)
    found = sure[np.lexsort((-split.found_score[sure], split.found_image[sure]))]
    boxes, detections = with_sides(split.truth_box[truth]), with_sides(split.found_box[found])
    label, crowd = split.truth_label[truth] - 1, split.truth_crowd[truth]
    guess = split.found_label[found] - 1
    pairs = zip(
        by_image(split.truth_image[truth], len(split)), by_image(split.found_image[found], len(split)), strict=True
    )
    for there, mine in pairs:
        iou_PG = overlaps(detections[mine], boxes[there], crowd[there])
        free_G = ~crowd[there]
        for iou_G, guessed in zip(iou_PG, guess[mine], strict=True):
            fits_G = free_G & (iou_G >= iou)
            if fits_G.any():
                best = max(np.flatnonzero(fits_G), key=lambda g: (iou_G[g], label[there][g] == guessed))
                free_G[best] = False
                counts[label[there][best], guessed] += 1
            elif not (crowd[there] & (iou_G >= iou)).any():
                counts[classes, guessed] += 1
        counts[:, classes] += np.bincount(label[there][free_G], minlength=classes + 1)
    return Confusion(split.classes, counts, iou, score)
