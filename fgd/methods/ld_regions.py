"""Which cells of a level LD's repository (HikariTJU/LD@4287990) imitates: three of its regions.

One place a cell, as its heads have. All are of one level; a batch's images are taken together.
"""

# N images, K places, k places of the level, M boxes, B bins, C channels

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import nms

from fgd.methods.fgfi import near
from fgd.types import Predictions

THRESHOLD = 0.5
"""Of the best IoU that a box has, above which an anchor is near it."""
OVERLAP, MOST = 0.3, 10
"""General instances of one level: no two of them overlap more, and no more of them are taken."""


@dataclass(frozen=True)
class Heads:
    """What both heads say of a level."""

    ours: Predictions
    theirs: Predictions
    level: str
    stride: int


Region = Callable[[Heads, list[Tensor]], Tensor]
"""Of the level's heads and each image's boxes: float Nk, 1 where a cell is imitated."""


def fine_grained(heads: Heads, boxes: list[Tensor]) -> Tensor:
    """Cells whose anchor's IoU with a box is above half of the best that it has on any level."""
    anchors_K4 = heads.ours.anchors_K4
    near_NK = torch.stack([near(anchors_K4, each, THRESHOLD, 0.0) for each in boxes])
    return near_NK[:, heads.ours.span(heads.level)].float()


def inside(heads: Heads, boxes: list[Tensor]) -> Tensor:
    """Cells whose anchor's centre lies inside a box."""
    anchors_k4 = heads.ours.anchors_K4[heads.ours.span(heads.level)]
    centre_k12 = ((anchors_k4[:, :2] + anchors_k4[:, 2:]) / 2)[:, None]
    return torch.stack(
        [((centre_k12 > each[:, :2]) & (centre_k12 < each[:, 2:])).all(2).any(1) for each in boxes]
    ).float()


def general_instances(heads: Heads, boxes: list[Tensor]) -> Tensor:
    """The places of `instances`."""
    images, places = len(boxes), heads.ours.rows[heads.level]
    chosen = torch.zeros(images * places, device=heads.ours.anchors_K4.device)
    chosen[instances(heads)] = 1.0
    return chosen.view(images, places)


@torch.no_grad()
def instances(heads: Heads) -> Tensor:
    """Places in the order n, k at which the networks' scores of a class differ most, without those whose box overlaps
    a better one's: of all images of the batch together, so that boxes of different images suppress each other."""
    both = heads.ours, heads.theirs
    ours_QC, theirs_QC = (each.logits_NKC[:, each.span(heads.level)].float().sigmoid().flatten(0, 1) for each in both)
    apart_Q1, class_Q1 = (theirs_QC - ours_QC).abs().max(1, keepdim=True)
    of_teacher_Q1 = theirs_QC.gather(1, class_Q1) >= ours_QC.gather(1, class_Q1)
    ours_Q4, theirs_Q4 = (in_strides(heads, each) for each in both)
    kept: Tensor = nms(torch.where(of_teacher_Q1, theirs_Q4, ours_Q4), apart_Q1[:, 0], OVERLAP)
    return kept[:MOST]


def in_strides(heads: Heads, of: Predictions) -> Tensor:
    """Boxes of the level's places: the distributions' means to the left, upper, right and lower side, in strides."""
    sides_Nk4B = sides_of(of, heads.level).softmax(3)
    bins_B = torch.arange(sides_Nk4B.shape[3], device=sides_Nk4B.device, dtype=sides_Nk4B.dtype)
    sides_Nk4 = sides_Nk4B @ bins_B
    anchors_k4 = of.anchors_K4[of.span(heads.level)]
    centre_k2 = (anchors_k4[:, :2] + anchors_k4[:, 2:]) / 2 / heads.stride
    return torch.cat([centre_k2 - sides_Nk4[..., :2], centre_k2 + sides_Nk4[..., 2:]], 2).flatten(0, 1)


def sides_of(predictions: Predictions, level: str) -> Tensor:
    """The level's distributions, Nk4B."""
    rows_NkD = predictions.boxes_NKD[:, predictions.span(level)].float()
    return rows_NkD.reshape(*rows_NkD.shape[:2], 4, -1)


def mean_error(student_NCHW: Tensor, teacher_NCHW: Tensor, chosen_Nk: Tensor) -> Tensor:
    """Squared, over chosen cells and channels; 0 where none is chosen."""
    error_Nk = (student_NCHW - teacher_NCHW).square().mean(1).flatten(1)
    return (chosen_Nk * error_Nk).sum() / chosen_Nk.sum().clamp(min=1)


REGIONS: dict[str, Region] = {
    "fine_grained": fine_grained,
    "inside": inside,
    "general_instances": general_instances,
}
