"""Distillation methods: what each spec of `fgd.spec.MethodSpec` becomes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fgd.methods.base import Method, Pair
from fgd.methods.fgd import FGDLoss
from fgd.methods.maps import Kernels
from fgd.methods.mimic import MimicLoss
from fgd.methods.native import Native
from fgd.spec import FGD, MethodSpec, Mimic, Schedule, Spec
from fgd.types import Calibration

__all__ = ["METHODS", "Method", "Pair", "build", "compiled"]

METHODS: dict[type[Spec], Callable[..., Method]] = {FGD: FGDLoss, Mimic: MimicLoss}


def build(spec: MethodSpec, pair: Pair, calibration: Calibration, schedule: Schedule) -> Method:
    """The module of a resolved `spec`, its parameters freshly initialised on the CPU from the global generator."""
    return METHODS[type(spec)](spec, pair, calibration, schedule)


def compiled(device: torch.device) -> Kernels:
    """The losses' passes over the maps for that device, for `Method.kernels`. Raises UserError without a compiler."""
    if device.type == "cpu":
        return Native()
    from fgd.methods.on_gpu import OnGpu  # its kernels need triton, which processors do without

    return OnGpu(device)
