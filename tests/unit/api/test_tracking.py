"""Jobs in MLflow: all of each arrives once, whatever happens to the server, to this process or to the job meanwhile."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import select

from api.core import mlflow_runs
from api.core.jobs import attempts, record, requests
from api.core.resampling import Resampler
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, JobEvent, MlflowRun
from api.core.settings import Settings
from api.tracking import Target, Tracker
from fgd.events import Evaluated, Started, Stepped
from fgd.tracking.mlflow import Account
from tests.unit.http_fake import HANG_UP, Answer, closed_port
from tests.unit.mlflow_fake import FakeMlflow

ACCOUNT = Account("ada", "a-password-of-hers")


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> str:
    """SQLite alone; what the two databases could differ in is in core/test_mlflow_runs.py."""
    (tmp_path / "fgd.db").write_bytes(migrated.read_bytes())
    return f"sqlite:///{tmp_path}/fgd.db"


@pytest.fixture
def mlflow() -> Iterator[FakeMlflow]:
    server = FakeMlflow()
    try:
        yield server
    finally:
        server.close()


class Brought:
    """A service, its jobs, and one of its processes that brings them to MLflow."""

    def __init__(self, given: Any, store: Any, url: str) -> None:
        self.given, self.engine = given, given.engine
        self.resampler = Resampler(store)
        target = Target(url, "fgd", ACCOUNT, "https://fgd.example.org/")
        self.tracker = Tracker(given.engine, store, self.resampler, target, lease_s=20.0)

    def now(self, tracker: Tracker | None = None) -> None:
        """Whatever is due, and what would be in a minute."""
        self.given.later(60.0)
        (tracker or self.tracker).work(threading.Event())

    def begin(self, **changes: Any) -> str:
        id = str(self.given.running(**changes))
        started = Started(step=0, total_steps=9, epochs=1, device="cpu", threads=1, precision="float32", versions={})
        self.tell(id, started)
        return id

    def tell(self, id: str, *events: Any) -> None:
        with db.transaction(self.engine) as s:
            record.record(s, id, 1, events)

    def step(self, id: str, *steps: int) -> None:
        self.tell(id, *(Stepped(step=n, epoch=1, values={"loss/total": n / 4}) for n in steps))

    def save(self, id: str, step: int) -> None:
        with db.transaction(self.engine) as s:
            attempts.checkpoint(s, id, 1, step, f"jobs/{id}/{step}", "c" * 64, 1)

    def succeed(self, id: str, **files: bytes) -> None:
        blobs = {name: self.given.store.put_bytes(content) for name, content in files.items()}
        with db.transaction(self.engine) as s:
            named = [attempts.ArtifactIn(name, blob.digest, blob.size) for name, blob in blobs.items()]
            attempts.finish(s, id, 1, named, "e" * 64)

    def row(self) -> MlflowRun:
        with db.reading(self.engine) as s:
            return s.scalars(select(MlflowRun)).one()

    def told(self, id: str) -> list[tuple[str, str]]:
        """Of the job's events those about MLflow."""
        with db.reading(self.engine) as s:
            events = s.scalars(select(JobEvent).where(JobEvent.job_id == id).order_by(JobEvent.seq))
            return [(each.type, each.data["message"]) for each in events if each.type.startswith("mlflow")]


@pytest.fixture
def brought(given: Any, store: Any, mlflow: FakeMlflow) -> Iterator[Brought]:
    made = Brought(given, store, mlflow.url)
    with made.resampler:
        yield made


def steps_of(mlflow: FakeMlflow, key: str) -> list[int]:
    return sorted(step for name, step, _, _ in mlflow.the_run()["metrics"] if name == key)


def test_an_ended_job_is_there_with_settings_figures_state_and_files(brought: Brought, mlflow: FakeMlflow) -> None:
    id = brought.begin(name="cells 1", metadata={"team": "x"}, seed=7)
    brought.step(id, 1, 2, 3)
    brought.tell(id, Evaluated(step=3, epoch=1, split="val", values={"ap": 31.5, "ap/a cat?": 12.0, "ap/dog": None}))
    manifest = {"versions": {"torch": "9.9"}, "machine": {"threads": 2}}
    files = {"student.safetensors": b"w" * 3000, "manifest.json": json.dumps(manifest).encode(), "README.md": b"# card"}
    brought.succeed(id, **files)

    brought.now()

    run = mlflow.the_run()
    assert (run["info"]["run_name"], run["info"]["status"]) == ("cells 1", "FINISHED")
    assert run["params"].items() >= {
        "seed": "7", "student.kind": "fcos", "schedule.optimizer.kind": "adamw", "versions.torch": "9.9",
        "machine.threads": "2", "digest/tensors": "e" * 64, "digest/dataset/index": "b" * 64,
    }.items()  # fmt: skip
    assert run["tags"].items() >= {"fgd.job": id, "fgd.state": "succeeded", "label.team": "x"}.items()
    assert run["tags"]["fgd.url"] == f"https://fgd.example.org/#/jobs/{id}"
    found = {(key.rpartition("-")[0] or key, step, value) for key, step, value, _ in run["metrics"]}
    losses = {("loss/total", n, n / 4) for n in (1, 2, 3)}
    assert found == losses | {("val/ap", 3, 31.5), ("val/ap/a cat_", 3, 12.0)}
    there = mlflow.files_of_the_run()
    assert {name: there[name] for name in files} == files
    assert json.loads(there["spec.json"])["seed"] == 7
    assert json.loads(there["report.json"])["job"] == id
    assert there["report.html"].startswith(b"<!")
    assert brought.row().done
    ((type, message),) = brought.told(id)
    assert (type, "/#/experiments/1/runs/run0" in message) == ("mlflow_run", True)


def test_what_is_done_is_left_alone(brought: Brought, mlflow: FakeMlflow) -> None:
    brought.succeed(brought.begin(), **{"student.safetensors": b"w"})
    brought.now()
    asked = len(mlflow.asked)
    brought.now()
    assert len(mlflow.asked) == asked


def test_a_running_job_shows_what_no_attempt_will_do_again(brought: Brought, mlflow: FakeMlflow) -> None:
    id = brought.begin()
    brought.step(id, 1, 2)
    brought.now()
    assert (mlflow.the_run()["info"]["status"], steps_of(mlflow, "loss/total")) == ("RUNNING", [])

    brought.save(id, 2)
    brought.step(id, 3)
    brought.now()
    assert steps_of(mlflow, "loss/total") == [1, 2]

    brought.tell(id, Evaluated(step=2, epoch=1, split="test", values={"ap": 5.0}))  # after the checkpoint, of its step
    brought.succeed(id, **{"student.safetensors": b"w"})
    brought.now()
    assert steps_of(mlflow, "loss/total") == [1, 2, 3]
    assert steps_of(mlflow, "test/ap") == [2]
    assert mlflow.the_run()["info"]["status"] == "FINISHED"


@pytest.mark.parametrize("broken", [HANG_UP, Answer(503, b"busy"), Answer(500, {"error_code": "INTERNAL_ERROR"})])
def test_a_server_that_is_away_costs_the_job_one_event_and_is_tried_again(
    brought: Brought, mlflow: FakeMlflow, broken: Answer
) -> None:
    id = brought.begin()
    brought.succeed(id, **{"student.safetensors": b"w"})
    mlflow.instead = broken
    for _ in range(3):
        brought.given.later(3600.0)
        brought.now()
    assert [type for type, _ in brought.told(id)] == ["mlflow_away"]
    assert (brought.row().failures, brought.row().done, brought.given.look(id).state) == (3, False, "succeeded")

    mlflow.instead = None
    brought.given.later(3600.0)
    brought.now()
    assert (brought.row().failures, brought.row().done) == (0, True)
    assert mlflow.files_of_the_run()["student.safetensors"] == b"w"


def test_a_try_that_fails_waits_longer_each_time(brought: Brought, mlflow: FakeMlflow) -> None:
    brought.succeed(brought.begin())
    mlflow.instead = HANG_UP
    brought.now()
    asked = len(mlflow.asked)
    brought.tracker.work(threading.Event())
    assert len(mlflow.asked) == asked  # not yet


def test_the_first_that_finds_the_server_away_spares_the_others(brought: Brought, mlflow: FakeMlflow) -> None:
    for _ in range(3):
        brought.succeed(brought.begin())
    mlflow.instead = HANG_UP
    brought.now()
    with db.reading(brought.engine) as s:
        assert sorted(s.scalars(select(MlflowRun.failures))) == [0, 0, 1]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer(401, b"no"), "check MLFLOW_TRACKING_USERNAME"),
        (Answer(200, b"<html>a proxy's page</html>"), "what answers is no MLflow server"),
        (Answer(200, {"hello": "world"}), "what answers is no MLflow server"),
        (Answer(200, [1]), "what answers is no MLflow server"),
        (
            Answer(302, b"", {"Location": "https://login.example.org/"}),
            "sends elsewhere, to https://login.example.org/",
        ),
        (Answer(400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "too\nlong"}), "answers 400: too long"),
    ],
)
def test_a_refusal_says_why_and_not_the_password(
    brought: Brought, mlflow: FakeMlflow, answer: Answer, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    id = brought.begin()
    mlflow.instead = answer
    brought.now()
    ((type, message),) = brought.told(id)
    assert type == "mlflow_away"
    assert says in message
    assert says in caplog.text
    assert "a-password-of-hers" not in message + caplog.text + repr(brought.tracker) + repr(brought.tracker.target)


def test_the_account_is_sent(brought: Brought, mlflow: FakeMlflow) -> None:
    brought.begin()
    brought.now()
    assert {asked.headers["authorization"] for asked in mlflow.asked} == {"Basic YWRhOmEtcGFzc3dvcmQtb2YtaGVycw=="}


def test_who_dies_in_between_is_followed_by_another_and_nothing_is_twice(
    brought: Brought, mlflow: FakeMlflow, store: Any
) -> None:
    id = brought.begin()
    brought.step(id, 1, 2)
    brought.succeed(id, **{"student.safetensors": b"w", "recipe.json": b"{}"})
    with db.transaction(brought.engine) as s:
        mlflow_runs.note(s)
        taken = mlflow_runs.take(s, "trk_dead")
    assert taken is not None
    other = Brought(brought.given, store, mlflow.url).tracker
    brought.now(other)
    assert mlflow.runs == {}  # the other has it still

    brought.given.earlier("mlflow_runs", "taken_until", 3600.0)
    brought.now(other)
    assert len(mlflow.runs) == 1
    assert steps_of(mlflow, "loss/total") == [1, 2]
    with pytest.raises(mlflow_runs.Fenced), db.transaction(brought.engine) as s:
        mlflow_runs.logged(s, taken, "run9", None, again_s=None)


def test_a_run_that_is_there_is_completed(brought: Brought, mlflow: FakeMlflow, given: Any) -> None:
    """As after the end of a process between MLflow's answer and our commit, or where a person copied it before."""
    id = brought.begin()
    brought.step(id, 1)
    brought.succeed(id, **{"student.safetensors": b"w"})
    brought.now()
    files = [asked.path for asked in mlflow.asked if asked.method == "PUT"]
    with db.transaction(brought.engine) as s:
        row = s.scalars(select(MlflowRun)).one()
        row.done, row.seen_version, row.logged_step, row.run_id = False, None, None, None
    brought.now()
    assert len(mlflow.runs) == 1
    assert steps_of(mlflow, "loss/total") == [1]
    again = [asked.path for asked in mlflow.asked if asked.method == "PUT"][len(files) :]
    assert {Path(path).name for path in again} == {"report.html", "report.json", "spec.json"}


def test_a_run_that_somebody_deleted_meanwhile_begins_again_from_the_first_step(
    brought: Brought, mlflow: FakeMlflow
) -> None:
    id = brought.begin()
    brought.step(id, 1, 2)
    brought.save(id, 2)
    brought.now()
    mlflow.runs.clear()
    brought.step(id, 3)
    brought.now()
    assert steps_of(mlflow, "loss/total") == [1, 2]


def test_a_failed_and_a_cancelled_job_say_so(brought: Brought, mlflow: FakeMlflow) -> None:
    id = brought.begin()
    with db.transaction(brought.engine) as s:
        attempts.fail(s, id, 1, "loss_non_finite", "a loss is NaN", None)
    brought.now()
    run = mlflow.the_run()
    assert (run["info"]["status"], run["tags"]["fgd.failure"]) == ("FAILED", "loss_non_finite: a loss is NaN")


def test_jobs_that_ended_before_yesterday_are_left_out(brought: Brought, mlflow: FakeMlflow) -> None:
    brought.succeed(brought.begin())
    brought.given.earlier("jobs", "finished_at", 90_000.0)
    brought.now()
    assert mlflow.asked == []


def test_after_a_week_it_is_given_up(brought: Brought, mlflow: FakeMlflow) -> None:
    id = brought.begin()
    brought.succeed(id)
    mlflow.instead = HANG_UP
    brought.now()
    brought.given.earlier("jobs", "finished_at", 8 * 86_400.0)
    brought.given.later(3600.0)
    brought.now()
    assert [type for type, _ in brought.told(id)] == ["mlflow_away", "mlflow_given_up"]
    assert brought.row().done


def test_where_only_the_stores_owner_can_write_files_stay_here_and_the_rest_arrives(
    brought: Brought, mlflow: FakeMlflow
) -> None:
    mlflow.files_at = "s3://bucket/"
    id = brought.begin()
    brought.step(id, 1)
    brought.succeed(id, **{"student.safetensors": b"w"})
    brought.now()
    assert mlflow.files == {}
    assert (mlflow.the_run()["info"]["status"], steps_of(mlflow, "loss/total")) == ("FINISHED", [1])
    assert [type for type, _ in brought.told(id)] == ["mlflow_run", "mlflow_without_files"]


def test_a_deleted_job_takes_its_row_along(brought: Brought) -> None:
    id = brought.begin()
    brought.succeed(id)
    brought.now()
    with db.transaction(brought.engine) as s:
        s.delete(requests.get(s, DEFAULT_PROJECT, id))
    with db.reading(brought.engine) as s:
        assert s.scalars(select(MlflowRun)).all() == []


def test_many_points_come_in_requests_that_mlflow_takes(brought: Brought, mlflow: FakeMlflow) -> None:
    id = brought.begin()
    brought.step(id, *range(1, 2502))
    brought.succeed(id)
    brought.now()
    assert len(steps_of(mlflow, "loss/total")) == 2501


def test_a_server_that_nobody_listens_for_is_away(given: Any, store: Any) -> None:
    brought = Brought(given, store, f"http://127.0.0.1:{closed_port()}")
    id = brought.begin()
    brought.now()
    ((_, message),) = brought.told(id)
    assert "does not answer" in message


@pytest.mark.parametrize("url", ["http://ada:secret@host", "databricks", "file:///srv/mlruns"])
def test_an_address_that_cannot_be_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ValidationError, match=r"FGD_MLFLOW_TRACKING_URI is http\(s\)://host:port") as refused:
        Settings(mlflow_tracking_uri=url)
    assert "secret" not in str(refused.value)
