"""FGFI (arXiv 1906.03609): imitation of the cells near objects, chosen by how their anchors cover a box.

Official (twangnh/Distilling-Object-Detectors@c6583f3), on one map: for every box the anchors whose IoU with it is
above 0.5 x the best IoU of any anchor; IoU counts pixels (+1 on widths and heights), anchors outside the image count.
A cell is chosen if any of its anchors is. sum m (ReLU(conv3x3(S)) - T)^2 / (2 sum m), summed over channels, sum m over
the batch. On a pyramid each level is taken by itself and the levels add up; a batch without boxes gives 0 instead of
the authors' NaN. Their 400 steps without the term belong to schedules.

The default departs from it:
- both maps come to the teacher's common scale, and the sum over channels is scaled to the reference's width;
- the best IoU of a box is over the anchors of all levels, so that a box is imitated where its anchors lie;
- only cells of the image count; IoU is of areas;
- all chosen cells of an image in one mean, then over images: every image weighs the same.
A family of points has no anchors: squares of 8 strides stand in, as the paper has it for such.
"""

# N images, K places, M boxes, A anchors of a cell, C channels, H x W cells of a level

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fgd.method_specs import FGFI
from fgd.methods.base import Convolution3x3, Method, Pair, resolved
from fgd.methods.focus import Focus
from fgd.methods.paired import paired, per_width, scales_of, valid_masks
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, Predictions, View

POINT_SIDE = 8
"""Strides of the square around a point."""
TOGETHER = 2**24
"""IoUs computed at a time; more would only take memory."""


class FGFILoss(Method):
    """Term "feature"."""

    def __init__(self, spec: FGFI, pair: Pair, calibration: Calibration, _schedule: Schedule) -> None:
        super().__init__()
        self.weight, self.threshold, self.official = resolved(spec.weight), spec.threshold, spec.compat == "official"
        on = pair if self.weight else Pair({})
        self.scales = scales_of(on, calibration, official=self.official)
        self.strides = {name: level.stride for name, level in on.levels.items()}
        self.factors = {
            name: 1.0 if self.official else per_width(level.teacher_channels) for name, level in on.levels.items()
        }
        self.adapt = nn.ModuleDict(
            {
                name: nn.Sequential(Convolution3x3(level.student_channels, level.teacher_channels), nn.ReLU())
                for name, level in on.levels.items()
            }
        )

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        if not self.weight:
            return {}
        chosen = self._chosen(student, teacher, batch)
        errors, counts = [], []
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            for maps in paired(student, teacher, batch, align=self.adapt, scales=self.scales, official=self.official):
                mask_N1HW = maps.valid_N1HW * chosen[maps.level]
                square_N = (mask_N1HW * (maps.student_NCHW - maps.teacher_NCHW).square()).flatten(1).sum(1)
                errors.append(self.factors[maps.level] * square_N)
                counts.append(mask_N1HW.flatten(1).sum(1))
            error_NL, count_NL = torch.stack(errors, 1), torch.stack(counts, 1)
            if self.official:
                means = error_NL.sum(0) / (2 * count_NL.sum(0)).clamp(min=1)
            else:
                means = error_NL.sum(1) / (2 * count_NL.sum(1)).clamp(min=1) / len(error_NL)
        return {"feature": self.weight * means.sum()}

    def focus(self, student: View, teacher: View, batch: Batch) -> Iterator[Focus]:
        if not self.weight:
            return
        valid = valid_masks(batch, {level: teacher.features[level] for level in self.scales})
        for level, chosen_N1HW in self._chosen(student, teacher, batch).items():
            counts_N1HW = chosen_N1HW if self.official else chosen_N1HW & valid[level]
            yield Focus("cells near objects", level, counts_N1HW[:, 0].float())

    def _chosen(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        assert student.predictions is not None
        anchors = {level: anchors_of(student.predictions, level, stride) for level, stride in self.strides.items()}
        sizes = {level: (int(each.shape[2]), int(each.shape[3])) for level, each in teacher.features.items()}
        return self.chosen(anchors, sizes, [target.boxes_K4 for target in batch.targets])

    def chosen(
        self, anchors: dict[str, Tensor], sizes: dict[str, tuple[int, int]], boxes: list[Tensor]
    ) -> dict[str, Tensor]:
        """Level -> bool N1HW: whether any anchor of the cell is near a box."""
        if self.official:
            of_levels = [
                torch.stack([near(each_K4, of_image, self.threshold, 1.0) for of_image in boxes])
                for each_K4 in anchors.values()
            ]
        else:
            all_K4 = torch.cat(list(anchors.values()))
            near_NK = torch.stack([near(all_K4, of_image, self.threshold, 0.0) for of_image in boxes])
            of_levels = list(torch.split(near_NK, [len(each) for each in anchors.values()], 1))
        return {
            level: near_NK.reshape(len(boxes), 1, *sizes[level], -1).any(4)
            for level, near_NK in zip(anchors, of_levels, strict=True)
        }


def anchors_of(predictions: Predictions, level: str, stride: int) -> Tensor:
    """The level's anchors K4; for points, whose squares have the stride's side, squares of 8 strides."""
    anchors_K4 = predictions.anchors_K4[predictions.span(level)]
    sides_K2 = anchors_K4[:, 2:] - anchors_K4[:, :2]
    reach = (POINT_SIDE - 1) / 2 * stride
    grown_K4 = anchors_K4 + anchors_K4.new_tensor([-reach, -reach, reach, reach])
    return torch.where((sides_K2 == stride).all(), grown_K4, anchors_K4)  # asked on the device: nothing waits


def near(anchors_K4: Tensor, boxes_M4: Tensor, threshold: float, pixel: float) -> Tensor:
    """bool K: whose IoU with any box is above `threshold` x the best that the box has.

    pixel: what is added to widths and heights.
    """
    near_K = torch.zeros(len(anchors_K4), dtype=torch.bool, device=anchors_K4.device)
    for some_M4 in torch.split(boxes_M4.to(anchors_K4), max(1, TOGETHER // max(1, len(anchors_K4)))):
        iou_KM = overlap(anchors_K4, some_M4, pixel)
        near_K |= (iou_KM > threshold * iou_KM.amax(0)).any(1)
    return near_K


def overlap(anchors_K4: Tensor, boxes_M4: Tensor, pixel: float) -> Tensor:
    """IoU, KM."""
    low_KM2 = torch.maximum(anchors_K4[:, None, :2], boxes_M4[:, :2])
    high_KM2 = torch.minimum(anchors_K4[:, None, 2:], boxes_M4[:, 2:])
    common_KM = (high_KM2 - low_KM2 + pixel).clamp(min=0).prod(2)
    area_K1, area_M = ((each[:, 2:] - each[:, :2] + pixel).prod(1) for each in (anchors_K4, boxes_M4))
    return common_KM / (area_K1[:, None] + area_M - common_KM)
