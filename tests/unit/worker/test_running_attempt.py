"""Waiting for a store that is away."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from api.core.lifecycle import Requested
from api.core.store.names import StoreAway
from api.core.store.s3 import S3Store
from worker import running_attempt
from worker.host import Lost
from worker.running_attempt import Interrupted, RunningAttempt
from worker.staging import stage_checkpoint


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`with_store` of an attempt with that lease and host; `told` collects the job's events."""
    monkeypatch.setattr(running_attempt, "RETRY_S", 0.01)

    def run(call: Callable[[], Any], told: list[str], requested: Requested | None = None, stops: bool = False) -> Any:
        stopping = threading.Event()
        if stops:
            stopping.set()
        host = SimpleNamespace(stopping=stopping, write=lambda verb: verb(None))
        lease = SimpleNamespace(lost=lost, requested=requested)
        record = running_attempt.record.record
        monkeypatch.setattr(running_attempt.record, "record", lambda s, job, attempt, notes: told.append(notes[0].code))
        try:
            claim = SimpleNamespace(job_id="job_x", attempt=1)
            return RunningAttempt(host, lease, claim).with_store("the result", call)  # type: ignore[arg-type]
        finally:
            monkeypatch.setattr(running_attempt.record, "record", record)

    lost = threading.Event()
    run.lost = lost  # type: ignore[attr-defined]
    return run


def fails(times: int, error: OSError) -> Callable[[], str]:
    left = iter([error] * times)

    def call() -> str:
        if (again := next(left, None)) is not None:
            raise again
        return "there"

    return call


@pytest.mark.parametrize("error", [StoreAway("no answer"), OSError(errno.ESTALE, "stale"), OSError(errno.EIO, "io")])
def test_a_store_that_comes_back_costs_nothing_and_the_job_says_so(wait: Any, error: OSError) -> None:
    told: list[str] = []
    assert wait(fails(5, error), told) == "there"
    assert told == ["store_away", "store_back"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENOENT])
def test_what_does_not_pass_by_itself_is_not_waited_for(wait: Any, number: int) -> None:
    with pytest.raises(OSError, match="now"):
        wait(fails(1, OSError(number, "now")), [])


def test_a_cancel_and_a_worker_that_stops_end_the_wait_and_a_pause_does_not(wait: Any) -> None:
    away = fails(3, StoreAway("no answer"))
    with pytest.raises(Interrupted):
        wait(away, [], requested=Requested.cancel)
    with pytest.raises(Interrupted):
        wait(away, [], stops=True)
    assert wait(away, [], requested=Requested.pause) == "there"


def test_a_lost_lease_ends_the_wait(wait: Any) -> None:
    def call() -> None:
        wait.lost.set()
        raise StoreAway("no answer")

    with pytest.raises(Lost):
        wait(call, [])


def test_a_checkpoint_of_a_store_that_is_away_is_not_taken_for_torn(tmp_path: Path) -> None:
    """Else a week of training would begin again from its first step."""
    nobody = S3Store(
        "bucket", "", endpoint="http://127.0.0.1:9", region="us-east-1", account=("id", "secret"), patience_s=0.1
    )
    with pytest.raises(StoreAway):
        stage_checkpoint(nobody, "jobs/x/a1/ckpt-1.pt", "0" * 64, tmp_path)
