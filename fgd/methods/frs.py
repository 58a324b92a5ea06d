"""FRS (arXiv 2111.00674): imitation where the teacher expects an object, of any class.

Official (duzhixing/FRS@decd60c): q is the teacher's highest score at a cell, over classes and anchors. At each level
sum q (T - conv3x3(S))^2 / sum q, summed over channels, and sum q BCE(sigmoid(s), sigmoid(t)) / sum q over the class
scores; the sums run over the batch, the levels add up. The authors let both grow in over 500 steps; that belongs to
schedules, and is not done here.

The default departs from it:
- both maps come to the teacher's common scale, and the sum over channels is scaled to the reference's width;
- only cells of the image count.
Of a detector with two stages the scores are the first one's: whether there is anything.
"""

# N images, K places, C channels or classes, H x W cells of a level, A places of a cell

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgd.method_specs import FRS
from fgd.methods.base import Convolution3x3, Method, Pair, resolved
from fgd.methods.focus import Focus
from fgd.methods.paired import paired, per_width, scales_of
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, View

TINY = 1e-12
"""Where the teacher is sure that there is nothing, its scores may all be 0."""


class FRSLoss(Method):
    """Terms "feature" and "scores", summed over levels."""

    def __init__(self, spec: FRS, pair: Pair, calibration: Calibration, _schedule: Schedule) -> None:
        super().__init__()
        self.feature, self.scores = resolved(spec.feature), resolved(spec.scores)
        self.official = spec.compat == "official"
        self.scales = scales_of(pair, calibration, official=self.official)
        widths = {name: level.teacher_channels for name, level in pair.levels.items()}
        self.factors = {name: 1.0 if self.official else per_width(width) for name, width in widths.items()}
        of_maps = pair.levels if self.feature else {}
        self.adapt = nn.ModuleDict(
            {name: Convolution3x3(level.student_channels, level.teacher_channels) for name, level in of_maps.items()}
        )

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = student.predictions, teacher.predictions
        assert ours is not None
        assert theirs is not None
        features, scores = [], []
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            # Without the adapter the student's map is not looked at.
            for maps in paired(student, teacher, batch, align=self.adapt, scales=self.scales, official=self.official):
                ours_NKC = ours.logits_NKC[:, ours.span(maps.level)]
                theirs_NKC = theirs.logits_NKC[:, theirs.span(maps.level)].detach()
                rich_N1HW = maps.valid_N1HW * richness(theirs_NKC, maps.teacher_NCHW)
                total = rich_N1HW.sum().clamp(min=TINY)
                if self.feature:
                    error = (rich_N1HW * (maps.teacher_NCHW - maps.student_NCHW).square()).sum()
                    features.append(self.factors[maps.level] * error / total)
                if self.scores:
                    scores.append((places(rich_N1HW, ours_NKC) * entropy(ours_NKC, theirs_NKC)).sum() / total)
        terms = {}
        if self.feature:
            terms["feature"] = self.feature * torch.stack(features).sum()
        if self.scores:
            terms["scores"] = self.scores * torch.stack(scores).sum()
        return terms

    def focus(self, student: View, teacher: View, batch: Batch) -> Iterator[Focus]:
        theirs = teacher.predictions
        assert theirs is not None
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            for maps in paired(student, teacher, batch, align={}, scales=self.scales, official=self.official):
                q_N1HW = richness(theirs.logits_NKC[:, theirs.span(maps.level)], maps.teacher_NCHW)
                yield Focus("richness", maps.level, (maps.valid_N1HW * q_N1HW)[:, 0])


def richness(theirs_NKC: Tensor, map_NCHW: Tensor) -> Tensor:
    """q of each cell, N1HW."""
    images, _, height, width = map_NCHW.shape
    return theirs_NKC.sigmoid().reshape(images, 1, height, width, -1).amax(4)


def places(cells_N1HW: Tensor, rows_NKC: Tensor) -> Tensor:
    """The cells' values at each place, NK1; the places of a cell come one after another."""
    cells_NP = cells_N1HW.flatten(1)
    return cells_NP.repeat_interleave(rows_NKC.shape[1] // cells_NP.shape[1], 1)[..., None]


def entropy(ours_NKC: Tensor, theirs_NKC: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(ours_NKC, theirs_NKC.sigmoid(), reduction="none")
