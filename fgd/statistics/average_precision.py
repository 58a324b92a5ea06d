"""COCO's AP and AR of a run, of resamples of its images, and its precision-recall curves.

AP is the mean of the highest precision that is still reached at each of 101 recalls 0, 0.01 ... 1, over IoU thresholds
0.50, 0.55 ... 0.95 and over the classes that have boxes (Lin et al., Microsoft COCO, arXiv 1405.0312; figures of
pycocotools, to the last digits). 0 to 100; NaN where no box of that kind exists.

A resample is a count for each image: how often it was drawn. Figures of an image that was drawn twice are those of a
data set in which it is twice. Matching is done once; a resample costs two cumulative sums for each threshold.
"""

# A ranges of areas, B resamples, C classes, D detections, H hits (detections that took a box), I images, R recalls,
# T thresholds

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgd.statistics.matching import AREAS, IOUS, MOST_FOUND, ClassMatches, Floats, Ints, Matches

RECALLS: Floats = np.linspace(0.0, 1.0, 101)
_AREA_PLACE = {name: place for place, name in enumerate(AREAS)}
_CHUNK = 2**21
"""Counts of detections that are looked at together: more do not fit into a processor's cache."""


def figures(matches: Matches) -> dict[str, float]:
    """ap, ap50, ap75, ap_s, ap_m, ap_l, ap/<class>, ar1, ar10, ar100, ar_s, ar_m, ar_l.

    ap is over all areas and thresholds, ap50 and ap75 of one threshold; s, m, l are COCO's areas: under 32^2 pixels,
    under 96^2, the rest. ar<N>: the recall with N detections a class and image, mean over thresholds and classes.
    """
    whole_CT = _ap_CBT(matches, _once(matches))[:, 0]
    found = {"ap": _mean(whole_CT), "ap50": _mean(whole_CT[:, :1]), "ap75": _mean(whole_CT[:, 5:6])}
    found |= {f"ap_{area}": _mean(_ap_CBT(matches, _once(matches), area)[:, 0]) for area in ("s", "m", "l")}
    found |= {f"ap/{name}": _mean(ap_T) for name, ap_T in zip(matches.classes, whole_CT, strict=True)}
    found |= {f"ar{most}": _mean(_ar_CT(matches, "all", most)) for most in (1, 10, MOST_FOUND)}
    found |= {f"ar_{area}": _mean(_ar_CT(matches, area, MOST_FOUND)) for area in ("s", "m", "l")}
    return found


def average_precision(matches: Matches, *, iou: float | None = None, area: str = "all") -> float:
    """One figure. iou: of this threshold alone; None: the mean of all ten. area: "all", "s", "m" or "l"."""
    return float(resampled(matches, _once(matches), iou=iou, area=area)[0])


def resampled(matches: Matches, counts_BI: Ints, *, iou: float | None = None, area: str = "all") -> Floats:
    """The same figure of each of B resamples of the images. counts_BI: how often each image was drawn."""
    at = slice(None) if iou is None else slice(_threshold(iou), _threshold(iou) + 1)
    found_CBT = _ap_CBT(matches, counts_BI, area, at)
    return np.array([_mean(found_CBT[:, b]) for b in range(len(counts_BI))])


def draw(images: int, resamples: int, seed: int | tuple[int, ...]) -> Ints:
    """Counts of B resamples with replacement, B x I: the bootstrap (Efron 1979, Ann. Statist. 7:1). Equal for equal
    seeds."""
    if not images:
        return np.zeros((resamples, 0), np.int64)
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1.0 / images), resamples)


@dataclass(frozen=True)
class Curve:
    """Precision against recall of one class, or of the mean of the classes that have boxes."""

    name: str
    """The class; "" for the mean."""
    recall_R: Floats
    """0, 0.01 ... 1."""
    precision_R: Floats
    """0 to 1: the highest that is reached at this recall or a higher one; 0 where this recall is not reached."""
    score_R: Floats
    """The lowest score of a detection that is needed for this recall; NaN where it is not reached, and in the mean."""


def precision_recall(matches: Matches, *, iou: float = 0.5, area: str = "all") -> list[Curve]:
    """The mean over the classes first, then each class that has boxes. Empty if none has."""
    at = _threshold(iou)
    curves = []
    for name, of_class in zip(matches.classes, matches.of_class, strict=True):
        a, boxes = _AREA_PLACE[area], int(of_class.boxes_AI[_AREA_PLACE[area]].sum())
        if not boxes:
            continue
        hit_D, counts_D = of_class.hit_ATD[a, at], ~of_class.ignored_ATD[a, at]
        precision_R, place_R = _envelope_at_recalls(
            np.cumsum(hit_D & counts_D)[None], np.cumsum(counts_D)[None], _hits_needed(np.array([boxes]))
        )
        reached = place_R[0] < len(hit_D)
        scores = np.append(of_class.score_D, np.nan).astype(np.float64)
        curves.append(Curve(name, RECALLS, precision_R[0], np.where(reached, scores[place_R[0]], np.nan)))
    if not curves:
        return []
    mean_R = np.mean([curve.precision_R for curve in curves], axis=0)
    return [Curve("", RECALLS, mean_R, np.full_like(mean_R, np.nan)), *curves]


# --- inside ---


def _once(matches: Matches) -> Ints:
    return np.ones((1, len(matches.image_id)), np.int64)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return 100.0 * float(known.mean()) if known.size else float("nan")


def _threshold(iou: float) -> int:
    near = np.flatnonzero(np.isclose(IOUS, iou))
    if not near.size:
        raise ValueError(f"no IoU threshold {iou}; there are {', '.join(f'{each:.2f}' for each in IOUS)}")
    return int(near[0])


def _ap_CBT(matches: Matches, counts_BI: Ints, area: str = "all", at: slice = slice(None)) -> Floats:
    """0 to 1; NaN where a resample has no box."""
    shape = (len(matches.classes), len(counts_BI), len(IOUS[at]))
    found_CBT = np.full(shape, np.nan)
    for of_class, found_BT in zip(matches.of_class, found_CBT, strict=True):
        rows = max(1, _CHUNK // max(1, len(of_class.image_D)))
        for start in range(0, len(counts_BI), rows):
            chunk = slice(start, start + rows)
            _fill_class(of_class, counts_BI[chunk], _AREA_PLACE[area], at, found_BT[chunk])
    return found_CBT


def _fill_class(of_class: ClassMatches, counts_BI: Ints, a: int, at: slice, found_BT: Floats) -> None:
    boxes_B = counts_BI @ of_class.boxes_AI[a]
    some = boxes_B > 0
    if not some.any():
        return
    needed_BR, counts_BI = _hits_needed(boxes_B[some]), counts_BI[some]
    counts_BD = counts_BI[:, of_class.image_D].astype(np.int32)
    all_BD = np.cumsum(counts_BD, axis=1, dtype=np.int32)
    for t, (hit_D, ignored_D) in enumerate(zip(of_class.hit_ATD[a, at], of_class.ignored_ATD[a, at], strict=True)):
        hits = np.flatnonzero(hit_D & ~ignored_D)  # between two of them precision only falls
        seen_BH = (np.cumsum(np.where(ignored_D, 0, counts_BD), axis=1, dtype=np.int32) if ignored_D.any() else all_BD)[
            :, hits
        ]
        hits_BH = np.cumsum(counts_BD[:, hits], axis=1, dtype=np.int32)
        precision_BR, _ = _envelope_at_recalls(hits_BH, seen_BH, needed_BR)
        found_BT[some, t] = precision_BR.mean(axis=1)


def _envelope_at_recalls(
    hits_BD: NDArray[np.integer], seen_BD: NDArray[np.integer], needed_BR: Ints
) -> tuple[Floats, Ints]:
    """The highest precision from the place on at which each recall is reached, and that place; beyond the last: 0.

    hits_BD: of the first detections, those that took a box, counted up; seen_BD: those that count. needed_BR: the hits
    that each recall is.
    """
    rows, length = hits_BD.shape
    precision_BD = np.zeros((rows, length + 1))
    np.divide(hits_BD, seen_BD + np.spacing(1.0), out=precision_BD[:, :-1])
    precision_BD = np.maximum.accumulate(precision_BD[:, ::-1], axis=1)[:, ::-1]
    row_B = np.arange(rows)[:, None]
    apart_B = row_B * (int(needed_BR.max()) + int(hits_BD.max(initial=0)) + 1)  # so that all rows are one sorted array
    place_BR = np.searchsorted((hits_BD + apart_B).ravel(), needed_BR + apart_B) - row_B * length
    return np.take_along_axis(precision_BD, place_BR, axis=1), place_BR


def _hits_needed(boxes_B: Ints) -> Ints:
    """How many hits each of the recalls is, of so many boxes."""
    kinds, which_B = np.unique(boxes_B, return_inverse=True)
    needed = [np.searchsorted(np.arange(boxes + 1) / boxes, RECALLS) for boxes in kinds]
    return np.stack(needed)[which_B]


def _ar_CT(matches: Matches, area: str, most: int) -> Floats:
    a = _AREA_PLACE[area]
    found_CT = np.full((len(matches.classes), len(IOUS)), np.nan)
    for of_class, found_T in zip(matches.of_class, found_CT, strict=True):
        if boxes := int(of_class.boxes_AI[a].sum()):
            counted = of_class.hit_ATD[a] & ~of_class.ignored_ATD[a] & (of_class.rank_D < most)
            found_T[:] = counted.sum(axis=1) / boxes
    return found_CT
