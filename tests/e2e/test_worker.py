"""Workers, killed and stopped, without API and broker: the poller alone must do."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from pathlib import Path

import psutil
import pytest

from api.core import datasets, uploading
from api.core.jobs import checkpoints, requests
from api.core.lifecycle import Requested
from api.core.request_bodies import SubmitDataset
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Dataset
from api.core.store.local import LocalStore
from api.core.store.names import object_name
from fgd.data import zips
from tests.e2e.parts import PATIENT_S, Bench, pids, processes_of, trainers, until, weights_digest_after

pytestmark = pytest.mark.e2e

LONG = "steps=400 ms=10 save=20"


def test_worker_without_a_broker_runs_a_job(bench: Bench) -> None:
    job = bench.submit("steps=20 ms=2")
    bench.worker()
    row = bench.until_state(job, "succeeded")
    assert bench.attempts(job) == ["succeeded"]
    assert row.weights_digest
    until(lambda: not (bench.home / "work" / job).exists(), what="the end of the work folder")  # after the last write
    assert not list((bench.home / "run").iterdir())


def test_killed_worker_takes_its_trainer_along_and_the_next_goes_on_from_the_checkpoint(bench: Bench) -> None:
    job = bench.submit("steps=60 ms=50 save=20")
    first = bench.worker()
    bench.until_step(job, 30)
    first.kill()
    until(lambda: not trainers(bench.home), timeout_s=4, what="the end of the trainer")
    bench.worker()
    row = bench.until_state(job, "succeeded")
    assert bench.attempts(job) == ["lost", "succeeded"]
    story = bench.story(job)
    assert story.count("succeeded") == 1
    assert (
        story.index("attempt_lost") < story.index("requeued") < story.index("note:resumed") < story.index("succeeded")
    )
    assert row.weights_digest == weights_digest_after(60)
    until(lambda: not list((bench.home / "work").iterdir()), what="the end of the work folder")


def test_killed_trainer_is_started_again(busy: Bench) -> None:
    job = busy.submit(LONG)
    busy.until_step(job, 40)
    os.kill(trainers(busy.home)[0], signal.SIGKILL)
    busy.until_state(job, "succeeded")
    assert busy.attempts(job) == ["failed", "succeeded"]
    assert busy.story(job).count("succeeded") == 1


def test_stopped_worker_is_fenced_when_it_wakes(bench: Bench) -> None:
    job = bench.submit("steps=500 ms=15 save=20")
    zombie = bench.worker(FGD_LEASE_S="7.5")
    bench.until_step(job, 30)
    [old] = trainers(bench.home)
    with db.transaction(bench.engine):  # so that it does not sleep with the database's write lock in its hands
        os.kill(zombie.pid, signal.SIGSTOP)
        until(lambda: psutil.Process(zombie.pid).status() == psutil.STATUS_STOPPED)
    bench.worker()
    until(lambda: old not in trainers(bench.home), timeout_s=5, what="the end of the zombie's trainer, by itself")
    assert bench.attempts(job) == [None], "its lease has not ended yet"
    until(lambda: len(bench.attempts(job)) == 2 and len(trainers(bench.home)) == 1, what="the second attempt")
    os.kill(zombie.pid, signal.SIGCONT)
    bench.until_state(job, "succeeded")
    assert bench.attempts(job) == ["lost", "succeeded"]
    assert bench.story(job).count("succeeded") == 1
    assert zombie.poll() is None, "the worker itself lives on"


def test_database_that_is_locked_for_long_freezes_and_then_kills_the_trainer(bench: Bench) -> None:
    job = bench.submit("steps=400 ms=10 save=50")
    bench.worker()
    bench.until_step(job, 60)
    [old] = trainers(bench.home)
    locker = sqlite3.connect(bench.home / "fgd.db", isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    until(lambda: "stopped until the database answers" in bench.log(), what="the freeze")
    until(lambda: old not in trainers(bench.home), what="the kill")
    locker.execute("ROLLBACK")
    locker.close()
    bench.until_state(job, "succeeded")
    assert bench.attempts(job) == ["lost", "succeeded"]


def test_database_that_is_locked_for_a_moment_costs_nothing(busy: Bench) -> None:
    job = busy.submit("steps=300 ms=10 save=50")
    busy.until_step(job, 30)
    locker = sqlite3.connect(busy.home / "fgd.db", isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    time.sleep(1.5)
    locker.execute("ROLLBACK")
    locker.close()
    busy.until_state(job, "succeeded")
    assert busy.attempts(job) == ["succeeded"]


def test_worker_that_is_told_to_end_hands_its_job_back_within_seconds(bench: Bench) -> None:
    job = bench.submit(LONG)
    worker = bench.worker()
    bench.until_step(job, 30)
    worker.terminate()
    assert worker.wait(timeout=PATIENT_S) == 0
    row = bench.job(job)
    assert (row.state, row.retries) == ("queued", 0)
    assert bench.attempts(job) == ["handed_back"]
    assert not processes_of(bench.home)
    bench.worker()
    bench.until_state(job, "succeeded")
    assert "note:resumed" in bench.story(job)


def test_worker_that_is_told_to_end_does_though_its_supervisor_hangs(bench: Bench) -> None:
    job, struck = bench.submit("steps=20"), bench.home / "struck"
    struck.mkdir()
    worker = bench.worker(FGD_FAILPOINTS="before_staging=wait", FGD_FAILPOINTS_TEST=str(struck))
    until(lambda: (struck / "before_staging").exists(), what="the supervisor that hangs")
    worker.terminate()
    assert worker.wait(timeout=PATIENT_S) == 1
    assert not processes_of(bench.home)
    bench.worker()
    bench.until_state(job, "succeeded")
    assert bench.attempts(job) == ["lost", "succeeded"]


@pytest.mark.parametrize(
    ("wish", "fault"),
    [
        (Requested.cancel, ""),
        (Requested.cancel, "fault=ignore-term at=2"),
        (Requested.cancel_now, "fault=ignore-term at=2"),
    ],
)
def test_running_job_is_cancelled(busy: Bench, wish: Requested, fault: str) -> None:
    job = busy.submit(f"steps=100000 ms=10 save=20 {fault}")
    busy.until_step(job, 10)
    with db.transaction(busy.engine) as s:
        requests.request(s, DEFAULT_PROJECT, job, wish)
    busy.until_state(job, "cancelled")
    assert not trainers(busy.home)
    assert busy.attempts(job) == ["cancelled"]
    assert busy.story(job)[-1] == "cancelled"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("nan", "loss_non_finite"),
        ("exit", "protocol"),
        ("oom-text", "gpu_out_of_memory"),
        ("no-manifest", "protocol"),
    ],
)
def test_hopeless_end_fails_once_with_its_code(busy: Bench, fault: str, code: str) -> None:
    job = busy.submit(f"steps=10 ms=1 fault={fault} at=3")
    row = busy.until_state(job, "failed")
    assert row.failure_code == code
    assert busy.attempts(job) == ["failed"]


@pytest.mark.parametrize(("fault", "code"), [("segv", "trainer_killed"), ("hang", "stalled")])
def test_end_that_may_not_happen_again_is_tried_again(busy: Bench, fault: str, code: str) -> None:
    healed = busy.submit(f"steps=30 ms=1 fault={fault} at=15 once=1")
    poison = busy.submit(f"steps=30 ms=1 fault={fault} at=15", retries=0)
    busy.until_state(healed, "succeeded")
    assert busy.attempts(healed) == ["failed", "succeeded"]
    assert busy.until_state(poison, "failed").failure_code == code
    if fault == "hang":
        assert b'scripted_trainer.py", line' in busy.trainer_log(poison), "the stacks of what hangs"


def test_job_that_used_up_its_time_is_stopped_and_fails(busy: Bench) -> None:
    job = busy.submit("steps=100000 ms=10", max_runtime_s=1.5)
    row = busy.until_state(job, "failed")
    assert (row.failure_code, row.failure_data) == ("preempted", {"limit": "max_runtime_s"})
    assert "checkpoint_saved" in busy.story(job), "it was asked before it was killed"
    assert busy.attempts(job) == ["failed"]


def test_plan_whose_rehearsal_is_killed_is_measured_again_beside_a_training(busy: Bench) -> None:
    busy.until_step(busy.submit("steps=100000 ms=10"), 10)
    plan = busy.plan()
    os.kill(until(lambda: pids(busy.home, "fgd.plan"), what="the rehearsal")[0], signal.SIGKILL)
    row = until(lambda: (p := busy.look_at(plan)).state != "measuring" and p, what="the plan")
    assert row.state == "measured", row.error
    assert (row.attempt, row.losses) == (2, 1)
    assert row.measured["trainings_beside"] == 1
    assert row.measured["student_parameters"] > 10**7


def test_ended_jobs_leave_no_checkpoint_behind(busy: Bench) -> None:
    done, gone = busy.submit("steps=40 ms=2 save=5"), busy.submit(LONG)
    busy.until_step(gone, 40)
    with db.transaction(busy.engine) as s:
        requests.request(s, DEFAULT_PROJECT, gone, Requested.cancel)
    busy.until_state(done, "succeeded")
    busy.until_state(gone, "cancelled")
    objects = busy.home / "blobs" / "objects" / "jobs"
    until(lambda: not any((objects / job).exists() for job in (done, gone)), what="the sweep")


def test_torn_checkpoint_is_passed_over_for_the_one_before(bench: Bench) -> None:
    job = bench.submit("steps=120 ms=20 save=20")
    first = bench.worker()
    bench.until_step(job, 70)
    first.kill()
    first.wait()
    with db.reading(bench.engine) as s:  # not the newest file: one that no row names yet does not exist
        newest = bench.home / "blobs" / object_name(checkpoints.newest_first(s, job)[0].key)
    content = newest.read_bytes()
    newest.unlink()
    newest.write_bytes(content[:-3])
    bench.worker()
    bench.until_state(job, "succeeded")
    story = bench.story(job)
    assert "note:checkpoint_corrupt" in story
    assert "note:resumed" in story


def test_two_workers_never_take_the_same_job(bench: Bench) -> None:
    submitted = [bench.submit("steps=5 ms=1") for _ in range(6)]
    for _ in range(2):
        bench.worker(FGD_SLOTS="2")
    for job in submitted:
        bench.until_state(job, "succeeded")
        assert bench.attempts(job) == ["succeeded"]


def test_no_more_trainers_than_slots_are_ever_alive(bench: Bench) -> None:
    submitted = [bench.submit("steps=30 ms=10") for _ in range(3)]
    seen: list[int] = []
    done = threading.Event()

    def count() -> None:
        while not done.wait(0.05):
            seen.append(len(trainers(bench.home)))

    counter = threading.Thread(target=count)
    counter.start()
    bench.worker()
    for job in submitted:
        bench.until_state(job, "succeeded")
    done.set()
    counter.join()
    assert max(seen) == 1


def test_folder_without_a_data_set_is_rejected_with_a_reason(busy: Bench) -> None:
    empty = busy.home / "empty"
    empty.mkdir()
    with db.transaction(busy.engine) as s:
        dataset = datasets.submit(s, DEFAULT_PROJECT, SubmitDataset(name="empty", path=str(empty))).id

    def row() -> object:
        with db.reading(busy.engine) as s:
            found = datasets.get(s, DEFAULT_PROJECT, dataset)
            return found.error if found.state == "rejected" else None

    assert "annotation" in str(until(row, what="the rejection")), busy.log()


def test_killed_reader_of_a_data_set_is_started_again(bench: Bench, pictures: object) -> None:
    with db.transaction(bench.engine) as s:
        dataset = datasets.submit(s, DEFAULT_PROJECT, SubmitDataset(name="more", path=str(pictures))).id
    bench.worker()
    os.kill(until(lambda: pids(bench.home, "worker.importer"), what="the reader")[0], signal.SIGKILL)

    def row() -> object:
        with db.reading(bench.engine) as s:
            found = datasets.get(s, DEFAULT_PROJECT, dataset)
            return found if found.state != "verifying" else None

    ended = until(row, what="the import")
    assert (ended.state, ended.attempt, ended.losses) == ("ready", 2, 1), bench.log()


def test_uploaded_zip_is_imported_like_its_folder_and_let_go(bench: Bench, pictures: Path, tmp_path: Path) -> None:
    store = LocalStore(bench.home / "blobs")
    zips.pack(pictures, tmp_path / "set.zip")
    with db.transaction(bench.engine) as s:
        folder = datasets.submit(s, DEFAULT_PROJECT, SubmitDataset(name="folder", path=str(pictures))).id
        upload = datasets.submit(s, DEFAULT_PROJECT, SubmitDataset(name="upload")).id
        uploading.arrived(s, Dataset, DEFAULT_PROJECT, upload, store.put_file(tmp_path / "set.zip"))
        evil = datasets.submit(s, DEFAULT_PROJECT, SubmitDataset(name="evil")).id
        uploading.arrived(s, Dataset, DEFAULT_PROJECT, evil, store.put_bytes(b"no zip"))
        gone = datasets.submit(s, DEFAULT_PROJECT, SubmitDataset(name="gone")).id
        lost = store.put_bytes(b"a zip that the store loses")
        uploading.arrived(s, Dataset, DEFAULT_PROJECT, gone, lost)
    store.delete(lost.digest)
    bench.worker()

    def ended() -> object:
        with db.reading(bench.engine) as s:
            rows = [datasets.get(s, DEFAULT_PROJECT, id) for id in (folder, upload, evil, gone)]
            return rows if all(row.finished_at for row in rows) else None

    rows = until(ended, what="the imports")
    assert [row.state for row in rows] == ["ready", "ready", "rejected", "rejected"], bench.log()
    assert rows[0].archive_digest == rows[1].archive_digest
    assert rows[2].error == "the upload is not a zip, or its end is missing"
    assert rows[3].error.startswith("the upload is missing from the store, or was changed there; upload it again: ")
    assert [(row.attempt, row.losses, row.upload_digest) for row in rows] == [(1, 0, None)] * 4
    until(lambda: not list((bench.home / "work").iterdir()), what="the end of the work folder")


def test_import_does_not_wait_for_a_training(bench: Bench, pictures: object) -> None:
    job = bench.submit("steps=100000 ms=10")
    bench.worker()
    bench.until_step(job, 3)
    with db.transaction(bench.engine) as s:
        dataset = datasets.submit(s, DEFAULT_PROJECT, SubmitDataset(name="more", path=str(pictures))).id

    def ready() -> bool:
        with db.reading(bench.engine) as s:
            return bool(datasets.get(s, DEFAULT_PROJECT, dataset).state == "ready")

    until(ready, what="the import")
    assert bench.state(job) == "running"


def test_worker_refuses_a_database_without_tables(bench: Bench) -> None:
    worker = bench.worker(FGD_DATABASE_URL=f"sqlite:///{bench.home}/other.db")
    assert worker.wait(timeout=PATIENT_S) == 1
    assert "fgd serve" in bench.log()
