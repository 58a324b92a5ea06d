from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from api.core import workers
from api.core.errors import Fenced, NotFound
from api.core.jobs import attempts, moves, queue_order, record, requests
from api.core.jobs.waiting import waits
from api.core.lifecycle import FailureCode, Requested, State
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT
from fgd.events import Phase, Stepped

LOST = FailureCode.trainer_killed


def at_once(count: int, work: Callable[[int], None]) -> None:
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        barrier.wait()
        work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def ask(given: Any, id: str, wish: Requested = Requested.cancel) -> None:
    with db.transaction(given.engine) as s:
        requests.request(s, DEFAULT_PROJECT, id, wish)


# --- claim ----------------------------------------------------------------------------------------------------


def test_one_of_many_workers_gets_a_job(given: Any) -> None:
    id, claims = given.job(), []

    at_once(12, lambda number: claims.append(given.claim(f"wrk_{number}")))

    won = [claim for claim in claims if claim is not None]
    assert [(claim.job_id, claim.attempt) for claim in won] == [(id, 1)]
    assert given.events(id) == ["job_submitted", "job_claimed"]
    assert given.attempts(id) == [None]


def test_many_workers_share_many_jobs_without_a_double(given: Any) -> None:
    dataset = given.dataset()
    ids = {given.job(dataset) for _ in range(10)}
    claims: list[Any] = []

    at_once(10, lambda number: claims.append(given.claim(f"wrk_{number}")))

    assert {claim.job_id for claim in claims} == ids


def test_priority_goes_first_then_age(given: Any) -> None:
    dataset = given.dataset()
    old, new = given.job(dataset), given.job(dataset)
    urgent = given.job(dataset, priority=5)

    assert [given.claim().job_id for _ in range(3)] == [urgent, old, new]


@pytest.mark.parametrize(
    ("device", "free", "fits"),
    [
        ("cpu", queue_order.Free(1, 0), True),
        ("cpu", queue_order.Free(0, 1, gpu_host=True), False),
        ("cuda", queue_order.Free(1, 0), False),
        ("cuda", queue_order.Free(0, 1, gpu_host=True), True),
        ("auto", queue_order.Free(1, 0), True),
        ("auto", queue_order.Free(1, 0, gpu_host=True), False),
        ("auto", queue_order.Free(0, 1, gpu_host=True), True),
        ("auto", queue_order.Free(0, 0), False),
    ],
)
def test_a_worker_takes_only_what_fits(given: Any, device: str, free: queue_order.Free, fits: bool) -> None:
    given.job(resources={"device": device})

    with db.transaction(given.engine) as s:
        assert (attempts.claim(s, "wrk_a", free, lease_s=20.0) is not None) is fits


def test_jobs_of_several_devices_share_a_host_with_others(given: Any) -> None:
    dataset = given.dataset()
    given.worker("wrk_a", cuda=4)
    four, two, one = (given.job(dataset, resources={"device": "cuda", "devices": n}) for n in (4, 2, 1))
    whole = queue_order.Free(1, 4, gpu_host=True)

    def claim(cuda: int) -> str | None:
        with db.transaction(given.engine) as s:
            found = attempts.claim(s, "wrk_a", queue_order.Free(0, cuda, gpu_host=True, of=whole), lease_s=20.0)
            return found.job_id if found else None

    assert claim(3) == two
    assert claim(1) == one, "what does not fit is passed by"
    assert "busy (3 of 4 GPU slots in use)" in (why(given, four) or "")
    assert claim(0) is None
    assert claim(4) == four


def test_a_job_of_several_devices_is_not_overtaken_for_ever(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = given.dataset()
    big = given.job(dataset, resources={"device": "cpu", "devices": 2})
    given.job(dataset, resources={"device": "cpu"})
    urgent = given.job(dataset, resources={"device": "cpu"}, priority=1)
    monkeypatch.setattr(queue_order, "RESERVE_S", 0.0)

    def claim(cpu: int) -> str | None:
        with db.transaction(given.engine) as s:
            found = attempts.claim(s, "wrk_a", queue_order.Free(cpu, 0, of=queue_order.Free(2, 0)), lease_s=20.0)
            return found.job_id if found else None

    assert claim(1) == urgent
    assert claim(1) is None, "kept for the one that waits"
    assert claim(2) == big


@pytest.mark.parametrize(
    "waits",
    [
        pytest.param({"device": "cpu", "devices": 2, "threads": 64}, id="for more cores than the host will ever have"),
        pytest.param({"device": "cuda", "devices": 2}, id="for devices of another kind"),
    ],
)
def test_nothing_is_kept_for_one_that_would_not_take_it(
    given: Any, monkeypatch: pytest.MonkeyPatch, waits: dict[str, Any]
) -> None:
    dataset = given.dataset()
    given.job(dataset, resources=waits)
    small = given.job(dataset, resources={"device": "cpu"})
    monkeypatch.setattr(queue_order, "RESERVE_S", 0.0)
    free = queue_order.Free(1, 1, gpu_host=True, cores=8, of=queue_order.Free(2, 2, gpu_host=True))

    with db.transaction(given.engine) as s:
        found = attempts.claim(s, "wrk_a", free, lease_s=20.0)

    assert found is not None
    assert found.job_id == small


def test_devices_that_lie_scattered_over_hosts_are_not_enough(given: Any) -> None:
    dataset = given.dataset()
    for worker in ("wrk_a", "wrk_b"):
        given.worker(worker, cuda=2)
        given.job(dataset, resources={"device": "cuda"})
        with db.transaction(given.engine) as s:
            assert attempts.claim(s, worker, queue_order.Free(0, 2, gpu_host=True), lease_s=20.0) is not None
    two = given.job(dataset, resources={"device": "cuda", "devices": 2})

    assert "busy (2 of 4 GPU slots in use, no host has 2 free at once)" in (why(given, two) or "")


def test_slots_of_one_host_and_cores_of_another_are_not_enough(given: Any) -> None:
    dataset, wide = given.dataset(), {"device": "cpu", "devices": 2, "threads": 4}

    def host(id: str, slots: int, cores: int) -> None:
        with db.transaction(given.engine) as s:
            workers.register(s, id, host=id, pid=1, slots=slots, facts={"cores": cores})

    host("wrk_slots", 4, 2)
    host("wrk_cores", 1, 16)
    id = given.job(dataset, resources=wide)
    told = why(given, id) or ""
    assert "none with 2 slots and 8 processor cores on one host" in told
    assert "of those with enough slots the largest has 2 cores" in told

    host("wrk_both", 2, 8)
    assert why(given, id) == "next in line; a worker is about to take it"
    small = given.job(dataset, priority=5)
    with db.transaction(given.engine) as s:
        assert attempts.claim(s, "wrk_both", queue_order.Free(2, 0, cores=8), lease_s=20.0).job_id == small  # type: ignore[union-attr]
    assert "3 workers are running and busy (1 of 2 slots in use, 2 hosts too small for it)" in (why(given, id) or "")


def test_jobs_of_a_worker_that_takes_nothing_silence_no_bell_of_another(given: Any) -> None:
    dataset = given.dataset()
    given.worker("wrk_full")
    given.job(dataset)
    assert given.claim("wrk_full") is not None
    with db.transaction(given.engine) as s:
        workers.beat(s, "wrk_full", "its disk is full")
    given.worker("wrk_sound")
    waits = given.job(dataset)

    assert given.sweep().ring == [waits]


def test_more_devices_than_any_host_has_are_told(given: Any) -> None:
    id = given.job(resources={"device": "cpu", "devices": 2})
    given.worker("wrk_a")
    assert "none with the 2 slots that resources.devices asks for; the largest has 1" in (why(given, id) or "")
    with db.transaction(given.engine) as s:
        assert attempts.claim(s, "wrk_a", queue_order.Free(1, 0, of=queue_order.Free(1, 0)), lease_s=20.0) is None
        assert (
            attempts.claim(s, "wrk_a", queue_order.Free(2, 0, cores=8, of=queue_order.Free(2, 0)), lease_s=20.0)
            is not None
        )


def test_a_cancelled_job_is_never_claimed(given: Any) -> None:
    id = given.job()
    ask(given, id)

    assert given.claim() is None
    assert given.look(id).state == State.cancelled


def test_the_claim_carries_the_spec_and_the_blobs(given: Any) -> None:
    given.worker("wrk_a")
    given.job(seed=7)

    claim = given.claim("wrk_a")

    assert claim.spec.seed == 7
    assert claim.inputs["dataset"] == {"archive": "a" * 64, "index": "b" * 64}
    assert claim.checkpoint is None


# --- fencing --------------------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Session, str], Any]] = {
    "beat": lambda s, id: attempts.beat(s, id, 1, "wrk_a", lease_s=20.0),
    "record": lambda s, id: record.record(s, id, 1, [Stepped(step=1, epoch=1, values={"x": 1.0})], b"log"),
    "checkpoint": lambda s, id: attempts.checkpoint(s, id, 1, 5, "k", "c" * 64, 1),
    "finish": lambda s, id: attempts.finish(s, id, 1, [], "e" * 64),
    "fail": lambda s, id: attempts.fail(s, id, 1, LOST, "x"),
    "requeue": lambda s, id: attempts.requeue(s, id, 1, "x"),
    "ended_as_requested": lambda s, id: attempts.ended_as_requested(s, id, 1),
}


def everything(given: Any) -> dict[str, list[Any]]:
    names = ["jobs", "job_attempts", "job_events", "series", "metric_points", "log_chunks", "checkpoints", "artifacts"]
    with given.engine.connect() as connection:
        return {name: list(connection.exec_driver_sql(f"SELECT * FROM {name}")) for name in names}


@pytest.mark.parametrize("verb", WRITES)
@pytest.mark.parametrize("now", ["another attempt runs", "it is queued again", "it is cancelled", "no such job"])
def test_a_stale_attempt_writes_nothing(given: Any, verb: str, now: str) -> None:
    id = given.running("wrk_a")
    given.later(60)
    if now == "it is cancelled":
        ask(given, id)
    given.sweep()
    if now == "another attempt runs":
        assert given.claim("wrk_b").attempt == 2
    before = everything(given)

    with pytest.raises(Fenced), db.transaction(given.engine) as s:
        WRITES[verb](s, "job_" + "0" * 32 if now == "no such job" else id)

    assert everything(given) == before


def test_another_worker_cannot_keep_a_lease_alive(given: Any) -> None:
    id = given.running("wrk_a")

    with pytest.raises(Fenced), db.transaction(given.engine) as s:
        attempts.beat(s, id, 1, "wrk_b", lease_s=20.0)


def test_of_finish_and_cancel_at_once_exactly_one_is_told_as_the_end(given: Any) -> None:
    for _ in range(5):
        id = given.running()
        ask(given, id)

        def end(number: int, id: str = id) -> None:
            try:
                with db.transaction(given.engine) as s:
                    attempts.finish(s, id, 1, [], "e" * 64) if number else attempts.ended_as_requested(s, id, 1)
            except Fenced:
                pass

        at_once(2, end)
        terminal = [type for type in given.events(id) if type in ("succeeded", "cancelled", "failed")]
        assert terminal == [given.look(id).state]


# --- beat, request --------------------------------------------------------------------------------------------


def test_a_beat_prolongs_the_lease_and_hears_what_was_asked(given: Any) -> None:
    id = given.running()
    before = given.look(id)

    with db.transaction(given.engine) as s:
        assert attempts.beat(s, id, 1, "wrk_a", lease_s=100, progress=attempts.Progress(step=3, total_steps=9)) is None
    ask(given, id)
    with db.transaction(given.engine) as s:
        assert attempts.beat(s, id, 1, "wrk_a", lease_s=20.0) == Requested.cancel

    after = given.look(id)
    assert after.progress["step"] == 3
    assert after.version > before.version


def test_a_job_of_another_project_is_not_there(given: Any) -> None:
    id = given.job()

    with db.transaction(given.engine) as s:
        with pytest.raises(NotFound):
            requests.get(s, "prj_other", id)
        with pytest.raises(NotFound):
            requests.request(s, "prj_other", id, Requested.cancel)


# --- ends -----------------------------------------------------------------------------------------------------


def test_a_finished_job_is_succeeded_whatever_was_asked(given: Any) -> None:
    id = given.running()
    ask(given, id)

    with db.transaction(given.engine) as s:
        attempts.finish(s, id, 1, [attempts.ArtifactIn("student.safetensors", "d" * 64, 5)], "e" * 64)

    job = given.look(id)
    assert (job.state, job.requested, job.phase, job.lease_owner) == (State.succeeded, None, None, None)
    assert given.attempts(id) == ["succeeded"]
    assert given.events(id)[-1] == "succeeded"


def test_a_user_s_error_fails_at_once(given: Any) -> None:
    id = given.running()

    with db.transaction(given.engine) as s:
        state = attempts.fail(s, id, 1, FailureCode.loss_non_finite, "step 3: loss/total is nan", {"step": 3}, exit=1)

    job = given.look(id)
    assert state == State.failed
    assert (job.failure_code, job.failure_data) == ("loss_non_finite", {"step": 3})
    assert given.events(id)[-1] == "failed"


def test_a_killed_trainer_is_tried_again_at_once_then_later_then_given_up(given: Any) -> None:
    id = given.job(limits={"max_retries": 2})

    def kill(attempt: int) -> State:
        with db.transaction(given.engine) as s:
            return attempts.fail(s, id, attempt, LOST, "killed", exit=-9)

    assert given.claim().attempt == 1
    assert kill(1) == State.queued
    assert given.claim().attempt == 2
    assert kill(2) == State.queued
    assert given.claim() is None
    given.later(31)
    assert given.claim().attempt == 3
    assert kill(3) == State.failed

    job = given.look(id)
    assert job.failure_code == LOST
    assert "after 2 retries" in (job.failure_message or "")


def test_back_off_doubles_from_the_second_retry_to_an_hour() -> None:
    assert [moves.back_off_s(retry) for retry in (1, 2, 3, 4, 5)] == [0, 30, 60, 120, 240]
    assert moves.back_off_s(1000) == 3600


def test_a_job_handed_back_is_queued_and_nothing_is_counted(given: Any) -> None:
    id = given.running()

    with db.transaction(given.engine) as s:
        assert attempts.requeue(s, id, 1, "the worker goes down") == State.queued

    assert given.look(id).retries == 0
    assert given.attempts(id) == ["handed_back"]
    assert given.claim().attempt == 2


@pytest.mark.parametrize("verb", ["fail", "requeue", "ended_as_requested"])
def test_a_job_whose_cancel_was_asked_is_cancelled_by_any_end_but_success(given: Any, verb: str) -> None:
    id = given.running()
    ask(given, id, Requested.cancel_now)

    with db.transaction(given.engine) as s:
        assert WRITES[verb](s, id) == State.cancelled

    assert given.events(id)[-1] == "cancelled"


def test_an_end_for_a_wish_that_was_taken_back_is_no_end(given: Any) -> None:
    id = given.running()

    with db.transaction(given.engine) as s:
        assert attempts.ended_as_requested(s, id, 1) == State.queued

    assert (given.look(id).retries, given.attempts(id)) == (0, ["handed_back"])


# --- checkpoints ----------------------------------------------------------------------------------------------


def test_the_last_two_checkpoints_are_kept_and_the_next_attempt_gets_them(given: Any) -> None:
    id = given.running()

    def save(step: int) -> list[str]:
        with db.transaction(given.engine) as s:
            return attempts.checkpoint(s, id, 1, step, f"jobs/{id}/a1/{step}", "c" * 64, 9)

    assert [save(10), save(20), save(30), save(30), save(40)] == [
        [], [], [f"jobs/{id}/a1/10"], [], [f"jobs/{id}/a1/20"],
    ]  # fmt: skip
    assert given.events(id).count("checkpoint_saved") == 4
    given.later(60)
    given.sweep()
    claim = given.claim()
    assert [saved.step for saved in claim.checkpoints] == [40, 30]
    assert claim.checkpoint.key == f"jobs/{id}/a1/40"


def test_an_attempt_that_fell_back_goes_on_from_its_own_checkpoint(given: Any) -> None:
    id = given.running()
    with db.transaction(given.engine) as s:
        attempts.checkpoint(s, id, 1, 40, "a1-40", "c" * 64, 9)
        attempts.requeue(s, id, 1, "x")
    given.claim()
    with db.transaction(given.engine) as s:
        attempts.checkpoint(s, id, 2, 25, "a2-25", "c" * 64, 9)
        attempts.requeue(s, id, 2, "x")

    assert given.claim().checkpoint.key == "a2-25"


# --- sweep ----------------------------------------------------------------------------------------------------


def test_a_lost_worker_s_job_is_queued_again_and_the_story_told(given: Any) -> None:
    id = given.running()
    given.later(60)
    given.worker("wrk_b")

    swept = given.sweep()

    assert (swept.lost, swept.ring) == ([id], [id])
    assert given.attempts(id) == ["lost"]
    assert given.events(id) == ["job_submitted", "job_claimed", "attempt_lost", "requeued"]
    assert given.claim("wrk_b").attempt == 2


def test_a_live_lease_is_left_alone(given: Any) -> None:
    id = given.running()

    assert not any(vars(given.sweep()).values())
    assert given.look(id).state == State.running


@pytest.mark.parametrize("wish", [Requested.cancel, Requested.cancel_now])
def test_a_lost_worker_s_job_is_cancelled_if_that_was_asked(given: Any, wish: Requested) -> None:
    id = given.running()
    ask(given, id, wish)
    given.later(60)

    assert given.sweep().ring == []
    assert given.look(id).state == State.cancelled


def test_a_job_that_loses_every_worker_fails_as_worker_lost(given: Any) -> None:
    id = given.job(limits={"max_retries": 1})
    for _ in range(2):
        assert given.claim() is not None
        given.later(3600)
        given.sweep()

    assert (given.look(id).state, given.look(id).failure_code) == (State.failed, "worker_lost")
    assert given.attempts(id) == ["lost", "lost"]


def test_sweeps_that_run_at_once_lose_an_attempt_once(given: Any) -> None:
    id = given.running()
    given.later(60)

    at_once(8, lambda _: given.sweep())

    assert given.events(id).count("attempt_lost") == 1
    assert given.look(id).retries == 1


def test_queued_jobs_and_data_sets_are_rung_again_but_not_before_their_time(given: Any) -> None:
    given.worker("wrk_a")
    waiting, later = given.job(), given.job()
    verifying = given.dataset("verifying").id
    with given.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE jobs SET not_before = '2999-01-01 00:00:00.000000' WHERE id = '{later}'")

    assert given.sweep().ring == [waiting, verifying]


def test_no_more_bells_are_rung_than_slots_are_free(given: Any) -> None:
    dataset = given.dataset()
    ids = [given.job(dataset) for _ in range(5)]
    assert given.sweep().ring == []

    given.worker("wrk_a")
    given.worker("wrk_b")
    assert given.sweep().ring == ids[:2]
    given.claim("wrk_a")
    assert given.sweep().ring == [ids[1]]


@pytest.mark.parametrize("end", ["finish", "fail", "ended_as_requested", "cancelled while queued", "gave up"])
def test_checkpoints_of_a_job_that_has_ended_are_dropped_however_it_ended(given: Any, end: str) -> None:
    lives, id = given.running(limits={"max_retries": 0}), given.running(limits={"max_retries": 0})
    with db.transaction(given.engine) as s:
        attempts.checkpoint(s, lives, 1, 5, "of-the-living", "c" * 64, 1)
        attempts.checkpoint(s, id, 1, 5, "of-the-ended", "c" * 64, 1)
    assert given.sweep().rubbish == []

    if end == "cancelled while queued":
        with db.transaction(given.engine) as s:
            attempts.requeue(s, id, 1, "x")
        ask(given, id)
    else:
        if end == "ended_as_requested":
            ask(given, id)
        with db.transaction(given.engine) as s:
            WRITES["fail" if end == "gave up" else end](s, id)

    assert given.sweep().rubbish == ["of-the-ended"]
    assert given.sweep().rubbish == []
    given.later(60)
    given.sweep()
    assert given.look(lives).state == State.failed


def test_a_job_that_nobody_takes_in_its_time_fails_and_says_so(given: Any) -> None:
    dataset = given.dataset()
    patient, hasty = given.job(dataset), given.job(dataset, limits={"max_wait_s": 30})
    given.sweep()
    assert given.look(hasty).state == State.queued

    with given.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET not_before = '2020-01-01 00:00:00.000000'")
    given.sweep()

    job = given.look(hasty)
    assert (job.state, job.failure_code) == (State.failed, "preempted")
    assert job.failure_data == {"limit": "max_wait_s", "limit_s": 30}
    assert given.look(patient).state == State.queued


def test_a_job_that_ran_once_may_wait_longer_than_max_wait_s(given: Any) -> None:
    id = given.running(limits={"max_wait_s": 0.001})
    with db.transaction(given.engine) as s:
        attempts.requeue(s, id, 1, "the host goes down")

    given.sweep()

    assert given.look(id).state == State.queued


def test_a_claim_says_how_much_of_its_time_a_job_has_used(given: Any) -> None:
    id = given.running(limits={"max_runtime_s": 100})
    with db.transaction(given.engine) as s:
        attempts.requeue(s, id, 1, "x")
    with given.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE job_attempts SET started_at = '2026-01-01 00:00:00.000000'")
        connection.exec_driver_sql("UPDATE job_attempts SET finished_at = '2026-01-01 00:01:10.500000'")

    claim = given.claim()

    assert (claim.max_runtime_s, claim.ran_s) == (100, 70.5)


# --- why it waits ---------------------------------------------------------------------------------------------


def why(given: Any, id: str) -> str | None:
    with db.reading(given.engine) as s:
        wait = waits(s, [id], lease_s=20.0).get(id)
    return wait.reason if wait is not None else None


def test_a_waiting_job_says_why_in_plain_words(given: Any) -> None:
    dataset = given.dataset()
    id = given.job(dataset)
    assert "no worker is running" in (why(given, id) or "")

    given.worker("wrk_a")
    assert why(given, id) == "next in line; a worker is about to take it"
    second = given.job(dataset)
    assert "1 queued before it" in (why(given, second) or "")
    needs_gpu = given.job(dataset, resources={"device": "cuda"})
    assert "none with a GPU" in (why(given, needs_gpu) or "")

    given.claim("wrk_a")
    assert why(given, id) is None
    assert "1 worker is running and busy (1 of 1 slots in use)" in (why(given, second) or "")

    given.later(60)
    assert "no worker is running" in (why(given, second) or "")


def test_only_the_slots_that_a_job_fits_are_counted(given: Any) -> None:
    dataset = given.dataset()
    given.worker("wrk_gpu", cuda=2)

    def job(device: str) -> str:
        return str(given.job(dataset, resources={"device": device}))

    def claim(cpu: int, cuda: int) -> None:
        with db.transaction(given.engine) as s:
            assert attempts.claim(s, "wrk_gpu", queue_order.Free(cpu, cuda, gpu_host=True), lease_s=20.0) is not None

    job("auto"), job("cuda")
    claim(0, 2), claim(0, 1)
    for device in ("auto", "cuda"):
        assert "busy (2 of 2 GPU slots in use)" in (why(given, job(device)) or "")
    on_cpu = job("cpu")
    assert why(given, on_cpu) == "next in line; a worker is about to take it"
    claim(1, 0)
    assert "busy (1 of 1 processor slots in use)" in (why(given, job("cpu")) or "")

    given.worker("wrk_cpu")
    assert "behind others: 2 queued before it" in (why(given, job("cpu")) or ""), "the other worker has room"


def test_a_job_in_back_off_says_until_when(given: Any) -> None:
    id = given.job()
    for _ in range(2):
        given.worker("wrk_a")
        claim = given.claim()
        with db.transaction(given.engine) as s:
            attempts.fail(s, id, claim.attempt, LOST, "killed")

    assert "before retry 2 of 3" in (why(given, id) or "")


def test_a_worker_that_says_goodbye_is_not_counted(given: Any) -> None:
    given.worker("wrk_a")
    with db.transaction(given.engine) as s:
        assert workers.beat(s, "wrk_a")
        workers.forget(s, "wrk_a")
        assert not workers.beat(s, "wrk_a")
        assert workers.live(s, lease_s=20.0) == []


def test_every_write_of_a_job_that_can_be_seen_raises_its_version(given: Any) -> None:
    id = given.job()
    versions = [given.look(id).version]
    given.claim()
    versions.append(given.look(id).version)
    steps: list[Callable[[Session], Any]] = [
        lambda s: attempts.beat(s, id, 1, "wrk_a", lease_s=20.0, progress=attempts.Progress(step=3)),
        lambda s: record.record(s, id, 1, [Phase(phase="training")]),
        lambda s: attempts.checkpoint(s, id, 1, 5, "k", "c" * 64, 1),
        lambda s: requests.request(s, DEFAULT_PROJECT, id, Requested.cancel),
        lambda s: attempts.ended_as_requested(s, id, 1),
    ]
    for step in steps:
        with db.transaction(given.engine) as s:
            step(s)
        versions.append(given.look(id).version)

    assert versions == sorted(set(versions))


def test_a_heartbeat_alone_prolongs_the_lease_and_leaves_the_version(given: Any) -> None:
    id = given.running()
    before = given.look(id)
    with db.transaction(given.engine) as s:
        attempts.beat(s, id, 1, "wrk_a", 1000.0)
    after = given.look(id)

    assert after.version == before.version
    assert after.lease_expires > before.lease_expires


def test_a_job_that_wants_more_threads_than_any_host_has_waits_and_says_why(given: Any) -> None:
    id = given.job(resources={"threads": 64})
    with db.transaction(given.engine) as s:
        workers.register(s, "wrk_a", host="here", pid=1, slots=1, facts={"cores": 8})
        reason = waits(s, [id], lease_s=20.0)[id].reason
        assert attempts.claim(s, "wrk_a", queue_order.Free(1, 0, cores=8), lease_s=20.0) is None
        assert attempts.claim(s, "wrk_a", queue_order.Free(1, 0, cores=64), lease_s=20.0) is not None

    assert "64 processor cores" in str(reason)
    assert "the largest has 8" in str(reason)


# --- what no worker can ever run ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resources", "says"),
    [
        ({"device": "cuda"}, "none with a GPU"),
        ({"devices": 4}, "none with the 4 slots that resources.devices asks for"),
        ({"threads": 64}, "none with the 64 processor cores that resources.threads asks for"),
        ({"devices": 2, "threads": 8}, "none with the 16 processor cores"),
    ],
)
def test_a_job_that_no_worker_can_ever_run_says_so_and_ends(given: Any, resources: dict[str, Any], says: str) -> None:
    dataset = given.dataset()
    hopeless, fine = given.job(dataset, resources=resources), given.job(dataset)
    with db.transaction(given.engine) as s:
        workers.register(s, "wrk_a", host="here", pid=1, slots=2, facts={"cores": 8})

    def sweep_after(**passed: float) -> list[str]:
        given.earlier("jobs", "not_before", timedelta(**passed).total_seconds())
        given.earlier("workers", "started_at", timedelta(**passed).total_seconds())
        given.earlier("job_events", "at", timedelta(**passed).total_seconds())
        given.sweep()
        return given.events(hopeless)

    assert says in str(why(given, hopeless))
    assert sweep_after(seconds=10) == ["job_submitted"], "another worker may be about to start"
    assert sweep_after(minutes=2) == ["job_submitted", "cannot_run"]
    assert sweep_after(days=6) == ["job_submitted", "cannot_run"], "said once"
    assert sweep_after(days=2) == ["job_submitted", "cannot_run", "failed"]

    failed = given.look(hopeless)
    assert (failed.state, failed.failure_code) == ("failed", "user_error")
    assert says in failed.failure_message
    assert (given.look(fine).state, given.events(fine)) == ("queued", ["job_submitted"])


def test_a_job_does_not_end_before_the_workers_of_a_service_that_was_off_have_come(given: Any) -> None:
    id = given.job(resources={"device": "cuda"})
    given.earlier("jobs", "not_before", timedelta(days=30).total_seconds())
    given.sweep()
    assert given.events(id) == ["job_submitted"], "nobody is there"

    given.worker("wrk_a")
    given.sweep()
    assert given.events(id) == ["job_submitted", "cannot_run"]
    assert given.look(id).state == "queued"

    given.worker("wrk_b", cuda=1)
    assert given.claim("wrk_b", cpu=0, cuda=1).job_id == id
