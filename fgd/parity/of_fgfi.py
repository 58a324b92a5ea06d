"""FGFI's golden figures: maps, boxes, anchors, adapter; the chosen cells, the raw term, total and gradients."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from fgd.method_specs import FGFI
from fgd.methods.base import Pair, SharedLevel
from fgd.methods.fgfi import FGFILoss
from fgd.parity.figures import (
    NO_CALIBRATION,
    Arrays,
    Case,
    Few,
    Shape,
    batch_of,
    floats,
    gradients,
    load_parameters,
    prefixed,
    shapes_of,
    wholes,
)
from fgd.parity.heads import predictions
from fgd.spec import Schedule
from fgd.types import View

LEVEL = "level"


class FGFICase(Case):
    method = "fgfi"

    n: Few
    cs: PositiveInt
    ct: PositiveInt
    h: PositiveInt
    w: PositiveInt
    ih: PositiveInt
    iw: PositiveInt
    stride: PositiveInt
    anchor_scales: list[PositiveFloat]
    anchor_ratios: list[PositiveFloat]
    boxes: object = None
    threshold: Annotated[float, Field(gt=0, lt=1)]
    imitation_loss_weight: NonNegativeFloat

    def loss(self) -> FGFILoss:
        spec = FGFI(weight=1.0, threshold=self.threshold, compat="official")
        pair = Pair({LEVEL: SharedLevel(self.stride, self.cs, self.ct)})
        return FGFILoss(spec, pair, NO_CALIBRATION, Schedule())

    def parameters(self) -> dict[str, Shape]:
        return shapes_of(self.loss, golden_name)

    @property
    def anchors(self) -> int:
        return len(self.anchor_scales) * len(self.anchor_ratios)

    def inputs(self) -> dict[str, Shape]:
        return {
            "student": floats(self.n, self.cs, self.h, self.w),
            "teacher": floats(self.n, self.ct, self.h, self.w),
            **{f"boxes/{image}": floats(None, 4) for image in range(self.n)},
            "anchors": floats(self.h, self.w, self.anchors, 4),
            **prefixed("module", self.parameters()),
        }

    def results(self) -> dict[str, Shape]:
        return {
            "mask": wholes(self.n, 1, self.h, self.w),
            "raw/imitation": floats(),
            "total": floats(),
            "grad_student": floats(self.n, self.cs, self.h, self.w),
            **prefixed("grad", self.parameters()),
        }

    def figures(self, arrays: Arrays) -> dict[str, Tensor]:
        loss, student_NCHW = self.loss(), arrays["student"].clone().requires_grad_()
        parameters = load_parameters(loss, golden_name, arrays)
        anchors_K4 = arrays["anchors"].reshape(-1, 4)
        boxes = [arrays[f"boxes/{image}"] for image in range(self.n)]
        made = predictions({LEVEL: torch.zeros(self.n, len(anchors_K4), 1)}, anchors_K4=anchors_K4)
        batch = batch_of((self.ih, self.iw), boxes)
        (raw,) = loss(View({LEVEL: student_NCHW}, made), View({LEVEL: arrays["teacher"]}), batch).values()
        total = self.imitation_loss_weight * raw
        of_student, *of_parameters = gradients(total, [student_NCHW, *parameters.values()])
        return {
            "mask": loss.chosen({LEVEL: anchors_K4}, {LEVEL: (self.h, self.w)}, boxes)[LEVEL],
            "raw/imitation": raw,
            "total": total,
            "grad_student": of_student,
            **{f"grad/{name}": each for name, each in zip(parameters, of_parameters, strict=True)},
        }


def golden_name(parameter: str) -> str:
    return parameter.replace(f"adapt.{LEVEL}.", "adapt/")
