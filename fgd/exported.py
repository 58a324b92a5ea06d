"""What a worker tells of a file that it exported. Knows no torch."""

from __future__ import annotations

from typing import Literal

from fgd.budget import Latency
from fgd.evaluated import ClassFigures, Part

ExportFormat = Literal["onnx", "onnx-int8"]
MAX_AP_LOSS = 0.5
"""AP of 100 that an INT8 file may lose unless another bound is asked for."""


class FileFigures(Part):
    """What a file finds on the validation images, and how long it takes."""

    ap: float
    """Of onnxruntime's boxes, 0 to 100."""
    ap50: float
    ap75: float
    per_class: tuple[ClassFigures, ...]
    """Of the classes that have boxes there."""
    bytes: int
    latency: Latency
    """Of one batch; the two files ran in turn."""


class LeftOut(Part):
    """Layers that stay float32."""

    layers: str
    """What their names begin with."""
    weights: int
    """Numbers that they hold."""
    ap_gain: float
    """AP that is won if these layers alone stay float32."""


class Trial(Part):
    """A file that was tried."""

    left_out: tuple[str, ...]
    """Layers that stayed float32."""
    ap: float


class Int8Report(Part):
    """How an INT8 file compares with the float32 file that it was made from."""

    calibration_images: int
    """Of the training split, evenly spaced; on them the ranges of all values were seen."""
    images: int
    """Of the validation split, on which AP was measured."""
    undecodable: int
    """Validation images that were left out because they do not decode."""
    max_ap_loss: float
    """What the file was allowed to lose."""
    ap_loss: float
    """What it loses; negative where it wins."""
    float32: FileFigures
    int8: FileFigures
    int8_weights: int
    """Numbers that layers in INT8 hold."""
    left_out: tuple[LeftOut, ...]
    """Layers that stay float32 because in INT8 they lose too much; empty: none."""
    trials: tuple[Trial, ...]
    """In the order in which they were tried; the last is the file."""
    device: str
    """The processor."""
    threads: int


class ExportResult(Part):
    format: str
    size: tuple[int, int]
    """Height and width of the images that go in."""
    batch: int | None
    """Images at once; null: any number."""
    opset: int
    compared_on: str
    detections: int
    """Of torch and onnxruntime that were compared: of an INT8 file's, before it was quantised; likewise the next
    ones."""
    box_px: float
    """The largest difference between two boxes, in pixels."""
    score: float
    """The largest difference between two scores."""
    threads: int
    torch_ms: float
    """Milliseconds of one batch on the worker's processor, as the next one."""
    onnxruntime_ms: float
    int8: Int8Report | None = None
    """Of a file in INT8: AP and latency before and after."""
