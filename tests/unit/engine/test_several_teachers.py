"""Trainings with several teachers: each has its methods, calibration, fitness and classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fgd.detector_specs import FCOS
from fgd.detectors import build
from fgd.engine import weights
from fgd.errors import SpecError, TeacherUnfit
from fgd.events import Finished, Note, Saved, Stepped
from fgd.recipe import Recipe
from fgd.spec import JobSpec

Train = Callable[..., Any]
MakeSpec = Callable[..., JobSpec]


def untrained(folder: Path, *classes: str) -> dict[str, Any]:
    """A reference to a network of these classes that has learnt nothing, and may teach all the same."""
    torch.manual_seed(len(folder.name))
    recipe = Recipe(detector=FCOS(fpn_channels=64), classes=classes, min_size=64, max_size=64)
    weights.export(folder, build(recipe), {}, None)
    return {"path": str(folder), "allow_unfit": True}


@pytest.fixture(scope="module")
def spec(make_spec: MakeSpec, tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    folder = tmp_path_factory.mktemp("teachers")
    return make_spec(
        teacher=untrained(folder / "all", "7", "0"),
        teachers={"zero": untrained(folder / "zero", "0"), "seven": untrained(folder / "seven", "cat", "7")},
        methods=[
            {"kind": "fgd"},
            {"kind": "fgd", "teacher": "zero", "rho": 0.5},
            {"kind": "crosskd", "teacher": "seven"},
            {"kind": "mimic", "teacher": "zero"},
        ],
        schedule={"epochs": 1},
    )


@pytest.fixture(scope="module")
def run(train: Train, spec: JobSpec) -> Any:
    return train(spec)


def notes(run: Any, code: str) -> dict[str, Note]:
    """By the teacher's name."""
    return {note.data.get("teacher", ""): note for note in run.of(Note) if note.code == code}


def test_terms_are_logged_by_method_and_teacher(run: Any) -> None:
    told = {name[5:] for event in run.of(Stepped) for name in event.values if name.startswith("loss/")}
    fgd = ("fg", "bg", "attention", "global")
    of_methods = {name for name in told if name.partition("/")[0] not in ("total", "detection")}
    assert of_methods == {
        *(f"fgd/{term}" for term in fgd),
        *(f"fgd@zero/{term}" for term in fgd),
        "crosskd@seven/scores",
        "crosskd@seven/boxes",
        "mimic@zero/feature",
    }
    (balanced,) = notes(run, "balanced").values()
    assert set(balanced.data["factors"]) == {name for name in of_methods if not name.startswith("crosskd")}


def test_each_is_checked_and_calibrated_for_its_classes(run: Any) -> None:
    taught, checked, calibrated = (notes(run, code) for code in ("teaches", "teacher_checked", "calibration"))
    assert {name: note.data["classes"] for name, note in taught.items()} == {
        "": ["0", "7"], "zero": ["0"], "seven": ["7"]
    }  # fmt: skip
    assert taught["zero"].message == (
        "the teacher zero teaches 1 of 2 classes: 0; cells of 7 alone are left out of its methods"
    )
    assert checked["seven"].data["classes"] == ["7"]
    assert checked["seven"].message.startswith("the teacher seven's AP50 on ")
    assert "classes" not in checked[""].data
    boxes = {name: note.data["boxes_per_image"] for name, note in calibrated.items()}
    assert boxes[""] == pytest.approx(boxes["zero"] + boxes["seven"])


def test_the_manifest_has_what_each_was_and_taught(run: Any) -> None:
    manifest = json.loads((run.result / "manifest.json").read_text())
    assert set(manifest["teachers"]) == set(manifest["calibrations"]) == {"zero", "seven"}
    assert len({manifest["teacher"], *manifest["teachers"].values()}) == 3
    assert manifest["calibration"] == notes(run, "calibration")[""].data
    assert {each["teacher"]: each["classes"] for each in manifest["taught"]} == {
        None: ["0", "7"], "zero": ["0"], "seven": ["7"]
    }  # fmt: skip
    assert not [name for name in manifest["spec"] if name.startswith("teacher")]


def test_a_training_that_goes_on_ends_with_the_same_bytes(run: Any, train: Train, spec: JobSpec) -> None:
    (first, *_) = run.of(Saved)
    again = train(spec, resume=Path(first.path))
    assert again.of(Finished)[0].weights_digest == run.of(Finished)[0].weights_digest
    assert not notes(again, "calibration"), "it is in the checkpoint"


def test_a_teacher_of_several_that_is_unfit_is_named(train: Train, spec: JobSpec) -> None:
    strict = {name: ref.but(allow_unfit=name != "seven") for name, ref in spec.teachers.items()}
    with pytest.raises(TeacherUnfit, match=r'the teacher seven.*"allow_unfit": true in `teachers\.seven`') as refused:
        train(spec.but(teachers=strict))
    assert refused.value.data["teacher"] == "seven"


def test_one_without_a_class_in_common_is_refused(train: Train, spec: JobSpec, tmp_path: Path) -> None:
    foreign = JobSpec.model_validate(
        spec.model_dump() | {"teachers": dict(spec.teachers) | {"zero": untrained(tmp_path / "foreign", "cat")}}
    )
    with pytest.raises(SpecError, match="knows none of the data set's classes") as refused:
        train(foreign)
    assert refused.value.pointer == "/teachers/zero"
