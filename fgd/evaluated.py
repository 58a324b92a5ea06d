"""The figures of an evaluation: what a worker answers, the API shows and the client reads. Knows no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class ClassFigures(Part):
    name: str
    boxes: int
    """Of the ground truth."""
    ap: float | None


class PrecisionRecall(Part):
    """Precision at recalls 0, 0.01 ... 1."""

    name: str
    """The class; "" for the mean of the classes that have boxes."""
    precision: tuple[float, ...]
    """0 to 1: the highest that is reached at this recall or a higher one."""
    score: tuple[float | None, ...]
    """The lowest score that is needed for this recall; null where it is not reached, and in the mean."""


class ConfusionMatrix(Part):
    """Boxes and detections paired one to one, whatever their classes."""

    iou: float
    """Least overlap of a pair."""
    score: float
    """Detections with a lower one are left out."""
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """Row: class of the box; column: class that was found; the last of each: background. The last column counts boxes
    that were not found, the last row detections of no box."""


class SplitFigures(Part):
    """AP and AR as COCO has them, 0 to 100, of the classes that data set and network share; null where there is no such
    box."""

    images: int
    boxes: int
    detections: int
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_s: float | None
    """Of boxes under 32 x 32 pixels."""
    ap_m: float | None
    """Of boxes under 96 x 96 pixels."""
    ap_l: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    """Recall with so many detections an image and class."""
    ar_s: float | None
    ar_m: float | None
    ar_l: float | None
    per_class: tuple[ClassFigures, ...]
    precision_recall: tuple[PrecisionRecall, ...]
    """At IoU 0.5: the mean first, then each class that has boxes. The mean alone where more than 100 classes are
    shared."""
    confusion: ConfusionMatrix | None
    """Null where more than 100 classes are shared; detections.npz has all it is made of."""


class EvaluationResult(SplitFigures):
    undecodable: int
    """Images that were left out because they do not decode."""
    device: str
    seconds: float
    """Of detecting, on all images."""
