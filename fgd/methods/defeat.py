"""DeFeat (arXiv 2103.14475): imitation inside and outside the boxes apart, each box on exactly one level.

Official (ggjy/DeFeat.pytorch@c46a793): a box belongs to level floor(log2(sqrt((w + 1)(h + 1)) / 56 + 1e-6)) of the
pyramid, the first or last at most. Its cells there are the truncated coordinates / stride, right and bottom end
excluded; one that is empty so has the one cell of its corner. d = conv3x3(S) - T, without ReLU, its weights tiny at
first. With sums over the batch: foreground sum m d^2 / max(1, 2 C sum m), background the same with 1 - m; both
averaged over levels. Head term, switched off in the configuration that is shipped: KL of the class scores of regions,
T = 1, the mean over those with an object and over the rest. Its regions are drawn by the teacher.

The default departs from it:
- both maps come to the teacher's common scale;
- a box belongs to the level at which its side is 14 to 28 cells, as 56 pixels are at stride 4: for pyramids that begin
  at another stride;
- its cells are those whose centre lies in it, clamped to the image; cells of the padding are neither inside nor
  outside;
- means of each image, then over images: every image weighs the same;
- the adapter begins as PyTorch does, for with tiny weights the student's gradient is tiny too.
In both the regions are those that the student draws for its own losses, and the teacher is asked about them.
"""

# N images, K boxes, L levels, C channels or classes, R regions, H x W cells of a level

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from fgd.method_specs import DeFeat
from fgd.methods.base import Convolution3x3, Method, Pair, resolved
from fgd.methods.focus import Focus
from fgd.methods.geometry import Grid, Layout, Rectangles, scale_masks, tight
from fgd.methods.paired import PairedMaps, paired, scales_of
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, Regions, View

SIDE = 56
"""Pixels: a box of this side or less belongs to the first level."""
CELLS = 14
"""56 pixels in cells of stride 4, the first level's of the authors' pyramid."""
TINY = 2e-4
"""The adapter's largest weight at first, officially."""


class DeFeatLoss(Method):
    """Terms "fg" and "bg", averaged over levels; "head_fg" and "head_bg"."""

    def __init__(self, spec: DeFeat, pair: Pair, calibration: Calibration, _schedule: Schedule) -> None:
        super().__init__()
        self.foreground, self.background = resolved(spec.foreground), resolved(spec.background)
        self.head_foreground, self.head_background = spec.head_foreground, spec.head_background
        self.official = spec.compat == "official"
        on = pair if self.foreground or self.background else Pair({})
        self.strides = [level.stride for level in on.levels.values()]
        self.scales = scales_of(on, calibration, official=self.official)
        self.adapt = nn.ModuleDict(
            {name: Convolution3x3(level.student_channels, level.teacher_channels) for name, level in on.levels.items()}
        )
        for each in self.adapt.values() if self.official else ():
            assert isinstance(each, Convolution3x3)
            assert each.bias is not None
            nn.init.uniform_(each.weight, -TINY, TINY)
            nn.init.zeros_(each.bias)

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            if self.scales:
                terms |= self._of_maps(student, teacher, batch)
            if self.head_foreground or self.head_background:
                terms |= self._of_head(student, teacher)
        return terms

    def focus(self, student: View, teacher: View, batch: Batch) -> Iterator[Focus]:  # noqa: ARG002
        if not self.scales:
            return
        for level, mask_N1HW in self.masks(batch, teacher.features).items():
            yield Focus("boxes of the level", level, mask_N1HW[:, 0].float())

    def _of_maps(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        masks = self.masks(batch, teacher.features)
        inside, outside = [], []
        for maps in paired(student, teacher, batch, align=self.adapt, scales=self.scales, official=self.official):
            mask_N1HW = masks[maps.level].to(maps.valid_N1HW)
            inside.append(self._mean(maps, mask_N1HW))
            outside.append(self._mean(maps, maps.valid_N1HW * (1 - mask_N1HW)))
        terms = {}
        if self.foreground:
            terms["fg"] = self.foreground * torch.stack(inside).mean()
        if self.background:
            terms["bg"] = self.background * torch.stack(outside).mean()
        return terms

    def _mean(self, maps: PairedMaps, mask_N1HW: Tensor) -> Tensor:
        """Half the mean squared difference under the mask."""
        images, channels = maps.teacher_NCHW.shape[:2]
        square_N = (mask_N1HW * (maps.student_NCHW - maps.teacher_NCHW).square()).flatten(1).sum(1)
        cells_N = mask_N1HW.flatten(1).sum(1)
        if self.official:
            return square_N.sum() / (2 * channels * cells_N.sum()).clamp(min=1)
        return (square_N / (2 * channels * cells_N).clamp(min=1)).sum() / images

    def masks(self, batch: Batch, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Level -> bool N1HW: the cells of the boxes that belong to it."""
        device = batch.images_NCHW.device
        sizes = {level: (int(features[level].shape[2]), int(features[level].shape[3])) for level in self.scales}
        grid, layout = Grid.of(tuple(sizes.values()), device), Layout.of(batch, device)
        if self.official:
            cells, level_NK = official_cells(layout, grid, self.strides), official_levels(layout, len(self.strides))
        else:
            cells, level_NK = tight(layout, grid), levels_by_cells(layout, self.strides)
        elsewhere_NLK = torch.arange(len(sizes), device=device)[:, None] != level_NK[:, None]
        own = replace(cells, share_NLK=cells.share_NLK.masked_fill(elsewhere_NLK, 0.0))
        all_NP = torch.ones(len(level_NK), len(grid.level_P), dtype=torch.bool, device=device)
        foreground_NP, _ = scale_masks(own, all_NP, grid)
        split = zip(sizes.items(), grid.split(foreground_NP > 0), strict=True)
        return {level: mask_Np.view(-1, 1, *size) for (level, size), mask_Np in split}

    def _of_head(self, student: View, teacher: View) -> dict[str, Tensor]:
        drawn = student.predictions.regions if student.predictions is not None else None
        assert drawn is not None, "the student's regions are drawn in training mode"
        assert drawn.labels_R is not None
        assert teacher.regions is not None
        theirs: Regions = teacher.regions(drawn.proposals)
        foreground, background = head_terms(drawn.logits_RC, theirs.logits_RC, drawn.labels_R > 0)
        terms = {}
        if self.head_foreground:
            terms["head_fg"] = self.head_foreground * foreground
        if self.head_background:
            terms["head_bg"] = self.head_background * background
        return terms


def official_levels(layout: Layout, levels: int) -> Tensor:
    """int64 NK."""
    x1, y1, x2, y2 = layout.boxes_NK4.unbind(-1)
    side_NK = ((x2 - x1 + 1) * (y2 - y1 + 1)).sqrt()
    return (side_NK / SIDE + 1e-6).log2().floor().long().clamp(0, levels - 1)


def levels_by_cells(layout: Layout, strides: list[int]) -> Tensor:
    """int64 NK: the coarsest level at which the box's side is 14 cells or more; else the finest."""
    x1, y1, x2, y2 = layout.boxes_NK4.unbind(-1)
    side_NK1 = ((x2 - x1) * (y2 - y1)).sqrt()[..., None]
    wanted_L = CELLS * side_NK1.new_tensor(strides)
    return ((side_NK1 >= wanted_L).sum(-1) - 1).clamp(min=0)


def official_cells(layout: Layout, grid: Grid, strides: list[int]) -> Rectangles:
    height_L1, width_L1 = grid.lines.size_L1, grid.columns.size_L1
    stride_L1 = torch.tensor(strides, device=layout.boxes_NK4.device)[:, None]
    left, top, right, bottom = ((each / stride_L1).long() for each in layout.boxes_NK4[:, None].unbind(-1))
    right, bottom = right.minimum(width_L1), bottom.minimum(height_L1)
    empty = (left == right) | (top == bottom)
    right, bottom = torch.where(empty, left + 1, right), torch.where(empty, top + 1, bottom)
    share_NLK = 1.0 / ((right - left) * (bottom - top)).clamp(min=1)
    return Rectangles(left, top, right, bottom, torch.where(layout.present_NK[:, None], share_NLK, 0.0))


def head_terms(ours_RC: Tensor, theirs_RC: Tensor, object_R: Tensor) -> tuple[Tensor, Tensor]:
    """KL of the class scores, the mean over regions with an object and over those without; 0 where there are none."""
    p_RC = theirs_RC.detach().softmax(1)
    apart_R = (p_RC * (theirs_RC.detach().log_softmax(1) - ours_RC.log_softmax(1))).sum(1)
    of_object, of_rest = ((apart_R * each).sum() / each.sum().clamp(min=1) for each in (object_R, ~object_R))
    return of_object, of_rest
