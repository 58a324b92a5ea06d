"""A kill at every failpoint: the job ends once, with the bytes of an undisturbed run, and nothing is left behind."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from fgd.process.failpoints import POINTS
from tests.chaos import invariants
from tests.chaos.parts import Rig
from tests.e2e.parts import until, weights_digest_after

STEPS = 60
PLAIN = f"steps={STEPS} ms=5 save=20"
FALLS_ONCE = f"{PLAIN} fault=segv at=30 once=1"
AGAIN = ("lost", "succeeded")


@dataclass(frozen=True)
class Crash:
    """at: the failpoint, and which time it is reached there. attempts: how each must end."""

    at: str
    attempts: tuple[str, ...] = AGAIN
    words: str = PLAIN
    resumed: bool = True
    hand_back: bool = False
    """The worker is told to end; it dies as it hands its job back."""
    sweeper: bool = False
    """The worker of the job is killed first; another one dies as it finds that."""

    @property
    def place(self) -> str:
        return self.at.partition("@")[0]

    @property
    def armed(self) -> str:
        place, _, nth = self.at.partition("@")
        return f"{place}=kill@{nth or 1}"

    def __str__(self) -> str:
        return self.at + "-handed back" * self.hand_back


CRASHES = (
    Crash("before_claim", ("succeeded",), resumed=False),
    Crash("claim_uncommitted", ("succeeded",), resumed=False),
    Crash("after_claim", resumed=False),
    Crash("before_staging", resumed=False),
    Crash("after_staging", resumed=False),
    Crash("before_checkpoint_file@2", ("failed", "succeeded")),
    Crash("checkpoint_file_unnamed@2", ("failed", "succeeded")),
    Crash("after_checkpoint_file@2", ("failed", "succeeded")),
    Crash("before_checkpoint_blob@2"),
    Crash("after_checkpoint_blob@1", resumed=False),
    Crash("before_checkpoint_row@1", resumed=False),
    Crash("checkpoint_row_uncommitted@1", resumed=False),
    Crash("after_checkpoint_row@1"),
    Crash("before_artifact_blob@1"),
    Crash("after_artifact_blob@1"),
    Crash("after_artifact_blob@4"),
    Crash("before_final_state"),
    Crash("final_state_uncommitted"),
    Crash("after_final_state", ("succeeded",), resumed=False),
    Crash("before_requeue", words=FALLS_ONCE),
    Crash("requeue_uncommitted", words=FALLS_ONCE),
    Crash("after_requeue", ("failed", "succeeded"), words=FALLS_ONCE),
    Crash("before_requeue", hand_back=True),
    Crash("requeue_uncommitted", hand_back=True),
    Crash("after_requeue", ("handed_back", "succeeded"), hand_back=True),
    Crash("before_sweep_requeue", sweeper=True),
    Crash("after_sweep_requeue", sweeper=True),
)
UP = "looks for jobs every"
SAMPLE = ("claim_uncommitted", "after_checkpoint_blob@1", "final_state_uncommitted")
"""Of the default run."""


def test_every_failpoint_is_in_the_matrix() -> None:
    assert {crash.place for crash in CRASHES} == POINTS


@pytest.mark.chaos
@pytest.mark.parametrize("crash", CRASHES, ids=str)
def test_a_kill_costs_nothing_but_time(rig: Rig, crash: Crash) -> None:
    survives(rig, crash)


@pytest.mark.e2e
@pytest.mark.parametrize("crash", [crash for crash in CRASHES if crash.at in SAMPLE], ids=str)
@pytest.mark.parametrize("database", ["sqlite"])
def test_a_kill_costs_nothing_but_time_a_sample(rig: Rig, crash: Crash) -> None:
    survives(rig, crash)


def survives(rig: Rig, crash: Crash) -> None:
    slow = crash.hand_back or crash.sweeper or crash.at.endswith("blob@2")  # else two checkpoints share one transaction
    job = rig.submit(crash.words.replace("ms=5", "ms=40") if slow else crash.words)
    of_the_trainer = "checkpoint_file" in crash.place
    armed = rig.armed(crash.armed)
    first = rig.worker(**({} if crash.sweeper else armed))
    if crash.hand_back or crash.sweeper:
        rig.until_step(job, 25)
    if crash.hand_back:
        first.terminate()
    if crash.sweeper:
        first.kill()
        first = rig.worker(**armed)
    until(lambda: rig.struck(crash.place), what=crash.place)
    if not of_the_trainer:
        assert first.wait(timeout=10) == -9, rig.log()
        started = rig.log().count(UP)
        rig.worker()
        until(lambda: rig.log().count(UP) > started, what="a worker that has cleared up behind the dead one")

    row = rig.until_state(job, "succeeded")
    assert rig.attempts(job) == list(crash.attempts)
    counted = [outcome for outcome in crash.attempts if outcome in ("lost", "failed")]
    assert row.retries == len(counted)
    assert ("note:resumed" in rig.story(job)) == crash.resumed
    rig.stop_all()
    invariants.holds(rig.engine, rig.home, {job: weights_digest_after(STEPS)})
