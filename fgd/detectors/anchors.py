"""Anchor sizes of the families that have them, and which are best for a data set. Knows nothing of networks."""

# K boxes, A anchors

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator

from fgd.data.index import Image
from fgd.data.transforms import Transform

Sizes = tuple[tuple[int, ...], ...]

BASES = (32, 24, 16, 12, 8)
"""What the smallest anchor may be; 32 is torchvision's, made for images of 800 pixels."""
RATIOS = (0.5, 1.0, 2.0)
MATCHED_IOU = 0.5


@dataclass(frozen=True)
class AnchorLayout:
    """How a family lays its anchors out: on which strides, and their sizes as they follow from the smallest."""

    strides: tuple[int, ...]
    sizes: Callable[[int], Sizes]


def three_a_level(base: int) -> Sizes:
    """RetinaNet's: three sizes an octave on five levels, as torchvision rounds them."""
    return tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in _octaves(base))


def one_a_level(base: int) -> Sizes:
    """Faster R-CNN's: one size on each of five levels."""
    return tuple((x,) for x in _octaves(base))


def _octaves(base: int) -> list[int]:
    return [base * 2**level for level in range(5)]


THREE_FROM_P3 = AnchorLayout((8, 16, 32, 64, 128), three_a_level)
ONE_FROM_P2 = AnchorLayout((4, 8, 16, 32, 64), one_a_level)


def fit(layout: AnchorLayout, images: Sequence[Image], transform: Transform) -> dict[int, float]:
    """Base -> recall of the images' boxes with anchors from that base."""
    return {base: recall(images, transform, layout.sizes(base), layout.strides) for base in BASES}


def best_base(recalls: Mapping[int, float]) -> int:
    """Of the highest recall; of equal ones the largest, which is nearest to torchvision's."""
    return max(recalls, key=lambda base: (recalls[base], base))


def generator(sizes: Sizes, ratios: tuple[float, ...] = RATIOS) -> AnchorGenerator:
    return AnchorGenerator(sizes, (ratios,) * len(sizes))


def decoded(coder: BoxCoder, deltas_NK4: Tensor, anchors_K4: Tensor) -> Tensor:
    """xyxy, NK4. torchvision's coder takes one list of boxes."""
    boxes_M4: Tensor = coder.decode_single(deltas_NK4.flatten(0, 1), anchors_K4.repeat(len(deltas_NK4), 1))
    return boxes_M4.view_as(deltas_NK4)


def recall(images: Iterable[Image], transform: Transform, sizes: Sizes, strides: Sequence[int]) -> float:
    """Share of the resized boxes, crowds apart, that some anchor covers with IoU 0.5 or more; NaN without boxes.

    The best anchor of a shape is one whose centre is nearest in x and in y, as both overlaps shrink with distance, so
    no grid of anchors is ever laid out.
    """
    boxes_K4, padded_K2 = resized_boxes(images, transform)
    best_K = torch.zeros(len(boxes_K4), dtype=torch.float64)
    shapes = [cell.double() for cell in generator(sizes).cell_anchors]
    centre_K2 = (boxes_K4[:, :2] + boxes_K4[:, 2:]) / 2
    for stride, anchors_A4 in zip(strides, shapes, strict=True):
        cells_K2 = torch.ceil(padded_K2 / stride)
        step_K2 = torch.div(padded_K2, cells_K2, rounding_mode="floor")  # torchvision's stride of odd-sized maps
        nearest_K2 = torch.minimum((centre_K2 / step_K2).round(), cells_K2 - 1).clamp(min=0)
        for anchor_4 in anchors_A4:
            shifted_K4 = anchor_4 + (nearest_K2 * step_K2).repeat(1, 2)
            best_K = torch.maximum(best_K, paired_iou(boxes_K4, shifted_K4))
    return float((best_K >= MATCHED_IOU).double().mean())


def resized_boxes(images: Iterable[Image], transform: Transform) -> tuple[Tensor, Tensor]:
    """Boxes as the network sees them, xyxy float64, and (width, height) of each one's padded image."""
    boxes: list[tuple[float, ...]] = []
    padded: list[tuple[int, int]] = []
    for image in images:
        height, width = transform.size_of(image.height, image.width)
        padded_height, padded_width = transform.padded_size_of(image.height, image.width)
        x, y = width / image.width, height / image.height
        for box, crowd in zip(image.boxes, image.crowd, strict=True):
            if not crowd:
                boxes.append((box[0] * x, box[1] * y, box[2] * x, box[3] * y))
                padded.append((padded_width, padded_height))
    shaped = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    return shaped, torch.tensor(padded, dtype=torch.float64).reshape(-1, 2)


def paired_iou(a_K4: Tensor, b_K4: Tensor) -> Tensor:
    """IoU of each box with the one at its place."""
    sides_K2 = (torch.minimum(a_K4[:, 2:], b_K4[:, 2:]) - torch.maximum(a_K4[:, :2], b_K4[:, :2])).clamp(min=0)
    shared_K = sides_K2.prod(1)
    areas_K = (a_K4[:, 2:] - a_K4[:, :2]).prod(1) + (b_K4[:, 2:] - b_K4[:, :2]).prod(1)
    return shared_K / (areas_K - shared_K)
