"""CWD's golden figures: student, teacher; the raw term, total and gradient."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from fgd.method_specs import CWD
from fgd.methods.base import Pair
from fgd.methods.cwd import CWDLoss
from fgd.parity.figures import NO_CALIBRATION, Arrays, Case, Few, Shape, batch_of, floats, gradients
from fgd.spec import Schedule
from fgd.types import View


class CWDCase(Case):
    method = "cwd"

    n: Few
    c: PositiveInt
    h: PositiveInt
    w: PositiveInt
    tau: PositiveFloat
    loss_weight: NonNegativeFloat

    def inputs(self) -> dict[str, Shape]:
        return dict.fromkeys(("student", "teacher"), floats(self.n, self.c, self.h, self.w))

    def results(self) -> dict[str, Shape]:
        return {"raw/cwd": floats(), "total": floats(), "grad_student": floats(self.n, self.c, self.h, self.w)}

    def figures(self, arrays: Arrays) -> dict[str, Tensor]:
        student_NCHW = arrays["student"].clone().requires_grad_()
        raw = self._term(1.0, student_NCHW, arrays["teacher"])
        total = self._term(self.loss_weight, student_NCHW, arrays["teacher"]) if self.loss_weight else 0 * raw
        (of_student,) = gradients(total, [student_NCHW])
        return {"raw/cwd": raw, "total": total, "grad_student": of_student}

    def _term(self, weight: float, student_NCHW: Tensor, teacher_NCHW: Tensor) -> Tensor:
        spec = CWD(weight=weight, temperature=self.tau, compat="official")
        loss = CWDLoss(spec, Pair.alike({"level": 1}, self.c, self.c), NO_CALIBRATION, Schedule())
        batch = batch_of((1, 1), [torch.zeros(0, 4)] * self.n)
        (term,) = loss(View({"level": student_NCHW}), View({"level": teacher_NCHW}), batch).values()
        made: Tensor = term
        return made
