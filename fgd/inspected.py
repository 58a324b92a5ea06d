"""What a worker finds out of a job's networks for its report: operations, times, and pictures with what is found on
them. Knows no torch."""

from __future__ import annotations

from typing import Literal

from fgd.budget import Latency
from fgd.evaluated import Part

MAX_PICTURES_BYTES = 4 * 2**20
"""Of the file with the pictures."""


class Speed(Part):
    batch: int
    """Images at once."""
    time: Latency
    """Of one such batch: from the pixels to the final boxes."""


class InspectedNetwork(Part):
    role: str
    """teacher, "teacher NAME" where a job has several, control, student."""
    gflops: float
    """10^9 floating point operations for one image, from the pixels to the final boxes; a multiplication with its
    addition counts as two."""
    speeds: tuple[Speed, ...]


class InspectionResult(Part):
    input: tuple[int, int]
    """Height and width of the images that were counted and timed: the data set's usual size, as the job resizes it."""
    device: str
    threads: int
    """Of the processor."""
    networks: tuple[InspectedNetwork, ...]
    not_timed: str | None
    """Why larger batches were not timed."""
    pictures: int
    pictures_reason: str | None
    """Why there are none."""
    seconds: float


class PicturedBox(Part):
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the image as stored."""
    name: str
    """Of the class."""


class PicturedDetection(Part):
    box: tuple[float, float, float, float]
    name: str
    score: float
    right: bool
    """It is of a box of its class that no surer detection took."""


class PicturedNetwork(Part):
    role: str
    detections: tuple[PicturedDetection, ...]
    """The surest first; at most 100."""
    right: int
    wrong: int
    missed: int
    """Boxes that it did not find."""


class Picture(Part):
    """An image, small, with its boxes and what each network found."""

    name: str
    """The image's file, as the data set calls it."""
    width: int
    height: int
    """Of the image as stored."""
    jpeg: str
    """In base64, scaled down."""
    boxes: tuple[PicturedBox, ...]
    networks: tuple[PicturedNetwork, ...]


class Pictures(Part):
    """Images of the split, those on which two networks differ most first."""

    format: Literal["fgd-pictures/1"] = "fgd-pictures/1"
    score: float
    """Detections with a lower one are left out."""
    iou: float
    """Least overlap of a detection with the box that it is of."""
    differ: tuple[str, str] | None
    """Whose answers differ most on the first images; null: there was nothing to compare, so they are evenly spaced."""
    pictures: tuple[Picture, ...]
