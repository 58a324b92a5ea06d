"""States of a job and the moves between them. Pure: knows no database, no HTTP, no torch.

    queued --claim--> running --finish--> succeeded
      ^ |               | |  \\--fail---> failed
      | \\--cancel--+     | \\---cancel---> cancelled
      |             +--> cancelled
      +--requeue--------+  (worker lost, trainer killed, host handed back)
      queued --fail--> failed (retries used up, inputs gone)

`tables.py` mirrors this page as CHECK constraints. `paused` is part of the vocabulary from the start; the moves into
and out of it come with pause and resume.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    queued = "queued"
    running = "running"
    paused = "paused"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({State.succeeded, State.failed, State.cancelled})
"""Never left; the first terminal writer wins."""

MOVES: dict[State, frozenset[State]] = {
    State.queued: frozenset({State.running, State.cancelled, State.failed}),
    State.running: frozenset({State.queued, State.succeeded, State.failed, State.cancelled}),
    State.paused: frozenset(),
    State.succeeded: frozenset(),
    State.failed: frozenset(),
    State.cancelled: frozenset(),
}


class Requested(StrEnum):
    """What a person asked of a running job; the next heartbeat brings it to the supervisor."""

    pause = "pause"
    cancel = "cancel"
    """Gracefully: the trainer writes a checkpoint, then ends."""
    cancel_now = "cancel_now"
    """At once: the trainer is killed."""
    stop = "stop"


class FailureCode(StrEnum):
    user_error = "user_error"
    teacher_unfit = "teacher_unfit"
    loss_non_finite = "loss_non_finite"
    gpu_out_of_memory = "gpu_out_of_memory"
    host_out_of_memory = "host_out_of_memory"
    no_space = "no_space"
    stalled = "stalled"
    worker_lost = "worker_lost"
    preempted = "preempted"
    """Stopped by a limit that came with the job: limits.max_runtime_s, limits.max_wait_s. `data.limit` names it."""
    trainer_killed = "trainer_killed"
    protocol = "protocol"
    host_wedged = "host_wedged"

    @property
    def retryable(self) -> bool:
        """Another attempt may end otherwise without anyone changing anything."""
        return self in RETRYABLE


RETRYABLE = frozenset(
    {FailureCode.worker_lost, FailureCode.trainer_killed, FailureCode.stalled, FailureCode.host_wedged}
)


class DatasetState(StrEnum):
    awaiting_upload = "awaiting_upload"
    """Registered without a path: its zip has not come yet, or not all of it."""
    verifying = "verifying"
    ready = "ready"
    rejected = "rejected"


class PlanState(StrEnum):
    measuring = "measuring"
    measured = "measured"
    failed = "failed"


class ModelState(StrEnum):
    awaiting_upload = "awaiting_upload"
    verifying = "verifying"
    ready = "ready"
    rejected = "rejected"


def allowed(before: State, after: State) -> bool:
    return after in MOVES[before]
