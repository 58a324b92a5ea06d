"""FKD's golden figures: student, teacher, the layers of both sides; attentions, raw terms, total and gradients.

The reference keeps running statistics of its batch norms; in training nothing depends on them.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from fgd.method_specs import FKD
from fgd.methods.base import Pair
from fgd.methods.fkd import FKDLoss, NonLocal, attention
from fgd.parity.figures import (
    NO_CALIBRATION,
    TOLERANCE,
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
from fgd.spec import Schedule
from fgd.types import View

LEVEL = "level"
TERMS = {"feat": "feature", "channel": "channel", "spatial": "spatial", "nonlocal": "non_local"}
"""The reference's names and ours."""
ILL_CONDITIONED = 1e-4
"""Tolerance of the gradients of the non-local parameters in float32."""


class Connector(BaseModel):
    reduction: PositiveInt
    sub_sample: bool
    maxpool_stride: NonNegativeInt = 2


class Weights(BaseModel):
    mask_l2_weight: NonNegativeFloat
    channel_weight: NonNegativeFloat
    spatial_weight: NonNegativeFloat
    nonlocal_weight: NonNegativeFloat


UNWEIGHTED = Weights(mask_l2_weight=1, channel_weight=1, spatial_weight=1, nonlocal_weight=1)


class FKDCase(Case):
    method = "fkd"

    n: Few
    c: PositiveInt
    h: PositiveInt
    w: PositiveInt
    connector: Connector
    spatial_T: PositiveFloat
    loss_weights: Weights

    def loss(self, weights: Weights = UNWEIGHTED) -> FKDLoss:
        spec = FKD(
            feature=weights.mask_l2_weight,
            channel=weights.channel_weight,
            spatial=weights.spatial_weight,
            non_local=weights.nonlocal_weight,
            temperature=self.spatial_T,
            compat="official",
        )
        loss = FKDLoss(spec, Pair.alike({LEVEL: 1}, self.c, self.c), NO_CALIBRATION, Schedule())
        pool = self.connector.maxpool_stride if self.connector.sub_sample else 0
        for blocks in (loss.relate_student, loss.relate_teacher) if weights.nonlocal_weight else ():
            blocks[LEVEL] = NonLocal(self.c, reduction=self.connector.reduction, pool=pool)
        return loss

    def name_of(self, parameter: str) -> str:
        """The reference's name of one of our parameters."""
        module, _, rest = parameter.partition(f".{LEVEL}.")
        if module in ADAPTERS:
            return f"student/{ADAPTERS[module]}.{rest}"
        side = module.removeprefix("relate_")
        pooled = ".0.0" if self.connector.sub_sample else ""
        renamed = {"g": f"g{pooled}.conv", "phi": f"phi{pooled}.conv", "theta": "theta.conv", "out": "conv_out.conv"}
        part, _, kind = rest.rpartition(".")
        inner = f"{renamed[part]}.{kind}" if part else f"conv_out.bn.{rest.removeprefix('norm_')}"
        return f"{side}/{side}_non_local.{inner}"

    def parameters(self) -> dict[str, Shape]:
        return shapes_of(self.loss, self.name_of)

    def inputs(self) -> dict[str, Shape]:
        statistics = {"running_mean": floats(self.c), "running_var": floats(self.c), "num_batches_tracked": wholes()}
        return {
            **dict.fromkeys(("student", "teacher"), floats(self.n, self.c, self.h, self.w)),
            **prefixed("module", self.parameters()),
            **{
                f"module/{side}/{side}_non_local.conv_out.bn.{name}": shape
                for side in ("student", "teacher")
                for name, shape in statistics.items()
            },
        }

    def results(self) -> dict[str, Shape]:
        return {
            **dict.fromkeys(("mid/s_spatial_mask", "mid/t_spatial_mask"), floats(self.n, 1, self.h, self.w)),
            **{f"raw/{term}": floats() for term in TERMS},
            "total": floats(),
            "grad_student": floats(self.n, self.c, self.h, self.w),
            **prefixed("grad", self.parameters()),
        }

    def figures(self, arrays: Arrays) -> dict[str, Tensor]:
        student_NCHW, valid_N1HW = arrays["student"].clone().requires_grad_(), torch.ones(self.n, 1, self.h, self.w)
        raw, _ = self._terms(UNWEIGHTED, student_NCHW, arrays)
        terms, parameters = self._terms(self.loss_weights, student_NCHW, arrays)
        total = torch.stack([0.0 * student_NCHW.sum(), *terms.values()]).sum()
        of_student, *of_parameters = gradients(total, [student_NCHW, *parameters.values()])
        return {
            **{
                f"mid/{name}_spatial_mask": attention(arrays[whose], valid_N1HW, self.spatial_T)
                for name, whose in (("s", "student"), ("t", "teacher"))
            },
            **{f"raw/{theirs}": raw[ours] for theirs, ours in TERMS.items()},
            "total": total,
            "grad_student": of_student,
            **{f"grad/{name}": each for name, each in zip(parameters, of_parameters, strict=True)},
        }

    def _terms(
        self, weights: Weights, student_NCHW: Tensor, arrays: Arrays
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        loss = self.loss(weights)
        parameters = load_parameters(loss, self.name_of, arrays)
        batch = batch_of((1, 1), [torch.zeros(0, 4)] * self.n)
        return loss(View({LEVEL: student_NCHW}), View({LEVEL: arrays["teacher"]}), batch), parameters

    def limit(self, quantity: str) -> float:
        return ILL_CONDITIONED if quantity.startswith("grad/") and "non_local" in quantity else TOLERANCE


ADAPTERS = {
    "adapt_map": "adaptation_layers",
    "adapt_channels": "channel_wise_adaptation",
    "adapt_cells": "spatial_wise_adaptation",
    "adapt_related": "non_local_adaptation",
}
"""Our layers and the reference's."""
