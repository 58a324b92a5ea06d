"""Mimick (Li et al. 2017, Mimicking Very Efficient Network for Object Detection, CVPR): imitation inside regions alone.

There is no original code; this is the paper's formula: 1 / (2 R) sum over the R regions of 1 / m |u - a(v)|^2, u and v
the teacher's and the student's pooled maps of m numbers each.

Where the paper is silent, or made for one map:
- regions are the proposals that the student draws for its own losses; of a family without, the objects' boxes and 15
  more around each, moved and scaled by up to a quarter of its sides;
- a region is pooled to 7 x 7 from the level of its size; both maps come to the teacher's common scale;
- the mean is over an image's regions, then over images; one without regions adds nothing;
- a is a 1x1 convolution, before the pooling, where widths differ.
"""

# N images, R regions, K boxes, C channels

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fgd.method_specs import MimicRoI
from fgd.methods.base import Method, Pair, adapters, resolved
from fgd.methods.paired import paired, scales_of
from fgd.methods.regions import levels_of, pooled
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, View

POOLED = 7
AROUND = 15
"""Boxes drawn around each object's."""
MOVED = 0.25
"""Of its sides, at most."""


class MimicRoILoss(Method):
    """Term "feature"."""

    def __init__(self, spec: MimicRoI, pair: Pair, calibration: Calibration, _schedule: Schedule) -> None:
        super().__init__()
        self.weight = resolved(spec.weight)
        on = pair if self.weight else Pair({})
        self.scales = scales_of(on, calibration, official=False)
        self.strides = [level.stride for level in on.levels.values()]
        self.align = adapters(on) if self.weight else nn.ModuleDict()

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        if not self.weight:
            return {}
        drawn = student.predictions.regions if student.predictions is not None else None
        regions = drawn.proposals if drawn is not None else around(batch)
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            levels = list(paired(student, teacher, batch, align=self.align, scales=self.scales, official=False))
            at_R = levels_of(torch.cat(list(regions)), self.strides)
            ours_RCHW, theirs_RCHW = (
                pooled(maps, self.strides, regions, POOLED, at_R)
                for maps in ([each.student_NCHW for each in levels], [each.teacher_NCHW for each in levels])
            )
            error_R = (ours_RCHW - theirs_RCHW).square().mean((1, 2, 3))
            of_images = torch.split(error_R, [len(each) for each in regions])
            means = [each.sum() / (2 * max(1, len(each))) for each in of_images]
        return {"feature": self.weight * torch.stack(means).mean()}


def around(batch: Batch) -> Sequence[Tensor]:
    """Each image's boxes and others around them, clipped to the image. Drawn on the processor, from the generator that
    each step seeds, so that they are the same on every device."""
    regions = []
    for target, (height, width) in zip(batch.targets, batch.image_sizes, strict=True):
        boxes_K4 = target.boxes_K4.float()
        moved = torch.rand(AROUND, len(boxes_K4), 4).to(boxes_K4.device, non_blocking=True) * 2 * MOVED - MOVED
        sides_K4 = (boxes_K4[:, 2:] - boxes_K4[:, :2]).repeat(1, 2)
        all_R4 = torch.cat([boxes_K4, (boxes_K4 + moved * sides_K4).flatten(0, 1)])
        regions.append(all_R4.clamp(min=0).minimum(all_R4.new_tensor([width, height, width, height])))
    return regions
