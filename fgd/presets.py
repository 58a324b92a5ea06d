"""The numbers of each method for each detector family, as plain functions. Knows no torch.

A preset is a spec with every number filled in. `resolve` completes what a user left out; it is what the service
stores with a job, so that a later change of a preset never changes a job.
"""

from __future__ import annotations

from typing import Any, TypeVar

from fgd.detector_specs import FCOS, FasterRCNN, RetinaNet
from fgd.method_fields import FGDShares
from fgd.method_specs import (
    CWD,
    FGD,
    FGFI,
    FKD,
    FRS,
    GID,
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


def of_one_stage() -> dict[type[Spec], MethodSpec]:
    """The authors' numbers for detectors of one stage, where they tell them: those for RetinaNet, unless it is said
    otherwise. Their sums have factors that bring them to the reference geometry (`fgd/methods/`, each file)."""
    return {
        Mimic: mimic(),
        PKD: PKD(weight=10.0, levels=4),
        CWD: CWD(weight=10.0, temperature=1.0),
        MGD: MGD(alpha=2e-5).but(lambda_=0.65),
        FKD: FKD(feature=4e-4, channel=2e-2, spatial=2e-2, non_local=4e-4, temperature=0.1, levels=4),
        DeFeat: DeFeat(foreground=3.0, background=12.0),
        FGFI: FGFI(weight=0.01),
        FRS: FRS(feature=0.005, scores=0.02),
        CrossKD: CrossKD(scores=1.0, boxes=1.0, first=3),
        GID: GID(feature=5e-4, relation=40.0, scores=0.1, boxes=1.0),
        MimicRoI: MimicRoI(weight=1.0),
        TADF: TADF(weight=0.01),
        Relations: Relations(weight=1.0),
    }


def of_points() -> dict[type[Spec], MethodSpec]:
    """FCOS's where the authors tell them."""
    return of_one_stage() | {
        FRS: FRS(feature=0.01, scores=0.05),
        CrossKD: CrossKD(scores=0.4, boxes=0.75, first=2),
    }


def of_two_stages() -> dict[type[Spec], MethodSpec]:
    """Faster R-CNN's where the authors tell them; it has no towers."""
    of_others = {kind: numbers for kind, numbers in of_one_stage().items() if kind is not CrossKD}
    return of_others | {
        PKD: PKD(weight=6.0, levels=4),
        MGD: MGD(alpha=5e-7).but(lambda_=0.45),
        FKD: FKD(feature=7e-5, channel=4e-3, spatial=4e-3, non_local=7e-5, temperature=0.5, levels=4),
        FRS: FRS(feature=0.002, scores=0.1),
        Chen2017: Chen2017(hint=0.5, soft=1.0, bounded=0.5),
    }


PUBLISHED: dict[type[Spec], dict[type[Spec], MethodSpec]] = {
    FCOS: {FGD: fgd_for_fcos(), **of_points()},
    RetinaNet: {FGD: fgd_for_retinanet(), **of_one_stage()},
    FasterRCNN: {FGD: fgd_for_two_stages(), **of_two_stages()},
}
"""Detector family -> method -> the authors' numbers, which `compat` "official" has."""

RHO = 30.0
"""How many times as strong as the detection loss's gradient a method's is at the shared maps. Chosen on a slice of
training images, in three families (docs/study.md)."""
PERPLEXITY = 0.95
"""What "temperature": "auto" aims at where neither request nor preset says it."""
SHARES = FGDShares(fg=1.0, bg=1.0, attention=0.1).but(global_=1.0)


def balanced(method: MethodSpec) -> MethodSpec:
    """`method` as strong in every family: where it is alone, the weights decide only how its terms are mixed."""
    if isinstance(method, FGD):
        return method.but(temperature="auto", perplexity=PERPLEXITY, rho=RHO, shares=SHARES)
    if isinstance(
        method, CrossKD
    ):  # compares what heads say, not maps: its weights are of the size of the detection loss
        return method
    return method.but(rho=RHO)


PRESETS = {
    family: {kind: balanced(numbers) for kind, numbers in of_methods.items()}
    for family, of_methods in PUBLISHED.items()
}
"""Detector family -> method -> its numbers, balanced."""


def complete(method: MethodSpec, family: type[Spec]) -> MethodSpec:
    """`method` with each None taken from the preset of `family`; numbers given, 0 included, are kept."""
    official = getattr(method, "compat", "default") == "official"
    numbers = (PUBLISHED if official else PRESETS)[family]
    preset = numbers.get(type(method), method)  # a plug-in's own numbers are in its fields
    missing = {name: getattr(preset, name) for name, value in method if value is None}
    if isinstance(method, FGD) and official:
        missing |= {"box_cells": "inclusive"}
    as_given = official or any(getattr(method, each, None) for each in method.weight_fields)
    if method.rho is None:
        missing["rho"] = 0.0 if as_given else preset.rho or 0.0
    if isinstance(method, FGD | FKD) and isinstance(preset, FGD | FKD):
        missing |= temperature_and_perplexity(method, preset)
    if isinstance(method, FGD) and isinstance(preset, FGD):
        given = method.shares if as_given else method.shares or preset.shares
        usual = preset.shares or SHARES
        missing["shares"] = shares(method, given, usual) if given and missing.get("rho", method.rho) else None
    return method.but(**missing)


def temperature_and_perplexity(method: FGD | FKD, preset: FGD | FKD) -> dict[str, Any]:
    """A perplexity that is given means "auto", and one is needed for nothing else."""
    temperature = method.temperature or ("auto" if method.perplexity is not None else preset.temperature)
    perplexity = method.perplexity or preset.perplexity or PERPLEXITY
    return {"temperature": temperature, "perplexity": perplexity if temperature == "auto" else None}


def shares(method: FGD, given: FGDShares, usual: FGDShares) -> FGDShares:
    """Of the terms that are on, the usual one where none is given. A feature term that is not split has what its parts
    have."""
    of_terms = {name: share for each in (usual, given) for name, share in each if share is not None}
    of_terms.setdefault("unsplit", of_terms["fg"] + of_terms["bg"])
    return FGDShares().but(**{name: of_terms[name] for name in method.terms()})


def resolve(spec: Job) -> Job:
    """A copy of `spec` in which every method has all its numbers, and the student its normalisation.

    Resolving twice changes nothing more.
    """
    student = spec.student.but(norm=spec.student.trunk_norm())
    return spec.but(student=student, methods=tuple(complete(method, type(student)) for method in spec.methods))
