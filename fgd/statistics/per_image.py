"""What a detector found and missed on each image, at whatever score: boxes and detections are paired once, at IoU 0.5.

Which box a detection takes does not depend on detections with lower scores (matching.py), so one pairing serves every
score. All images are worked on at once: in turn the first detection of every image and class, the second of each, and
so on. That takes a second for 10,000 images with a million detections, where one image after the other takes minutes.
"""

# C classes, D detections, I images, P pairs of a detection and a box, T boxes of the ground truth

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgd.statistics.detections import SplitDetections
from fgd.statistics.matching import Bools, Ints, with_sides

IOU = 0.5
PAIRS_AT_ONCE = 500_000
"""Whose overlap is worked out together."""
NEVER = -1.0
"""The score of what is not found: below every other."""


@dataclass(frozen=True)
class Paired:
    """What one detector found. Detections stand image by image, those of an image with the highest score first."""

    known_C: Bools
    """Of the classes of the ground truth, those that the detector knows."""
    image_D: Ints
    """A place among the images of the ground truth."""
    box_D4: NDArray[np.float32]
    score_D: NDArray[np.float32]
    label_D: Ints
    hit_D: Bools
    """It took a box."""
    ignored_D: Bools
    """It lies in a crowd region, and counts neither for nor against."""
    score_T: NDArray[np.float32]
    """Of the detection that took each box; NEVER: none did."""

    def of_image(self, place: int) -> slice:
        """Its detections."""
        first, last = np.searchsorted(self.image_D, [place, place + 1])
        return slice(int(first), int(last))


@dataclass(frozen=True)
class Counts:
    """Of each image, at some score."""

    found_I: Ints
    """Boxes that a detection took."""
    missed_I: Ints
    false_I: Ints
    """Detections of no box."""

    @property
    def mistakes_I(self) -> Ints:
        return self.missed_I + self.false_I


def pair(truth: SplitDetections, found: SplitDetections, least: float) -> Paired:
    """The detections of `found` on the boxes of `truth`, as COCO pairs them. Those with a score below `least`, on other
    images and of other classes are left out. Both are of one data set, with classes of their own."""
    label_of = np.zeros(len(found.classes) + 1, np.int64)
    place_of = {name: label for label, name in enumerate(truth.classes, start=1)}
    label_of[1:] = [place_of.get(name, 0) for name in found.classes]
    image_of = np.searchsorted(truth.image_id, found.image_id)
    there = np.append(truth.image_id, -1)[image_of] == found.image_id
    image, label = image_of[found.found_image], label_of[found.found_label]
    kept = np.flatnonzero(there[found.found_image] & (label > 0) & (found.found_score >= least))
    kept = kept[np.lexsort((-found.found_score[kept], image[kept]))]
    image, label, box, score = image[kept], label[kept], found.found_box[kept], found.found_score[kept]

    det_P, box_P, iou_P = _overlapping(truth, image, label, box)
    hit, ignored = np.zeros(len(kept), bool), np.zeros(len(kept), bool)
    score_T = np.full(len(truth.truth_image), NEVER, np.float32)
    for det, taken in _taken(truth, image, label, det_P, box_P, iou_P):
        crowd = truth.truth_crowd[taken]
        hit[det], ignored[det] = ~crowd, crowd
        score_T[taken[~crowd]] = score[det[~crowd]]
    return Paired(
        known_C=np.isin(np.arange(1, len(truth.classes) + 1), label_of),
        image_D=image,
        box_D4=box,
        score_D=score,
        label_D=label,
        hit_D=hit,
        ignored_D=ignored,
        score_T=score_T,
    )


def counts(truth: SplitDetections, paired: Paired, score: float, wanted_C: Bools) -> Counts:
    """Of detections with at least this score and boxes, both of these classes."""
    boxes = _boxes(truth, wanted_C)
    found = boxes & (paired.score_T >= score)
    sure = (paired.score_D >= score) & wanted_C[paired.label_D - 1]
    return Counts(
        found_I=_per_image(truth, truth.truth_image[found]),
        missed_I=_per_image(truth, truth.truth_image[boxes & ~found]),
        false_I=_per_image(truth, paired.image_D[sure & ~paired.hit_D & ~paired.ignored_D]),
    )


def apart(truth: SplitDetections, one: Paired, other: Paired, score: float, wanted_C: Bools) -> Ints:
    """How much two detectors differ on each image: the boxes that one of them alone finds, and by how many detections
    of no box one has more than the other."""
    alone = _boxes(truth, wanted_C) & ((one.score_T >= score) != (other.score_T >= score))
    false = [counts(truth, each, score, wanted_C).false_I for each in (one, other)]
    differ: Ints = _per_image(truth, truth.truth_image[alone]) + np.abs(false[0] - false[1])
    return differ


def _boxes(truth: SplitDetections, wanted_C: Bools) -> Bools:
    """Those that can be found or missed."""
    wanted: Bools = wanted_C[truth.truth_label - 1] & ~truth.truth_crowd
    return wanted


def _per_image(truth: SplitDetections, image: NDArray[np.integer]) -> Ints:
    many: Ints = np.bincount(image, minlength=len(truth))
    return many


def _overlapping(
    truth: SplitDetections, image_D: Ints, label_D: Ints, box_D4: NDArray[np.float32]
) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """Detections and boxes of the same image and class that overlap enough, and by how much."""
    classes = len(truth.classes) + 1
    key_T = truth.truth_image.astype(np.int64) * classes + truth.truth_label
    order_T = np.argsort(key_T, kind="stable")
    key_D = image_D * classes + label_D
    first, last = (np.searchsorted(key_T[order_T], key_D, side) for side in ("left", "right"))
    theirs, ours = with_sides(truth.truth_box), with_sides(box_D4)
    ends = np.cumsum(last - first)
    found: list[tuple[Ints, Ints, NDArray[np.float64]]] = []
    for det in _batches(ends):
        many = last[det] - first[det]
        within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        box_P = order_T[within + np.repeat(first[det], many)]
        det_P = np.repeat(det, many)
        iou_P = _iou(ours[det_P], theirs[box_P], truth.truth_crowd[box_P])
        near = iou_P >= IOU
        found.append((det_P[near], box_P[near], iou_P[near]))
    return tuple(np.concatenate(each) for each in zip(*found, strict=True)) if found else _nothing()  # type: ignore[return-value]


def _nothing() -> tuple[Ints, Ints, NDArray[np.float64]]:
    return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)


def _batches(ends_D: Ints) -> Iterator[Ints]:
    """Places of detections whose pairs, counted up in `ends_D`, fit into memory together."""
    start, done = 0, 0
    while start < len(ends_D):
        stop = max(start + 1, int(np.searchsorted(ends_D, done + PAIRS_AT_ONCE, "right")))
        yield np.arange(start, stop)
        start, done = stop, int(ends_D[stop - 1])


def _iou(found: NDArray[np.float64], truth: NDArray[np.float64], crowd: Bools) -> NDArray[np.float64]:
    """Of each pair, as `matching.overlaps` has it of every two."""
    ends = np.minimum(found[:, :2] + found[:, 2:], truth[:, :2] + truth[:, 2:])
    sides = np.maximum(ends - np.maximum(found[:, :2], truth[:, :2]), 0.0)
    common = sides[:, 0] * sides[:, 1]
    own = found[:, 2] * found[:, 3]
    union = np.where(crowd, own, own + truth[:, 2] * truth[:, 3] - common)
    share: NDArray[np.float64] = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return share


def _taken(
    truth: SplitDetections, image_D: Ints, label_D: Ints, det_P: Ints, box_P: Ints, iou_P: NDArray[np.float64]
) -> Iterator[tuple[Ints, Ints]]:
    """Detections, and the box that each takes: the free one that it overlaps most, or else a crowd region, which can be
    taken often. Of equal overlaps the last, as in COCO's code."""
    det, place = np.unique(det_P, return_inverse=True)
    key = image_D[det] * (len(truth.classes) + 1) + label_D[det]
    order = np.argsort(key, kind="stable")
    rank = np.empty(len(det), np.int64)
    rank[order] = np.arange(len(det)) - np.searchsorted(key[order], key[order])
    rank_P = rank[place]
    order = np.lexsort((box_P, iou_P, ~truth.truth_crowd[box_P], det_P, rank_P))
    rank_P, det_P, box_P = rank_P[order], det_P[order], box_P[order]
    free_T = np.ones(len(truth.truth_image), bool)
    ends = np.searchsorted(rank_P, np.arange(rank_P[-1] + 1 if len(rank_P) else 0), "right")
    start = 0
    for end in ends:
        turn = np.arange(start, end)
        turn = turn[free_T[box_P[turn]]]
        best = turn[np.append(det_P[turn][1:] != det_P[turn][:-1], True)] if len(turn) else turn
        free_T[box_P[best]] = truth.truth_crowd[box_P[best]]
        yield det_P[best], box_P[best]
        start = int(end)
