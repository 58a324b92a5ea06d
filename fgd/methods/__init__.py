"""Distillation methods: what each spec of `fgd.method_specs.MethodSpec` becomes."""

from __future__ import annotations

from collections.abc import Callable

from fgd.method_specs import FGD, MethodSpec, Mimic
from fgd.methods.base import Method, Pair
from fgd.methods.fgd import FGDLoss
from fgd.methods.mimic import MimicLoss
from fgd.spec import Schedule
from fgd.spec_fields import Spec
from fgd.types import Calibration

__all__ = ["METHODS", "Method", "Pair", "build"]

METHODS: dict[type[Spec], Callable[..., Method]] = {FGD: FGDLoss, Mimic: MimicLoss}


def build(spec: MethodSpec, pair: Pair, calibration: Calibration, schedule: Schedule) -> Method:
    """The module of a resolved `spec`, its parameters freshly initialised on the CPU from the global generator."""
    return METHODS[type(spec)](spec, pair, calibration, schedule)
