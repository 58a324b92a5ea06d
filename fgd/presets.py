"""The numbers of each method for each detector family, as plain functions. Knows no torch.

A preset is a spec with every number filled in. `resolve` completes what a user left out; it is what the service
stores with a job, so that a later change of a preset never changes a job.
"""

from __future__ import annotations

from typing import TypeVar

from fgd.spec import FCOS, FGD, JobSpec, MethodSpec, Mimic, Spec

Job = TypeVar("Job", bound=JobSpec)


def fgd_for_fcos() -> FGD:
    """The reference's numbers for FCOS (yzd-v/FGD@c03a6cf, configs/distillers/fgd): T 0.8, the one-stage ratios."""
    return FGD(alpha=1.6e-3, beta=8e-4, gamma=8e-4, temperature=0.8, box_cells="tight").but(lambda_=8e-6)


def mimic_for_fcos() -> Mimic:
    """0.016 x the squared error: the weight that gained 3 AP for FCOS on BCCD, two seeds."""
    return Mimic(weight=0.016)


PRESETS: dict[type[Spec], dict[type[Spec], MethodSpec]] = {
    FCOS: {FGD: fgd_for_fcos(), Mimic: mimic_for_fcos()},
}
"""Detector family -> method -> its numbers."""


def complete(method: MethodSpec, family: type[Spec]) -> MethodSpec:
    """`method` with each None taken from the preset of `family`; numbers given, 0 included, are kept."""
    preset = PRESETS[family][type(method)]
    if isinstance(preset, FGD) and isinstance(method, FGD) and method.compat == "official":
        preset = preset.but(compat="official", box_cells="inclusive")
    missing = {name: getattr(preset, name) for name, value in method if value is None}
    return method.but(**missing)


def resolve(spec: Job) -> Job:
    """A copy of `spec` in which every method has all its numbers. Resolving twice changes nothing more."""
    family = type(spec.student)
    return spec.but(methods=tuple(complete(method, family) for method in spec.methods))
