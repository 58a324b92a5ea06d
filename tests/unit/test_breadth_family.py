"""A family costs what docs/extending.md says, whatever its parts are called and however wide its levels are: one is
added to a copy of the packages, file by file as listed, and trained there as student and as teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fgd.data.digits import compose
from tests.unit.breadth.copied import Copy, listed, with_family, with_methods

PAN = {"kind": "pan"}
FCOS = {"kind": "fcos", "backbone": "mobilenet_v3_small", "fpn_channels": 64}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    made = with_methods(tmp_path_factory.mktemp("copy"))
    made.edited.clear()
    with_family(made)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work") / "data"
    counts = {"train": 24, "val": 6, "test": 4}
    return compose(folder, counts=counts, size=64, classes=("0", "7"), box_px=(24, 48), per_image=(1, 2))


def train(copy: Copy, folder: Path, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a training whose result lies in `folder`/result."""
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps(spec))
    done = copy.run("-m", "fgd.train", str(folder / "spec.json"), "--out", str(folder))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def job(
    data: Path, student: dict[str, Any], teacher: Path | None = None, *kinds: str, **schedule: Any
) -> dict[str, Any]:
    plain = {"epochs": 1, "batch_size": 4, "min_size": 64, "max_size": 64, "flip": "none"}
    return {
        "name": "breadth",
        "teacher": {"path": str(teacher), "allow_unfit": True} if teacher else None,
        "student": student,
        "dataset": {"path": str(data)},
        "methods": [{"kind": kind} for kind in kinds],
        "schedule": plain | schedule,
        "resources": {"device": "cpu", "threads": 1},
    }


@pytest.fixture(scope="module")
def teacher(copy: Copy, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of the new family that has learned to find digits."""
    folder = tmp_path_factory.mktemp("pan") / "teacher"
    optimizer = {"kind": "adamw", "lr": 2e-3}
    events = train(copy, folder, job(data, PAN, epochs=12, evaluate_every=12, optimizer=optimizer))
    (score,) = [each["values"] for each in events if each["type"] == "evaluated" and each["split"] == "val"]
    assert score["ap50"] > 5
    return folder / "result"


def test_the_docs_list_every_file_that_was_touched(copy: Copy) -> None:
    assert listed("A family of detectors") - {"fgd/detectors/NAME.py"} == copy.edited - {"fgd/detectors/pan.py"}


@pytest.mark.slow
@pytest.mark.long
def test_it_teaches_its_own_kind_with_every_method_that_it_can_serve(
    copy: Copy, data: Path, teacher: Path, tmp_path: Path
) -> None:
    kinds = ("fgd", "mimic", "correlation", "soft", "cross")
    events = train(copy, tmp_path / "job", job(data, PAN, teacher, *kinds, precision="bf16"))
    losses = {name: value for event in events if event["type"] == "stepped" for name, value in event["values"].items()}
    terms = ("fgd/fg", "fgd/bg", "fgd/attention", "fgd/global", "mimic/feature", "correlation/feature", "soft/logits")
    assert all(losses[f"loss/{term}"] > 0 for term in (*terms, "cross/logits"))
    warned = {each["code"] for each in events if each["type"] == "note" and each["level"] == "warning"}
    assert warned <= {"term_dominates", "distillation_dominates"}, "of an untrained pair no more is to be said"


@pytest.mark.slow
@pytest.mark.long
def test_it_begins_with_a_network_of_its_kind_and_inherits_neck_and_heads(
    copy: Copy, data: Path, teacher: Path, tmp_path: Path
) -> None:
    events = train(copy, tmp_path / "job", job(data, PAN | {"inherit": {"path": str(teacher)}}))
    (inherited,) = [each["data"] for each in events if each["type"] == "note" and each["code"] == "inherited"]
    assert inherited["kept"] == []
    assert {key.partition(".")[0] for key in inherited["copied"]} == {"paths", "heads"}


@pytest.mark.slow
@pytest.mark.long
def test_its_export_is_refused_by_name_where_it_has_no_graph(copy: Copy, teacher: Path, tmp_path: Path) -> None:
    done = copy.run("-m", "fgd.export", str(teacher), "--onnx", str(tmp_path / "student.onnx"))
    assert done.returncode == 2
    assert "contains Pan, which cannot be exported to ONNX" in done.stderr


@pytest.mark.slow
@pytest.mark.long
def test_it_learns_from_and_teaches_other_families(copy: Copy, data: Path, teacher: Path, tmp_path: Path) -> None:
    """Levels are matched by stride; each has an adapter of its own widths."""
    events = train(copy, tmp_path / "fcos", job(data, FCOS, teacher, "fgd", "mimic"))
    (left_out,) = [each["data"] for each in events if each["type"] == "note" and each["code"] == "levels_left_out"]
    assert left_out == {"distilled": ["p3", "p4", "p5"], "left_out": ["p6", "p7"]}
    train(copy, tmp_path / "pan", job(data, PAN, tmp_path / "fcos/result", "fgd", "mimic"))
    known = json.loads(copy.run("-m", "fgd.plan", str(tmp_path / "pan/spec.json")).stdout)
    layers = [(each["level"], each["layer"], each["from_channels"]) for each in known["adapters"]]
    assert layers == 2 * [("p3", "none", 64), ("p4", "1x1 convolution", 96), ("p5", "1x1 convolution", 128)]
    assert {each["to_channels"] for each in known["adapters"]} == {64}
    weights = 96 * 64 + 64 + 128 * 64 + 64
    assert known["measured"]["method_parameters"] > 2 * weights, "adapters of both methods, and FGD's context blocks"
    assert [level["student_channels"] for level in known["levels"]] == [64, 96, 128]
