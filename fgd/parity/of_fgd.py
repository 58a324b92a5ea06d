"""FGD's golden figures: NAME/student, teacher, boxes/<image>, module/<parameter>; raw terms, total and gradients."""

from __future__ import annotations

import torch
from pydantic import BaseModel, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from fgd.method_specs import FGD
from fgd.methods.base import Pair
from fgd.methods.fgd import FGDLoss
from fgd.parity.figures import (
    NO_CALIBRATION,
    Arrays,
    Case,
    Few,
    Shape,
    batch_of,
    floats,
    load_parameters,
    prefixed,
    shapes_of,
)
from fgd.spec import Schedule
from fgd.types import View

TERMS = ("fg", "bg", "attention", "global")
LEVEL = "level"
PARAMETERS = {
    f"align.{LEVEL}": "align",
    f"student_context.{LEVEL}.attend": "conv_mask_s",
    f"teacher_context.{LEVEL}.attend": "conv_mask_t",
    f"student_context.{LEVEL}.transform": "channel_add_conv_s",
    f"teacher_context.{LEVEL}.transform": "channel_add_conv_t",
}
"""Our modules and the reference's names of them."""


class LossWeights(BaseModel):
    alpha_fgd: NonNegativeFloat
    beta_fgd: NonNegativeFloat
    gamma_fgd: NonNegativeFloat
    lambda_fgd: NonNegativeFloat


UNWEIGHTED = LossWeights(alpha_fgd=1, beta_fgd=1, gamma_fgd=1, lambda_fgd=1)


class FGDCase(Case):
    method = "fgd"

    n: Few
    cs: PositiveInt
    ct: PositiveInt = Field(ge=2)
    h: PositiveInt
    w: PositiveInt
    ih: PositiveInt
    iw: PositiveInt
    temp: PositiveFloat
    loss_weights: LossWeights

    def loss(self, weights: LossWeights) -> FGDLoss:
        """FGD as the reference computes it, on a pyramid of one level."""
        spec = FGD(
            alpha=weights.alpha_fgd,
            beta=weights.beta_fgd,
            gamma=weights.gamma_fgd,
            temperature=self.temp,
            compat="official",
        ).but(lambda_=weights.lambda_fgd)
        pair = Pair.alike({LEVEL: 1}, self.cs, self.ct)
        return FGDLoss(spec, pair, NO_CALIBRATION, Schedule())

    def parameters(self) -> dict[str, Shape]:
        return shapes_of(lambda: self.loss(UNWEIGHTED), golden_name)

    def inputs(self) -> dict[str, Shape]:
        return {
            "student": floats(self.n, self.cs, self.h, self.w),
            "teacher": floats(self.n, self.ct, self.h, self.w),
            **{f"boxes/{image}": floats(None, 4) for image in range(self.n)},
            **prefixed("module", self.parameters()),
        }

    def results(self) -> dict[str, Shape]:
        return {
            **{f"raw/{term}": floats() for term in TERMS},
            "total": floats(),
            "grad_student": floats(self.n, self.cs, self.h, self.w),
            **prefixed("grad", self.parameters()),
        }

    def figures(self, arrays: Arrays) -> dict[str, Tensor]:
        student_NCHW = arrays["student"].clone().requires_grad_()
        raw, _ = self._terms(UNWEIGHTED, student_NCHW, arrays)
        terms, parameters = self._terms(self.loss_weights, student_NCHW, arrays)
        # The first summand ties the total to the student even if the case switches every term off.
        total = torch.stack([0.0 * student_NCHW.sum(), *terms.values()]).sum()
        grad_student, *gradients = torch.autograd.grad(total, [student_NCHW, *parameters.values()])
        # A term that is off has no parameters here, and gives the reference's no gradient.
        return {
            **{f"raw/{term}": value for term, value in raw.items()},
            "total": total,
            "grad_student": grad_student,
            **{f"grad/{name}": gradient for name, gradient in zip(parameters, gradients, strict=True)},
        }

    def _terms(
        self, weights: LossWeights, student_NCHW: Tensor, arrays: Arrays
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weighted terms, and the parameters behind them by the reference's names."""
        method = self.loss(weights)
        parameters = load_parameters(method, golden_name, arrays)
        batch = batch_of((self.ih, self.iw), [arrays[f"boxes/{image}"] for image in range(self.n)])
        terms = method(View({LEVEL: student_NCHW}), View({LEVEL: arrays["teacher"]}), batch)
        return terms, parameters


def golden_name(parameter: str) -> str:
    """The reference's name of one of our parameters."""
    module = next(ours for ours in PARAMETERS if parameter.startswith(f"{ours}."))
    return PARAMETERS[module] + parameter.removeprefix(module)
