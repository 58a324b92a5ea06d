"""What every distillation method is: a module that turns two pyramids into weighted loss terms."""

# N images, C channels, H x W cells of a level

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fgd.detector_specs import DetectorSpec
from fgd.methods.focus import Focus
from fgd.types import Batch, View


@dataclass(frozen=True)
class SharedLevel:
    """A level that two detectors have."""

    stride: int
    """Pixels of the padded input."""
    student_channels: int
    teacher_channels: int


@dataclass(frozen=True)
class Pair:
    """The levels two detectors share."""

    levels: dict[str, SharedLevel]
    """By the student's name, finest first."""

    @classmethod
    def of(cls, student: DetectorSpec, teacher: DetectorSpec) -> Pair:
        """Levels are matched by stride, never by name; a level only one of them has is left out."""
        widths = {level.stride: level.channels for level in teacher.levels()}
        shared = [level for level in student.levels() if level.stride in widths]
        return cls({each.name: SharedLevel(each.stride, each.channels, widths[each.stride]) for each in shared})

    @classmethod
    def alike(cls, strides: Mapping[str, int], student_channels: int, teacher_channels: int) -> Pair:
        """Levels of one width in each network."""
        return cls({name: SharedLevel(each, student_channels, teacher_channels) for name, each in strides.items()})


class Method(nn.Module, ABC):
    """A distillation loss with the modules it trains (adapters, context blocks); they never enter the student."""

    shares: Mapping[str, float] | None = None
    """Term -> its part of what `rho` gives the method, 1 if unsaid; None: the weights decide the terms' mixture."""

    def train_in_bf16(self, *, on: bool) -> None:
        """The adapters; sums and terms are float32 all the same."""
        for each in self.modules():
            if isinstance(each, Adapter | Convolution3x3):
                each.bf16 = on

    @abstractmethod
    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms by name, float32 scalars, each summed over levels; add them to the detection loss.

        Maps have the same H x W in both views. What is in them besides maps is what `needs` of the method's spec
        names. A term whose weight is 0 is absent. No gradient reaches the teacher's maps.
        """

    def focus(self, student: View, teacher: View, batch: Batch) -> Iterable[Focus]:  # noqa: ARG002
        """What the losses of this batch look at: its masks and attentions, for people to see.

        Asked in eval mode and without gradients, of the same views as `forward`; predictions are there only if `needs`
        of the method's spec names something, and nothing is drawn or matched in them. Changes nothing. By default
        there is nothing to show.
        """
        return ()


class Adapter(nn.Conv2d):
    """The 1x1 convolution from the student's to the teacher's width. Gives float32, or float64 of float64."""

    bf16: bool = False
    """Compute in bf16 in training, as the neck does whose maps it takes."""

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__(student_channels, teacher_channels, kernel_size=1)

    def forward(self, student_NCHW: Tensor) -> Tensor:
        if self.bf16 and self.training:
            with torch.autocast(student_NCHW.device.type, torch.bfloat16):
                return super().forward(student_NCHW).float()
        assert self.bias is not None
        narrow_NCP = student_NCHW.to(torch.promote_types(student_NCHW.dtype, torch.float32)).flatten(2)
        weight_NCC = self.weight.flatten(1).expand(len(narrow_NCP), -1, -1)
        wide_NCP = torch.baddbmm(self.bias[:, None], weight_NCC, narrow_NCP)  # a convolution of small maps is slow
        return wide_NCP.view(*wide_NCP.shape[:2], *student_NCHW.shape[2:])


class Convolution3x3(nn.Conv2d):
    """A 3x3 convolution that keeps the map's size. Gives float32, or float64 of float64."""

    bf16: bool = False
    """Compute in bf16 in training, as the neck does whose maps it takes."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, kernel_size=3, padding=1)

    def forward(self, map_NCHW: Tensor) -> Tensor:
        lower = self.bf16 and self.training
        with torch.autocast(map_NCHW.device.type, torch.bfloat16, enabled=lower):
            out_NCHW = super().forward(map_NCHW)
        return out_NCHW.float() if lower else out_NCHW


def adapters(pair: Pair) -> nn.ModuleDict:
    """Level -> its adapter; the identity where the widths are equal."""
    return nn.ModuleDict({name: adapter(level) for name, level in pair.levels.items()})


def adapter(level: SharedLevel) -> nn.Module:
    if level.student_channels == level.teacher_channels:
        return nn.Identity()
    return Adapter(level.student_channels, level.teacher_channels)


def same_size(level: str, student_NCHW: Tensor, teacher_NCHW: Tensor) -> None:
    """Both networks must have seen the very same padded input; else broadcasting could hide the mistake."""
    (images, _, *size), (teacher_images, _, *teacher_size) = student_NCHW.shape, teacher_NCHW.shape
    assert [images, *size] == [teacher_images, *teacher_size], f"{level}: {student_NCHW.shape}, {teacher_NCHW.shape}"


def resolved(number: float | None) -> float:
    assert number is not None, "a number of the method is missing; fgd.presets.resolve fills it in"
    return number
