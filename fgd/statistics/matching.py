"""Which detection is of which box, as COCO decides it: once for each file, for every threshold and range of areas.

Lin et al., Microsoft COCO (arXiv 1405.0312), as pycocotools' COCOeval does it: on each image and for each class the
detections, in order of score, take the free box that they overlap most, if the overlap reaches the threshold. Boxes
that do not count (crowd regions, areas outside the range) are taken where no other is left, and what takes them does
not count either; a crowd region can be taken often.
"""

# A ranges of areas, D detections, G boxes of an image, I images, L overlapping boxes, P detections of an image,
# T thresholds

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgd.statistics.detections import SplitDetections

IOUS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
AREAS = {"all": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}
"""Square pixels of the image as stored, both ends included."""
MOST_FOUND = 100
"""Detections of a class that count on one image: those with the highest scores."""
_RANGES = np.array(list(AREAS.values()))
_LOW, _HIGH = _RANGES[:, :1], _RANGES[:, 1:]
_NEEDED = np.minimum(IOUS, 1 - 1e-10)

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ClassMatches:
    """Of one class, over all images; detections with the highest score first."""

    image_D: Ints
    """The place of its image."""
    score_D: NDArray[np.float32]
    rank_D: Ints
    """Among the detections of its image and class: 0 has the highest score."""
    hit_ATD: Bools
    """It took a box that counts."""
    ignored_ATD: Bools
    """It counts neither for nor against."""
    boxes_AI: Ints
    """How many boxes of each image count."""


@dataclass(frozen=True)
class Matches:
    """Of one run on one split: all that AP and AR need. Made by `match`."""

    classes: tuple[str, ...]
    image_id: Ints
    of_class: tuple[ClassMatches, ...]
    """In the order of `classes`."""


def match(split: SplitDetections) -> Matches:
    """Of a split, or of several `joined`."""
    of_class = tuple(_match_class(split, label) for label in range(1, len(split.classes) + 1))
    return Matches(split.classes, split.image_id, of_class)


def overlaps(found: Floats, truth: Floats, crowd: Bools) -> Floats:
    """Intersection over union, P x G; over the detection's own area for crowd regions. Boxes: left, top, width, height.

    In the order of operations of COCO's code, so that overlaps at a threshold fall on the same side of it.
    """
    ends = np.minimum((found[:, :2] + found[:, 2:])[:, None], (truth[:, :2] + truth[:, 2:])[None])
    sides = np.maximum(ends - np.maximum(found[:, None, :2], truth[None, :, :2]), 0.0)
    common: Floats = sides[..., 0] * sides[..., 1]
    own = (found[:, 2] * found[:, 3])[:, None]
    union = np.where(crowd[None], own, own + (truth[:, 2] * truth[:, 3])[None] - common)
    share: Floats = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return share


def with_sides(boxes: NDArray[np.floating]) -> Floats:
    """Left, top, width, height of left, top, right, bottom."""
    sides = boxes.astype(np.float64)
    sides[:, 2:] -= sides[:, :2]
    return sides


def by_image(image: NDArray[np.integer], images: int) -> Iterator[slice]:
    """Of each image the slice of a sorted array of places."""
    ends = np.searchsorted(image, np.arange(images + 1))
    return (slice(int(start), int(end)) for start, end in itertools.pairwise(ends))


def _match_class(split: SplitDetections, label: int) -> ClassMatches:
    images = len(split)
    truth = np.flatnonzero(split.truth_label == label)
    truth = truth[np.argsort(split.truth_image[truth], kind="stable")]
    found = np.flatnonzero(split.found_label == label)
    found = found[np.lexsort((-split.found_score[found], split.found_image[found]))]
    starts = np.searchsorted(split.found_image[found], split.found_image[found])
    rank = np.arange(len(found)) - starts
    found, rank = found[rank < MOST_FOUND], rank[rank < MOST_FOUND]
    image = split.found_image[found].astype(np.int64)

    truth_box, found_box = with_sides(split.truth_box[truth]), with_sides(split.found_box[found])
    crowd, areas = split.truth_crowd[truth], truth_box[:, 2] * truth_box[:, 3]
    uncounted = crowd | (areas < _LOW) | (areas > _HIGH)
    areas = found_box[:, 2] * found_box[:, 3]
    outside = (areas < _LOW) | (areas > _HIGH)

    shape = (len(AREAS), len(IOUS), len(found))
    hit, ignored = np.zeros(shape, bool), np.broadcast_to(outside[:, None], shape).copy()
    pairs = zip(by_image(split.truth_image[truth], images), by_image(image, images), strict=True)
    for boxes, mine in pairs:
        if boxes.start < boxes.stop and mine.start < mine.stop:
            iou = overlaps(found_box[mine], truth_box[boxes], crowd[boxes])
            _match_image(iou, uncounted[:, boxes], crowd[boxes], hit[..., mine], ignored[..., mine])

    counted = np.stack([np.bincount(split.truth_image[truth[~each]], minlength=images) for each in uncounted])
    order = np.argsort(-split.found_score[found], kind="stable")
    return ClassMatches(
        image_D=image[order],
        score_D=split.found_score[found][order],
        rank_D=rank[order],
        hit_ATD=hit[..., order],
        ignored_ATD=ignored[..., order],
        boxes_AI=counted,
    )


def _match_image(iou_PG: Floats, uncounted_AG: Bools, crowd_G: Bools, hit_ATP: Bools, ignored_ATP: Bools) -> None:
    """Fill in the last two. They say already what a detection that takes no box is."""
    taken_GAT = np.zeros((len(crowd_G), *hit_ATP.shape[:2]), bool)
    areas, thresholds = np.ogrid[: hit_ATP.shape[0], : hit_ATP.shape[1]]
    for place in np.flatnonzero(iou_PG.max(axis=1) >= _NEEDED[0]):
        near = np.flatnonzero(iou_PG[place] >= _NEEDED[0])
        near = near[np.argsort(iou_PG[place, near], kind="stable")]  # of equal overlaps COCO takes the last box
        free_LAT = (iou_PG[place, near, None] >= _NEEDED)[:, None] & (~taken_GAT[near] | crowd_G[near, None, None])
        counts_LAT = free_LAT & ~uncounted_AG[:, near].T[:, :, None]
        first_AT = counts_LAT.any(axis=0)
        likely_LAT = np.where(first_AT, counts_LAT, free_LAT)
        best_AT = near[len(near) - 1 - likely_LAT[::-1].argmax(axis=0)]
        takes_AT = likely_LAT.any(axis=0)
        taken_GAT[best_AT, areas, thresholds] |= takes_AT
        hit_ATP[..., place] = first_AT
        ignored_ATP[..., place] = np.where(takes_AT, ~first_AT, ignored_ATP[..., place])
