"""All figures of what was found on a split: AP, AR, curves, confusion. Knows numpy; no torch."""

from __future__ import annotations

import math

import numpy as np

from fgd.evaluated import ClassFigures, ConfusionMatrix, PrecisionRecall, SplitFigures
from fgd.statistics.average_precision import figures, precision_recall
from fgd.statistics.confusion import confusion
from fgd.statistics.detections import SplitDetections
from fgd.statistics.matching import match

MOST_CLASSES = 100
"""There is no confusion matrix and no curve of each class where there are more."""
PRECISION_DIGITS = 4


def of(split: SplitDetections, confusion_score: float) -> SplitFigures:
    """confusion_score: detections with a lower one are not in the confusion matrix."""
    matches = match(split)
    found = {name: _known(value) for name, value in figures(matches).items()}
    boxes = np.bincount(split.truth_label[~split.truth_crowd], minlength=len(split.classes) + 1)[1:]
    few = len(split.classes) <= MOST_CLASSES
    curves = precision_recall(matches)
    table = confusion(split, score=confusion_score) if few else None
    return SplitFigures.model_validate(
        {name: value for name, value in found.items() if "/" not in name}
        | {
            "images": len(split),
            "boxes": int(boxes.sum()),
            "detections": len(split.found_image),
            "per_class": [
                ClassFigures(name=name, boxes=count, ap=found[f"ap/{name}"])
                for name, count in zip(split.classes, boxes.tolist(), strict=True)
            ],
            "precision_recall": [
                PrecisionRecall(
                    name=curve.name,
                    precision=tuple(curve.precision_R.round(PRECISION_DIGITS).tolist()),
                    score=tuple(map(_known, curve.score_R.round(PRECISION_DIGITS).tolist())),
                )
                for curve in (curves if few else curves[:1])
            ],
            "confusion": table
            and ConfusionMatrix(iou=table.iou, score=table.score, classes=table.classes, counts=table.counts.tolist()),
        }
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
