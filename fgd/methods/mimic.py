"""Plain imitation of the neck's maps: FitNets' hint (arXiv 1412.6550) on a detector's pyramid."""

# N images, C channels of the teacher, P cells of one level

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fgd.method_specs import Mimic
from fgd.methods.base import Method, Pair, adapters, resolved, same_size
from fgd.methods.focus import Focus, of_both
from fgd.methods.geometry import Grid, Layout, scale_masks, tight, valid_cells
from fgd.methods.maps import WantedSums, compare
from fgd.methods.paired import full
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, View


class MimicLoss(Method):
    """Term "feature": weight x sum over levels of mean_N mean_valid sum_C (F^T - a(F^S))^2, on maps as they are.

    Already a mean over cells, so neither calibration nor schedule changes it; a: 1x1 adapter where widths differ.
    Inside: only cells whose centre lies in a box, or the one under its own centre; outside: the others. An image
    without such cells adds nothing.
    """

    def __init__(self, spec: Mimic, pair: Pair, _calibration: Calibration, _schedule: Schedule) -> None:
        super().__init__()
        self.weight = resolved(spec.weight)
        self.where = spec.where
        self.align = adapters(pair) if self.weight else nn.ModuleDict()

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        if not self.weight:
            return {}
        device = batch.images_NCHW.device
        ours, theirs = student.features, teacher.features
        grid = Grid.of(tuple(tuple(theirs[level].shape[-2:]) for level in self.align), device)
        valid_NP, cells_NL = self._compared(batch, grid)
        errors_N = []
        # Sums over C and H x W of squares exceed float16 and lose digits in bfloat16.
        with torch.autocast(device.type, enabled=False):
            for level, of_level_NP in zip(self.align, grid.split(valid_NP), strict=True):
                same_size(level, ours[level], theirs[level])
                aligned_NCHW = self.align[level](ours[level])
                student_NCP, teacher_NCP = aligned_NCHW.flatten(2), theirs[level].flatten(2)
                sums = compare(student_NCP, teacher_NCP, of_level_NP, WantedSums(error=True))
                errors_N.append((sums.error_NP * of_level_NP).sum(1))
        means_NL = torch.stack(errors_N, 1) / cells_NL.clamp(min=1)
        return {"feature": self.weight * means_NL.sum(1).mean()}

    def focus(self, student: View, teacher: View, batch: Batch) -> Iterator[Focus]:
        """Which cells are compared, and how strong each network's map is there: the mean of |F| over channels."""
        if not self.weight:
            return
        device, ours, theirs = batch.images_NCHW.device, student.features, teacher.features
        grid = Grid.of(tuple(tuple(theirs[level].shape[-2:]) for level in self.align), device)
        with torch.autocast(device.type, enabled=False):
            compared_NP, _ = self._compared(batch, grid)
            for level, of_level_NP, size in zip(self.align, grid.split(compared_NP), grid.sizes, strict=True):
                counts_NHW = of_level_NP.view(-1, *size).float()
                yield Focus("compared cells", level, counts_NHW)
                their_NHW, our_NHW = (
                    counts_NHW * full(each).abs().mean(1) for each in (theirs[level], self.align[level](ours[level]))
                )
                yield from of_both("strength", level, teacher=their_NHW, student=our_NHW)

    def _compared(self, batch: Batch, grid: Grid) -> tuple[Tensor, Tensor]:
        """Which cells of all levels are compared, bool NP, and how many of each level, NL."""
        layout = Layout.of(batch, batch.images_NCHW.device)
        valid_NP, cells_NL = valid_cells(layout, grid)
        if self.where == "everywhere":
            return valid_NP, cells_NL
        foreground_NP, background_NP = scale_masks(tight(layout, grid), valid_NP, grid)
        chosen_NP = (foreground_NP if self.where == "inside" else background_NP) > 0
        return chosen_NP, torch.stack([each.sum(1) for each in grid.split(chosen_NP)], 1)
