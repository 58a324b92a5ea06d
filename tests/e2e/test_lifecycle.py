"""Pause, resume, early finish, halved batches, full disks and drains, with real workers and processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from api.core.jobs import requests
from api.core.lifecycle import Requested
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Attempt, JobEvent, WorkerRow
from tests.e2e.parts import Bench, Service, processes_of, trainers, until, weights_digest_after

pytestmark = pytest.mark.e2e
slow_ones = pytest.mark.chaos


def ask(bench: Bench, job: str, wish: Requested) -> None:
    with db.transaction(bench.engine) as s:
        requests.request(s, DEFAULT_PROJECT, job, wish)


def resume(bench: Bench, job: str) -> None:
    with db.transaction(bench.engine) as s:
        requests.resume(s, DEFAULT_PROJECT, job)


def rows(bench: Bench, job: str) -> list[Attempt]:
    with db.reading(bench.engine) as s:
        return list(s.scalars(select(Attempt).where(Attempt.job_id == job).order_by(Attempt.attempt)))


def data_of(bench: Bench, job: str, type: str) -> list[dict[str, Any]]:
    with db.reading(bench.engine) as s:
        query = select(JobEvent).where(JobEvent.job_id == job, JobEvent.type == type).order_by(JobEvent.seq)
        return [row.data for row in s.scalars(query)]


@slow_ones
def test_paused_job_gives_its_slot_free_and_goes_on_where_it_was(bench: Bench) -> None:
    job = bench.submit("steps=120 ms=15 save=1000")
    bench.worker()
    bench.until_step(job, 30)
    ask(bench, job, Requested.pause)
    row = bench.until_state(job, "paused")
    assert (row.lease_owner, row.requested, row.retries) == (None, None, 0)
    assert not trainers(bench.home)
    other = bench.submit("steps=5 ms=1")
    bench.until_state(other, "succeeded")
    assert bench.state(job) == "paused"
    resume(bench, job)
    row = bench.until_state(job, "succeeded")
    assert bench.attempts(job) == ["paused", "succeeded"]
    assert row.weights_digest == weights_digest_after(120)
    first, second = rows(bench, job)
    assert (first.first_step, first.exit, first.lost_steps) == (0, 75, 0)
    assert first.last_step == second.first_step
    assert second.last_step == 120
    story = bench.story(job)
    assert [type for type in story if type in ("pause_requested", "job_paused", "job_resumed")] == [
        "pause_requested", "job_paused", "job_resumed",
    ]  # fmt: skip


@slow_ones
def test_paused_trainer_that_ignores_it_is_killed_and_the_last_checkpoint_stands(bench: Bench) -> None:
    job = bench.submit("steps=300 ms=15 save=10 fault=ignore-term at=2 once=1")
    bench.worker()
    bench.until_step(job, 15)
    ask(bench, job, Requested.pause)
    bench.until_state(job, "paused")
    [row] = rows(bench, job)
    assert row.exit == -signal.SIGKILL
    resume(bench, job)
    assert bench.until_state(job, "succeeded").weights_digest == weights_digest_after(300)
    assert rows(bench, job)[1].first_step >= 10


def test_stopped_job_succeeds_with_what_it_has(busy: Bench) -> None:
    job = busy.submit("steps=100000 ms=10 save=20")
    busy.until_step(job, 25)
    ask(busy, job, Requested.stop)
    row = busy.until_state(job, "succeeded")
    assert row.progress["step"] < 2000
    assert busy.attempts(job) == ["succeeded"]
    assert row.weights_digest == weights_digest_after(row.progress["step"])
    assert "stop_requested" in busy.story(job)


@slow_ones
def test_stop_is_not_forgotten_when_the_worker_dies(bench: Bench) -> None:
    job = bench.submit("steps=100000 ms=10 save=20")
    worker = bench.worker()
    bench.until_step(job, 25)
    os.kill(worker.pid, signal.SIGSTOP)
    ask(bench, job, Requested.stop)
    worker.kill()
    bench.worker()
    row = bench.until_state(job, "succeeded")
    assert bench.attempts(job) == ["lost", "succeeded"]
    assert row.progress["step"] < 2000


def test_paused_job_is_stopped_by_an_attempt_that_only_exports(busy: Bench) -> None:
    job = busy.submit("steps=100000 ms=10 save=20")
    busy.until_step(job, 25)
    ask(busy, job, Requested.pause)
    busy.until_state(job, "paused")
    ask(busy, job, Requested.stop)
    row = busy.until_state(job, "succeeded")
    first, second = rows(busy, job)
    assert (first.outcome, second.outcome) == ("paused", "succeeded")
    assert second.first_step == second.last_step == first.last_step, "no step was added"
    assert row.weights_digest == weights_digest_after(first.last_step)


def test_job_out_of_memory_goes_on_from_its_checkpoint_in_halves(busy: Bench) -> None:
    words = "steps=40 ms=2 save=10 fault=oom-over at=25 fits=2"
    wish = {"resources": {"device": "cpu", "on_out_of_memory": "halve"}}
    job = busy.submit(words, retries=0, changes=wish)
    row = busy.until_state(job, "succeeded")
    assert busy.attempts(job) == ["failed", "failed", "succeeded"]
    ran = [(a.spec or row.spec)["schedule"] for a in rows(busy, job)]
    assert [(each["batch_size"], each["accumulate"]) for each in ran] == [(8, 1), (4, 2), (2, 4)]
    assert [data["batch_size"] for data in data_of(busy, job, "batch_halved")] == [4, 2]
    assert rows(busy, job)[1].first_step == 20
    assert (row.retries, row.spec["schedule"]["batch_size"]) == (0, 8)


def test_job_that_does_not_fit_even_one_image_fails_with_advice_of_its_own(busy: Bench) -> None:
    wish = {"resources": {"device": "cpu", "on_out_of_memory": "halve"}, "schedule": {"batch_size": 2}}
    job = busy.submit("steps=10 ms=1 fault=oom-over at=1 fits=0", changes=wish)
    row = busy.until_state(job, "failed")
    assert busy.attempts(job) == ["failed", "failed"]
    assert (row.failure_code, row.failure_data) == ("gpu_out_of_memory", {"batch_size": 1})


@slow_ones
def test_full_disk_sends_the_job_to_another_worker(bench: Bench) -> None:
    job = bench.submit("steps=30 ms=10 save=5 fault=no-space at=15 once=1")
    bench.worker(FGD_FULL_S="60")
    bench.until_step(job, 10)
    until(lambda: bench.attempts(job) == ["failed"], what="the end of the first attempt")

    def complaint() -> str | None:
        with db.reading(bench.engine) as s:
            return s.scalar(select(WorkerRow.complaint))

    assert "disk full" in str(until(complaint, what="the complaint"))
    time.sleep(1.5)
    assert bench.state(job) == "queued", "the only worker leaves it alone"
    bench.worker()
    row = bench.until_state(job, "succeeded")
    first, second = rows(bench, job)
    assert first.code == "no_space"
    assert first.worker_id != second.worker_id
    assert second.first_step >= 10, "the checkpoint before stood"
    assert row.weights_digest == weights_digest_after(30)


@slow_ones
def test_drain_counts_neither_as_failure_nor_as_retry_and_loses_nothing(bench: Bench) -> None:
    job = bench.submit("steps=150 ms=15 save=1000", retries=0)
    for _ in range(2):
        worker = bench.worker()
        bench.until_step(job, 10)
        at = bench.step(job)
        until(lambda at=at: bench.step(job) > at, what="a step")
        worker.terminate()
        assert worker.wait(timeout=4) == 0
        assert bench.state(job) == "queued"
        assert not processes_of(bench.home)
    bench.worker()
    row = bench.until_state(job, "succeeded")
    assert bench.attempts(job) == ["handed_back", "handed_back", "succeeded"]
    assert [a.lost_steps for a in rows(bench, job)] == [0, 0, 0]
    assert (row.retries, row.weights_digest) == (0, weights_digest_after(150))


@slow_ones
def test_drain_does_not_wait_longer_than_its_time_for_a_trainer_that_ignores_it(bench: Bench) -> None:
    job = bench.submit("steps=3000 ms=10 save=20 fault=ignore-term at=2", retries=0)
    worker = bench.worker()
    bench.until_step(job, 30)
    worker.terminate()
    assert worker.wait(timeout=8) == 0
    assert (bench.state(job), bench.attempts(job)) == ("queued", ["handed_back"])
    assert not processes_of(bench.home)


@slow_ones
def test_service_shows_attempts_and_workers_and_hands_its_jobs_back_when_it_ends(
    start_service: Callable[..., Service],
) -> None:
    service = start_service()
    job = service.post("steps=100000 ms=10 save=20")
    service.until_step(job, 25)
    [worker] = service.http.get("/v1/workers").json()["items"]
    assert worker["live"]
    assert [run["job"] for run in worker["running"]] == [job]
    assert worker["versions"]["torch"]
    service.process.terminate()
    assert service.process.wait(timeout=12) == 0
    again = start_service(home=service.home)
    until(lambda: again.job(job)["attempt"] == 2, what="the second attempt")
    again.until_step(job, 25)
    assert again.http.post(f"/v1/jobs/{job}/stop").status_code == 202
    again.until_state(job, "succeeded")
    first, second = again.http.get(f"/v1/jobs/{job}/attempts").json()["items"]
    assert (first["outcome"], first["exit"], first["lost_steps"]) == ("handed_back", 75, 0)
    assert second["first_step"] == first["last_step"]
