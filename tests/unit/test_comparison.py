"""The study's plan can be submitted, its lines are kept whole, and its tables say what the lines say."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from fgd.events import Evaluated, Started, to_lines
from fgd.presets import resolve
from fgd.statistics import detections
from tests.studies.comparison import plan, record, tables
from tests.studies.comparison.__main__ import line_of
from tests.studies.comparison.plan import Run
from tests.studies.comparison.record import Finished
from tests.unit.statistics.scenes import random_scene

PAGE = Path(__file__).parents[2] / "docs/study.md"


def line(name: str, ap: float, curve: tuple[tuple[int, float], ...] = ((100, 10.0), (200, 20.0))) -> Finished:
    spec = plan.spec_of(Run(*name.rsplit("/", 2)[:2], int(name.rsplit("/", 1)[1])))
    return Finished(
        name, json.loads(spec.model_dump_json()), "c0ffee", "a machine", "bf16", 12.0, 200, {"ap": ap}, curve, "images",
        (ap - 1.0, ap + 1.0, ap), (), None, "digest", {},
    )  # fmt: skip


def test_every_run_is_a_job_that_can_be_submitted() -> None:
    runs = list(plan.runs())
    assert len({run.name for run in runs}) == len(runs)
    for run in runs:
        spec = resolve(plan.spec_of(run))
        assert spec.resources.threads == 1
        assert (spec.teacher is not None) == bool(plan.ARMS[run.arm].methods)
        for method in spec.methods:
            taught_by = plan.SETTINGS[plan.teacher_of(run).setting].teacher
            assert taught_by is not None
            assert method.takes() <= spec.student.offers
            assert method.refusal(spec.student, taught_by) is None, run.name


def test_a_teacher_is_trained_before_it_teaches() -> None:
    done = set()
    for run in plan.runs():
        assert not plan.needs_teacher(run) or plan.teacher_of(run) in done
        done.add(run)


def test_control_and_arm_differ_in_what_teaches_alone() -> None:
    for run in plan.runs():
        if run.arm in (plan.TEACHER, "longer"):
            continue
        setting, arm = plan.control_of(run.setting, run.arm)
        ours, theirs = (plan.spec_of(each) for each in (run, Run(setting, arm, run.seed)))
        same = {"name", "methods", "teacher", "resources"} | ({"student"} if run.arm == "inherit" else set())
        assert ours.model_dump(exclude=same) == theirs.model_dump(exclude=same), run.name


def test_the_page_tells_what_the_plan_has() -> None:
    text = PAGE.read_text()
    assert f"{len(list(plan.runs()))} trainings" in text
    assert set(re.findall(r"^\| `([\w-]+)` \|", text, flags=re.M)) == set(plan.SETTINGS)
    for name, setting in plan.SETTINGS.items():
        (row,) = re.findall(rf"^\| `{name}` \|.*$", text, flags=re.M)
        assert f"| {setting.schedule.epochs} |" in row


def test_lines_are_added_whole_and_the_last_of_a_name_counts(tmp_path: Path) -> None:
    path = tmp_path / "study/runs.jsonl"
    first = line("bccd-fcos/fgd/0", 40.0)
    for each in (first, line("bccd-fcos/control/0", 38.0), dataclasses.replace(first, ap={"ap": 41.0})):
        record.add(path, each)
    assert len(path.read_text().splitlines()) == 3
    assert {name: each.ap["ap"] for name, each in record.load(path).items()} == {
        "bccd-fcos/fgd/0": 41.0,
        "bccd-fcos/control/0": 38.0,
    }


def test_the_tables_by_hand() -> None:
    lines = {
        each.name: each
        for each in (
            line("bccd-fcos/teacher/0", 44.0),
            *(line(f"bccd-fcos/control/{seed}", 38.0 + seed) for seed in range(2)),
            *(line(f"bccd-fcos/fgd/{seed}", 41.0 + 2 * seed, ((100, 20.0), (200, 22.0))) for seed in range(2)),
            line("bccd-fcos-weak/fgd/0", 37.0),
        )
    }
    text = tables.markdown(lines)
    assert "Teacher: AP 44.0." in text
    (fgd,) = re.findall(r"^\| fgd \| 2 \|.*$", text, flags=re.M)
    cells = [cell.strip() for cell in fgd.split("|")]
    assert cells[3:6] == ["42.0 ± 1.4", "+3.5", "-2.9 to +9.9"]
    assert cells[7:9] == ["64 %", "50 % of its steps"]
    (weak,) = re.findall(r"^\| fgd \| 1 \|.*$", text, flags=re.M)
    assert [cell.strip() for cell in weak.split("|")][3:5] == ["37.0", "-1.0"]


@pytest.mark.parametrize(("teacher", "weak"), [(41.4, True), (41.6, False)])
def test_a_teacher_hardly_above_the_control_is_labelled(teacher: float, weak: bool) -> None:
    lines = {each.name: each for each in (line("bccd-fcos/teacher/0", teacher), line("bccd-fcos/control/0", 38.5))}
    assert ("weak teacher" in tables.markdown(lines)) == weak


@pytest.mark.parametrize("arm", ["control", "fgd"])
def test_the_line_of_a_run_is_made_from_what_the_trainer_left(tmp_path: Path, arm: str) -> None:
    run = Run("bccd-fcos", arm, 1)
    folder, teacher = (tmp_path / plan.RUNS / each.name for each in (run, plan.teacher_of(run)))
    for each, digest in ((folder, "ours"), (teacher, "theirs")):
        (each / "result").mkdir(parents=True)
        (each / "result/manifest.json").write_text(
            json.dumps({"metrics": {"test": {"ap": 40.12345}}, "steps": 200, "weights_digest": digest})
        )
    detections.write(folder / "result/detections.npz", {"test": random_scene(0)})
    (folder / "spec.json").write_text(plan.spec_of(run).model_dump_json())
    of_val = [Evaluated(step=step, epoch=1, split="val", values={"ap": ap}) for step, ap in ((100, 10.0), (200, 20.0))]
    began = Started(step=0, total_steps=200, epochs=2, device="cpu", threads=1, precision="float32", versions={})
    (folder / "events.jsonl").write_bytes(b"".join(to_lines(each) for each in (began, *of_val)))

    made = line_of(run, folder, tmp_path, 12.0)

    assert (made.name, made.ap, made.steps) == (run.name, {"ap": 40.123}, 200)
    assert made.curve == ((100, 10.0), (200, 20.0))
    assert (made.weights, made.teacher) == ("ours", "theirs" if arm == "fgd" else None)
    assert len(set(made.drawn)) > 1
    record.add(tmp_path / "runs.jsonl", made)
    assert record.load(tmp_path / "runs.jsonl")[run.name].ap == made.ap
