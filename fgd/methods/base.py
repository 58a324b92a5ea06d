"""What every distillation method is: a module that turns two pyramids into weighted loss terms."""

# N images, C channels, H x W cells of a level

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fgd.methods.maps import Kernels
from fgd.spec import DetectorSpec
from fgd.types import Batch


@dataclass(frozen=True)
class Pair:
    """The levels two detectors share, and how wide each is there."""

    levels: dict[str, int]
    """The student's name of each shared level, finest first, and its stride in pixels of the padded input."""
    student_channels: int
    teacher_channels: int

    @classmethod
    def of(cls, student: DetectorSpec, teacher: DetectorSpec) -> Pair:
        """Levels are matched by stride, never by name; a level only one of them has is left out."""
        strides = set(teacher.levels().values())
        levels = {name: stride for name, stride in student.levels().items() if stride in strides}
        return cls(levels, student.channels(), teacher.channels())


class Method(nn.Module, ABC):
    """A distillation loss with the modules it trains (adapters, context blocks); they never enter the student."""

    kernels: Kernels | None = None
    """What takes the passes over the maps, if compiled."""

    @abstractmethod
    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The weighted terms by name, float32 scalars, each summed over levels; add them to the detection loss.

        student, teacher: level of `Pair.levels` -> float NCHW map of any precision, same H x W in both.
        A term whose weight is 0 is absent. No gradient reaches the teacher's maps.
        """


def align_convs(pair: Pair) -> nn.ModuleDict:
    """Per level the 1x1 convolution from the student's to the teacher's width; the identity where they are equal."""
    if pair.student_channels == pair.teacher_channels:
        return nn.ModuleDict({level: nn.Identity() for level in pair.levels})
    return nn.ModuleDict(
        {level: nn.Conv2d(pair.student_channels, pair.teacher_channels, kernel_size=1) for level in pair.levels}
    )


def aligned(align: nn.Module, student_NCHW: Tensor) -> Tensor:
    """The student's map at the teacher's width: as it is, or what its adapter makes of it, in float32 at least."""
    if isinstance(align, nn.Identity):
        return student_NCHW
    assert isinstance(align, nn.Conv2d)
    assert align.bias is not None
    narrow_NCP = student_NCHW.to(torch.promote_types(student_NCHW.dtype, torch.float32)).flatten(2)
    weight_NCC = align.weight.flatten(1).expand(len(narrow_NCP), -1, -1)
    wide_NCP = torch.baddbmm(align.bias[:, None], weight_NCC, narrow_NCP)  # torch's convolution of small maps is slow
    return wide_NCP.view(*wide_NCP.shape[:2], *student_NCHW.shape[2:])


def same_size(level: str, student_NCHW: Tensor, teacher_NCHW: Tensor) -> None:
    """Both networks must have seen the very same padded input; else broadcasting could hide the mistake."""
    (images, _, *size), (teacher_images, _, *teacher_size) = student_NCHW.shape, teacher_NCHW.shape
    assert [images, *size] == [teacher_images, *teacher_size], f"{level}: {student_NCHW.shape}, {teacher_NCHW.shape}"


def resolved(number: float | None) -> float:
    assert number is not None, "a number of the method is missing: fgd.presets.resolve fills it in"
    return number
