"""The student's and the teacher's maps side by side: adapted, brought to a common scale, with the cells that count.

And the reference geometry: what a published weight of a sum over cells, channels or boxes is multiplied by, so that it
means the same at any input size and width.
"""

# N images, C channels, H x W cells of a level

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fgd.errors import TeacherUnfit
from fgd.methods.base import Pair, same_size
from fgd.methods.geometry import Grid, Layout, valid_cells
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, View

TEACHER_RMS = 0.3
"""What both maps are brought to: low enough that at T 0.5-0.8 the attentions stay spread over the map."""
REFERENCE_CHANNELS = 256
REFERENCE_PIXELS = 800 * 1344
REFERENCE_BOXES = 7.3
"""Width, input size and mean boxes per image (COCO) for which the published weights were found."""


def common_scales(pair: Pair, calibration: Calibration) -> dict[str, float]:
    """Level -> what both maps are multiplied by to bring the teacher's RMS to 0.3.

    Raises TeacherUnfit for a level on which the teacher says nothing, or nothing finite.
    """
    for level in pair.levels:
        rms = calibration.teacher_rms[level]
        if not (math.isfinite(rms) and rms > 0):
            raise TeacherUnfit(f"the teacher's map at {level} has RMS {rms}; train the teacher again")
    return {level: TEACHER_RMS / calibration.teacher_rms[level] for level in pair.levels}


def scales_of(pair: Pair, calibration: Calibration, *, official: bool) -> dict[str, float]:
    """Officially the maps stay as they are."""
    return dict.fromkeys(pair.levels, 1.0) if official else common_scales(pair, calibration)


def per_width(channels: int) -> float:
    """For a sum over channels."""
    return REFERENCE_CHANNELS / channels


def per_size(schedule: Schedule) -> float:
    """For a sum over cells; fixed once for a job, so that at several sizes the larger image weighs more."""
    return REFERENCE_PIXELS / (schedule.max_size * schedule.min_size)


def finest(pair: Pair, levels: int | None) -> Pair:
    """The pair's first so many levels; None: all."""
    return pair if levels is None else Pair(dict(list(pair.levels.items())[:levels]))


@dataclass(frozen=True)
class PairedMaps:
    """One level of both networks."""

    level: str
    student_NCHW: Tensor
    teacher_NCHW: Tensor
    valid_N1HW: Tensor
    """1 where a cell counts, else 0; of the maps' type."""

    @property
    def maps(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.student_NCHW, self.teacher_NCHW, self.valid_N1HW


def paired(
    student: View,
    teacher: View,
    batch: Batch,
    *,
    align: Mapping[str, nn.Module] | nn.ModuleDict,
    scales: Mapping[str, float],
    official: bool,
) -> Iterator[PairedMaps]:
    """Each level of `scales`: the student's map through its layer of `align`, if it has one, and both times the scale.

    Officially all cells count; by default those that overlap the un-padded image. None where only objects lie that the
    teacher does not know. At least float32. No gradient reaches the teacher's maps.
    """
    valid = valid_masks(batch, {level: teacher.features[level] for level in scales}, padding=official)
    for level, scale in scales.items():
        same_size(level, student.features[level], teacher.features[level])
        student_NCHW, teacher_NCHW = full(student.features[level]), full(teacher.features[level].detach())
        if level in align:
            student_NCHW = align[level](student_NCHW)
        if scale != 1.0:
            student_NCHW, teacher_NCHW = scale * student_NCHW, scale * teacher_NCHW
        yield PairedMaps(level, student_NCHW, teacher_NCHW, valid[level].to(teacher_NCHW))


def full(map_NCHW: Tensor) -> Tensor:
    """At least float32: sums over C and H x W of squares exceed float16 and lose digits in bfloat16."""
    return map_NCHW.to(torch.promote_types(map_NCHW.dtype, torch.float32))


def masked(logits: Tensor, counts: Tensor) -> Tensor:
    """Logits that a softmax makes 0 of where a cell does not count; of an image without any that does, no NaN."""
    return logits.masked_fill(~counts, torch.finfo(logits.dtype).min)


def valid_masks(batch: Batch, maps: Mapping[str, Tensor], *, padding: bool = False) -> dict[str, Tensor]:
    """Level -> bool N1HW, true where a cell counts: see `valid_cells`."""
    device = batch.images_NCHW.device
    sizes = {level: (int(each.shape[-2]), int(each.shape[-1])) for level, each in maps.items()}
    grid = Grid.of(tuple(sizes.values()), device)
    valid_NP, _ = valid_cells(Layout.of(batch, device), grid, padding=padding)
    return {
        level: each.view(-1, 1, *size) for (level, size), each in zip(sizes.items(), grid.split(valid_NP), strict=True)
    }
