"""Pause, resume, stop and cancel, at any moment of a job's life; what an attempt lost; out of memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from api.core.errors import Conflict, Fenced
from api.core.jobs import attempts, checkpoints, history, record, requests
from api.core.lifecycle import FailureCode, Requested, State
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Attempt
from fgd.events import Started

PAUSE, STOP, CANCEL, NOW = Requested.pause, Requested.stop, Requested.cancel, Requested.cancel_now
ENDS = ("succeeded", "failed", "cancelled")


def ask(given: Any, id: str, wish: Requested) -> str:
    with db.transaction(given.engine) as s:
        return str(requests.request(s, DEFAULT_PROJECT, id, wish).state)


def resume(given: Any, id: str) -> str:
    with db.transaction(given.engine) as s:
        return str(requests.resume(s, DEFAULT_PROJECT, id).state)


def refused(given: Any, act: Callable[[], Any]) -> str:
    with pytest.raises(Conflict) as caught:
        act()
    return caught.value.code


def save(given: Any, id: str, attempt: int = 1, step: int = 5) -> None:
    with db.transaction(given.engine) as s:
        attempts.checkpoint(s, id, attempt, step, f"jobs/{id}/a{attempt}/{step}", "c" * 64, 9)


def write(given: Any, verb: Callable[..., Any], id: str, *arguments: Any, attempt: int = 1) -> Any:
    with db.transaction(given.engine) as s:
        return verb(s, id, attempt, *arguments)


def started(given: Any, id: str, step: int, attempt: int = 1) -> None:
    event = Started(
        step=step, total_steps=90, epochs=3, device="a GPU", threads=1, precision="float32", versions={}
    )  # fmt: skip
    write(given, record.record, id, [event], attempt=attempt)


def end_of(given: Any, id: str) -> list[str]:
    return [type for type in given.events(id) if type in ENDS]


# --- a job that does not run ----------------------------------------------------------------------------------


def test_a_queued_job_is_paused_at_once_and_not_claimed_until_it_is_resumed(given: Any) -> None:
    id = given.job()

    assert ask(given, id, PAUSE) == State.paused
    assert given.claim() is None
    assert resume(given, id) == State.queued
    assert given.claim().job_id == id
    assert given.events(id) == ["job_submitted", "pause_requested", "job_paused", "job_resumed", "job_claimed"]


def test_the_same_again_changes_nothing(given: Any) -> None:
    id = given.job()
    for wish in (PAUSE, PAUSE):
        assert ask(given, id, wish) == State.paused
    for _ in range(2):
        assert resume(given, id) == State.queued
    told = given.events(id)
    assert (told.count("pause_requested"), told.count("job_resumed")) == (1, 1)

    given.claim()
    assert resume(given, id) == State.running, "the answer to the first one may have been lost"
    for wish in (STOP, STOP):
        assert ask(given, id, wish) == State.running
    assert given.events(id).count("stop_requested") == 1


def test_a_paused_job_is_cancelled_at_once(given: Any) -> None:
    id = given.job()
    ask(given, id, PAUSE)

    assert ask(given, id, CANCEL) == State.cancelled
    assert end_of(given, id) == ["cancelled"]


@pytest.mark.parametrize("paused", [False, True])
def test_a_job_that_has_nothing_cannot_finish_early(given: Any, paused: bool) -> None:
    id = given.job()
    if paused:
        ask(given, id, PAUSE)

    assert refused(given, lambda: ask(given, id, STOP)) == "nothing_to_keep"
    assert given.look(id).state == ("paused" if paused else "queued")


@pytest.mark.parametrize("paused", [False, True])
def test_a_job_with_a_checkpoint_is_queued_just_to_export(given: Any, paused: bool) -> None:
    id = given.running()
    save(given, id)
    write(given, attempts.requeue, id, "x")
    if paused:
        ask(given, id, PAUSE)

    assert ask(given, id, STOP) == State.queued
    assert given.look(id).requested == STOP
    claim = given.claim()
    with db.transaction(given.engine) as s:
        assert attempts.beat(s, id, claim.attempt, "wrk_a", lease_s=20.0) == STOP, "its supervisor hears of it at once"
    write(given, attempts.finish, id, [], "e" * 64, attempt=claim.attempt)
    assert end_of(given, id) == ["succeeded"]


def test_of_stop_and_pause_the_later_counts_and_cancel_stands_over_both(given: Any) -> None:
    id = given.running()
    save(given, id)
    write(given, attempts.requeue, id, "x")
    ask(given, id, STOP)

    assert ask(given, id, PAUSE) == State.paused
    assert given.look(id).requested is None
    resume(given, id)
    given.claim()
    ask(given, id, PAUSE)
    ask(given, id, STOP)
    assert given.look(id).requested == STOP
    ask(given, id, CANCEL)
    for act in (lambda: ask(given, id, PAUSE), lambda: ask(given, id, STOP), lambda: resume(given, id)):
        assert refused(given, act) == "cancel_requested"


def test_a_job_that_was_never_paused_cannot_be_resumed(given: Any) -> None:
    id = given.job()

    assert refused(given, lambda: resume(given, id)) == "not_paused"
    given.claim()
    assert refused(given, lambda: resume(given, id)) == "not_paused"


@pytest.mark.parametrize("end", ENDS)
def test_what_has_ended_hears_nothing_more(given: Any, end: str) -> None:
    id = given.running()
    if end == "cancelled":
        ask(given, id, NOW)
        write(given, attempts.ended_as_requested, id)
    elif end == "failed":
        write(given, attempts.fail, id, FailureCode.user_error, "x")
    else:
        write(given, attempts.finish, id, [], "e" * 64)
    before = given.events(id)

    for act in (lambda: ask(given, id, PAUSE), lambda: ask(given, id, STOP), lambda: resume(given, id)):
        assert refused(given, act) == "job_finished"
    if end == "cancelled":
        assert ask(given, id, CANCEL) == "cancelled"
    else:
        assert refused(given, lambda: ask(given, id, CANCEL)) == "job_finished"
    assert given.events(id) == before


def test_the_time_it_was_paused_is_not_waiting(given: Any) -> None:
    id = given.job(limits={"max_wait_s": 30})
    ask(given, id, PAUSE)
    given.later(60)
    given.sweep()
    assert given.look(id).state == State.paused
    resume(given, id)
    given.sweep()
    assert given.look(id).state == State.queued
    given.later(31)
    given.sweep()
    assert given.look(id).failure_code == "preempted"


# --- a running one --------------------------------------------------------------------------------------------


def test_a_running_job_is_paused_when_its_trainer_has_saved(given: Any) -> None:
    id = given.running()
    assert ask(given, id, PAUSE) == State.running
    save(given, id)

    assert write(given, attempts.ended_as_requested, id) == State.paused
    job = given.look(id)
    assert (job.requested, job.phase, job.lease_owner, job.lease_expires) == (None, None, None, None)
    assert given.attempts(id) == ["paused"]
    given.sweep()
    resume(given, id)
    assert given.claim().checkpoint.step == 5, "kept while it was paused"


def test_a_pause_that_is_taken_back_in_time_is_none(given: Any) -> None:
    id = given.running()
    ask(given, id, PAUSE)

    assert resume(given, id) == State.running
    with db.transaction(given.engine) as s:
        assert attempts.beat(s, id, 1, "wrk_a", lease_s=20.0) is None
    assert write(given, attempts.ended_as_requested, id) == State.queued, "its trainer had heard of it already"
    assert given.look(id).retries == 0


@pytest.mark.parametrize(
    ("wish", "after"), [(PAUSE, "paused"), (STOP, "queued"), (CANCEL, "cancelled"), (NOW, "cancelled")]
)
@pytest.mark.parametrize("loss", ["silent", "killed", "handed back", "ended"])
def test_any_loss_honours_what_was_asked(given: Any, wish: Requested, after: str, loss: str) -> None:
    id = given.running()
    ask(given, id, wish)
    if loss == "silent":
        given.later(60)
        assert given.sweep().lost == [id]
    elif loss == "killed":
        write(given, attempts.fail, id, FailureCode.trainer_killed, "x")
    elif loss == "handed back":
        write(given, attempts.requeue, id, "x")
    else:
        write(given, attempts.ended_as_requested, id)

    job = given.look(id)
    assert (job.state, job.requested) == (after, STOP if wish == STOP else None)
    assert job.retries == (1 if wish == STOP and loss in ("silent", "killed") else 0)


@pytest.mark.parametrize("wish", [PAUSE, STOP, CANCEL, NOW])
@pytest.mark.parametrize("moment", ["starting", "during checkpoint", "during finalize", "twice"])
def test_artifacts_committed_are_a_success_whatever_was_asked_meanwhile(
    given: Any, wish: Requested, moment: str
) -> None:
    id = given.running()
    if moment == "starting":
        ask(given, id, wish)
        started(given, id, 0)
    elif moment == "during checkpoint":
        started(given, id, 0)
        ask(given, id, wish)
        save(given, id)
    elif moment == "during finalize":
        save(given, id)
        ask(given, id, wish)
    else:
        ask(given, id, wish)
        ask(given, id, wish)
    write(given, attempts.finish, id, [], "e" * 64)

    assert (given.look(id).state, given.look(id).requested) == ("succeeded", None)
    assert end_of(given, id) == ["succeeded"]


@pytest.mark.parametrize("wish", [PAUSE, CANCEL])
def test_of_a_claim_and_a_wish_at_once_both_are_heard(given: Any, wish: Requested) -> None:
    for _ in range(4):
        id = given.job()
        barrier, claims = threading.Barrier(2), []

        def claim(barrier: Any = barrier, claims: Any = claims) -> None:
            barrier.wait()
            claims.append(given.claim())

        def want(barrier: Any = barrier, id: str = id) -> None:
            barrier.wait()
            ask(given, id, wish)

        threads = [threading.Thread(target=claim), threading.Thread(target=want)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        job = given.look(id)
        if claims[0] is None:
            assert job.state == ("paused" if wish == PAUSE else "cancelled")
        else:
            assert (job.state, job.requested) == ("running", wish)
            assert write(given, attempts.ended_as_requested, id) == ("paused" if wish == PAUSE else "cancelled")


@pytest.mark.parametrize("wish", [PAUSE, STOP, CANCEL])
def test_of_a_finish_and_a_wish_at_once_there_is_one_end(given: Any, wish: Requested) -> None:
    for _ in range(4):
        id = given.running()
        barrier = threading.Barrier(2)

        def finish(barrier: Any = barrier, id: str = id) -> None:
            barrier.wait()
            write(given, attempts.finish, id, [], "e" * 64)

        def want(barrier: Any = barrier, id: str = id) -> None:
            barrier.wait()
            with suppress(Conflict):  # it came too late
                ask(given, id, wish)

        threads = [threading.Thread(target=finish), threading.Thread(target=want)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert end_of(given, id) == ["succeeded"]


def test_a_paused_job_s_old_attempt_is_fenced(given: Any) -> None:
    id = given.running()
    ask(given, id, PAUSE)
    given.later(60)
    given.sweep()

    with pytest.raises(Fenced):
        write(given, attempts.finish, id, [], "e" * 64)


# --- attempts -------------------------------------------------------------------------------------------------


def attempt_rows(given: Any, id: str) -> list[Attempt]:
    with db.reading(given.engine) as s:
        return list(history.attempts(s, requests.get(s, DEFAULT_PROJECT, id)))


def test_an_attempt_tells_what_was_lost_with_it(given: Any) -> None:
    id = given.running()
    started(given, id, 0)
    save(given, id, step=20)
    with db.transaction(given.engine) as s:
        attempts.beat(s, id, 1, "wrk_a", lease_s=20.0, progress=attempts.Progress(step=27))
    write(given, attempts.fail, id, FailureCode.trainer_killed, "killed")

    [first] = attempt_rows(given, id)
    assert (first.first_step, first.last_step, first.lost_steps, first.code) == (0, 27, 7, "trainer_killed")
    given.claim()
    started(given, id, 12, attempt=2)  # the newest checkpoint was torn
    first, second = attempt_rows(given, id)
    assert (first.lost_steps, second.first_step, second.device) == (15, 12, "a GPU")


# --- out of memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [FailureCode.gpu_out_of_memory, FailureCode.host_out_of_memory])
def test_out_of_memory_halves_the_batch_down_to_one_image_and_then_fails(given: Any, code: FailureCode) -> None:
    halve = {"resources": {"on_out_of_memory": "halve"}, "schedule": {"batch_size": 4, "accumulate": 3}}
    id = given.job(limits={"max_retries": 0}, **halve)
    ran = []
    for attempt in (1, 2, 3):
        claim = given.claim()
        ran.append((claim.spec.schedule.batch_size, claim.spec.schedule.accumulate))
        state = write(given, attempts.fail, id, code, "out of memory", attempt=attempt)

    assert ran == [(4, 3), (2, 6), (1, 12)]
    assert state == State.failed
    job = given.look(id)
    assert (job.failure_code, job.failure_data, job.retries) == (code, {"batch_size": 1}, 0)
    assert given.events(id).count("batch_halved") == 2
    recorded = [a.spec and a.spec["schedule"]["batch_size"] for a in attempt_rows(given, id)]
    assert recorded == [None, 2, 1], "null: the job's own spec"


def test_out_of_memory_fails_at_once_where_nothing_else_was_asked(given: Any) -> None:
    id = given.running()

    assert write(given, attempts.fail, id, FailureCode.gpu_out_of_memory, "x") == State.failed


@pytest.mark.parametrize(("wish", "after"), [(PAUSE, "paused"), (CANCEL, "cancelled"), (STOP, "queued")])
def test_out_of_memory_does_as_asked_and_remembers_the_batch(given: Any, wish: Requested, after: str) -> None:
    id = given.running(resources={"on_out_of_memory": "halve"})
    ask(given, id, wish)

    assert write(given, attempts.fail, id, FailureCode.gpu_out_of_memory, "x") == after
    assert given.look(id).batch_size == 4


def test_out_of_memory_ends_a_job_whose_batch_of_one_torch_would_refuse(given: Any) -> None:
    tiny = {"batch_size": 2, "min_size": 32, "max_size": 32}
    id = given.running(schedule=tiny, resources={"on_out_of_memory": "halve"})

    assert write(given, attempts.fail, id, FailureCode.gpu_out_of_memory, "x") == "failed"
    assert given.look(id).failure_data["batch_size"] == 2


@pytest.mark.parametrize(("wish", "after"), [(PAUSE, "paused"), (CANCEL, "cancelled"), (STOP, "failed")])
@pytest.mark.parametrize("halve", [True, False])
def test_out_of_memory_that_no_smaller_batch_mends_does_as_asked_all_the_same(
    given: Any, wish: Requested, after: str, halve: bool
) -> None:
    least = {"resources": {"on_out_of_memory": "halve"}, "schedule": {"batch_size": 1}} if halve else {}
    id = given.running(**least)
    ask(given, id, wish)

    assert write(given, attempts.fail, id, FailureCode.gpu_out_of_memory, "x") == after
    assert (given.look(id).failure_code == FailureCode.gpu_out_of_memory) == (after == "failed")
    assert ("attempt_lost" in given.events(id)) == (after != "failed"), "the story tells it"


def test_out_of_memory_after_a_stop_leaves_what_there_is_to_be_exported_and_ends_by_itself(given: Any) -> None:
    id = given.running(limits={"max_retries": 1})
    save(given, id)
    ask(given, id, STOP)

    assert write(given, attempts.fail, id, FailureCode.gpu_out_of_memory, "x") == "queued"
    assert given.claim().requested == STOP
    assert write(given, attempts.fail, id, FailureCode.gpu_out_of_memory, "x", attempt=2) == "failed"


# --- no space -------------------------------------------------------------------------------------------------


def test_a_full_disk_is_left_to_another_worker(given: Any) -> None:
    id = given.running()

    assert write(given, attempts.fail, id, FailureCode.no_space, "full") == State.queued
    assert given.look(id).retries == 1


def test_the_weights_of_the_last_finite_step_outlive_the_failure(given: Any) -> None:
    id, other, foreign = given.running(), given.running(), given.running()
    for job in (id, other, foreign):
        save(given, job)
    write(given, attempts.fail, id, FailureCode.loss_non_finite, "nan")
    write(given, attempts.fail, other, FailureCode.user_error, "x")
    write(given, attempts.fail, foreign, FailureCode.user_error, "x", {"checkpoint": "another_spec"})

    assert given.sweep().rubbish == [f"jobs/{other}/a1/5"]
    with db.reading(given.engine) as s:
        assert [row.step for row in checkpoints.newest_first(s, requests.get(s, DEFAULT_PROJECT, id).id)] == [5]
