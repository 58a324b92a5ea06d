"""Sweeps beyond the rows: bells, files, and the thread that sweeps in the API."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from api.core import models, submission, sweeper, uploading
from api.core.jobs import attempts, requests
from api.core.lifecycle import Requested, State
from api.core.request_bodies import UploadModel
from api.core.rows import db
from api.core.rows.swept import Moment, SweepResult
from api.core.rows.tables import DEFAULT_PROJECT, Job, Model
from api.core.settings import Settings
from api.core.store.names import StoreAway
from api.core.sweeper import Sweeper, sweeping
from fgd.detector_specs import FCOS
from fgd.spec import SubmitJob


@pytest.fixture(params=["local", "s3"])
def store_settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Every test here that has a store runs on both kinds."""
    return {} if request.param == "local" else dict(request.getfixturevalue("s3").settings())


@pytest.fixture
def sweep(given: Any) -> Sweeper:
    return Sweeper(given.engine, given.store, None, lease_s=20.0)


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def save(given: Any, tmp_path: Path, id: str, step: int, commit: bool = True) -> str:
    """Put a checkpoint into the store, and name it in a row."""
    key = f"jobs/{id}/a1/ckpt-{step}.pt"
    (tmp_path / "ckpt").write_bytes(b"weights")
    given.store.put_object(key, tmp_path / "ckpt")
    (tmp_path / "ckpt").unlink()
    if commit:
        with db.transaction(given.engine) as s:
            attempts.checkpoint(s, id, 1, step, key, "c" * 64, 7)
    return key


def kept(given: Any) -> set[str]:
    return set(given.store.objects(older_than_s=0))


def test_the_files_of_an_ended_job_s_checkpoints_are_deleted(given: Any, sweep: Sweeper, tmp_path: Path) -> None:
    id, other = given.running(), given.running()
    keys = {save(given, tmp_path, id, step) for step in (10, 20)}
    stays = save(given, tmp_path, other, 10)
    sweep.sweep()
    assert kept(given) == keys | {stays}

    with db.transaction(given.engine) as s:
        attempts.finish(s, id, 1, [], "e" * 64)
    sweep.sweep()

    assert kept(given) == {stays}


def test_a_file_that_no_row_names_is_deleted_but_not_before_its_row_could_come(
    given: Any, sweep: Sweeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = given.running()
    named, orphan = save(given, tmp_path, id, 10), save(given, tmp_path, id, 20, commit=False)
    sweep.collect()
    assert kept(given) == {named, orphan}

    monkeypatch.setattr(sweeper, "ORPHAN_S", 0.0)
    sweep.collect()

    assert kept(given) == {named}


def test_an_attempt_that_commits_while_rubbish_is_sought_keeps_its_file(
    given: Any, sweep: Sweeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "ORPHAN_S", 0.0)
    id = given.running()
    key = save(given, tmp_path, id, 10, commit=False)
    listed = given.store.objects

    def list_and_be_late(older_than_s: float) -> list[str]:
        found = list(listed(older_than_s))
        with db.transaction(given.engine) as s:
            attempts.checkpoint(s, id, 1, 10, key, "c" * 64, 7)
        return found

    monkeypatch.setattr(sweep.store, "objects", list_and_be_late)
    sweep.collect()

    with given.store.local_object(key) as file:
        assert file.read_bytes() == b"weights"


def test_a_store_that_is_away_is_asked_once_in_a_sweep_and_the_rest_goes_with_the_next_collection(
    given: Any, sweep: Sweeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id, asked = given.running(), list[str]()
    keys = {save(given, tmp_path, id, step) for step in (10, 20)}
    with db.transaction(given.engine) as s:
        attempts.finish(s, id, 1, [], "e" * 64)

    def away(key: str) -> None:
        asked.append(key)
        raise StoreAway("no answer")

    monkeypatch.setattr(sweep.store, "delete_object", away)
    sweep.sweep()
    assert len(asked) == 1
    assert kept(given) == keys

    monkeypatch.undo()
    monkeypatch.setattr(sweeper, "ORPHAN_S", 0.0)
    sweep.collect()
    assert kept(given) == set()


def test_sweepers_at_once_delete_once_and_stumble_over_nothing(given: Any, tmp_path: Path) -> None:
    id = given.running()
    for step in (10, 20):
        save(given, tmp_path, id, step)
    with db.transaction(given.engine) as s:
        attempts.finish(s, id, 1, [], "e" * 64)
    failed: list[Exception] = []

    def work() -> None:
        try:
            Sweeper(given.engine, given.store, None, 20.0).sweep()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert kept(given) == set()


@pytest.mark.parametrize("error", [OSError("the database is away"), KeyError("the database is away")])
def test_a_sweep_that_fails_is_told_and_tried_again(caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    tries: list[int] = []

    def sweep() -> list[str]:
        tries.append(1)
        if len(tries) > 3:
            return []
        raise error

    with sweeping(sweep, every_s=0.01) as health:
        until(lambda: len(tries) >= 3 and health.complaint)
        assert type(error).__name__ in str(health.complaint)
        until(lambda: health.complaint is None)

    assert "the database is away" in caplog.text


def test_one_row_that_cannot_be_put_right_keeps_no_other_from_it(given: Any, serving: Any, settings: Any) -> None:
    """A row that an older version or a person left: its limits cannot be read."""
    bad, good = given.running(), given.running()
    with db.transaction(given.engine) as s:
        s.execute(update(Job).where(Job.id == bad).values(limits={"max_retries": "many"}))
    given.later(60)

    with serving(settings.model_copy(update={"sweep_s": 0.05})) as client:
        until(lambda: client.get(f"/v1/jobs/{good}").json()["state"] == State.queued)
        until(lambda: not client.get("/readyz").json()["sweeper"]["ok"])

        assert bad in client.get("/readyz").json()["sweeper"]["detail"]
        assert client.get("/readyz").status_code == 200
        assert client.get(f"/v1/jobs/{bad}").json()["state"] == State.running


def test_a_noun_whose_sweep_fails_is_named_and_keeps_no_other_from_it(
    given: Any, sweep: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_half_way(s: Session, moment: Moment) -> SweepResult:
        s.execute(update(Job).values(name="half"))
        raise KeyError("a row of an older version")

    id, failing = given.running(), sweeper.Sweep("toys", fails_half_way)
    given.later(60)
    monkeypatch.setattr(sweeper, "SWEEPS", (failing, *sweeper.SWEEPS))

    assert sweep.sweep() == ["toys"]
    job = given.look(id)
    assert (job.state, job.name) == (State.queued, "a job")


def test_bells_ring_in_order_and_no_more_than_workers_live(given: Any) -> None:
    """A worker takes one import at a time, of whatever kind, and one plan."""
    body = SubmitJob.model_validate(given.body())
    plan = submission.plan_job(given.engine, given.store, Settings(), DEFAULT_PROJECT, body)
    job = given.job(given.dataset())
    sets = [given.dataset("verifying").id for _ in range(3)]
    with db.transaction(given.engine) as s:
        model = models.create(s, DEFAULT_PROJECT, UploadModel(name="m", detector=FCOS(), classes=("cat",)))
        uploading.arrived(s, Model, DEFAULT_PROJECT, model.id, given.store.put_bytes(b"weights"))

    rings = []
    for worker in range(5):
        given.worker(f"wrk_{worker}")
        rings.append(given.sweep().ring)

    assert rings[0] == [job, sets[0], plan.id]
    assert rings[2] == [job, *sets, plan.id]
    assert rings[3] == rings[4] == [job, *sets, model.id, plan.id]


def test_a_wait_of_any_length_that_an_older_version_took_is_kept(given: Any, sweep: Sweeper) -> None:
    id = given.job()
    with db.transaction(given.engine) as s:
        s.execute(update(Job).where(Job.id == id).values(limits={"max_retries": 3, "max_wait_s": 1e300}))

    assert sweep.sweep() == []


@pytest.mark.parametrize(("wish", "state"), [(None, State.queued), (Requested.cancel, State.cancelled)])
def test_the_api_alone_puts_right_what_the_last_worker_left(
    given: Any, serving: Any, settings: Any, wish: Requested | None, state: State
) -> None:
    id = given.running()
    if wish is not None:
        with db.transaction(given.engine) as s:
            requests.request(s, DEFAULT_PROJECT, id, wish)
    given.later(60)

    with serving(settings.model_copy(update={"sweep_s": 0.05})) as client:
        until(lambda: client.get(f"/v1/jobs/{id}").json()["state"] == state)
