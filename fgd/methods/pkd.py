"""PKD (arXiv 2207.02039): maps are compared after each channel was brought to mean 0 and standard deviation 1.

Half the mean squared difference of standardised maps is one less their Pearson correlation, up to the divisor of the
standard deviation. Official (open-mmlab/mmrazor@90c7af1 `PKDLoss`): mean and deviation over N, H and W together, the
deviation with divisor N H W - 1, plus 1e-6; channels must be equal in number.

The default departs from it:
- only cells of the image count, in the statistics and in the mean; the divisor is their number;
- both maps come to the teacher's common scale, and the variance has a floor of 0.01^2, 3 % of that scale: a channel
  that is almost constant otherwise has gradients up to a million times the others';
- a 1x1 convolution brings other widths to the teacher's.
"""

# N images, C channels, H x W cells of a level

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgd.method_specs import PKD
from fgd.methods.base import Method, Pair, adapters, resolved
from fgd.methods.paired import finest, paired, scales_of
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, View

OFFICIAL_EPSILON = 1e-6
FLOOR = 0.01
"""Of a channel's standard deviation, at the common scale of 0.3."""


class PKDLoss(Method):
    """Term "feature": weight x sum over levels of half the mean squared difference of the standardised maps."""

    def __init__(self, spec: PKD, pair: Pair, calibration: Calibration, _schedule: Schedule) -> None:
        super().__init__()
        self.weight, self.official = resolved(spec.weight), spec.compat == "official"
        pair = finest(pair, spec.levels)
        self.scales = scales_of(pair, calibration, official=self.official) if self.weight else {}
        self.align = adapters(pair) if self.weight else nn.ModuleDict()

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        if not self.weight:
            return {}
        distances = []
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            for maps in paired(student, teacher, batch, align=self.align, scales=self.scales, official=self.official):
                if self.official:
                    distances.append(pearson_distance(maps.student_NCHW, maps.teacher_NCHW))
                else:
                    distances.append(valid_distance(maps.student_NCHW, maps.teacher_NCHW, maps.valid_N1HW))
        return {"feature": self.weight * torch.stack(distances).sum()}


def pearson_distance(student_NCHW: Tensor, teacher_NCHW: Tensor) -> Tensor:
    """As the authors have it. A student of another height is resized to the teacher."""
    if student_NCHW.shape[2] != teacher_NCHW.shape[2]:
        student_NCHW = F.interpolate(student_NCHW, teacher_NCHW.shape[2:], mode="bilinear")
    return (standardised(student_NCHW) - standardised(teacher_NCHW)).square().mean() / 2


def standardised(map_NCHW: Tensor) -> Tensor:
    deviation_1C11, mean_1C11 = torch.std_mean(map_NCHW, (0, 2, 3), keepdim=True)
    return (map_NCHW - mean_1C11) / (deviation_1C11 + OFFICIAL_EPSILON)


def valid_distance(student_NCHW: Tensor, teacher_NCHW: Tensor, valid_N1HW: Tensor) -> Tensor:
    """Over the cells that count; 0 if there are none."""
    ours, theirs = (valid_standardised(each, valid_N1HW) for each in (student_NCHW, teacher_NCHW))
    return (ours - theirs).square().sum() / (valid_N1HW.sum().clamp(min=1) * ours.shape[1]) / 2


def valid_standardised(map_NCHW: Tensor, valid_N1HW: Tensor) -> Tensor:
    """0 on other cells."""
    cells = valid_N1HW.sum().clamp(min=1)
    centred_NCHW = valid_N1HW * (map_NCHW - (valid_N1HW * map_NCHW).sum((0, 2, 3), keepdim=True) / cells)
    variance_1C11 = centred_NCHW.square().sum((0, 2, 3), keepdim=True) / cells
    return centred_NCHW / (variance_1C11 + FLOOR**2).sqrt()
