"""A student's latency against its budget, at the end of a training; and the search for one, with real networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fgd import plan
from fgd.budget import BudgetTable
from fgd.data.formats import open_index
from fgd.data.loader import Dataset
from fgd.data.transforms import Transform
from fgd.detectors import Detector, build
from fgd.engine.identity import checkpoint_digest
from fgd.engine.loop import run
from fgd.events import Event, Note, Stepped
from fgd.export import latency
from fgd.recipe import Recipe
from fgd.spec import JobSpec

MakeSpec = Callable[..., JobSpec]
SMALL = {"backbone": "mobilenet_v3_small", "fpn_channels": 64}


def student_of(spec: JobSpec) -> Detector:
    return build(Recipe(detector=spec.student, classes=("0", "7"), min_size=64, max_size=64))


def measured(spec: JobSpec, digits: Path) -> tuple[dict[str, Any] | None, list[Event]]:
    events: list[Event] = []
    index, root = open_index(digits)
    found = latency.measure_budget(
        spec, student_of(spec), Dataset(index, "val", root), Transform(64, 64), 6, 2, events.append
    )
    return found, events


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
@pytest.mark.parametrize(("budget_ms", "holds"), [(60_000, True), (0.001, False)])
def test_whether_the_budget_holds_is_told(
    make_spec: MakeSpec, digits: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, budget_ms: float, holds: bool
) -> None:
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
    monkeypatch.setattr(latency, "ROUNDS", 4)
    spec = make_spec(student=SMALL, latency_budget_ms=budget_ms, latency={"runtime": runtime, "threads": 1})
    found, events = measured(spec, digits)

    assert found is not None
    assert (found["holds"], found["budget_ms"], found["runtime"], found["threads"]) == (holds, budget_ms, runtime, 1)
    assert found["input"] == [64, 64]
    assert 0 < found["min_ms"] <= found["p10_ms"] <= found["median_ms"] <= found["p90_ms"]
    (note,) = [each for each in events if isinstance(each, Note)]
    assert (note.code, note.level, note.data) == ("latency", "info" if holds else "warning", found)
    assert ("holds" if holds else "is missed by") in note.message
    (numbers,) = [each for each in events if isinstance(each, Stepped)]
    assert numbers.values["latency/median_ms"] == found["median_ms"]


def test_without_a_budget_nothing_is_measured(make_spec: MakeSpec, digits: Path) -> None:
    assert measured(make_spec(student=SMALL), digits) == (None, [])


def test_what_can_not_be_measured_is_a_warning_and_no_failure(
    make_spec: MakeSpec, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "find_spec", lambda name: None)
    found, events = measured(make_spec(student=SMALL, latency_budget_ms=5), digits)
    assert found is not None
    assert found["holds"] is None
    assert "fgd-service[export]" in found["reason"]
    assert [each.level for each in events if isinstance(each, Note)] == ["warning"]


def test_a_budget_is_no_other_training(make_spec: MakeSpec) -> None:
    plain = make_spec()
    with_budget = make_spec(latency_budget_ms=5, latency={"runtime": "torch"})
    assert checkpoint_digest(plain, {}) == checkpoint_digest(with_budget, {})


def test_about_as_many_boxes_pass_as_an_answer_holds(make_spec: MakeSpec) -> None:
    torch.manual_seed(0)
    image_1CHW = torch.rand(1, 3, 64, 64)
    for kind in ("fcos", "retinanet"):
        detector = student_of(make_spec(student={"kind": kind, **SMALL})).eval()
        latency.find_as_many_as_trained(detector, image_1CHW)
        with torch.inference_mode():
            _, scores_1D, _ = latency.graph_of(detector, image_1CHW)(image_1CHW)
        assert int((scores_1D > 0).sum()) >= 50


@pytest.mark.long
def test_the_manifest_says_it_and_the_weights_are_the_same(
    make_spec: MakeSpec, train: Callable[..., Any], tmp_path: Path
) -> None:
    asked = {"student": SMALL, "schedule": {"epochs": 1}}
    plain = train(make_spec(**asked))
    spec = make_spec(**asked, latency_budget_ms=60_000, latency={"runtime": "torch"})
    run(spec, tmp_path, resume=None, emit=lambda _: None, stop=lambda: False, measure=latency.measure_budget)
    before, after = (json.loads((out / "result/manifest.json").read_text()) for out in (plain.out, tmp_path))
    assert after["weights_digest"] == before["weights_digest"]
    assert "latency" not in before
    assert after["latency"]["holds"] is True
    assert after["spec"] == before["spec"]


@pytest.mark.long
@pytest.mark.parametrize(("runtime", "budget", "fits"), [("onnxruntime", "60s", True), ("torch", "0.01ms", False)])
def test_students_are_found_for_a_data_set(
    digits: Path, teacher: Path, tmp_path: Path, runtime: str, budget: str, fits: bool
) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "table.json"
    options = ["--runtime", runtime, "--threads", "1", "--seconds", "10", "--size", "64", "64"]
    folders = ["--dataset", str(digits), "--teacher", str(teacher)]
    assert plan.main(["--budget", budget, *folders, *options, "--out", str(out)]) == 0
    table = BudgetTable.model_validate_json(out.read_text())
    assert table.fits is fits
    assert (table.missed_by_ms is None) is fits
    assert table.rows[0].verdict == ("fits" if fits else "over")
    assert ("largest that fits" if fits else "nothing fits") in table.message
    assert 1 <= len(table.rows) <= table.timed <= table.candidates == 150
    first = table.rows[0]
    assert first.input == (64, 64)
    assert first.levels_shared in (3, 5)
    assert first.mb > first.parameters * 4 / 1e6 * 0.9
    assert table.teacher is not None
    job = JobSpec.model_validate(first.spec)
    assert (job.methods[0].kind, job.schedule.min_size, job.schedule.batch_size) == ("fgd", 64, 8)
    detector = build(Recipe(detector=job.student, classes=("0", "7"), min_size=64, max_size=64))
    assert first.parameters == sum(each.numel() for each in detector.module.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "soon", "--dataset", "/x"], "15ms"),
        (["--budget", "-1", "--dataset", "/x"], "15ms"),
        (["--budget", "0", "--dataset", "/x"], "--budget"),
        (["--budget", "5ms", "--dataset", "/nowhere/at/all"], "/dataset: /nowhere/at/all: no such folder"),
        (["--budget", "5ms", "--dataset", "/x", "--size", "90", "60"], "--size"),
        (["--budget", "5ms", "--dataset", "/x", "--seconds", "1"], "--seconds"),
    ],
)
def test_a_wrong_question_is_refused_with_its_option(options: list[str], message: str, tmp_path: Path) -> None:
    out = tmp_path / "answer.json"
    assert plan.main([*options, "--out", str(out)]) == 2
    error = json.loads(out.read_text())["error"]
    assert error["code"] == "user_error"
    assert message in f"{error['pointer']}: {error['message']}"
