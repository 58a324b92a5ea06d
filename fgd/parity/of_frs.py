"""FRS's golden figures: maps and class logits of each level, adapters; raw terms, total and gradients."""

from __future__ import annotations

import torch
from pydantic import BaseModel, NonNegativeFloat, PositiveInt
from torch import Tensor

from fgd.method_specs import FRS
from fgd.methods.base import Pair
from fgd.methods.frs import FRSLoss
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
)
from fgd.parity.heads import of_places, predictions
from fgd.spec import Schedule
from fgd.types import View


class Weights(BaseModel):
    feat: NonNegativeFloat
    cls: NonNegativeFloat


class FRSCase(Case):
    method = "frs"

    n: Few
    c: PositiveInt
    num_classes: PositiveInt
    num_anchors: PositiveInt
    sizes: list[tuple[PositiveInt, PositiveInt]]
    adapter: object = None
    weights: Weights
    warm_steps: object = None

    def loss(self) -> FRSLoss:
        spec = FRS(feature=1.0, scores=1.0, compat="official")
        pair = Pair.alike({str(i): 2**i for i in range(len(self.sizes))}, self.c, self.c)
        return FRSLoss(spec, pair, NO_CALIBRATION, Schedule())

    def parameters(self) -> dict[str, Shape]:
        return shapes_of(self.loss, golden_name)

    def levels(self, what: str, channels: int) -> dict[str, Shape]:
        return {f"{what}/{i}": floats(self.n, channels, h, w) for i, (h, w) in enumerate(self.sizes)}

    def inputs(self) -> dict[str, Shape]:
        scores = self.num_anchors * self.num_classes
        return {
            **self.levels("student", self.c),
            **self.levels("teacher", self.c),
            **self.levels("student_cls", scores),
            **self.levels("teacher_cls", scores),
            **prefixed("module", self.parameters()),
        }

    def results(self) -> dict[str, Shape]:
        return {
            "raw/feat": floats(),
            "raw/cls": floats(),
            "total": floats(),
            **self.levels("grad_student", self.c),
            **self.levels("grad_cls", self.num_anchors * self.num_classes),
            **prefixed("grad", self.parameters()),
        }

    def figures(self, arrays: Arrays) -> dict[str, Tensor]:
        names = [str(i) for i in range(len(self.sizes))]
        maps = {i: arrays[f"student/{i}"].clone().requires_grad_() for i in names}
        logits = {i: arrays[f"student_cls/{i}"].clone().requires_grad_() for i in names}
        loss = self.loss()
        parameters = load_parameters(loss, golden_name, arrays)
        ours, theirs = (
            predictions({i: of_places(each, self.num_anchors) for i, each in of_levels.items()})
            for of_levels in (logits, {i: arrays[f"teacher_cls/{i}"] for i in names})
        )
        teacher = View({i: arrays[f"teacher/{i}"] for i in names}, theirs)
        raw = loss(View(maps, ours), teacher, batch_of((1, 1), [torch.zeros(0, 4)] * self.n))
        total = self.weights.feat * raw["feature"] + self.weights.cls * raw["scores"]
        found = gradients(total, [*maps.values(), *logits.values(), *parameters.values()])
        keys = [f"{what}/{i}" for what in ("grad_student", "grad_cls") for i in names]
        return {
            "raw/feat": raw["feature"],
            "raw/cls": raw["scores"],
            "total": total,
            **dict(zip([*keys, *(f"grad/{name}" for name in parameters)], found, strict=True)),
        }


def golden_name(parameter: str) -> str:
    return parameter.replace("adapt.", "adap/conv.")
