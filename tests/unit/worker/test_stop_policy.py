from __future__ import annotations

from api.core.lifecycle import Requested
from fgd.events import Phase, Stepped
from worker.outcome import EndCause
from worker.stop_policy import StopPolicy


class Told:
    """A trainer that only remembers."""

    def __init__(self) -> None:
        self.signals: list[str] = []

    def dump_stacks(self) -> None:
        self.signals.append("usr1")

    def terminate(self) -> None:
        self.signals.append("term")

    def kill(self) -> None:
        self.signals.append("kill")


class Bench:
    def __init__(self, run_s: float | None = None) -> None:
        self.now = 0.0
        self.trainer = Told()
        self.curb = StopPolicy(self.trainer, grace_s=120, drain_s=5, stall_s=300, run_s=run_s, clock=lambda: self.now)

    def check_at(self, now: float, requested: Requested | None = None, stops: bool = False) -> list[str]:
        self.now = now
        self.curb.check(requested, stops)
        return self.trainer.signals

    def step_at(self, now: float) -> None:
        self.now = now
        self.curb.heard([Stepped(step=1, epoch=1, values={})])


def test_trainer_nobody_asks_to_end_is_left_alone() -> None:
    bench = Bench()
    assert bench.check_at(299) == []
    assert bench.curb.ended == EndCause.by_itself


def test_graceful_cancel_asks_once_and_kills_after_the_grace() -> None:
    bench = Bench()
    assert bench.check_at(1, Requested.cancel) == ["term"]
    assert bench.check_at(2, Requested.cancel) == ["term"]
    assert bench.check_at(122, Requested.cancel) == ["term", "kill"]
    assert bench.curb.ended == EndCause.cancelled


def test_cancel_now_kills_at_once_also_after_a_graceful_one() -> None:
    bench = Bench()
    bench.check_at(1, Requested.cancel)
    assert bench.check_at(2, Requested.cancel_now) == ["term", "kill"]


def test_shutdown_shortens_the_grace_of_a_cancel_and_it_stays_a_cancel() -> None:
    bench = Bench()
    bench.check_at(1, Requested.cancel)
    bench.check_at(2, Requested.cancel, stops=True)
    assert bench.check_at(7.5, Requested.cancel, stops=True) == ["term", "kill"]
    assert bench.curb.ended == EndCause.cancelled


def test_silence_is_a_stall() -> None:
    bench = Bench()
    assert bench.check_at(301) == ["usr1", "term"]
    assert bench.curb.ended == EndCause.stalled


def test_stalled_trainer_has_a_moment_to_write_its_stacks_before_it_is_killed() -> None:
    bench = Bench()
    bench.check_at(301)
    assert bench.check_at(301.5) == ["usr1", "term"]
    assert bench.check_at(302.1) == ["usr1", "term", "kill"]


def test_trainer_that_used_up_its_time_is_asked_and_killed_after_the_grace() -> None:
    bench = Bench(run_s=50)
    assert bench.check_at(49) == []
    assert bench.check_at(51) == ["term"]
    bench.step_at(169)
    assert bench.check_at(169) == ["term"]
    assert bench.check_at(171) == ["term", "kill"]
    assert bench.curb.ended == EndCause.out_of_time


def test_any_event_breaks_the_silence() -> None:
    bench = Bench()
    bench.now = 200
    bench.curb.heard([Phase(phase="calibrating")])
    assert bench.check_at(400) == []


def test_slow_steps_allow_a_longer_silence() -> None:
    bench = Bench()
    for n in range(1, 6):
        bench.step_at(n * 100)
    assert bench.curb.silence_s() == 1000
    assert bench.check_at(1400) == []
    assert bench.check_at(1501) == ["usr1", "term"]
