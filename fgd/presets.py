"""The numbers of each method for each detector family, as plain functions. Knows no torch.

A preset is a spec with every number filled in. `resolve` completes what a user left out; it is what the service
stores with a job, so that a later change of a preset never changes a job.
"""

from __future__ import annotations

from typing import TypeVar

from fgd.detector_specs import FCOS, FasterRCNN, RetinaNet
from fgd.method_specs import FGD, MethodSpec, Mimic
from fgd.spec import JobSpec
from fgd.spec_fields import Spec

Job = TypeVar("Job", bound=JobSpec)


def fgd_for_fcos() -> FGD:
    """The reference's numbers for FCOS (yzd-v/FGD@c03a6cf, configs/distillers/fgd): T 0.8, the one-stage ratios."""
    return FGD(alpha=1.6e-3, beta=8e-4, gamma=8e-4, temperature=0.8, box_cells="tight").but(lambda_=8e-6)


def fgd_for_retinanet() -> FGD:
    """The reference's numbers for RetinaNet; the paper's text has gamma 1e-3, its configurations 5e-4."""
    return FGD(alpha=1e-3, beta=5e-4, gamma=5e-4, temperature=0.5, box_cells="tight").but(lambda_=5e-6)


def fgd_for_two_stages() -> FGD:
    """The reference's numbers for Faster R-CNN."""
    return FGD(alpha=5e-5, beta=2.5e-5, gamma=5e-5, temperature=0.5, box_cells="tight").but(lambda_=5e-7)


def mimic() -> Mimic:
    """0.016 x the squared error: the weight that gained 3 AP for FCOS on BCCD, two seeds; not measured for others."""
    return Mimic(weight=0.016)


PRESETS: dict[type[Spec], dict[type[Spec], MethodSpec]] = {
    FCOS: {FGD: fgd_for_fcos(), Mimic: mimic()},
    RetinaNet: {FGD: fgd_for_retinanet(), Mimic: mimic()},
    FasterRCNN: {FGD: fgd_for_two_stages(), Mimic: mimic()},
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
    """A copy of `spec` in which every method has all its numbers, and the student its normalisation.

    Resolving twice changes nothing more.
    """
    student = spec.student.but(norm=spec.student.trunk_norm())
    return spec.but(student=student, methods=tuple(complete(method, type(student)) for method in spec.methods))
