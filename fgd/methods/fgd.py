"""Focal and Global Knowledge Distillation for Detectors (arXiv 2111.11837), equations 1-13.

`compat: official` gives the numbers of the reference (yzd-v/FGD@c03a6cf); `tests/parity` holds them. The default
departs from it in scale and geometry only; each departure is explained where it is made.
"""

# N images, C channels of the teacher, P cells of one level, or of all levels together

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from fgd.method_specs import FGD
from fgd.methods.attention import attention_focus, temperatures
from fgd.methods.base import Method, Pair, adapters, resolved, same_size
from fgd.methods.context import ContextBlock, context_focus
from fgd.methods.focus import Focus
from fgd.methods.geometry import BoxCells, Grid, Layout, inclusive, official, scale_masks, tight, valid_cells
from fgd.methods.maps import Attend, Sums, WantedSums, compare
from fgd.methods.paired import REFERENCE_BOXES, masked, paired, per_size, per_width, scales_of
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, View

BOX_CELLS: dict[str, BoxCells] = {"tight": tight, "inclusive": inclusive}


@dataclass(frozen=True)
class TermWeights:
    """What each sum of the finest level is multiplied by; 0 switches it off."""

    foreground: float
    background: float
    spatial: float
    channel: float
    global_: float

    @property
    def feature(self) -> bool:
        return bool(self.foreground or self.background)

    @property
    def any_on(self) -> bool:
        return any((self.foreground, self.background, self.spatial, self.channel, self.global_))


def weights(spec: FGD, pair: Pair, calibration: Calibration, schedule: Schedule) -> TermWeights:
    """alpha, beta, gamma, gamma, lambda; by default brought from the reference's geometry to the job's.

    FGD sums over channels and cells, and its foreground term grows with the number of boxes, so the published
    weights hold for one width, input size and crowd only. A level of another width than the finest has its sums over
    channels brought to the finest one's (`FGDLoss.narrower`).
    """
    alpha, beta, gamma, lambda_ = (resolved(n) for n in (spec.alpha, spec.beta, spec.gamma, spec.lambda_))
    if spec.compat == "official":
        return TermWeights(alpha, beta, gamma, gamma, lambda_)
    by_channels = per_width(next(iter(pair.levels.values())).teacher_channels)
    by_size = per_size(schedule)
    # Without boxes there is no foreground: any finite factor will do.
    by_boxes = REFERENCE_BOXES / calibration.boxes_per_image if calibration.boxes_per_image > 0 else 1.0
    return TermWeights(
        foreground=alpha * by_channels * by_boxes,
        background=beta * by_channels,
        spatial=gamma * by_size,
        channel=gamma * by_channels,
        global_=lambda_ * by_channels * by_size,
    )


class FGDLoss(Method):
    """Terms "fg", "bg" (equation 8), "attention" (9), "global" (12), summed over levels (13), divided by N."""

    def __init__(self, spec: FGD, pair: Pair, calibration: Calibration, schedule: Schedule) -> None:
        super().__init__()
        self.weights = weights(spec, pair, calibration, schedule)
        self.shares = spec.shares.by_term() if spec.shares is not None else None
        self.official = spec.compat == "official"
        self.scales = scales_of(pair, calibration, official=self.official) if self.weights.any_on else {}
        self.temperature = spec.temperature
        self.temperatures = temperatures(spec, pair.levels, calibration)
        self.box_cells = official if self.official else BOX_CELLS[spec.box_cells or "tight"]
        # A module whose term is off would never get a gradient, which DistributedDataParallel does not forgive.
        self.align = adapters(pair) if self.weights.any_on else nn.ModuleDict()
        self.widths = [level.teacher_channels for level in pair.levels.values()]
        self.narrower = [self.widths[0] / width for width in self.widths]
        """The finest level's width by each one's."""
        in_global = pair.levels if self.weights.global_ else {}
        widths = {name: level.teacher_channels for name, level in in_global.items()}
        self.student_context = nn.ModuleDict({level: ContextBlock(width) for level, width in widths.items()})
        self.teacher_context = nn.ModuleDict({level: ContextBlock(width) for level, width in widths.items()})
        self.teacher_context.requires_grad_(not spec.freeze_teacher_gc)

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        if not self.weights.any_on:
            return {}
        device = batch.images_NCHW.device
        ours, theirs = student.features, teacher.features
        grid = Grid.of(tuple(tuple(theirs[level].shape[-2:]) for level in self.scales), device)
        # Sums over C, H and W of squares exceed float16 and lose digits in bfloat16.
        with torch.autocast(device.type, enabled=False):
            cells = self._cells(Layout.of(batch, device), grid)
            of_levels = []
            for level, valid_NP in zip(self.scales, grid.split(cells.valid_NP), strict=True):
                same_size(level, ours[level], theirs[level])
                of_levels.append(self._sums(level, ours[level], theirs[level], valid_NP))
            terms = self._terms(of_levels, cells)
        return {name: value / len(batch.targets) for name, value in terms.items()}

    def focus(self, student: View, teacher: View, batch: Batch) -> Iterator[Focus]:
        """By the formulas as they stand, of the maps one level at a time."""
        if not self.weights.any_on:
            return
        device, theirs = batch.images_NCHW.device, teacher.features
        grid = Grid.of(tuple(tuple(theirs[level].shape[-2:]) for level in self.scales), device)
        with torch.autocast(device.type, enabled=False):
            cells = self._cells(Layout.of(batch, device), grid)
            masks = zip(grid.split(cells.foreground_NP), grid.split(cells.background_NP), grid.sizes, strict=True)
            levels = paired(student, teacher, batch, align=self.align, scales=self.scales, official=self.official)
            for maps, (foreground_NP, background_NP, size) in zip(levels, masks, strict=True):
                if self.weights.feature:
                    of_cells = (each.view(-1, *size) for each in (foreground_NP, background_NP))
                    yield from mask_focus(maps.level, *of_cells)
                yield from attention_focus(maps, self.temperatures[maps.level])
                if self.weights.global_:
                    ours, other = self.student_context[maps.level], self.teacher_context[maps.level]
                    assert isinstance(ours, ContextBlock)
                    assert isinstance(other, ContextBlock)
                    yield from context_focus(ours, other, maps)

    def _cells(self, layout: Layout, grid: Grid) -> Cells:
        valid_NP, counts_NL = valid_cells(layout, grid, padding=self.official)  # it takes the padding for background
        foreground_NP, background_NP = scale_masks(self.box_cells(layout, grid), valid_NP, grid)
        return Cells(grid, valid_NP, counts_NL, foreground_NP, background_NP)

    def _sums(self, level: str, student_NCHW: Tensor, teacher_NCHW: Tensor, valid_NP: Tensor) -> Sums:
        """The sums over one level's maps.

        The maps stay as they are: their common scale goes into temperature and weights, and in front of the sums.
        """
        on, scale = self.weights, self.scales[level]
        return compare(
            self.align[level](student_NCHW).flatten(2),
            teacher_NCHW.flatten(2),
            valid_NP,
            WantedSums(feature=on.feature, magnitude=bool(on.spatial), context=bool(on.global_)),
            temperature=self.temperatures[level].channel / scale,
            attend=self._attend(level, scale) if on.global_ else None,
        )

    def _attend(self, level: str, scale: float) -> Attend:
        student, teacher = self.student_context[level], self.teacher_context[level]
        assert isinstance(student, ContextBlock)
        assert isinstance(teacher, ContextBlock)
        student_bias, teacher_bias = student.attend.bias, teacher.attend.bias
        assert student_bias is not None
        assert teacher_bias is not None
        return Attend(scale * student.attend.weight, student_bias, scale * teacher.attend.weight, teacher_bias)

    def _terms(self, sums: list[Sums], cells: Cells) -> dict[str, Tensor]:
        """The weighted terms of all levels, not yet divided by N."""
        on = self.weights
        by_width = [1.0] * len(sums) if self.official else self.narrower
        of_levels = [list(self.scales.values()), self.narrower, by_width]
        spatial, channel = self.temperatures[next(iter(self.scales))]
        if self.temperature == "auto":
            of_levels += [list(each) for each in zip(*(self.temperatures[level] for level in self.scales), strict=True)]
        scale_L, narrower_L, by_width_L, *found_L = torch.tensor(of_levels).to(sums[0].feature_NP, non_blocking=True)
        spatial_L, channel_L1 = (found_L[0], found_L[1][:, None]) if found_L else (spatial, channel)
        level_P, scale_L1 = cells.grid.level_P, scale_L[:, None]
        square_P = (scale_L.square() * by_width_L)[level_P]
        spatial_sharpness_P = (scale_L / (self.widths[0] * spatial_L) * narrower_L)[level_P]
        channel_sharpness_NL1 = scale_L1 / (cells.counts_NL[..., None].clamp(min=1) * channel_L1)

        terms: dict[str, Tensor] = {}
        if on.feature or on.spatial:
            teacher_cells_NP = torch.cat([each.teacher_cells_NP for each in sums], 1)
            spatial_NP = spatial_attention(teacher_cells_NP * spatial_sharpness_P, cells)
        if on.feature:
            error_NP = spatial_NP * square_P * torch.cat([each.feature_NP for each in sums], 1)
            if on.foreground:
                terms["fg"] = on.foreground * (cells.foreground_NP * error_NP).sum()
            if on.background:
                terms["bg"] = on.background * (cells.background_NP * error_NP).sum()
        if on.spatial:
            # The student's after the adapter; the paper leaves it open, the reference does so.
            student_cells_NP = torch.cat([each.student_cells_NP for each in sums], 1)
            student_spatial_NP = spatial_attention(student_cells_NP * spatial_sharpness_P, cells)
            of_channels = []
            for some in of_one_width(self.widths):
                channel_NLC, student_channel_NLC = (
                    channel_attention(torch.stack(each, 1) * channel_sharpness_NL1[:, some])
                    for each in (
                        [each.teacher_channels_NC for each in sums[some]],
                        [each.student_channels_NC for each in sums[some]],
                    )
                )
                weight = on.channel * by_width[some.start]
                of_channels.append(weight * (channel_NLC - student_channel_NLC).abs().sum())
            of_cells = on.spatial * (spatial_NP - student_spatial_NP).abs().sum()
            terms["attention"] = reduce(torch.add, of_channels, of_cells)
        if on.global_:
            # R_S - R_T = scale d + b with b the same at every cell: its square is three sums instead of a map.
            error_NP = square_P * cells.valid_NP * torch.cat([each.error_NP for each in sums], 1)
            added = [self._added(*each) for each in zip(self.scales, sums, strict=True)]
            of_channels = []
            for some in of_one_width(self.widths):
                added_NLC = torch.stack(added[some], 1)
                difference_NLC = scale_L1[some] * torch.stack([each.difference_NC for each in sums[some]], 1)
                b_NLC = cells.counts_NL[:, some, None] * added_NLC + 2 * difference_NLC
                of_channels.append(by_width[some.start] * (added_NLC * b_NLC).sum())
            terms["global"] = on.global_ * reduce(torch.add, of_channels, error_NP.sum())
        return terms

    def _added(self, level: str, sums: Sums) -> Tensor:
        """NC: what the student's context block adds to every cell, less what the teacher's adds."""
        scale = self.scales[level]
        student_NC = self.student_context[level](scale * sums.student_context_NC)
        teacher_NC = self.teacher_context[level](scale * sums.teacher_context_NC)
        difference_NC: Tensor = student_NC - teacher_NC
        return difference_NC


@dataclass(frozen=True)
class Cells:
    """Of all levels in a row: which cells count, how many a level, and the scale masks of equations 2 and 3."""

    grid: Grid
    valid_NP: Tensor
    counts_NL: Tensor
    foreground_NP: Tensor
    background_NP: Tensor


def mask_focus(level: str, foreground_NHW: Tensor, background_NHW: Tensor) -> Iterator[Focus]:
    """Equation 2, and both parts of equation 3 together, which do not overlap."""
    yield Focus("foreground", level, (foreground_NHW > 0).float())
    yield Focus("scale mask", level, foreground_NHW + background_NHW, by_magnitude=True)


def spatial_attention(logits_NP: Tensor, cells: Cells) -> Tensor:
    """A^S = HW softmax_ij(mean_c |F| / T), equation 6, of mean 1 on each level.

    HW and softmax run over the valid cells only (the reference: over all); outside them A^S is 0.
    """
    levels = zip(cells.counts_NL[..., None].unbind(1), cells.grid.split(masked(logits_NP, cells.valid_NP)), strict=True)
    return torch.cat([count_N1 * logits_Np.softmax(1) for count_N1, logits_Np in levels], 1)


def of_one_width(widths: Sequence[int]) -> Iterator[slice]:
    """Runs of neighbouring levels whose maps are equally wide; all of them in most pyramids."""
    first = 0
    for level in range(1, len(widths) + 1):
        if level == len(widths) or widths[level] != widths[first]:
            yield slice(first, level)
            first = level


def channel_attention(logits_NLC: Tensor) -> Tensor:
    """A^C = C softmax_c(mean_ij |F| / T), equation 7, of mean 1."""
    return logits_NLC.shape[2] * logits_NLC.softmax(2)
