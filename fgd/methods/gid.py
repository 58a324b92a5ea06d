"""GID (arXiv 2103.02340): boxes where student and teacher disagree most, whether or not there is an object.

Official (daixinghome/Distill_GID_detectron2@9118c54, the first author's port): an anchor's score is the difference of
the networks' highest class scores, its box that of the network whose score is higher. Of each image the 3000 anchors
of the largest difference, clipped to the image, sides over 10 pixels, NMS at 0.3 over all levels, the first 10. With R
boxes in the batch:
    feature   maps pooled to 10 x 10 at the level of the box's size: sum (S - T)^2 / (100 R), summed over channels
    relation  distances D between each two pooled maps, divided by their mean in each network; smooth L1 of D_T - D_S,
              divided by R^2 - R; 0 for fewer than 3 boxes
    scores    anchors with an IoU of 0.5 with a box, and the best of each box: sum BCE(s, sigmoid(t)) / their number
    boxes     there the sum of |deltas_S - deltas_T| / their number
No adapter: the port has one that it never applies.

The default departs from it:
- both maps come to the teacher's common scale, and the sum over channels is scaled to the reference's width;
- every image by itself, then their mean: relations only between boxes of one image;
- boxes are compared as decoded, in sides of the anchor, since the networks' anchors may differ;
- a 1x1 convolution brings other widths to the teacher's.
Of a detector with two stages it takes the first one: whether there is anything, and the proposals' boxes.
"""

# N images, K places, R boxes, C channels or classes

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from fgd.method_specs import GID
from fgd.methods.base import Method, Pair, adapters, resolved
from fgd.methods.fgfi import overlap
from fgd.methods.focus import Focus, largest_of_cells
from fgd.methods.paired import full, paired, per_width, scales_of
from fgd.methods.regions import levels_of, pooled
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, Predictions, View

CANDIDATES = 3000
SMALLEST = 10
"""Pixels of a side: not more is no instance."""
OVERLAP, RESPONDS = 0.3, 0.5
"""IoU above which of two instances the better one stays; from which on an anchor responds to an instance."""
POOLED = 10
FEWEST = 3
"""Instances that have relations."""


@dataclass(frozen=True)
class Instances:
    """Of one image, those that differ most first."""

    boxes_R4: Tensor
    scores_R: Tensor
    responds_K: Tensor
    """Which places respond to one."""


class GIDLoss(Method):
    """Terms "feature", "relation", "scores" and "boxes"."""

    def __init__(self, spec: GID, pair: Pair, calibration: Calibration, _schedule: Schedule) -> None:
        super().__init__()
        named = (spec.feature, spec.relation, spec.scores, spec.boxes)
        self.feature, self.relation, self.scores, self.boxes = (resolved(each) for each in named)
        self.most, self.official = spec.instances, spec.compat == "official"
        on = pair if self.feature or self.relation else Pair({})
        self.scales = scales_of(on, calibration, official=self.official)
        self.align = adapters(on)
        self.strides = [level.stride for level in on.levels.values()]
        widths = [level.teacher_channels for level in on.levels.values()]
        self.factor = 1.0 if self.official or not widths else per_width(widths[0])

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = student.predictions, teacher.predictions
        assert ours is not None
        assert theirs is not None
        terms: dict[str, Tensor] = {}
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            counts = counted_places(ours.anchors_K4, batch)
            found = [
                instances(ours, theirs, n, size, self.most, counts_K)
                for n, (size, counts_K) in enumerate(zip(batch.image_sizes, counts, strict=True))
            ]
            if self.scales:
                terms |= self._of_maps(student, teacher, batch, [each.boxes_R4 for each in found])
            if self.scores or self.boxes:
                terms |= self._of_responses(ours, theirs, torch.stack([each.responds_K for each in found]))
        return terms

    def focus(self, student: View, teacher: View, batch: Batch) -> Iterator[Focus]:
        """Where a place responds to one of the boxes."""
        ours, theirs = student.predictions, teacher.predictions
        assert ours is not None
        assert theirs is not None
        found = [instances(ours, theirs, n, size, self.most) for n, size in enumerate(batch.image_sizes)]
        responds_NK = torch.stack([each.responds_K for each in found])
        for level, map_NCHW in teacher.features.items():
            yield Focus("instances", level, largest_of_cells(responds_NK, ours, level, map_NCHW))

    def _of_maps(self, student: View, teacher: View, batch: Batch, boxes: Sequence[Tensor]) -> dict[str, Tensor]:
        levels = list(paired(student, teacher, batch, align=self.align, scales=self.scales, official=self.official))
        at_R = levels_of(torch.cat(list(boxes)), self.strides)
        ours_RCHW = pooled([each.student_NCHW for each in levels], self.strides, boxes, POOLED, at_R)
        theirs_RCHW = pooled([each.teacher_NCHW for each in levels], self.strides, boxes, POOLED, at_R)
        counts = [len(ours_RCHW)] if self.official else [len(each) for each in boxes]
        groups = list(zip(torch.split(ours_RCHW, counts), torch.split(theirs_RCHW, counts), strict=True))
        terms = {}
        if self.feature:
            errors = torch.stack([pooled_error(*group) for group in groups])
            terms["feature"] = self.feature * self.factor * errors.mean()
        if self.relation:
            terms["relation"] = self.relation * torch.stack([relation_error(*group) for group in groups]).mean()
        return terms

    def _of_responses(self, ours: Predictions, theirs: Predictions, responds_NK: Tensor) -> dict[str, Tensor]:
        count_N = responds_NK.sum(1)
        if self.official:
            weight_NK = responds_NK / count_N.sum().clamp(min=1)
        else:
            weight_NK = responds_NK / count_N.clamp(min=1)[:, None] / len(count_N)
        terms = {}
        if self.scores:
            wanted_NKC = full(theirs.logits_NKC.detach()).sigmoid()
            entropy_NKC = F.binary_cross_entropy_with_logits(full(ours.logits_NKC), wanted_NKC, reduction="none")
            terms["scores"] = self.scores * (weight_NK * entropy_NKC.sum(2)).sum()
        if self.boxes:
            terms["boxes"] = self.boxes * (weight_NK * self._box_error(ours, theirs)).sum()
        return terms

    def _box_error(self, ours: Predictions, theirs: Predictions) -> Tensor:
        if self.official:
            return (full(ours.boxes_NKD) - full(theirs.boxes_NKD.detach())).abs().sum(2)
        sides_K2 = ours.anchors_K4[:, 2:] - ours.anchors_K4[:, :2]
        return ((decoded(ours) - decoded(theirs).detach()) / sides_K2.repeat(1, 2)).abs().sum(2)


def decoded(predictions: Predictions) -> Tensor:
    return full(predictions.decode(predictions.boxes_NKD, predictions.anchors_K4))


def counted_places(anchors_K4: Tensor, batch: Batch) -> list[Tensor | None]:
    """Of each image: bool K, false where an anchor's centre lies in objects alone that the teacher does not know. None:
    all count."""
    if not batch.apart:
        return [None] * len(batch.targets)
    centre_K12 = ((anchors_K4[:, :2] + anchors_K4[:, 2:]) / 2)[:, None]
    own_NK, apart_NK = (
        [((centre_K12 >= each[:, :2]) & (centre_K12 < each[:, 2:])).all(2).any(1) for each in boxes]
        for boxes in ([target.boxes_K4 for target in batch.targets], batch.apart)
    )
    return [own_K | ~apart_K for own_K, apart_K in zip(own_NK, apart_NK, strict=True)]


@torch.no_grad()
def instances(
    ours: Predictions,
    theirs: Predictions,
    n: int,
    size: tuple[int, int],
    most: int,
    counts_K: Tensor | None = None,
) -> Instances:
    """Of image n, whose (height, width) without padding is `size`, at the places that count; None: all."""
    apart_K = full(theirs.logits_NKC[n]).amax(1).sigmoid() - full(ours.logits_NKC[n]).amax(1).sigmoid()
    our_K4, their_K4 = (full(each.decode(each.boxes_NKD[n : n + 1], each.anchors_K4)[0]) for each in (ours, theirs))
    boxes_K4 = torch.where((apart_K > 0)[:, None], their_K4, our_K4)
    scores_Q, best_Q = apart_K.abs().topk(min(CANDIDATES, len(apart_K)))
    height, width = size
    boxes_Q4 = boxes_K4[best_Q].clamp(min=0).minimum(boxes_K4.new_tensor([width, height, width, height]))
    large_Q = (boxes_Q4[:, 2:] - boxes_Q4[:, :2] > SMALLEST).all(1)
    if counts_K is not None:
        large_Q &= counts_K[best_Q]
    boxes_Q4, scores_Q = boxes_Q4[large_Q], scores_Q[large_Q]
    kept_R = nms(boxes_Q4, scores_Q, OVERLAP)[:most]
    boxes_R4 = boxes_Q4[kept_R]
    responds_K = responding(ours.anchors_K4, boxes_R4)
    return Instances(boxes_R4, scores_Q[kept_R], responds_K if counts_K is None else responds_K & counts_K)


def responding(anchors_K4: Tensor, boxes_R4: Tensor) -> Tensor:
    """bool K: whose IoU with an instance is 0.5 or more, or the best that the instance has."""
    if not len(boxes_R4):
        return torch.zeros(len(anchors_K4), dtype=torch.bool, device=anchors_K4.device)
    iou_KR = overlap(full(anchors_K4), boxes_R4, 0.0)
    return ((iou_KR >= RESPONDS) | (iou_KR == iou_KR.amax(0))).any(1)


def pooled_error(ours_RCHW: Tensor, theirs_RCHW: Tensor) -> Tensor:
    """Squared, summed over channels, a mean over boxes and cells; 0 without boxes."""
    boxes, _, height, width = ours_RCHW.shape
    return (ours_RCHW - theirs_RCHW).square().sum() / max(1, boxes * height * width)


def relation_error(ours_RCHW: Tensor, theirs_RCHW: Tensor) -> Tensor:
    boxes = len(ours_RCHW)
    if boxes < FEWEST:
        return 0.0 * ours_RCHW.sum()
    ours_RR, theirs_RR = relations(ours_RCHW.flatten(1)), relations(theirs_RCHW.flatten(1))
    return F.smooth_l1_loss(ours_RR, theirs_RR, reduction="sum") / (boxes**2 - boxes)


def relations(pooled_RD: Tensor) -> Tensor:
    """Distances between each two, divided by their mean."""
    boxes = len(pooled_RD)
    square_R = pooled_RD.square().sum(1)
    square_RR = square_R[:, None] + square_R - 2 * pooled_RD @ pooled_RD.T
    other_RR = 1 - torch.eye(boxes, dtype=pooled_RD.dtype, device=pooled_RD.device)
    distance_RR = other_RR * square_RR.clamp(min=1e-12).sqrt()
    mean: Tensor = distance_RR.sum() / (boxes**2 - boxes)
    return distance_RR / mean.clamp(min=1e-6)
