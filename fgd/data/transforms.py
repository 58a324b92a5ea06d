"""Stored pixels to the batch that both networks see: flip, normalise, resize, pad. Knows nothing of files.

Resizing is torchvision's own GeneralizedRCNNTransform in eval mode, called and not copied, so that a network fed by
us and the exported one fed by plain torchvision see the same bits.
"""

# N images, K boxes, C channels, H x W pixels

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from fgd.outline import scaled_max_size
from fgd.types import Batch, Target

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STRIDE = 32
"""The padded sides are multiples of it, as in torchvision."""

Flip = Literal["none", "horizontal", "vertical", "both"]


@dataclass(frozen=True)
class Sample:
    """One image as stored, and what is to be found in it."""

    image_id: int
    pixels_CHW: Tensor
    """uint8 RGB."""
    boxes_K4: Tensor
    """float32 xyxy in pixels of the stored image."""
    labels_K: Tensor
    """int64 1..classes."""
    flips: tuple[bool, bool] = (False, False)
    """Whether it was mirrored (horizontally, vertically)."""


class Transform:
    """Makes batches of samples; the sizes are a student's, or those a recipe names."""

    def __init__(
        self,
        min_size: int,
        max_size: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.min_size = min_size
        self.max_size = max_size
        self.mean = mean
        self.std = std
        self.inner = GeneralizedRCNNTransform(min_size, max_size, list(mean), list(std), size_divisible=STRIDE).eval()

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        with torch.no_grad():
            # As torchvision.transforms.functional.to_tensor does it, for equal bits.
            images = [sample.pixels_CHW.to(torch.float32).div(255) for sample in samples]
            boxes = [{"boxes": sample.boxes_K4} for sample in samples]
            resized, targets = self.inner(images, boxes)
        return Batch(
            images_NCHW=resized.tensors,
            image_sizes=tuple(resized.image_sizes),
            original_sizes=tuple((image.shape[1], image.shape[2]) for image in images),
            targets=tuple(
                Target(target["boxes"], sample.labels_K) for target, sample in zip(targets, samples, strict=True)
            ),
            image_ids=tuple(sample.image_id for sample in samples),
            flips=tuple(sample.flips for sample in samples),
        )

    def at(self, min_size: int) -> Transform:
        """The same with another shorter side; the bound of the longer one changes in proportion."""
        if min_size == self.min_size:
            return self
        return Transform(min_size, scaled_max_size(self.min_size, self.max_size, min_size), self.mean, self.std)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing an image of that stored size, before padding."""
        scale = min(self.min_size / min(height, width), self.max_size / max(height, width))
        return math.floor(float(height) * scale), math.floor(float(width) * scale)

    def padded_size_of(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the padded input if the image were alone in its batch."""
        resized_height, resized_width = self.size_of(height, width)
        return math.ceil(resized_height / STRIDE) * STRIDE, math.ceil(resized_width / STRIDE) * STRIDE


def flip(sample: Sample, *, horizontal: bool, vertical: bool) -> Sample:
    """Mirror the stored image and its boxes: left-right, up-down, both or neither."""
    height, width = sample.pixels_CHW.shape[1:]
    pixels, (x1, y1, x2, y2) = sample.pixels_CHW, sample.boxes_K4.unbind(1)
    if horizontal:
        pixels, x1, x2 = pixels.flip(2), width - x2, width - x1
    if vertical:
        pixels, y1, y2 = pixels.flip(1), height - y2, height - y1
    flips = sample.flips[0] != horizontal, sample.flips[1] != vertical
    return Sample(sample.image_id, pixels, torch.stack((x1, y1, x2, y2), dim=1), sample.labels_K, flips)


def drawn_flips(kind: Flip, seed: int, epoch: int, image_id: int) -> tuple[bool, bool]:
    """(horizontal, vertical), each drawn with probability one half if `kind` allows it.

    A hash and not a generator: the draw depends on nothing but its arguments, in every version of every library.
    """
    bits = draw("flip", seed, epoch, image_id)[0]
    return bool(bits & 1) and kind in ("horizontal", "both"), bool(bits & 2) and kind in ("vertical", "both")


def drawn_scale(sides: Sequence[int], seed: int, epoch: int, step: int) -> int:
    """The shorter side of all images of a step of that epoch."""
    return sides[int.from_bytes(draw("scale", seed, epoch, step)[:8], "big") % len(sides)]


def draw(what: str, seed: int, epoch: int, image_id: int) -> bytes:
    """16 random-looking bytes that follow from the arguments alone."""
    return blake2b(f"{what}/{seed}/{epoch}/{image_id}".encode(), digest_size=16).digest()
