"""One minus the correlation of the teacher's and the student's maps, channel by channel."""

# N images, C channels, H x W cells of a level

from __future__ import annotations

import torch
from torch import Tensor

from fgd.method_specs import Correlation
from fgd.methods.base import Method, Pair, resolved, same_size
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, View


class CorrelationLoss(Method):
    """Term "feature": weight x half the mean squared difference of standardised maps, summed over levels."""

    def __init__(self, spec: Correlation, pair: Pair, _calibration: Calibration, _schedule: Schedule) -> None:
        super().__init__()
        self.weight, self.levels = resolved(spec.weight), list(pair.levels)

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        of_levels = []
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            for level in self.levels:
                ours, theirs = student.features[level], teacher.features[level]
                same_size(level, ours, theirs)
                of_levels.append((standardised(ours) - standardised(theirs)).square().mean() / 2)
        return {"feature": self.weight * torch.stack(of_levels).sum()}


def standardised(map_NCHW: Tensor) -> Tensor:
    deviation_1C11, mean_1C11 = torch.std_mean(map_NCHW, (0, 2, 3), correction=0, keepdim=True)
    return (map_NCHW - mean_1C11) / (deviation_1C11 + 1e-6)
