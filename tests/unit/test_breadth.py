"""A method costs what docs/extending.md says, whatever it takes of teacher and student: four are added to a copy of the
packages, file by file as listed, and trained there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fgd.data.digits import compose
from fgd.spec import JobSpec
from tests.unit.breadth.copied import Copy, listed, save_untrained, with_methods

FCOS = {"kind": "fcos", "backbone": "mobilenet_v3_small", "fpn_channels": 64}
FASTER_RCNN = {"kind": "faster_rcnn", "backbone": "mobilenet_v3_small", "fpn_channels": 32}
STUDENTS = {"fcos": FCOS, "faster_rcnn": FASTER_RCNN, "wide": FCOS | {"fpn_channels": 96}}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return with_methods(tmp_path_factory.mktemp("copy"))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, and teachers that never learned."""
    folder = tmp_path_factory.mktemp("work")
    compose(folder / "data", counts={"train": 4, "val": 2, "test": 1}, size=64, classes=("0", "7"), box_px=(16, 40))
    for name, detector in STUDENTS.items():
        save_untrained(folder / name, detector)
    return folder


def job(work: Path, student: str, teacher: str, *kinds: str, **more: Any) -> dict[str, Any]:
    return {
        "name": "breadth",
        "teacher": {"path": str(work / teacher), "allow_unfit": True},
        "student": STUDENTS[student],
        "dataset": {"path": str(work / "data")},
        "methods": [{"kind": kind} for kind in kinds],
        "schedule": {"epochs": 1, "batch_size": 2, "min_size": 64, "max_size": 64},
        "resources": {"device": "cpu", "threads": 1, "focus_images": 1},
    } | more


def test_the_docs_list_every_file_that_was_touched(copy: Copy) -> None:
    modules = {"fgd/methods/correlation.py", "fgd/methods/more_methods.py"}
    assert listed("A method") - {"fgd/methods/NAME.py"} == copy.edited - modules
    assert modules < copy.edited


@pytest.mark.slow
def test_it_trains(copy: Copy, work: Path, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(job(work, "fcos", "fcos", "correlation", "cross", "fgd")))
    done = copy.run("-m", "fgd.train", str(tmp_path / "spec.json"), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    losses = {name: value for event in events if event["type"] == "stepped" for name, value in event["values"].items()}
    assert all(losses[f"loss/{term}"] > 0 for term in ("correlation/feature", "cross/logits", "fgd/fg"))
    assert json.loads((tmp_path / "result/manifest.json").read_text())["spec"]["methods"][0]["weight"] == 0.1


STEPS = """
import json, sys
import torch
from fgd.engine import device, prepare, step
from fgd.engine.optimise import make_optimizer
from fgd.data.loader import train_batches
from fgd.presets import resolve
from fgd.spec import JobSpec

LAYERS = {
    "fcos": {"fcos": "head.classification_head.cls_logits"},
    "faster_rcnn": {"faster_rcnn": "rpn.head.cls_logits", "regions": "roi_heads.box_predictor"},
}

def calls(detector, layer):
    seen = []
    detector.module.get_submodule(layer).register_forward_hook(lambda *_: seen.append(1))
    return seen

told = []
for each in json.load(sys.stdin)["jobs"]:
    spec = resolve(JobSpec.model_validate(each))
    machine = device.choose(spec.resources, spec.schedule.precision)
    parts = prepare.prepare(spec, machine, None, lambda _: None, lambda: None, rehearsal_images=1)[0]
    counted = {
        f"{who} {what}": calls(detector, layer)
        for who, detector in (("student", parts.student), ("teacher", parts.teacher.detector))
        for what, layer in LAYERS[spec.student.kind].items()
    }
    parts.distill.train()
    optimizer = make_optimizer([parts.distill], spec.schedule.optimizer)
    (batch, *_) = train_batches(parts.train, parts.transform, spec.schedule, 0, 0)
    values, _ = step.step(parts, optimizer, [batch], 0, 2)
    frozen = all(each.grad is None for each in parts.teacher.detector.parameters())
    counts = {name: len(each) for name, each in counted.items()}
    told.append({"counts": counts, "terms": list(values), "frozen": frozen})
print(json.dumps(told))
"""
LEVELS = 5
"""Of either family's head: P3-P7, and P2-P5 with the pooled P6."""


def test_a_head_runs_once_a_batch_and_the_teachers_only_where_it_is_needed(copy: Copy, work: Path) -> None:
    methods = {
        "maps alone": ("fcos", ["correlation", "fgd"]),
        "logits": ("fcos", ["soft"]),
        "logits of two methods": ("fcos", ["soft", "cross"]),
        "objectness": ("faster_rcnn", ["soft"]),
        "proposals": ("faster_rcnn", ["asked"]),
    }
    jobs = [job(work, family, family, *kinds) for family, kinds in methods.values()]
    found = dict(zip(methods, copy.answer(STEPS, jobs=jobs), strict=True))
    assert all(each["frozen"] for each in found.values())
    assert {each["counts"].get("student fcos", LEVELS) for each in found.values()} == {LEVELS}
    teacher = {name: {key: n for key, n in each["counts"].items() if "teacher" in key} for name, each in found.items()}
    assert teacher == {
        "maps alone": {"teacher fcos": 0},
        "logits": {"teacher fcos": LEVELS},
        "logits of two methods": {"teacher fcos": 2 * LEVELS},  # its own maps, and the student's through its tower
        "objectness": {"teacher faster_rcnn": LEVELS, "teacher regions": 0},
        "proposals": {"teacher faster_rcnn": 0, "teacher regions": 1},
    }
    for name in ("objectness", "proposals"):
        assert found[name]["counts"]["student faster_rcnn"] == LEVELS
        assert found[name]["counts"]["student regions"] == 1
    assert "cross/logits" in found["logits of two methods"]["terms"]


OUTLINES = """
import json, sys
from pydantic import ValidationError
from api.catalogue import catalogue
from fgd.errors import SpecError
from fgd.outline import outline
from fgd.recipe import Recipe
from fgd.spec import JobSpec
from fgd.text.pointers import faults_of_spec
from pathlib import Path

def known(body):
    # of one job: why it is refused, or else its adapters
    try:
        spec = JobSpec.model_validate(body)
        teacher = Recipe.model_validate_json((Path(spec.teacher.path) / "recipe.json").read_text())
        made = outline(spec, {"train": 4, "val": 2}, {"": teacher})
        return None, made.model_dump()["adapters"]
    except ValidationError as error:
        return [[fault.pointer, fault.detail] for fault in faults_of_spec(error.errors(), body)], None
    except SpecError as error:
        return [[error.pointer, error.message]], None

made = catalogue()[0]
about = json.load(sys.stdin)
print(json.dumps({
    "refused": [known(each)[0] for each in about["jobs"]],
    "adapters": [known(each)[1] for each in about["jobs"]],
    "families": {each.kind: each.families for each in made.methods},
    "needs": {each.kind: each.needs for each in made.methods},
    "presets": {each.kind: list(each.presets) for each in made.methods},
    "offers": {each.kind: each.offers for each in made.detectors},
}))
"""


def test_what_a_family_cannot_serve_is_refused_by_name_before_anything_runs(copy: Copy, work: Path) -> None:
    cached = {"resources": {"teacher_cache_gib": 1.0}}
    jobs = [
        job(work, "faster_rcnn", "fcos", "correlation", "cross"),
        job(work, "fcos", "faster_rcnn", "cross"),
        job(work, "fcos", "wide", "fgd", "correlation"),
        job(work, "fcos", "faster_rcnn", "soft"),
        job(work, "fcos", "fcos", "soft", **cached),
        job(work, "fcos", "fcos", "correlation", schedule={"epochs": 2, "batch_size": 2}, **cached),
        job(work, "fcos", "fcos", "cross", "soft", "correlation"),
    ]
    told = copy.answer(OUTLINES, jobs=jobs)
    student, teacher, widths, family, cache, served, all_three = told["refused"]
    needs = (
        "cross needs towers of student and teacher, but faster_rcnn has no towers; families that have them: fcos, "
        "retinanet"
    )
    assert student == [["/methods/1", needs]]
    assert teacher == [["/methods/0", needs]]
    assert widths == [["/methods/1", "correlation has no adapters, and p3 has 64 channels and 96"]]
    assert family == [["/methods/0", "soft compares place with place, for one family alone"]]
    assert [pointer for pointer, _ in cache] == ["/resources/teacher_cache_gib"]
    assert "but soft also needs" in cache[0][1]
    assert served is None
    assert all_three is None
    assert told["families"]["cross"] == told["presets"]["cross"] == ["fcos", "retinanet"]
    assert told["needs"]["cross"] == told["needs"]["correlation"] + "; both networks must offer logits, towers"
    assert told["families"]["asked"] == told["presets"]["asked"] == ["faster_rcnn"]
    assert told["families"]["correlation"] == ["fcos", "retinanet", "faster_rcnn"]
    assert "proposals" in told["offers"]["faster_rcnn"]


def test_a_plan_shows_the_adapters_that_each_method_says(copy: Copy, work: Path) -> None:
    jobs = [job(work, "fcos", "wide", "fgd", "mimic"), job(work, "fcos", "fcos", "fgd", "soft")]
    adapters = [
        {(each["method"], each["layer"], each["from_channels"], each["to_channels"]) for each in of_job}
        for of_job in copy.answer(OUTLINES, jobs=jobs)["adapters"]
    ]
    assert adapters == [
        {("fgd", "1x1 convolution", 64, 96), ("mimic", "1x1 convolution", 64, 96)},
        {("fgd", "none", 64, 64), ("soft", "none", 64, 64)},
    ]


def test_without_the_edits_nobody_knows_them(work: Path) -> None:
    """Else the tests above would say nothing."""
    with pytest.raises(ValidationError, match="does not match any of the expected tags: 'fgd'"):
        JobSpec.model_validate(job(work, "fcos", "fcos", "correlation"))
