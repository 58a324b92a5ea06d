"""TADF (Task Adaptive Regularization, arXiv 2006.13108): imitation under a Gaussian in each box.

There is no original code; this is the paper's feature term: m = exp(- (x - x0)^2 / (s (w / 2))^2 - (y - y0)^2 / (s (h
/ 2))^2) at cells inside the box around (x0, y0), 0 outside, the largest over boxes; the sum of m (a(S) - T)^2 divided
by 2 sum m. Its terms of the head, on places that shall find a box, are not here: `chen2017`, `frs` and `crosskd` are
methods for heads.

Where the paper is silent:
- both maps come to the teacher's common scale, and the sum over channels is scaled to the reference's width;
- x and y are a cell's centre: a box that holds none on a level has nothing there;
- every box has its Gaussian on every level; the mean is over an image's cells, then over images, and levels add up;
- a is a 1x1 convolution where widths differ.
"""

# N images, K boxes, C channels, H x W cells of a level, P cells of all levels together

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fgd.method_specs import TADF
from fgd.methods.base import Method, Pair, adapters, resolved
from fgd.methods.focus import Focus
from fgd.methods.geometry import Layout
from fgd.methods.paired import paired, per_width, scales_of, valid_masks
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, View

TINY = 1e-6
TOGETHER = 64
"""Boxes whose Gaussians are computed at a time: memory does not grow with a crowd."""


class TADFLoss(Method):
    """Term "feature", summed over levels."""

    def __init__(self, spec: TADF, pair: Pair, calibration: Calibration, _schedule: Schedule) -> None:
        super().__init__()
        self.weight, self.spread = resolved(spec.weight), spec.spread
        on = pair if self.weight else Pair({})
        self.scales = scales_of(on, calibration, official=False)
        self.factors = {name: per_width(level.teacher_channels) for name, level in on.levels.items()}
        self.align = adapters(on)

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        if not self.weight:
            return {}
        masks = gaussians(batch, {level: teacher.features[level] for level in self.scales}, self.spread)
        errors = []
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            for maps in paired(student, teacher, batch, align=self.align, scales=self.scales, official=False):
                mask_N1HW = (masks[maps.level] * maps.valid_N1HW).to(maps.teacher_NCHW)
                square_N = (mask_N1HW * (maps.student_NCHW - maps.teacher_NCHW).square()).sum((1, 2, 3))
                total_N = mask_N1HW.sum((1, 2, 3))
                error_N = torch.where(total_N > 0, square_N / (2 * total_N.clamp(min=TINY)), 0.0)
                errors.append(self.factors[maps.level] * error_N.mean())
        return {"feature": self.weight * torch.stack(errors).sum()}

    def focus(self, student: View, teacher: View, batch: Batch) -> Iterator[Focus]:  # noqa: ARG002
        maps = {level: teacher.features[level] for level in self.scales}
        masks, valid = gaussians(batch, maps, self.spread), valid_masks(batch, maps)
        for level, mask_N1HW in masks.items():
            yield Focus("Gaussians", level, (mask_N1HW * valid[level])[:, 0])


def gaussians(batch: Batch, features: Mapping[str, Tensor], spread: float) -> dict[str, Tensor]:
    """Level -> m, N1HW."""
    layout = Layout.of(batch, batch.images_NCHW.device)
    padded_height, padded_width = layout.padded_size
    made = {}
    for level, map_NCHW in features.items():
        height, width = map_NCHW.shape[2:]
        y_H, x_W = middles(height, padded_height, map_NCHW.device), middles(width, padded_width, map_NCHW.device)
        mask_NHW = map_NCHW.new_zeros(len(map_NCHW), height, width, dtype=torch.float32)
        boxes, present = torch.split(layout.boxes_NK4, TOGETHER, 1), torch.split(layout.present_NK, TOGETHER, 1)
        for boxes_NK4, present_NK in zip(boxes, present, strict=True):
            x1, y1, x2, y2 = boxes_NK4.unbind(2)
            of_lines_NKH, of_columns_NKW = along(y1, y2, y_H, spread), along(x1, x2, x_W, spread)
            of_boxes_NKHW = of_lines_NKH[..., :, None] * of_columns_NKW[..., None, :] * present_NK[..., None, None]
            if boxes_NK4.shape[1]:
                mask_NHW = mask_NHW.maximum(of_boxes_NKHW.amax(1))
        made[level] = mask_NHW[:, None]
    return made


def middles(cells: int, pixels: int, device: torch.device) -> Tensor:
    """Where the cells' centres lie along one axis of the padded input."""
    return (torch.arange(cells, device=device) + 0.5) * pixels / cells


def along(low_NK: Tensor, high_NK: Tensor, at_R: Tensor, spread: float) -> Tensor:
    """The Gaussian along one axis, NKR; 0 outside the box."""
    middle_NK1, half_NK1 = ((low_NK + high_NK) / 2)[..., None], ((high_NK - low_NK) / 2)[..., None]
    inside_NKR = (at_R >= low_NK[..., None]) & (at_R < high_NK[..., None])
    return inside_NKR * (-((at_R - middle_NK1) / (spread * half_NK1).clamp(min=TINY)).square()).exp()
