"""The values that pass between the parts of the library. Checked where they are made, trusted after."""

# N images, K boxes, H x W pixels

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Target:
    """Ground truth of one image: boxes float32 xyxy in pixels of the padded input, labels int64 1..classes."""

    boxes_K4: Tensor
    labels_K: Tensor


@dataclass(frozen=True)
class Batch:
    """What both networks see: resized, normalised, padded once."""

    images_NCHW: Tensor
    image_sizes: tuple[tuple[int, int], ...]
    """(height, width) of each image after resizing, before padding."""
    original_sizes: tuple[tuple[int, int], ...]
    """(height, width) of each image as stored."""
    targets: tuple[Target, ...]
    image_ids: tuple[int, ...]
    flips: tuple[tuple[bool, bool], ...] = ()
    """(horizontal, vertical) of each image."""

    @property
    def padded_size(self) -> tuple[int, int]:
        """(height, width) of the padded input."""
        height, width = self.images_NCHW.shape[-2:]
        return int(height), int(width)


@dataclass(frozen=True)
class Detections:
    """Found objects of one image: boxes float32 xyxy in pixels of the image as stored."""

    boxes_K4: Tensor
    scores_K: Tensor
    labels_K: Tensor


@dataclass(frozen=True)
class Calibration:
    """Measured once before step 0 on fixed training images, then frozen; travels with checkpoint and manifest."""

    teacher_rms: dict[str, float]
    """Root mean square of the teacher's map at each level, over valid (not padded) cells."""
    boxes_per_image: float
    """Mean over the training images."""
