"""Focal and Global Knowledge Distillation for Detectors (arXiv 2111.11837), equations 1-13.

`compat: official` gives the numbers of the reference (yzd-v/FGD@c03a6cf); `tests/parity` holds them. The default
departs from it in scale and geometry only; each departure is told where it is made.
"""

# N images, C channels of the teacher, P cells of one level, or of all levels together

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fgd.errors import TeacherUnfit
from fgd.methods.base import Method, Pair, align_convs, aligned, resolved, same_size
from fgd.methods.context import ContextBlock
from fgd.methods.geometry import BoxCells, Grid, Layout, inclusive, official, scale_masks, tight, valid_cells
from fgd.methods.maps import Attend, Wanted, channel_attention, compare
from fgd.spec import FGD, Schedule
from fgd.types import Batch, Calibration

TEACHER_RMS = 0.3
"""What both maps are brought to: low enough that at T 0.5-0.8 the attentions stay spread over the map."""
REFERENCE_CHANNELS = 256
REFERENCE_PIXELS = 800 * 1344
REFERENCE_BOXES = 7.3
"""Width, input size and mean boxes per image (COCO) for which the published weights were found."""

BOX_CELLS: dict[str, BoxCells] = {"tight": tight, "inclusive": inclusive}


@dataclass(frozen=True)
class Weights:
    """What each sum is multiplied by; 0 switches it off."""

    foreground: float
    background: float
    spatial: float
    channel: float
    global_: float

    @property
    def any_on(self) -> bool:
        return any((self.foreground, self.background, self.spatial, self.channel, self.global_))


def weights(spec: FGD, pair: Pair, calibration: Calibration, schedule: Schedule) -> Weights:
    """alpha, beta, gamma, gamma, lambda; by default brought from the reference's geometry to the job's.

    FGD sums over channels and cells, and its foreground term grows with the number of boxes, so the published
    weights hold for one width, input size and crowd only.
    """
    alpha, beta, gamma, lambda_ = (resolved(n) for n in (spec.alpha, spec.beta, spec.gamma, spec.lambda_))
    if spec.compat == "official":
        return Weights(alpha, beta, gamma, gamma, lambda_)
    by_channels = REFERENCE_CHANNELS / pair.teacher_channels
    by_size = REFERENCE_PIXELS / (schedule.max_size * schedule.min_size)
    # Without boxes there is no foreground: any finite factor will do.
    by_boxes = REFERENCE_BOXES / calibration.boxes_per_image if calibration.boxes_per_image > 0 else 1.0
    return Weights(
        foreground=alpha * by_channels * by_boxes,
        background=beta * by_channels,
        spatial=gamma * by_size,
        channel=gamma * by_channels,
        global_=lambda_ * by_channels * by_size,
    )


def scales(spec: FGD, pair: Pair, calibration: Calibration) -> dict[str, float]:
    """Level -> what both maps are multiplied by: 1 officially, else what brings the teacher's RMS to 0.3.

    Raises TeacherUnfit for a level on which the teacher says nothing, or nothing finite.
    """
    if spec.compat == "official":
        return dict.fromkeys(pair.levels, 1.0)
    for level in pair.levels:
        rms = calibration.teacher_rms[level]
        if not (math.isfinite(rms) and rms > 0):
            raise TeacherUnfit(f"the teacher's map at {level} has RMS {rms}; train the teacher again")
    return {level: TEACHER_RMS / calibration.teacher_rms[level] for level in pair.levels}


class FGDLoss(Method):
    """Terms "fg", "bg" (equation 8), "attention" (9), "global" (12), summed over levels (13), divided by N."""

    def __init__(self, spec: FGD, pair: Pair, calibration: Calibration, schedule: Schedule) -> None:
        super().__init__()
        self.weights = weights(spec, pair, calibration, schedule)
        self.scales = scales(spec, pair, calibration) if self.weights.any_on else {}
        self.temperature = resolved(spec.temperature)
        self.official = spec.compat == "official"
        self.box_cells = official if self.official else BOX_CELLS[spec.box_cells or "tight"]
        # A module whose term is off would never get a gradient, which DistributedDataParallel does not forgive.
        self.align = align_convs(pair) if self.weights.any_on else nn.ModuleDict()
        in_global = pair.levels if self.weights.global_ else {}
        self.student_context = nn.ModuleDict({level: ContextBlock(pair.teacher_channels) for level in in_global})
        self.teacher_context = nn.ModuleDict({level: ContextBlock(pair.teacher_channels) for level in in_global})
        self.teacher_context.requires_grad_(not spec.freeze_teacher_gc)

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        if not self.weights.any_on:
            return {}
        device = batch.images_NCHW.device
        grid = Grid.of(tuple(tuple(teacher[level].shape[-2:]) for level in self.scales), device)
        totals: dict[str, Tensor] = {}
        # Sums over C, H and W of squares exceed float16 and lose digits in bfloat16.
        with torch.autocast(device.type, enabled=False):
            cells = self._cells(Layout.of(batch, device), grid)
            for level, *of_level in zip(self.scales, *map(grid.split, cells), strict=True):
                same_size(level, student[level], teacher[level])
                terms = self._level(level, student[level], teacher[level].detach(), *of_level)
                totals = {name: totals[name] + term if totals else term for name, term in terms.items()}
        return totals

    def _cells(self, layout: Layout, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """NP of all levels: which cells are valid, foreground and background of equations 2 and 3."""
        valid_NP = valid_cells(layout, grid)
        if self.official:  # the reference takes the padding for background
            valid_NP = torch.ones_like(valid_NP)
        return valid_NP, *scale_masks(self.box_cells(layout, grid), valid_NP, grid)

    def _level(
        self,
        level: str,
        student_NCHW: Tensor,
        teacher_NCHW: Tensor,
        valid_NP: Tensor,
        foreground_NP: Tensor,
        background_NP: Tensor,
    ) -> dict[str, Tensor]:
        """The weighted terms of one level, from sums over its maps.

        The maps stay as they are; their common scale goes into the temperature and in front of the sums.
        """
        on, scale = self.weights, self.scales[level]
        aligned_NCHW = aligned(self.align[level], student_NCHW)
        images, channels = teacher_NCHW.shape[:2]
        temperature = self.temperature / scale
        wanted = Wanted(
            feature=bool(on.foreground or on.background),
            magnitude=bool(on.spatial),
            context=bool(on.global_),
        )
        sums = compare(
            aligned_NCHW.flatten(2),
            teacher_NCHW.flatten(2),
            valid_NP,
            wanted,
            temperature=temperature,
            attend=self._attend(level, scale) if on.global_ else None,
        )
        cells_N = valid_NP.sum(1)

        terms: dict[str, Tensor] = {}
        if wanted.feature or wanted.magnitude:
            spatial_NP = spatial_attention(sums.teacher_cells_NP / channels, temperature, valid_NP, cells_N)
        if wanted.feature:
            error_NP = scale**2 * spatial_NP * sums.feature_NP
            if on.foreground:
                terms["fg"] = on.foreground * (foreground_NP * error_NP).sum()
            if on.background:
                terms["bg"] = on.background * (background_NP * error_NP).sum()
        if wanted.magnitude:
            # After the adapter; the paper leaves it open, the reference does so.
            student_spatial_NP = spatial_attention(sums.student_cells_NP / channels, temperature, valid_NP, cells_N)
            student_channel_NC = channel_attention(sums.student_channels_NC, cells_N, temperature)
            channel_NC = channel_attention(sums.teacher_channels_NC, cells_N, temperature)
            terms["attention"] = (
                on.spatial * (spatial_NP - student_spatial_NP).abs().sum()
                + on.channel * (channel_NC - student_channel_NC).abs().sum()
            )
        if wanted.context:
            # (R_S - R_T)^2 with R_S - R_T = scale d + b, b the same at every cell: three sums instead of a map.
            added_NC = self.student_context[level](scale * sums.student_context_NC) - self.teacher_context[level](
                scale * sums.teacher_context_NC
            )
            terms["global"] = on.global_ * (
                scale**2 * (sums.error_NP * valid_NP).sum()
                + 2 * scale * (added_NC * sums.difference_NC).sum()
                + (cells_N[:, None] * added_NC.square()).sum()
            )
        return {name: value / images for name, value in terms.items()}

    def _attend(self, level: str, scale: float) -> Attend:
        """The weights of the context's logits, for maps that are not yet brought to the common scale."""
        student, teacher = self.student_context[level].attend, self.teacher_context[level].attend
        return Attend(scale * student.weight, student.bias, scale * teacher.weight, teacher.bias)


def spatial_attention(mean_NP: Tensor, temperature: float, valid_NP: Tensor, cells_N: Tensor) -> Tensor:
    """A^S = HW softmax_ij(mean_c |F| / T), equations 4 and 6, of mean 1.

    HW and softmax run over the valid cells only (the reference: over all); outside them A^S is 0.
    """
    logits_NP = (mean_NP / temperature).masked_fill(~valid_NP, float("-inf"))
    return cells_N[:, None] * logits_NP.softmax(1)
