"""Distillation methods: what each spec of `fgd.method_specs.MethodSpec` becomes."""

from __future__ import annotations

from collections.abc import Callable

from fgd.method_specs import (
    CWD,
    FGD,
    FGFI,
    FKD,
    FRS,
    GID,
    LD,
    MGD,
    PKD,
    TADF,
    Chen2017,
    CrossKD,
    DeFeat,
    MethodSpec,
    Mimic,
    MimicRoI,
    Relations,
)
from fgd.methods.base import Method, Pair
from fgd.methods.chen2017 import Chen2017Loss
from fgd.methods.crosskd import CrossKDLoss
from fgd.methods.cwd import CWDLoss
from fgd.methods.defeat import DeFeatLoss
from fgd.methods.fgd_variants import fgd_loss
from fgd.methods.fgfi import FGFILoss
from fgd.methods.fkd import FKDLoss
from fgd.methods.frs import FRSLoss
from fgd.methods.gid import GIDLoss
from fgd.methods.ld import LDLoss
from fgd.methods.mgd import MGDLoss
from fgd.methods.mimic import MimicLoss
from fgd.methods.mimic_roi import MimicRoILoss
from fgd.methods.pkd import PKDLoss
from fgd.methods.relations import RelationsLoss
from fgd.methods.tadf import TADFLoss
from fgd.plugins import implementation_of
from fgd.spec import Schedule
from fgd.spec_fields import Spec
from fgd.types import Calibration

__all__ = ["METHODS", "Method", "Pair", "build"]

METHODS: dict[type[Spec], Callable[..., Method]] = {
    FGD: fgd_loss,
    Mimic: MimicLoss,
    PKD: PKDLoss,
    CWD: CWDLoss,
    MGD: MGDLoss,
    FKD: FKDLoss,
    DeFeat: DeFeatLoss,
    FGFI: FGFILoss,
    FRS: FRSLoss,
    CrossKD: CrossKDLoss,
    LD: LDLoss,
    GID: GIDLoss,
    Chen2017: Chen2017Loss,
    MimicRoI: MimicRoILoss,
    TADF: TADFLoss,
    Relations: RelationsLoss,
}


def build(spec: MethodSpec, pair: Pair, calibration: Calibration, schedule: Schedule) -> Method:
    """The module of a resolved `spec`, its parameters freshly initialised on the CPU from the global generator."""
    implementation = METHODS.get(type(spec)) or implementation_of(spec)
    return implementation(spec, pair, calibration, schedule)
