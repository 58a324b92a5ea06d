"""Focal and Global Knowledge Distillation for Detectors (arXiv 2111.11837), equations 1-13.

`compat: official` gives the numbers of the reference (yzd-v/FGD@c03a6cf); `tests/parity` holds them. The default
departs from it in scale and geometry only; each departure is told where it is made.
"""

# N images, C channels of the teacher, H x W cells of one level

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fgd.errors import TeacherUnfit
from fgd.methods.base import Method, Pair, align_convs, resolved, same_size
from fgd.methods.context import ContextBlock
from fgd.methods.geometry import BoxCells, Layout, inclusive, official, scale_masks, tight, valid_cells
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
        totals: dict[str, Tensor] = {}
        device = batch.images_NCHW.device
        layout = Layout.of(batch, device)
        # Sums over C, H and W of squares exceed float16 and lose digits in bfloat16.
        with torch.autocast(device.type, enabled=False):
            for level in self.scales:
                same_size(level, student[level], teacher[level])
                terms = self._level(level, student[level].float(), teacher[level].detach().float(), layout)
                totals = {name: totals[name] + term if totals else term for name, term in terms.items()}
        return totals

    def _level(self, level: str, student_NCHW: Tensor, teacher_NCHW: Tensor, layout: Layout) -> dict[str, Tensor]:
        """The weighted terms of one level."""
        student_NCHW = self.align[level](student_NCHW) * self.scales[level]
        teacher_NCHW = teacher_NCHW * self.scales[level]
        difference_NCHW = student_NCHW - teacher_NCHW
        images, _, height, width = teacher_NCHW.shape
        valid_NHW = valid_cells(layout, height, width)
        if self.official:  # the reference takes the padding for background
            valid_NHW = torch.ones_like(valid_NHW)

        sums: dict[str, Tensor] = {}
        on = self.weights
        if on.foreground or on.background or on.spatial:
            spatial_NHW, channel_NC = attentions(teacher_NCHW, self.temperature, valid_NHW)
        if on.foreground or on.background:
            error_NHW = spatial_NHW * torch.einsum("nchw,nc->nhw", difference_NCHW.square(), channel_NC)
            foreground_NHW, background_NHW = scale_masks(self.box_cells(layout, height, width), valid_NHW)
            if on.foreground:
                sums["fg"] = on.foreground * (foreground_NHW * error_NHW).sum()
            if on.background:
                sums["bg"] = on.background * (background_NHW * error_NHW).sum()
        if on.spatial:
            # After the adapter; the paper leaves it open, the reference does so.
            student_spatial_NHW, student_channel_NC = attentions(student_NCHW, self.temperature, valid_NHW)
            sums["attention"] = (
                on.spatial * (spatial_NHW - student_spatial_NHW).abs().sum()
                + on.channel * (channel_NC - student_channel_NC).abs().sum()
            )
        if on.global_:
            student_added_NC11 = self.student_context[level](student_NCHW, valid_NHW)
            teacher_added_NC11 = self.teacher_context[level](teacher_NCHW, valid_NHW)
            related_NCHW = difference_NCHW + (student_added_NC11 - teacher_added_NC11)
            sums["global"] = on.global_ * (related_NCHW.square().sum(1) * valid_NHW).sum()
        return {name: value / images for name, value in sums.items()}


def attentions(feature_NCHW: Tensor, temperature: float, valid_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """Spatial attention NHW and channel attention NC, equations 4-7.

    A^S = HW softmax_ij(mean_c |F| / T), A^C = C softmax_c(mean_ij |F| / T): each has mean 1. HW, mean and softmax
    run over the valid cells only (the reference: over all); outside them A^S is 0.
    """
    magnitude_NCHW = feature_NCHW.abs()
    cells_N = valid_NHW.sum((1, 2))
    logits_NHW = (magnitude_NCHW.mean(1) / temperature).masked_fill(~valid_NHW, float("-inf"))
    spatial_NHW = cells_N[:, None, None] * logits_NHW.flatten(1).softmax(1).view_as(logits_NHW)
    mean_NC = torch.einsum("nchw,nhw->nc", magnitude_NCHW, valid_NHW.float()) / cells_N[:, None]
    return spatial_NHW, feature_NCHW.shape[1] * (mean_NC / temperature).softmax(1)
