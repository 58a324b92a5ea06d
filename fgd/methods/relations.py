"""Relations between objects: how alike the pooled maps of an image's boxes are, in student and teacher.

There is no original code; the idea is that of relation networks (arXiv 1711.11575) as a loss. At each image the matrix
of cosines between each two of its n boxes, pooled from the level of their size: sum |R_T - R_S| / n^2, then the mean
over images. An image of one box or none adds nothing; of more than 64 boxes the first 64 count. A 1x1 convolution
comes first where widths differ; cosines have no scale.
"""

# N images, R boxes, C channels

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fgd.method_specs import Relations
from fgd.methods.base import Method, Pair, adapters, resolved
from fgd.methods.paired import PairedMaps, paired
from fgd.methods.regions import levels_of, pooled
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, View

MOST = 64
"""Boxes of an image."""
POOLED = 3
FEWEST = 2


class RelationsLoss(Method):
    """Term "cosines"."""

    def __init__(self, spec: Relations, pair: Pair, _calibration: Calibration, _schedule: Schedule) -> None:
        super().__init__()
        self.weight = resolved(spec.weight)
        on = pair if self.weight else Pair({})
        self.scales = dict.fromkeys(on.levels, 1.0)
        self.strides = [level.stride for level in on.levels.values()]
        self.align = adapters(on)

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        if not self.weight:
            return {}
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            levels = list(paired(student, teacher, batch, align=self.align, scales=self.scales, official=False))
            return {"cosines": self.weight * relation_error(levels, self.strides, batch)}


def relation_error(levels: Sequence[PairedMaps], strides: Sequence[int], batch: Batch) -> Tensor:
    """The mean over images of the mean difference of the cosines."""
    boxes = [target.boxes_K4.float()[:MOST] for target in batch.targets]
    at_R = levels_of(torch.cat(boxes), strides)
    both = [each.student_NCHW for each in levels], [each.teacher_NCHW for each in levels]
    ours_RD, theirs_RD = (F.normalize(pooled(maps, strides, boxes, POOLED, at_R).flatten(1)) for maps in both)
    counts = [len(each) for each in boxes]
    images = zip(torch.split(ours_RD, counts), torch.split(theirs_RD, counts), strict=True)
    return torch.stack([cosine_error(*each) for each in images]).mean()


def cosine_error(ours_RD: Tensor, theirs_RD: Tensor) -> Tensor:
    if len(ours_RD) < FEWEST:
        return 0.0 * ours_RD.sum()
    return (ours_RD @ ours_RD.T - theirs_RD @ theirs_RD.T).abs().mean()
