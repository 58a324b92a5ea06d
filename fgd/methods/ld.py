"""LD (arXiv 2102.12252, 2204.05957): the box sides' distributions over bins, where a box shall be found and near it.

Official (HikariTJU/LD@4287990 `LDHead.loss`), with kl(S, T) = tau^2 / B x sum_bins P_T (log P_T - log P_S), tau 10:
    main      at each level the sum over places that shall find a box, and its 4 sides, of w kl / 4; w is the student's
              highest class score, a constant
    valuable  the same over the valuable localisation region, with w = v, / 16
    scores    the mean over a level's places that shall find a box of 2^2 / K x the KL of the K class logits' softmaxes
The valuable region of a box: anchors with 0.25 t <= D < t; t is the mean plus the standard deviation of the IoUs of the
9 nearest anchors of each level, as ATSS has it; D = intersection / area of the anchor - rho^2 / c^2, which the authors
mean as DIoU. v is the largest IoU with a box that the anchor is in the region of.
Neither main nor valuable is divided by the number of places.

    imitation the mean over chosen cells and channels of (S - T)^2, at levels where a box shall be found; cells are
    chosen by `fgd.methods.ld_regions`

The default departs from it:
- main and valuable are divided by the number of places that shall find a box, as the detector's own box losses are;
- scores are the mean over those of all levels together.
A distribution is `boxes_NKD` of 4 x B numbers, side by side. No family here predicts any yet.
"""

# N images, K places, M boxes, B bins, C classes

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fgd.method_specs import LD
from fgd.methods.base import Method, Pair
from fgd.methods.fgfi import overlap
from fgd.methods.focus import Focus, largest_of_cells
from fgd.methods.ld_regions import REGIONS, Heads, mean_error, sides_of
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, Predictions, View

NEAREST = 9
"""Anchors of each level that ATSS asks."""
LOWEST = 0.25
"""Of t, from which on an anchor is valuable."""


class LDLoss(Method):
    """Terms "main", "valuable", "scores" and "imitation", summed over levels."""

    def __init__(self, spec: LD, pair: Pair, _calibration: Calibration, _schedule: Schedule) -> None:
        super().__init__()
        terms = {"main": spec.main, "valuable": spec.valuable, "scores": spec.scores, "imitation": spec.imitation}
        self.weights = {name: weight for name, weight in terms.items() if weight}
        self.temperature, self.scores_temperature = spec.temperature, spec.scores_temperature
        self.region = REGIONS[spec.region]
        self.official = spec.compat == "official"
        self.strides = {name: level.stride for name, level in pair.levels.items()}

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            of_levels = self.levels(student, teacher, batch)
            terms = {name: torch.stack([each[name] for each in of_levels]).sum() for name in self.weights}
        return {name: weight * terms[name] for name, weight in self.weights.items()}

    def focus(self, student: View, teacher: View, batch: Batch) -> Iterator[Focus]:  # noqa: ARG002
        ours = student.predictions
        assert ours is not None
        valuable_NK = valuable_region(ours, [target.boxes_K4 for target in batch.targets])
        for level in self.strides:
            cells_NHW = largest_of_cells(valuable_NK, ours, level, student.features[level])
            yield Focus("valuable region", level, cells_NHW)

    def levels(self, student: View, teacher: View, batch: Batch) -> list[dict[str, Tensor]]:
        """The terms of each level, not yet weighted."""
        ours, theirs = student.predictions, teacher.predictions
        assert ours is not None
        assert ours.matches is not None, "places and boxes are matched in training mode only"
        assert theirs is not None
        boxes = [target.boxes_K4 for target in batch.targets]
        found_NK = (torch.stack(list(ours.matches)) >= 0).float()
        valuable_NK = valuable_region(ours, boxes)
        places = found_NK.sum().clamp(min=1)
        of_levels = []
        for level, stride in self.strides.items():
            at, found_Nk = ours.span(level), found_NK[:, ours.span(level)]
            logits, theirs_logits = rows(ours.logits_NKC, ours, level), rows(theirs.logits_NKC, theirs, level).detach()
            sides = sides_of(ours, level), sides_of(theirs, level).detach()
            apart_Nk = divergence(*sides, self.temperature).sum(2)
            confident_Nk = logits.detach().sigmoid().amax(2)
            main = (found_Nk * confident_Nk * apart_Nk).sum() / 4
            valuable = (valuable_NK[:, at] * apart_Nk).sum() / 16
            scores = (found_Nk * divergence(logits, theirs_logits, self.scores_temperature)).sum()
            terms = {"main": main, "valuable": valuable, "scores": scores / found_Nk.sum().clamp(min=1)}
            if not self.official:
                terms = {"main": main / places, "valuable": valuable / places, "scores": scores / places}
            if "imitation" in self.weights:
                chosen_Nk = self.region(Heads(ours, theirs, level, stride), boxes) * (found_Nk.sum() > 0)
                maps = student.features[level], teacher.features[level].detach()
                terms["imitation"] = mean_error(maps[0].float(), maps[1].float(), chosen_Nk)
            of_levels.append(terms)
        return of_levels


def rows(values_NKD: Tensor, predictions: Predictions, level: str) -> Tensor:
    return values_NKD[:, predictions.span(level)].float()


def divergence(ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """tau^2 / B x KL(theirs || ours) over the last dimension, of B numbers."""
    log_q, log_p = (each / temperature for each in (ours, theirs))
    log_q, log_p = log_q.log_softmax(-1), log_p.log_softmax(-1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="none", log_target=True).mean(-1)


def valuable_region(predictions: Predictions, boxes: list[Tensor]) -> Tensor:
    """v of each place, NK."""
    return torch.stack([valuable(predictions.anchors_K4, list(predictions.rows.values()), each) for each in boxes])


def valuable(anchors_K4: Tensor, rows: list[int], boxes_M4: Tensor) -> Tensor:
    """v of each place of one image; rows: how many places each level has."""
    if not len(boxes_M4):
        return anchors_K4.new_zeros(len(anchors_K4))
    iou_KM = overlap(anchors_K4, boxes_M4, 0.0)
    threshold_M = atss_thresholds(anchors_K4, rows, boxes_M4, iou_KM)
    near_KM = nearness(anchors_K4, boxes_M4)
    region_KM = (near_KM >= LOWEST * threshold_M) & (near_KM < threshold_M)
    return torch.where(region_KM, iou_KM, 0.0).amax(1)


def atss_thresholds(anchors_K4: Tensor, rows: list[int], boxes_M4: Tensor, iou_KM: Tensor) -> Tensor:
    """t of each box."""
    candidates_QM = iou_KM.gather(0, atss_candidates(anchors_K4, rows, boxes_M4))
    return candidates_QM.mean(0) + candidates_QM.std(0)


def atss_candidates(anchors_K4: Tensor, rows: list[int], boxes_M4: Tensor) -> Tensor:
    """Which places of each level are nearest to each box, QM."""
    distance_KM = torch.cdist(centres(anchors_K4), centres(boxes_M4))
    first, found = 0, []
    for of_level_KM in torch.split(distance_KM, rows):
        nearest_QM = of_level_KM.topk(min(NEAREST, len(of_level_KM)), dim=0, largest=False).indices
        found.append(nearest_QM + first)
        first += len(of_level_KM)
    return torch.cat(found)


def nearness(anchors_K4: Tensor, boxes_M4: Tensor) -> Tensor:
    """D: the intersection by the anchor's area, less the centres' distance by the diagonal of what encloses both."""
    low_KM2 = torch.maximum(anchors_K4[:, None, :2], boxes_M4[:, :2])
    high_KM2 = torch.minimum(anchors_K4[:, None, 2:], boxes_M4[:, 2:])
    area_K1 = (anchors_K4[:, 2:] - anchors_K4[:, :2]).prod(1, keepdim=True)
    outer_KM2 = torch.maximum(anchors_K4[:, None, 2:], boxes_M4[:, 2:]) - torch.minimum(
        anchors_K4[:, None, :2], boxes_M4[:, :2]
    )
    distance_KM2 = centres(anchors_K4)[:, None] - centres(boxes_M4)
    common_KM = (high_KM2 - low_KM2).clamp(min=0).prod(2)
    return common_KM / area_K1 - distance_KM2.square().sum(2) / outer_KM2.square().sum(2)


def centres(boxes_K4: Tensor) -> Tensor:
    return (boxes_K4[:, :2] + boxes_K4[:, 2:]) / 2
