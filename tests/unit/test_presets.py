"""Presets complete a spec and never overrule it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, get_args

import pytest

from fgd.detector_specs import FCOS, DetectorSpec, FasterRCNN, RetinaNet
from fgd.method_specs import FGD, CrossKD, MethodSpec, Mimic
from fgd.presets import PRESETS, RHO, complete, resolve
from fgd.spec import JobSpec, SubmitJob
from fgd.spec_fields import FromPath, Spec, TeacherFromPath

METHOD_CLASSES = get_args(get_args(MethodSpec)[0])


OPTIONAL = {"perplexity", "shares", "teacher"}
"""Without a temperature "auto" and `rho` there is nothing to say of the first two; of one teacher no name is needed."""


def lacking(method: Spec) -> set[str]:
    """Names of the numbers that it needs and does not have."""
    return {name for name, value in method if value is None} - OPTIONAL


def job(*methods: FGD | Mimic) -> JobSpec:
    return JobSpec(
        name="a job",
        teacher=TeacherFromPath(path="/teacher") if methods else None,
        student=FCOS(),
        dataset=FromPath(path="/data"),
        methods=methods,
    )


PUBLISHED_FOR_FCOS = FGD(alpha=1.6e-3, beta=8e-4, gamma=8e-4, temperature=0.8, box_cells="tight").but(lambda_=8e-6)


def balanced(fgd: FGD) -> FGD:
    shares = {"fg": 1.0, "bg": 1.0, "attention": 0.1, "global": 1.0}
    return FGD.model_validate(
        {**fgd.model_dump(), "temperature": "auto", "perplexity": 0.95, "rho": RHO, "shares": shares}
    )


def test_fgd_is_balanced() -> None:
    assert resolve(job(FGD())).methods == (balanced(PUBLISHED_FOR_FCOS),)


def test_official_fgd_gets_the_published_numbers() -> None:
    expected = PUBLISHED_FOR_FCOS.but(compat="official", box_cells="inclusive", rho=0.0)
    assert resolve(job(FGD(compat="official"))).methods == (expected,)


@pytest.mark.parametrize("kind", METHOD_CLASSES)
@pytest.mark.parametrize("family", PRESETS)
def test_a_method_is_balanced_by_default_unless_its_weights_are_given(kind: Any, family: Any) -> None:
    if kind in PRESETS[family]:
        assert complete(kind(), family).rho == (0 if kind is CrossKD else RHO)
        assert complete(kind(**{kind.weight_fields[0]: 0.5}), family).rho == 0
        assert complete(kind(rho=2.5), family).rho == 2.5


def test_official_fgd_counts_cells_inclusively() -> None:
    (fgd,) = resolve(job(FGD(compat="official"))).methods

    assert isinstance(fgd, FGD)
    assert fgd.box_cells == "inclusive"
    assert fgd.alpha == 1.6e-3


def test_mimic_gets_its_weight() -> None:
    assert resolve(job(Mimic())).methods == (Mimic(weight=0.016, rho=RHO),)


@pytest.mark.parametrize(
    "given", [{"alpha": 0.0}, {"beta": 0.0}, {"gamma": 7.0}, {"lambda": 0.0}, {"temperature": 2.0}]
)
def test_a_number_that_is_given_is_kept_even_if_it_is_zero(given: dict[str, float]) -> None:
    (fgd,) = resolve(job(FGD(**given))).methods

    assert isinstance(fgd, FGD)
    dumped = fgd.model_dump()
    assert dumped | given == dumped
    assert lacking(fgd) == set()


def test_choices_that_are_given_are_kept() -> None:
    given = FGD(box_cells="inclusive", freeze_teacher_gc=True)
    (fgd,) = resolve(job(given)).methods

    assert isinstance(fgd, FGD)
    assert (fgd.box_cells, fgd.freeze_teacher_gc, fgd.compat) == ("inclusive", True, "default")


@pytest.mark.parametrize(
    "methods",
    [(), (FGD(),), (Mimic(),), (FGD(), Mimic()), (FGD(compat="official"),), (FGD(alpha=0, box_cells="inclusive"),)],
)
def test_resolving_twice_changes_nothing_more(methods: tuple[FGD | Mimic, ...]) -> None:
    once = resolve(job(*methods))

    assert resolve(once) == once


def test_a_resolved_spec_survives_json() -> None:
    spec = resolve(job(FGD(), Mimic()))

    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


def test_everything_but_the_methods_stays() -> None:
    body: dict[str, Any] = {**dict(job(FGD())), "priority": 3, "seed": 5}
    submitted = SubmitJob.model_validate(body)

    resolved = resolve(submitted)
    assert resolved.student.norm == "batch"
    assert resolved.but(methods=submitted.methods, student=submitted.student) == submitted


def test_norm_is_frozen_with_pretrained_weights_and_a_given_one_is_kept() -> None:
    for student, norm in (
        (RetinaNet(weights="IMAGENET1K_V1"), "frozen"),
        (RetinaNet(weights="IMAGENET1K_V1", norm="batch"), "batch"),
        (RetinaNet(norm="group"), "group"),
    ):
        assert resolve(job().but(student=student)).student.norm == norm


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        (
            RetinaNet(),
            FGD(alpha=1e-3, beta=5e-4, gamma=5e-4, temperature=0.5, box_cells="tight", rho=0.0).but(lambda_=5e-6),
        ),
        (
            FasterRCNN(version=2),
            FGD(alpha=5e-5, beta=2.5e-5, gamma=5e-5, temperature=0.5, box_cells="tight", rho=0.0).but(lambda_=5e-7),
        ),
    ],
)
def test_each_family_gets_its_published_numbers(student: DetectorSpec, expected: FGD) -> None:
    assert resolve(job(FGD()).but(student=student)).methods == (balanced(expected),)


def test_every_family_has_complete_presets() -> None:
    for family, presets in PRESETS.items():
        assert set(presets) <= set(METHOD_CLASSES)
        for kind, preset in presets.items():
            assert type(preset) is kind
            assert lacking(preset) <= {"rho"}
            assert lacking(complete(preset, family)) == set()


def test_presets_load_no_torch() -> None:
    code = "import sys, fgd.presets; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
