"""What a worker tells of a file that it exported. Knows no torch."""

from __future__ import annotations

from fgd.evaluated import Part


class ExportResult(Part):
    format: str
    size: tuple[int, int]
    """Height and width of the images that go in."""
    batch: int | None
    """Images at once; null: any number."""
    opset: int
    compared_on: str
    detections: int
    """Of torch and onnxruntime that were compared."""
    box_px: float
    """The largest difference between two boxes, in pixels."""
    score: float
    """The largest difference between two scores."""
    threads: int
    torch_ms: float
    """Milliseconds of one batch on the worker's processor, as the next one."""
    onnxruntime_ms: float
