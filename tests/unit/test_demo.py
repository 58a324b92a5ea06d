from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fgd.cli.compare import Latency, Row, Score, curve, curve_table, footnote, score, table
from fgd.cli.demo import (
    BUDGET_S,
    COST_S_PER_MPX,
    FEWEST_EPOCHS,
    Memory,
    control_spec,
    digest,
    fingerprint,
    fit,
    next_steps,
    plan,
    run,
    student_spec,
    teacher_spec,
    why,
)
from fgd.cli.embedded import deaf, handling
from fgd.client import ApiError, Client, Job, MetricPoint
from fgd.data.index import Report, SplitCounts
from fgd.method_specs import FGD
from fgd.spec_fields import TeacherFromJob
from tests.unit.http_fake import Answer, closed_port, job_json, problem, serving

DATASET = "ds_" + "0" * 32
TEACHER = "job_" + "1" * 32


def report(
    train: int, val: int = 0, width: tuple[int, int] = (128, 128), height: tuple[int, int] = (128, 128)
) -> Report:
    def split(images: int) -> SplitCounts:
        sizes = {"small": 0, "medium": images, "large": 0}
        return SplitCounts(
            images=images,
            boxes=images,
            empty_images=0,
            boxes_per_class={"a": images},
            width=width,
            height=height,
            box_sizes=sizes,
        )

    splits = {"train": split(train)} | ({"val": split(val)} if val else {})
    return Report(ok=True, format="coco", classes=("a",), splits=splits, defect_counts={}, defects=())


# --- what is trained ------------------------------------------------------------------------------------------


def test_the_student_differs_from_its_control_in_the_teacher_only() -> None:
    chosen = plan(report(400, 100), own_data=False)
    control, student = control_spec(chosen, DATASET), student_spec(chosen, DATASET, TEACHER)
    assert student.but(name=control.name, teacher=None, methods=(), resources=control.resources) == control
    assert student.teacher == TeacherFromJob(job=TEACHER)
    assert [type(method) for method in student.methods] == [FGD]


def test_the_teacher_is_a_plain_training_of_a_larger_network() -> None:
    chosen = plan(report(400, 100), own_data=False)
    spec = teacher_spec(chosen, DATASET)
    assert (spec.teacher, spec.methods) == (None, ())
    assert spec.student.fpn_channels > chosen.student.fpn_channels


@pytest.mark.parametrize(("train", "width", "height"), [(160, (416, 416), (416, 416)), (210, (193, 600), (200, 600))])
def test_the_users_images_fit_into_the_time_there_is(
    train: int, width: tuple[int, int], height: tuple[int, int]
) -> None:
    room = fit(report(train, train // 5, width, height))
    teacher_s = room.epochs * train * room.min_size * room.max_size * COST_S_PER_MPX / 1e6
    assert 0.5 * BUDGET_S < teacher_s < 1.2 * BUDGET_S
    assert room.epochs >= FEWEST_EPOCHS
    assert room.minutes < 16


def test_wide_images_stay_wide() -> None:
    room = fit(report(100, 20, (640, 640), (320, 320)))
    assert room.max_size / room.min_size == pytest.approx(2, abs=0.35)


def test_small_images_are_not_blown_up() -> None:
    room = fit(report(50, 10, (96, 96), (96, 96)))
    assert (room.min_size, room.max_size) == (96, 96)
    assert room.epochs == 40


def test_a_set_too_large_for_the_budget_says_how_long_it_takes() -> None:
    assert fit(report(20_000)).minutes > 60


def test_a_batch_is_never_larger_than_the_set() -> None:
    assert plan(report(3), own_data=True).student_schedule.batch_size == 3


# --- what was begun -------------------------------------------------------------------------------------------


class Shop:
    """What the service does for `Memory.obtain`: makes jobs, one for each key, and finds them."""

    def __init__(self) -> None:
        self.by_key: dict[str, Job] = {}
        self.useless: set[str] = set()
        self.silent = False

    def make(self, key: str) -> Job:
        number = len(self.by_key) + 1
        job = self.by_key.setdefault(key, Job.model_validate(job_json(id=f"job_{number}")))
        if self.silent:
            raise KeyboardInterrupt
        return job

    def find(self, id: str) -> Job | None:
        return next((job for job in self.by_key.values() if job.id == id and id not in self.useless), None)

    def obtain(self, path: Path, asked: str = "a") -> str:
        return Memory(path).obtain("teacher", asked, self.find, self.make).id


def test_a_second_run_takes_up_what_the_first_began(tmp_path: Path) -> None:
    shop = Shop()
    assert shop.obtain(tmp_path / "demo.json") == shop.obtain(tmp_path / "demo.json") == "job_1"


def test_an_answer_that_was_never_heard_is_asked_for_again_and_makes_nothing_new(tmp_path: Path) -> None:
    shop = Shop()
    shop.silent = True
    with pytest.raises(KeyboardInterrupt):
        shop.obtain(tmp_path / "demo.json")
    shop.silent = False
    assert shop.obtain(tmp_path / "demo.json") == "job_1"
    assert len(shop.by_key) == 1


def test_a_changed_request_starts_anew(tmp_path: Path) -> None:
    shop = Shop()
    assert [shop.obtain(tmp_path / "demo.json", asked) for asked in "aba"] == ["job_1", "job_2", "job_3"]


def test_a_job_that_failed_or_is_gone_is_started_anew(tmp_path: Path) -> None:
    shop = Shop()
    shop.useless.add(shop.obtain(tmp_path / "demo.json"))
    assert shop.obtain(tmp_path / "demo.json") == "job_2"
    assert shop.obtain(tmp_path / "demo.json") == "job_2"


@pytest.mark.parametrize("text", ["", "{", '{"begun": {"teacher": 3}}'])
def test_a_torn_state_file_is_no_obstacle(tmp_path: Path, text: str) -> None:
    (tmp_path / "demo.json").write_text(text)
    assert Shop().obtain(tmp_path / "demo.json") == "job_1"


def test_a_digest_depends_on_every_part_and_not_on_the_order_of_keys() -> None:
    assert digest("x", {"a": 1, "b": 2}) == digest("x", {"b": 2, "a": 1})
    assert digest("x", {"a": 1}) != digest("y", {"a": 1})


def test_a_folder_that_changed_has_another_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"one")
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    (tmp_path / "a.jpg").write_bytes(b"three")
    assert fingerprint(tmp_path) != before


# --- the result -----------------------------------------------------------------------------------------------


def point(name: str, split: str, value: float) -> MetricPoint:
    return MetricPoint(name=name, split=split, step=1, value=value)


def test_scores_are_those_of_the_test_images_where_there_are_any() -> None:
    val = [point("ap", "val", 40.0), point("ap50", "val", 70.0), point("ap75", "val", 30.0)]
    test = [point("ap", "test", 41.0), point("ap50", "test", 71.0), point("ap75", "test", 31.0)]
    assert score([*val, *test, point("lr", "train", 0.1)]) == Score("test", 41.0, 71.0, 31.0)
    assert score(val) == Score("val", 40.0, 70.0, 30.0)


def rows(student_ap: float | None = 35.5) -> list[Row]:
    return [
        Row("teacher", "FCOS R34, FPN 96", Score("test", 45.0, 75.0, None), 24_000_000, 30.04, 96.0),
        Row("control", "FCOS R18, FPN 64", Score("test", 33.0, 60.0, 30.0), 12_000_000, 12.0, 48.0),
        Row("student", "FCOS R18, FPN 64", Score("test", student_ap, 61.0, 29.0), 12_000_000, 12.1, 48.0),
    ]


def rendered(what: Any, width: int = 80) -> str:
    said = io.StringIO()
    Console(file=said, width=width).print(what)
    return said.getvalue()


def test_the_table_shows_the_gain_with_its_sign_and_fits_eighty_columns() -> None:
    said = rendered(table(rows()))
    assert said.split()[-3:] == ["+2.5", "+1.0", "-1.0"]
    assert all(word in said for word in ("teacher", "FCOS R34, FPN 96", "24.00 M", "30.0", "96.0"))
    assert max(map(len, said.splitlines())) <= 80


def test_a_figure_that_does_not_exist_is_a_dash() -> None:
    gains = rendered(table(rows(student_ap=None))).rstrip().splitlines()[-1]
    assert gains.split()[-3:] == ["-", "+1.0", "-1.0"]


def test_a_curve_has_the_epochs_that_were_evaluated() -> None:
    job = Job.model_validate(job_json("succeeded", spec={"schedule": {"epochs": 5}}))
    points = [
        MetricPoint(name="ap", split="val", step=step, value=ap) for step, ap in ((40, 9.0), (80, 20.0), (100, 25.0))
    ]
    assert curve(job, points) == {2: 9.0, 4: 20.0, 5: 25.0}
    assert curve(job, []) == {}


def test_the_curves_stand_below_each_other_and_fit_eighty_columns() -> None:
    control = {epoch: float(epoch) for epoch in range(1, 41)}
    said = rendered(curve_table({"control": control, "student": control | {40: None}})).splitlines()
    (head,) = [line for line in said if "epoch" in line]
    assert head.split()[4:] == ["1", "7", "12", "18", "23", "29", "34", "40"]
    assert [line.split()[-1] for line in said if line.startswith((" control", " student", "control", "student"))] == [
        "40.0",
        "-",
    ]
    assert max(map(len, said)) <= 80


def test_the_footnote_says_how_the_numbers_came_about() -> None:
    start = datetime(2026, 11, 22, tzinfo=UTC)
    job = Job.model_validate(job_json("succeeded", started_at=start, finished_at=start + timedelta(seconds=415)))
    scores = {"student": Score("val", 1.0, 1.0, 1.0)}
    said = footnote(report(400, 100), scores, Latency(2, 30, {}, {}), {"teacher": job})
    assert "100 val images" in said
    assert "2 threads" in said
    assert "teacher 6:55" in said


def test_the_end_says_what_to_type_next(tmp_path: Path) -> None:
    said = next_steps(tmp_path, tmp_path / "results/student")
    assert all(word in said for word in ("make demo DATA=", "make serve", "load_state_dict", str(tmp_path)))


def test_a_failed_job_is_explained_with_its_log_and_what_to_do() -> None:
    failure = {"code": "no_space", "message": "disk full", "data": {}}
    said = why("control", Job.model_validate(job_json("failed", failure=failure)), ["line 1", "line 2"])
    assert all(word in said for word in ("no_space: disk full", "  line 2", "free some space"))


# --- against a service ----------------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.json").write_text("{}")
    return folder


def test_a_rejected_data_set_ends_the_demo_with_its_defects(tmp_path: Path, coco: Path) -> None:
    dataset = {"id": "ds_1", "name": "mine", "state": "rejected", "error": "unusable"}
    defect = {"code": "no_boxes", "file": "a.json", "message": "holds no box", "action": "rejected"}
    bad = report(1).model_dump() | {"ok": False, "defect_counts": {"no_boxes": 1}, "defects": [defect]}
    said = io.StringIO()
    with serving() as server:
        server.routes[("POST", "/v1/datasets")] = Answer(202, dataset)
        server.routes[("GET", "/v1/datasets/ds_1")] = Answer(body=dataset)
        server.routes[("GET", "/v1/datasets/ds_1/report")] = Answer(body=bad)
        code = run(tmp_path / "home", coco, server.url, console=Console(file=said, width=200))
    assert code == 1
    assert "a.json: holds no box -> rejected" in said.getvalue()
    assert "Fix these files" in said.getvalue()


def test_a_failed_teacher_ends_the_demo_and_the_next_one_starts_it_anew(tmp_path: Path, coco: Path) -> None:
    dataset = {"id": DATASET, "name": "mine", "state": "ready"}
    failed = job_json("failed", failure={"code": "loss_non_finite", "message": "step 3", "data": {}})
    said = io.StringIO()
    with serving() as server:
        server.routes[("POST", "/v1/datasets")] = Answer(202, dataset)
        server.routes[("GET", f"/v1/datasets/{DATASET}")] = Answer(body=dataset)
        server.routes[("GET", f"/v1/datasets/{DATASET}/report")] = Answer(body=report(16, 4).model_dump())
        server.routes[("POST", "/v1/jobs")] = Answer(201, job_json("queued"))
        server.routes[("GET", f"/v1/jobs/{failed['id']}")] = Answer(body=failed)
        server.routes[("GET", f"/v1/jobs/{failed['id']}/events")] = Answer(body={"items": []})
        server.routes[("GET", f"/v1/jobs/{failed['id']}/logs")] = lambda asked: Answer(
            body=b"the last words\n" if asked.query["after_offset"] == "0" else b""
        )
        codes = [run(tmp_path / "home", coco, server.url, console=Console(file=said, width=200)) for _ in range(2)]
        sent = server.asked_for("POST", "/v1/jobs")
        assert len(server.asked_for("POST", "/v1/datasets")) == 1
    assert codes == [1, 1]
    assert "the last words" in said.getvalue()
    assert [json.loads(asked.body)["name"] for asked in sent] == ["demo-teacher"] * 2
    assert sent[0].headers["idempotency-key"] != sent[1].headers["idempotency-key"]


def test_a_refused_request_is_not_swallowed(tmp_path: Path, coco: Path) -> None:
    with serving() as server:
        server.routes[("POST", "/v1/datasets")] = problem(422, "path", "must lie below one of FGD_DATA_ROOTS")
        with pytest.raises(ApiError, match="below one of FGD_DATA_ROOTS"):
            run(tmp_path / "home", coco, server.url, console=Console(file=io.StringIO()))


def test_ctrl_c_ends_the_demo_with_a_friendly_word(tmp_path: Path, coco: Path) -> None:
    with serving() as server:
        verifying = Answer(202, {"id": "ds_1", "name": "mine", "state": "verifying"})
        server.routes[("POST", "/v1/datasets")] = server.routes[("GET", "/v1/datasets/ds_1")] = verifying
        command = [sys.executable, "-m", "fgd.cli", "demo", "--home", str(tmp_path / "home"), "--data", str(coco)]
        child = subprocess.Popen(
            command,
            env={**os.environ, "FGD_URL": server.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 30
        while not server.asked_for("GET", "/v1/datasets/ds_1"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        said, complaint = child.communicate(timeout=10)
    assert child.returncode == 130
    assert "again to continue" in said
    assert complaint == ""


def test_signals_are_ignored_while_the_service_stops_and_heard_again_after() -> None:
    with handling(signal.default_int_handler):
        with deaf():
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_service_that_is_not_there_is_not_ready() -> None:
    with Client(f"http://127.0.0.1:{closed_port()}") as client:
        assert not client.ready()
