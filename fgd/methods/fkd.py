"""FKD (Zhang and Ma, ICLR 2021): maps under a common attention, pooled maps, and non-local relations.

Official (open-mmlab/mmrazor@90c7af1 `FBKDLoss`), with norms over the whole batch, not their squares:
    feature    || sqrt(M) (T - A1 S) ||, M the mean of both networks' spatial attentions at temperature T, a constant
    channel    || mean_HW T - linear(mean_HW S) ||
    spatial    || mean_C T - conv3x3(mean_C S) ||
    non_local  || R_t(T) - A2 R_s(S) ||, R(F) = F + BN(W_o y), y_i = mean_j (theta_i . phi_j) g_j
phi and g are max-pooled twice, so j runs over few cells. R_t is trained too. Channels must be equal in number.

The default departs from it:
- both maps come to the teacher's common scale;
- norms are those of each image, then their mean, so they do not grow with the batch; scaled to the reference's width
  and input size by the root of what `fgd.methods.paired` has for sums;
- only cells of the image count: in the norms, means, attentions, the non-local sums and BN's statistics;
- norms have a floor of 1e-6, so that equal maps have a gradient;
- A1, the linear layer and A2 bring other widths to the teacher's.
BN's statistics are always the batch's; no running ones are kept, for the blocks never leave training.
"""

# N images, C channels, B channels of the bottleneck, H x W cells of a level, P cells in a row, J pooled cells

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgd.method_specs import FKD
from fgd.methods.attention import mean_of_cells, temperatures
from fgd.methods.base import Adapter, Method, Pair, SharedLevel, resolved
from fgd.methods.focus import Focus, of_both
from fgd.methods.paired import PairedMaps, finest, masked, paired, per_size, per_width, scales_of
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, View

FLOOR = 1e-6
"""Of a norm."""


class FKDLoss(Method):
    """Terms "feature", "channel", "spatial" and "non_local", summed over levels."""

    def __init__(self, spec: FKD, pair: Pair, calibration: Calibration, schedule: Schedule) -> None:
        super().__init__()
        named = (spec.feature, spec.channel, spec.spatial, spec.non_local)
        self.feature, self.channel, self.spatial, self.non_local = (resolved(each) for each in named)
        self.official = spec.compat == "official"
        pair = finest(pair, spec.levels)
        self.scales = scales_of(pair, calibration, official=self.official)
        self.temperatures = temperatures(spec, pair.levels, calibration)
        levels = pair.levels
        self.by_size = 1.0 if self.official else math.sqrt(per_size(schedule))
        self.by_width = {
            name: 1.0 if self.official else math.sqrt(per_width(level.teacher_channels))
            for name, level in levels.items()
        }
        self.adapt_map = modules(levels if self.feature else {}, lambda level: Adapter(*widths(level)))
        self.adapt_channels = modules(levels if self.channel else {}, lambda level: nn.Linear(*widths(level)))
        self.adapt_cells = modules(levels if self.spatial else {}, lambda _: nn.Conv2d(1, 1, kernel_size=3, padding=1))
        related = levels if self.non_local else {}
        self.relate_student = modules(related, lambda level: NonLocal.at(level.student_channels, level.stride))
        self.relate_teacher = modules(related, lambda level: NonLocal.at(level.teacher_channels, level.stride))
        self.adapt_related = modules(related, lambda level: Adapter(*widths(level)))

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, list[Tensor]] = {}
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            for maps in paired(student, teacher, batch, align={}, scales=self.scales, official=self.official):
                for name, value in self._of_level(maps).items():
                    terms.setdefault(name, []).append(value)
        return {name: torch.stack(values).sum() for name, values in terms.items()}

    def focus(self, student: View, teacher: View, batch: Batch) -> Iterator[Focus]:
        if not self.feature:
            return
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            for maps in paired(student, teacher, batch, align={}, scales=self.scales, official=self.official):
                level, student_NCHW, teacher_NCHW, valid_N1HW = maps.level, *maps.maps
                at = self.temperatures[level].spatial
                yield Focus("mask", level, common_attention(student_NCHW, teacher_NCHW, valid_N1HW, at)[:, 0])
                ours_N1HW, theirs_N1HW = (attention(each, valid_N1HW, at) for each in (student_NCHW, teacher_NCHW))
                yield from of_both("spatial attention", level, teacher=theirs_N1HW[:, 0], student=ours_N1HW[:, 0])

    def _of_level(self, maps: PairedMaps) -> dict[str, Tensor]:
        level, student_NCHW, teacher_NCHW, valid_N1HW = maps.level, *maps.maps
        by_width, by_size, terms = self.by_width[level], self.by_size, {}
        if self.feature:
            attention_N1HW = common_attention(student_NCHW, teacher_NCHW, valid_N1HW, self.temperatures[level].spatial)
            difference_NCHW = attention_N1HW.sqrt() * (teacher_NCHW - self.adapt_map[level](student_NCHW))
            terms["feature"] = self.feature * by_width * by_size * self._norm(valid_N1HW * difference_NCHW)
        if self.channel:
            ours_NC = self.adapt_channels[level](mean_of_cells(student_NCHW, valid_N1HW))
            terms["channel"] = self.channel * by_width * self._norm(mean_of_cells(teacher_NCHW, valid_N1HW) - ours_NC)
        if self.spatial:
            ours_N1HW = self.adapt_cells[level](student_NCHW.mean(1, keepdim=True))
            difference_N1HW = teacher_NCHW.mean(1, keepdim=True) - ours_N1HW
            terms["spatial"] = self.spatial * by_size * self._norm(valid_N1HW * difference_N1HW)
        if self.non_local:
            ours_NCHW = self.adapt_related[level](self.relate_student[level](student_NCHW, valid_N1HW))
            theirs_NCHW = self.relate_teacher[level](teacher_NCHW, valid_N1HW)
            difference_NCHW = valid_N1HW * (theirs_NCHW - ours_NCHW)
            terms["non_local"] = self.non_local * by_width * by_size * self._norm(difference_NCHW)
        return terms

    def _norm(self, difference: Tensor) -> Tensor:
        """Of the whole batch officially, else the mean of each image's."""
        if self.official:
            return difference.square().sum().sqrt()
        return (difference.flatten(1).square().sum(1) + FLOOR**2).sqrt().mean()


class NonLocal(nn.Module):
    """R(F) of the module's docstring. It begins as the identity: BN's weight and bias are zero."""

    def __init__(self, channels: int, *, reduction: int, pool: int) -> None:
        """pool: k of the second pooling, k x k after 2 x 2; 0: no pooling."""
        super().__init__()
        hidden = max(1, channels // reduction)
        self.pool = pool
        self.theta, self.phi, self.g = (nn.Conv2d(channels, hidden, kernel_size=1) for _ in range(3))
        self.out = nn.Conv2d(hidden, channels, kernel_size=1, bias=False)
        self.norm_weight, self.norm_bias = (nn.Parameter(torch.zeros(channels)) for _ in range(2))
        for each in (self.theta, self.phi, self.g):
            nn.init.normal_(each.weight, std=0.01)
            assert each.bias is not None
            nn.init.zeros_(each.bias)
        nn.init.kaiming_normal_(self.out.weight, mode="fan_out", nonlinearity="relu")

    @classmethod
    def at(cls, channels: int, stride: int) -> NonLocal:
        """With the authors' reduction and pooling of the level of that stride: 4, 4, 2, 2 and 8, 4, 2, 2 of P2-P5."""
        return cls(channels, reduction=4 if stride <= 8 else 2, pool=max(2, 32 // stride))

    def forward(self, map_NCHW: Tensor, valid_N1HW: Tensor) -> Tensor:
        theta_NBP = self.theta(map_NCHW).flatten(2)
        phi_NBJ, g_NBJ = (self._pooled(each(map_NCHW)).flatten(2) for each in (self.phi, self.g))
        counts_N1J = self._pooled(valid_N1HW).flatten(2)
        # Products of sums instead of a matrix of P x J: (theta . phi) g = theta (phi g).
        relation_NBB = (phi_NBJ * counts_N1J) @ g_NBJ.mT / counts_N1J.sum(2, keepdim=True).clamp(min=1)
        y_NBHW = (relation_NBB.mT @ theta_NBP).unflatten(2, map_NCHW.shape[2:])
        related_NCHW: Tensor = map_NCHW + self._normalised(self.out(y_NBHW), valid_N1HW)
        return related_NCHW

    def _pooled(self, map_NCHW: Tensor) -> Tensor:
        """As often as there are cells for it: the coarsest levels of small images have few."""
        for kernel in (2, self.pool) if self.pool else ():
            height, width = map_NCHW.shape[2:]
            map_NCHW = F.max_pool2d(map_NCHW, (min(kernel, height), min(kernel, width)))
        return map_NCHW

    def _normalised(self, map_NCHW: Tensor, valid_N1HW: Tensor) -> Tensor:
        """Batch norm with this batch's statistics over the cells that count."""
        cells = valid_N1HW.sum().clamp(min=1)
        centred_NCHW = map_NCHW - (valid_N1HW * map_NCHW).sum((0, 2, 3), keepdim=True) / cells
        variance_1C11 = (valid_N1HW * centred_NCHW.square()).sum((0, 2, 3), keepdim=True) / cells
        weight_C11, bias_C11 = self.norm_weight[:, None, None], self.norm_bias[:, None, None]
        return centred_NCHW / (variance_1C11 + 1e-5).sqrt() * weight_C11 + bias_C11


def modules(levels: dict[str, SharedLevel], make: Callable[[SharedLevel], nn.Module]) -> nn.ModuleDict:
    return nn.ModuleDict({name: make(level) for name, level in levels.items()})


def widths(level: SharedLevel) -> tuple[int, int]:
    return level.student_channels, level.teacher_channels


@torch.no_grad()
def common_attention(student_NCHW: Tensor, teacher_NCHW: Tensor, valid_N1HW: Tensor, temperature: float) -> Tensor:
    """M: the mean of both networks' HW softmax(mean_C |F| / T)."""
    return (attention(student_NCHW, valid_N1HW, temperature) + attention(teacher_NCHW, valid_N1HW, temperature)) / 2


def attention(map_NCHW: Tensor, valid_N1HW: Tensor, temperature: float) -> Tensor:
    """N1HW, of mean 1 over the cells that count."""
    logits_N1HW = masked(map_NCHW.abs().mean(1, keepdim=True) / temperature, valid_N1HW > 0)
    share_N1HW = logits_N1HW.flatten(1).softmax(1).view_as(logits_N1HW)
    return valid_N1HW.sum((1, 2, 3), keepdim=True) * share_N1HW
