"""Methods that take more than maps, for the copy of the packages in tests/unit/test_breadth.py."""

# N images, K places, R regions, C classes

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fgd.method_specs import Asked, Cross, Soft
from fgd.methods.base import Method, Pair, resolved
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, View


class SoftLoss(Method):
    def __init__(self, spec: Soft, pair: Pair, _calibration: Calibration, _schedule: Schedule) -> None:
        super().__init__()
        self.weight, self.levels = resolved(spec.weight), list(pair.levels)

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = student.predictions, teacher.predictions
        assert ours is not None
        assert theirs is not None
        of_levels = [
            distance(ours.logits_NKC[:, ours.span(level)], theirs.logits_NKC[:, theirs.span(level)])
            for level in self.levels
        ]
        return {"logits": self.weight * torch.stack(of_levels).sum() / len(batch.targets)}


class CrossLoss(Method):
    FIRST = 2
    """Convolution of the teacher's tower that the student's map goes into."""

    def __init__(self, spec: Cross, pair: Pair, _calibration: Calibration, _schedule: Schedule) -> None:
        super().__init__()
        self.weight, self.levels = resolved(spec.weight), list(pair.levels)

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = student.predictions, teacher.predictions
        assert ours is not None
        assert theirs is not None
        of_levels = []
        for level in self.levels:
            held_NCHW = ours.held["cls"][level][self.FIRST]
            crossed = teacher.towers["cls"](level, held_NCHW, self.FIRST)
            of_levels.append(distance(crossed["logits"], theirs.logits_NKC[:, theirs.span(level)]))
        return {"logits": self.weight * torch.stack(of_levels).sum() / len(batch.targets)}


class AskedLoss(Method):
    def __init__(self, spec: Asked, _pair: Pair, _calibration: Calibration, _schedule: Schedule) -> None:
        super().__init__()
        self.weight = resolved(spec.weight)

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        assert student.predictions is not None
        drawn = student.predictions.regions
        assert drawn is not None
        assert teacher.regions is not None
        theirs = teacher.regions(drawn.proposals)
        apart = F.kl_div(
            drawn.logits_RC.log_softmax(1), theirs.logits_RC.log_softmax(1), reduction="batchmean", log_target=True
        )
        return {"classes": self.weight * apart}


def distance(ours_NKC: Tensor, theirs_NKC: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(ours_NKC, theirs_NKC.sigmoid(), reduction="sum")
