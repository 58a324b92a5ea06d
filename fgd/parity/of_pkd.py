"""PKD's golden figures: student/<level>, teacher/<level>; the raw term of each level, total and gradients."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from fgd.method_specs import PKD
from fgd.methods.base import Pair
from fgd.methods.pkd import PKDLoss, pearson_distance
from fgd.parity.figures import NO_CALIBRATION, Arrays, Case, Few, Shape, batch_of, floats, gradients
from fgd.spec import Schedule
from fgd.types import View


class PKDCase(Case):
    method = "pkd"

    n: Few
    c: PositiveInt
    levels: list[tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]]
    """Height and width of the student's map and of the teacher's."""
    loss_weight: NonNegativeFloat
    resize_stu: bool

    def inputs(self) -> dict[str, Shape]:
        return {
            **{f"student/{i}": floats(self.n, self.c, h, w) for i, (h, w, _, _) in enumerate(self.levels)},
            **{f"teacher/{i}": floats(self.n, self.c, h, w) for i, (_, _, h, w) in enumerate(self.levels)},
        }

    def results(self) -> dict[str, Shape]:
        return {
            **{f"raw/pkd/{i}": floats() for i in range(len(self.levels))},
            "total": floats(),
            **{f"grad_student/{i}": floats(self.n, self.c, h, w) for i, (h, w, _, _) in enumerate(self.levels)},
        }

    def figures(self, arrays: Arrays) -> dict[str, Tensor]:
        names = [str(i) for i in range(len(self.levels))]
        students = {i: arrays[f"student/{i}"].clone().requires_grad_() for i in names}
        teachers = {i: arrays[f"teacher/{i}"] for i in names}
        raw = {i: pearson_distance(students[i], teachers[i]) for i in names}
        if all(students[i].shape == teachers[i].shape for i in names):
            batch = batch_of((1, 1), [torch.zeros(0, 4)] * self.n)
            total = sum(self.loss()(View(students), View(teachers), batch).values(), torch.zeros(()))
        else:  # in the service both networks see one input, and their maps have one size
            total = self.loss_weight * torch.stack(list(raw.values())).sum()
        of_students = gradients(total, list(students.values()))
        return {
            **{f"raw/pkd/{i}": each for i, each in raw.items()},
            "total": total,
            **{f"grad_student/{i}": each for i, each in zip(names, of_students, strict=True)},
        }

    def loss(self) -> PKDLoss:
        levels = {str(i): 2**i for i in range(len(self.levels))}
        spec = PKD(weight=self.loss_weight, compat="official")
        return PKDLoss(spec, Pair.alike(levels, self.c, self.c), NO_CALIBRATION, Schedule())
