"""Plain imitation of the neck's maps: FitNets' hint (arXiv 1412.6550) on a detector's pyramid."""

# N images, C channels of the teacher, H x W cells of one level

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fgd.methods.base import Method, Pair, align_convs, resolved, same_size
from fgd.methods.geometry import Layout, valid_cells
from fgd.spec import Mimic, Schedule
from fgd.types import Batch, Calibration


class MimicLoss(Method):
    """Term "feature": weight x sum over levels of mean_N mean_valid sum_C (F^T - a(F^S))^2, on maps as they are.

    Already a mean over cells, so neither calibration nor schedule changes it; a: 1x1 adapter where widths differ.
    """

    def __init__(self, spec: Mimic, pair: Pair, _calibration: Calibration, _schedule: Schedule) -> None:
        super().__init__()
        self.weight = resolved(spec.weight)
        self.align = align_convs(pair) if self.weight else nn.ModuleDict()

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        if not self.weight:
            return {}
        device = batch.images_NCHW.device
        layout = Layout.of(batch, device)
        losses = []
        # Sums over C and H x W of squares exceed float16 and lose digits in bfloat16.
        with torch.autocast(device.type, enabled=False):
            for level, align in self.align.items():
                same_size(level, student[level], teacher[level])
                difference_NCHW = align(student[level].float()) - teacher[level].detach().float()
                valid_NHW = valid_cells(layout, *difference_NCHW.shape[-2:])
                error_N = (difference_NCHW.square().sum(1) * valid_NHW).sum((1, 2))
                losses.append((error_N / valid_NHW.sum((1, 2))).mean())
        return {"feature": self.weight * torch.stack(losses).sum()}
