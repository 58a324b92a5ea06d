"""The rehearsal against the training it foretells, both real."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fgd import plan
from fgd.engine import rehearsal
from fgd.engine.device_metrics import MIB
from fgd.events import Note, Saved
from fgd.spec import JobSpec, Schedule

pytestmark = pytest.mark.slow
MakeSpec = Callable[..., JobSpec]


def planned(spec: JobSpec, folder: Path) -> tuple[int, Any]:
    """Exit code and answer of `python -m fgd.plan`."""
    file, out = folder / "spec.json", folder / "plan.json"
    file.write_text(spec.model_dump_json())
    code = plan.main([str(file), "--out", str(out)])
    return code, json.loads(out.read_text())


@pytest.mark.long
def test_parameters_and_files_are_those_of_the_training(
    train: Callable[..., Any], make_spec: MakeSpec, teacher: Path, tmp_path: Path
) -> None:
    spec = make_spec(
        teacher={"path": str(teacher), "allow_unfit": True},
        methods=[{"kind": "fgd"}],
        schedule={"ema": {}, "scales": [64, 96], "accumulate": 2, "batch_size": 2},
    )
    code, answer = planned(spec, tmp_path)
    assert code == 0, answer
    measured = answer["measured"]
    run = train(spec)
    manifest = json.loads((run.result / "manifest.json").read_text())
    assert measured["student_parameters"] == manifest["parameters"]
    assert measured["teacher_parameters"] == json.loads((teacher / "manifest.json").read_text())["parameters"]
    assert answer["total_steps"] == manifest["steps"]
    saved = run.of(Saved)[-1]
    weights = (run.result / "student.safetensors").stat().st_size
    twice = saved.size + (weights if saved.best else 0)  # the best weights take no room of their own while they last
    assert measured["checkpoint_mb"] == pytest.approx(twice / MIB, rel=0.01)
    apart = {"best.safetensors", "detections.npz"}
    written = sum(file.stat().st_size for file in run.result.iterdir() if file.name not in apart)
    assert measured["result_mb"] == pytest.approx((written + weights) / MIB, rel=0.01), "best.safetensors at most"
    assert measured["steps"] == 6, "three at each of two sizes"
    assert 0.005 < measured["s_per_step"] < 60
    assert measured["training_hours"] == pytest.approx(6 * measured["s_per_step"] / 3600)
    assert measured["hours"] > measured["training_hours"] + measured["s_to_start"] / 3600
    assert measured["memory_peak_mb"] > 100
    assert measured["cache_mb"] == pytest.approx(23 * 3 * 64 * 64 / MIB), "23 images of 64x64"
    assert measured["disk_mb"] > 6 * measured["checkpoint_mb"]


def test_nothing_is_left_behind_and_the_answer_goes_to_standard_output(
    make_spec: MakeSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "spec.json"
    file.write_text(make_spec().model_dump_json())
    assert plan.main([str(file)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["measured"]["teacher_parameters"] is None
    assert answer["measured"]["method_parameters"] == 0
    assert [each.name for each in tmp_path.iterdir()] == ["spec.json"]


@pytest.mark.parametrize(
    ("schedule", "pointer"), [({"batch_size": 13}, "/schedule/batch_size"), ({"accumulate": 4}, "/schedule/accumulate")]
)
def test_what_can_not_be_trained_is_told_with_its_field(
    make_spec: MakeSpec, tmp_path: Path, schedule: dict[str, Any], pointer: str
) -> None:
    code, answer = planned(make_spec(schedule=schedule), tmp_path)
    assert code == 2
    assert answer["error"]["code"] == "user_error"
    assert answer["error"]["pointer"] == pointer
    assert "12 images" in answer["error"]["message"]


def test_a_broken_image_is_told_by_name(make_spec: MakeSpec, digits: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(digits, tmp_path / "broken"))
    for image in broken.rglob("*.*"):
        if image.suffix in (".png", ".jpg") and "train" in str(image):
            image.write_bytes(b"broken")
    code, answer = planned(make_spec(dataset={"path": str(broken)}), tmp_path)
    assert code == 1
    assert answer["error"]["code"] == "user_error"


@pytest.mark.parametrize(
    ("scales", "sides"),
    [((), (240,)), ((64, 96), (64, 96)), (tuple(range(64, 164, 10)), (64, 84, 104, 134, 154))],
)
def test_the_sizes_that_are_timed_end_with_the_largest(scales: tuple[int, ...], sides: tuple[int, ...]) -> None:
    found = rehearsal.some_sides(Schedule(scales=scales))
    assert found[-1] == max(scales or (240,))
    assert len(found) == len(sides)
    assert found == sides


@pytest.mark.long
def test_a_plan_counts_the_disk_that_the_teachers_cache_will_fill(
    make_spec: MakeSpec, teacher: Path, train: Callable[..., Any]
) -> None:
    def asked(gib: float) -> JobSpec:
        return make_spec(
            teacher={"path": str(teacher), "allow_unfit": True},
            methods=[{"kind": "mimic"}],
            schedule={"flip": "none", "precision": "float32"},
            resources={"device": "cpu", "threads": 1, "teacher_cache_gib": gib},
        )

    small, plenty = (plan.plan(asked(gib))["measured"] for gib in (0.0001, 1.0))
    assert small["teacher_cache_mb"] == pytest.approx(0.1024, rel=0.01)
    (told,) = (note for note in train(asked(1.0)).of(Note) if note.code == "teacher_cache")
    assert plenty["teacher_cache_mb"] == pytest.approx(told.data["bytes"] / MIB, rel=0.01)
    assert plenty["disk_mb"] - small["disk_mb"] == pytest.approx(plenty["teacher_cache_mb"] - 0.1024, abs=0.1)
