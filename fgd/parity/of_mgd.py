"""MGD's golden figures: student, teacher, the uniform draw, generator and adapter; the cells kept, the raw term, total
and gradients."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from fgd.method_specs import MGD
from fgd.methods.base import Pair
from fgd.methods.mgd import MGDLoss, kept
from fgd.methods.paired import PairedMaps
from fgd.parity.figures import (
    NO_CALIBRATION,
    Arrays,
    Case,
    Few,
    Shape,
    floats,
    gradients,
    load_parameters,
    prefixed,
    shapes_of,
    wholes,
)
from fgd.spec import Schedule

LEVEL = "level"


class MGDCase(Case):
    method = "mgd"

    n: Few
    cs: PositiveInt
    ct: PositiveInt
    h: PositiveInt
    w: PositiveInt
    alpha_mgd: NonNegativeFloat
    lambda_mgd: Annotated[float, Field(ge=0, le=1)]

    def loss(self) -> MGDLoss:
        spec = MGD(alpha=1.0, compat="official").but(lambda_=self.lambda_mgd)
        return MGDLoss(spec, Pair.alike({LEVEL: 1}, self.cs, self.ct), NO_CALIBRATION, Schedule())

    def parameters(self) -> dict[str, Shape]:
        return shapes_of(self.loss, golden_name)

    def inputs(self) -> dict[str, Shape]:
        return {
            "student": floats(self.n, self.cs, self.h, self.w),
            "teacher": floats(self.n, self.ct, self.h, self.w),
            "uniform": floats(self.n, 1, self.h, self.w),
            **prefixed("module", self.parameters()),
        }

    def results(self) -> dict[str, Shape]:
        return {
            "mask": wholes(self.n, 1, self.h, self.w),
            "raw/mgd": floats(),
            "total": floats(),
            "grad_student": floats(self.n, self.cs, self.h, self.w),
            **prefixed("grad", self.parameters()),
        }

    def figures(self, arrays: Arrays) -> dict[str, Tensor]:
        loss, student_NCHW = self.loss(), arrays["student"].clone().requires_grad_()
        parameters = load_parameters(loss, golden_name, arrays)
        maps = PairedMaps(LEVEL, loss.align[LEVEL](student_NCHW), arrays["teacher"], torch.ones(1, 1, 1, 1))
        raw = loss.error(maps, arrays["uniform"]) / self.n
        total = self.alpha_mgd * raw
        of_student, *of_parameters = gradients(total, [student_NCHW, *parameters.values()])
        return {
            "mask": kept(arrays["uniform"], self.lambda_mgd),
            "raw/mgd": raw,
            "total": total,
            "grad_student": of_student,
            **{f"grad/{name}": each for name, each in zip(parameters, of_parameters, strict=True)},
        }


def golden_name(parameter: str) -> str:
    return parameter.replace(f"generate.{LEVEL}", "generation").replace(f"align.{LEVEL}", "align")
