"""MGD (arXiv 2205.01529): a generator makes the teacher's map from the student's with random cells left out.

Official (yzd-v/MGD@2c9da0b): cells where a uniform draw is above 1 - lambda are left out in all channels, the others
stay as they are; conv3x3, ReLU, conv3x3, one such generator a level; the squared error summed over channels and cells,
a mean over images. A 1x1 convolution comes first where widths differ.

The default departs from it:
- both maps come to the teacher's common scale;
- only cells of the image count in the sum;
- the sum is scaled to the reference's width and input size (`fgd.methods.paired`), so the published weights hold.
The draws come from torch's global generator on the processor, which each step seeds.
"""

# N images, C channels, H x W cells of a level

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgd.method_specs import MGD
from fgd.methods.base import Convolution3x3, Method, Pair, adapters, resolved
from fgd.methods.paired import PairedMaps, paired, per_size, per_width, scales_of
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, View


class MGDLoss(Method):
    """Term "feature": alpha x sum over levels of the squared error of what the generator makes."""

    def __init__(self, spec: MGD, pair: Pair, calibration: Calibration, schedule: Schedule) -> None:
        super().__init__()
        self.alpha, self.left_out = resolved(spec.alpha), resolved(spec.lambda_)
        self.official = spec.compat == "official"
        on = pair if self.alpha else Pair({})
        self.scales = scales_of(on, calibration, official=self.official)
        widths = {name: level.teacher_channels for name, level in on.levels.items()}
        self.factors = {
            name: 1.0 if self.official else per_width(width) * per_size(schedule) for name, width in widths.items()
        }
        self.align = adapters(on)
        self.generate = nn.ModuleDict({name: generator(width) for name, width in widths.items()})

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        if not self.alpha:
            return {}
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            errors = [
                self.error(maps, uniform(maps.teacher_NCHW))
                for maps in paired(
                    student, teacher, batch, align=self.align, scales=self.scales, official=self.official
                )
            ]
        return {"feature": self.alpha * torch.stack(errors).sum() / len(batch.targets)}

    def error(self, maps: PairedMaps, uniform_N1HW: Tensor) -> Tensor:
        """Of one level and one draw, summed over images."""
        made_NCHW = self.generate[maps.level](maps.student_NCHW * kept(uniform_N1HW, self.left_out))
        error: Tensor = (maps.valid_N1HW * (made_NCHW - maps.teacher_NCHW).square()).sum()
        return self.factors[maps.level] * error


def generator(channels: int) -> nn.Sequential:
    return nn.Sequential(Convolution3x3(channels, channels), nn.ReLU(inplace=True), Convolution3x3(channels, channels))


def uniform(map_NCHW: Tensor) -> Tensor:
    """N1HW from [0, 1): drawn on the processor, so that they are the same on every device."""
    images, _, height, width = map_NCHW.shape
    return torch.rand(images, 1, height, width).to(map_NCHW.device, non_blocking=True)


def kept(uniform_N1HW: Tensor, left_out: float) -> Tensor:
    """1 where a cell stays, 0 where it is left out."""
    return (uniform_N1HW <= 1 - left_out).float()
