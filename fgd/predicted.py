"""What networks find in one picture. Knows no torch."""

from __future__ import annotations

from fgd.evaluated import Part


class Detection(Part):
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the picture, upright."""
    score: float
    name: str
    """Of the class."""
    label: int


class NetworkDetections(Part):
    role: str
    """student, teacher, "teacher NAME" where a job has several, control; model."""
    detections: tuple[Detection, ...]
    """The surest first."""
    seconds: float
    """Of one pass, on the worker's processor."""


class PredictionResult(Part):
    width: int
    height: int
    """Of the picture, upright."""
    orientation: int
    """EXIF's 1 to 8: how its stored pixels were turned before anything was looked for. 1: not at all."""
    networks: tuple[NetworkDetections, ...]
