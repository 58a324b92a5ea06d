"""The fence, with times of hundredths of a second: the order of what happens is what counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from api.core.errors import Fenced
from api.core.lifecycle import Requested
from worker import lease as module
from worker.lease import Lease, Times

TIMES = Times(beat_s=0.02, freeze_s=0.3, kill_s=0.6)


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GUARD_S", 0.01)


class Told:
    def __init__(self) -> None:
        self.signals: list[str] = []
        self.until = 0.0

    def allow(self, until: float) -> None:
        self.until = until

    def freeze(self) -> None:
        self.signals.append("freeze")

    def thaw(self) -> None:
        self.signals.append("thaw")

    def kill(self) -> None:
        self.signals.append("kill")


def until(true: Callable[[], object], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_lease_that_beats_is_kept_and_hears_what_was_asked() -> None:
    trainer = Told()
    with Lease(lambda: Requested.cancel, TIMES, time.monotonic()) as lease:
        lease.guard(trainer)
        until(lambda: lease.requested)
        time.sleep(0.7)
    assert lease.requested == Requested.cancel
    assert trainer.signals == []
    assert not lease.lost.is_set()


def test_database_that_is_away_freezes_first_and_kills_then() -> None:
    def away() -> Requested | None:
        raise OSError("away")

    trainer = Told()
    with Lease(away, TIMES, time.monotonic()) as lease:
        lease.guard(trainer)
        until(lambda: trainer.signals)
        assert trainer.signals == ["freeze"]
        assert not lease.lost.is_set()
        until(lease.lost.is_set)
    assert trainer.signals == ["freeze", "kill"]


def test_database_that_comes_back_in_time_lets_the_trainer_go_on() -> None:
    back = threading.Event()

    def beat() -> Requested | None:
        if not back.is_set():
            raise OSError("away")
        return None

    trainer = Told()
    with Lease(beat, TIMES, time.monotonic()) as lease:
        lease.guard(trainer)
        until(lambda: trainer.signals)
        back.set()
        until(lambda: len(trainer.signals) == 2)
    assert trainer.signals == ["freeze", "thaw"]


def test_heartbeat_that_hangs_does_not_hold_the_guard() -> None:
    hang = threading.Event()
    trainer = Told()
    with Lease(lambda: hang.wait(5) and None, TIMES, time.monotonic()) as lease:
        lease.guard(trainer)
        until(lease.lost.is_set)
        hang.set()
    assert trainer.signals == ["freeze", "kill"]


def test_fenced_attempt_loses_its_trainer_at_once() -> None:
    def fenced() -> Requested | None:
        raise Fenced("job_x", 1)

    trainer = Told()
    lease = Lease(fenced, Times(beat_s=0.02, freeze_s=60, kill_s=90), time.monotonic())
    lease.guard(trainer)
    with lease:
        until(lease.lost.is_set)
    assert trainer.signals == ["kill"]


def test_trainer_that_starts_after_the_loss_is_killed() -> None:
    trainer = Told()
    with Lease(lambda: None, TIMES, taken_at=time.monotonic() - 10) as lease:
        lease.lost.set()
        lease.guard(trainer)
    assert trainer.signals == ["kill"]


def test_worker_that_was_stopped_for_long_is_fenced_before_it_beats_again() -> None:
    never = threading.Event()
    trainer = Told()
    with Lease(lambda: never.wait(1) and None, TIMES, taken_at=time.monotonic() - 60) as lease:
        lease.guard(trainer)
        until(lease.lost.is_set, timeout_s=0.5)
    assert trainer.signals[-1] == "kill"


def test_heartbeat_after_the_last_write_is_no_loss() -> None:
    closed = threading.Event()

    def beat() -> Requested | None:
        if closed.is_set():
            raise Fenced("job_x", 1)
        return None

    with Lease(beat, TIMES, time.monotonic()) as lease:
        lease.closing()
        closed.set()
        time.sleep(0.1)
        assert not lease.lost.is_set()


def test_second_trainer_of_an_attempt_is_frozen_too() -> None:
    """The first one's end came while the database was away and it was frozen."""
    away = threading.Event()

    def beat() -> None:
        if away.is_set():
            raise ConnectionError

    first, second = Told(), Told()
    with Lease(beat, Times(beat_s=0.02, freeze_s=0.3, kill_s=5.0), time.monotonic()) as lease:
        lease.guard(first)
        away.set()
        until(lambda: first.signals == ["freeze"])
        lease.guard(None)
        lease.guard(second)
        until(lambda: second.signals == ["freeze"], 2.0)
        away.clear()
        until(lambda: second.signals == ["freeze", "thaw"], 2.0)
