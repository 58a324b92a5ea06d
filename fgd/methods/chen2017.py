"""Chen et al. 2017 (Learning Efficient Object Detection Models with Knowledge Distillation, NeurIPS) for two stages.

There is no original code; these are the paper's formulas, over the regions that the student draws for its own losses:
    hint     the mean over cells and channels of (a(S) - T)^2, at each level
    soft     the mean over regions of - sum_c w_c P_T(c) log P_S(c), softmaxes over background and classes; w is 1.5 for
             the background and 1 for a class
    bounded  the mean over regions of |s - y|^2 where |s - y|^2 + m > |t - y|^2, else 0: of regions with an object, s, t
             and y the deltas of student, teacher and object for the region's class
The paper's mu x hard + (1 - mu) x soft is, up to a factor, the detector's own loss plus (1 - mu) / mu x soft.

Where the paper is silent:
- both maps of the hint come to the teacher's common scale, and only cells of the image count;
- the mean of `bounded` is over all regions, as that of the detector's own box loss is;
- the first stage keeps its own losses: the paper treats it alike, but its places of two networks need not match.
"""

# N images, R regions, C background and classes, H x W cells of a level

from __future__ import annotations

import torch
from torch import Tensor

from fgd.method_specs import Chen2017
from fgd.methods.base import Method, Pair, adapters, resolved
from fgd.methods.paired import full, paired, scales_of
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, View


class Chen2017Loss(Method):
    """Terms "hint", summed over levels, "soft" and "bounded"."""

    def __init__(self, spec: Chen2017, pair: Pair, calibration: Calibration, _schedule: Schedule) -> None:
        super().__init__()
        self.hint, self.soft, self.bounded = (resolved(each) for each in (spec.hint, spec.soft, spec.bounded))
        self.background_weight, self.margin = spec.background_weight, spec.margin
        on = pair if self.hint else Pair({})
        self.scales = scales_of(on, calibration, official=False)
        self.align = adapters(on)

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        terms = {}
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            if self.hint:
                hints = [
                    mean_error(*maps.maps)
                    for maps in paired(student, teacher, batch, align=self.align, scales=self.scales, official=False)
                ]
                terms["hint"] = self.hint * torch.stack(hints).sum()
            if self.soft or self.bounded:
                terms |= self._of_regions(student, teacher)
        return terms

    def _of_regions(self, student: View, teacher: View) -> dict[str, Tensor]:
        drawn = student.predictions.regions if student.predictions is not None else None
        assert drawn is not None, "the student's regions are drawn in training mode"
        assert drawn.labels_R is not None
        assert drawn.targets_R4 is not None
        assert teacher.regions is not None
        asked = teacher.regions(drawn.proposals)
        terms = {}
        if self.soft:
            entropy_R = soft_entropy(full(drawn.logits_RC), full(asked.logits_RC.detach()), self.background_weight)
            terms["soft"] = self.soft * entropy_R.sum() / max(1, len(entropy_R))
        if self.bounded:
            at_R11 = drawn.labels_R[:, None, None].expand(-1, 1, 4)
            ours_R4, theirs_R4 = (full(each.boxes_RC4).gather(1, at_R11)[:, 0] for each in (drawn, asked))
            object_R = drawn.labels_R > 0
            # Of a region without an object the deltas may be infinite: they must not even meet a zero.
            wanted_R4 = torch.where(object_R[:, None], drawn.targets_R4, 0.0)
            bounded_R = bounded_error(ours_R4, theirs_R4.detach(), wanted_R4, self.margin)
            terms["bounded"] = self.bounded * (object_R * bounded_R).sum() / max(1, len(bounded_R))
        return terms


def mean_error(student_NCHW: Tensor, teacher_NCHW: Tensor, valid_N1HW: Tensor) -> Tensor:
    """Squared: the mean over an image's cells and channels, then over images."""
    error_N1HW = (student_NCHW - teacher_NCHW).square().mean(1, keepdim=True)
    return ((valid_N1HW * error_N1HW).sum((1, 2, 3)) / valid_N1HW.sum((1, 2, 3)).clamp(min=1)).mean()


def soft_entropy(ours_RC: Tensor, theirs_RC: Tensor, background_weight: float) -> Tensor:
    """R; the background is column 0."""
    weight_C = ours_RC.new_ones(ours_RC.shape[1])
    weight_C[0] = background_weight
    return -(weight_C * theirs_RC.softmax(1) * ours_RC.log_softmax(1)).sum(1)


def bounded_error(ours_R4: Tensor, theirs_R4: Tensor, wanted_R4: Tensor, margin: float) -> Tensor:
    """R."""
    error_R, bound_R = ((each - wanted_R4).square().sum(1) for each in (ours_R4, theirs_R4))
    return torch.where(error_R + margin > bound_R, error_R, 0.0)
