"""CWD (arXiv 2011.13256): each channel as a distribution over the cells, the student's close to the teacher's.

Official (open-mmlab/mmrazor@90c7af1 `ChannelWiseDivergence`): tau^2 / (N C) x the sum over images and channels of
KL(softmax_HW(T / tau) || softmax_HW(S / tau)); channels must be equal in number.

The default departs from it:
- both maps come to the teacher's common scale, to which tau belongs;
- only cells of the image count: the softmaxes run over them alone;
- a 1x1 convolution brings other widths to the teacher's.
It is a mean over images and channels of a mean over cells already, so size and width need no factor.
"""

# N images, C channels, P cells of a level, or H x W

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fgd.method_specs import CWD
from fgd.methods.base import Method, Pair, adapters, resolved
from fgd.methods.focus import Focus, of_both
from fgd.methods.paired import masked, paired, scales_of
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, View


class CWDLoss(Method):
    """Term "feature": weight x sum over levels of tau^2 times the mean divergence."""

    def __init__(self, spec: CWD, pair: Pair, calibration: Calibration, _schedule: Schedule) -> None:
        super().__init__()
        self.weight, self.temperature = resolved(spec.weight), resolved(spec.temperature)
        self.official = spec.compat == "official"
        self.scales = scales_of(pair, calibration, official=self.official) if self.weight else {}
        self.align = adapters(pair) if self.weight else nn.ModuleDict()

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        if not self.weight:
            return {}
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            divergences = [
                divergence(maps.student_NCHW, maps.teacher_NCHW, maps.valid_N1HW, self.temperature)
                for maps in paired(
                    student, teacher, batch, align=self.align, scales=self.scales, official=self.official
                )
            ]
        return {"feature": self.weight * torch.stack(divergences).sum()}

    def focus(self, student: View, teacher: View, batch: Batch) -> Iterator[Focus]:
        """The channels' distributions, their mean over channels: of mean 1 over the cells that count."""
        if not self.weight:
            return
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            for maps in paired(student, teacher, batch, align=self.align, scales=self.scales, official=self.official):
                ours_NHW, theirs_NHW = (
                    mean_distribution(each, maps.valid_N1HW, self.temperature)
                    for each in (maps.student_NCHW, maps.teacher_NCHW)
                )
                yield from of_both("distribution", maps.level, teacher=theirs_NHW, student=ours_NHW)


def mean_distribution(map_NCHW: Tensor, valid_N1HW: Tensor, temperature: float) -> Tensor:
    """NHW."""
    logits_NCHW = masked(map_NCHW / temperature, valid_N1HW > 0)
    shares_NCHW = logits_NCHW.flatten(2).softmax(2).view_as(map_NCHW)
    return valid_N1HW.sum((1, 2, 3))[:, None, None] * shares_NCHW.mean(1)


def divergence(student_NCHW: Tensor, teacher_NCHW: Tensor, valid_N1HW: Tensor, temperature: float) -> Tensor:
    """tau^2 KL(T || S) over the cells that count, a mean over images and channels."""
    images, channels = teacher_NCHW.shape[:2]
    counts_N1P = valid_N1HW.flatten(2) > 0
    log_q_NCP, log_p_NCP = (
        masked(each.flatten(2) / temperature, counts_N1P).log_softmax(2) for each in (student_NCHW, teacher_NCHW)
    )
    ratio_NCP = (log_p_NCP - log_q_NCP).masked_fill(~counts_N1P, 0.0)
    return temperature**2 / (images * channels) * (log_p_NCP.exp() * ratio_NCP).sum()
