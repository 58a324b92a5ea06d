"""States of a job and the moves between them, and the ways to fail. Pure: knows no database, no HTTP, no torch.

    queued      claim -> running    pause -> paused    cancel -> cancelled    overdue -> failed
    running     finish -> succeeded    fail -> failed    cancel -> cancelled    pause -> paused (after a checkpoint)
                worker lost, trainer killed, handed back -> queued (cancelled or paused if that was asked)
    paused      resume, stop -> queued    cancel -> cancelled
    succeeded, failed, cancelled    never left

`tables.py` mirrors this page as CHECK constraints; docs/jobs.md explains it to people.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


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
    State.queued: frozenset({State.running, State.paused, State.cancelled, State.failed}),
    State.running: frozenset({State.queued, State.paused, State.succeeded, State.failed, State.cancelled}),
    State.paused: frozenset({State.queued, State.cancelled}),
    State.succeeded: frozenset(),
    State.failed: frozenset(),
    State.cancelled: frozenset(),
}


class Requested(StrEnum):
    """What a person asked of a running job; the next heartbeat brings it to the supervisor. A queued job may carry
    `stop`: its next attempt only exports what there is."""

    pause = "pause"
    """The trainer writes a checkpoint, then the job waits until it is resumed."""
    cancel = "cancel"
    """Gracefully: the trainer writes a checkpoint, then ends."""
    cancel_now = "cancel_now"
    """At once: the trainer is killed."""
    stop = "stop"
    """Finish early: no further step, the best weights become the result."""


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
        """Another attempt may succeed without any change."""
        return self in RETRYABLE


@dataclass(frozen=True)
class FailureClass:
    """For people. `advice` says what to change."""

    when: str
    retried: bool
    """Retried automatically, up to `limits.max_retries` times, with growing pauses."""
    advice: str


FAILURES: dict[FailureCode, FailureClass] = {
    FailureCode.user_error: FailureClass(
        "The job cannot be done as asked: the spec, the data or the weights do not allow it.",
        False,
        "Change the field, file or box that the message names, and submit the job again.",
    ),
    FailureCode.teacher_unfit: FailureClass(
        "The teacher detects almost nothing on the validation images (AP50 under 5).",
        False,
        "Choose another `teacher`, or the image sizes it was trained at (`schedule.min_size`, `schedule.max_size`); "
        "`teacher.allow_unfit` lets it teach anyway.",
    ),
    FailureCode.loss_non_finite: FailureClass(
        'A loss or gradient is NaN or infinite: once, or with `schedule.on_non_finite` "skip" in ten steps in a row.',
        False,
        "Lower `schedule.optimizer.lr` or the weights in `methods`, or set `schedule.clip_norm`. If it only happens "
        'now and then, set `schedule.on_non_finite` to "skip". The weights of the last finite step are kept as a '
        "checkpoint, which you can promote to a model.",
    ),
    FailureCode.gpu_out_of_memory: FailureClass(
        "The GPU has too little memory for the job.",
        False,
        "Lower `schedule.batch_size` and raise `schedule.accumulate` by the same factor, or lower `schedule.max_size`. "
        'With `resources.on_out_of_memory` "halve" the service does the former by itself.',
    ),
    FailureCode.host_out_of_memory: FailureClass(
        "The host has too little memory: an allocation failed, or the kernel killed the trainer for it.",
        False,
        "Lower `schedule.batch_size` and raise `schedule.accumulate` by the same factor, or lower `schedule.max_size`. "
        'With `resources.on_out_of_memory` "halve" the service does the former by itself. Running fewer jobs at once '
        "on the host (FGD_SLOTS) leaves more for each.",
    ),
    FailureCode.no_space: FailureClass(
        "The worker's disk is full. The previous checkpoint is intact. The worker takes no jobs for a while, so that "
        "another one can continue this job.",
        True,
        "Free space below FGD_HOME on the host for which `GET /v1/workers` shows a complaint, or start a worker with a "
        "larger disk; then submit the job again.",
    ),
    FailureCode.stalled: FailureClass(
        "The trainer reported nothing for too long (FGD_STALL_S, or ten of its usual steps) and was killed.",
        True,
        "Read the stacks at the end of the log to see where it hangs. If its steps are just slow, lower "
        "`schedule.batch_size`, or raise FGD_STALL_S on the worker.",
    ),
    FailureCode.worker_lost: FailureClass(
        "Nothing was heard from the worker for longer than its lease (FGD_LEASE_S): it died, or lost the network.",
        True,
        "Check `GET /v1/workers`, and the logs of the hosts named by the job's attempts. Raise `limits.max_retries` if "
        "you expect to lose workers, and submit the job again.",
    ),
    FailureCode.preempted: FailureClass(
        "The job reached one of its own limits; `data.limit` names it.",
        False,
        "Raise `limits.max_runtime_s` or `limits.max_wait_s`, whichever `data.limit` names, or leave it out. "
        "Fewer `schedule.epochs` take less time.",
    ),
    FailureCode.trainer_killed: FailureClass(
        "The trainer was ended by a signal (`data.signal`): a crash in native code, or someone on the host.",
        True,
        "Read the end of the log. If nobody killed it and it crashes every time, lower `schedule.batch_size` or choose "
        "another `resources.device`, and submit the job again.",
    ),
    FailureCode.protocol: FailureClass(
        "The trainer ended unexpectedly: a bug in the service, or a fault in the host's installation.",
        False,
        "Read the traceback at the end of the log, and report it together with the job's spec. Until it is fixed, "
        "another `resources.device` may work.",
    ),
    FailureCode.host_wedged: FailureClass(
        "The worker's host is not working properly: a trainer survives SIGKILL, or the system refuses files or "
        "processes.",
        True,
        "Check the host named by the last attempt, restart its worker, and submit the job again. Raise "
        "`limits.max_retries` if other hosts are fine.",
    ),
}

RETRYABLE = frozenset(code for code, failure in FAILURES.items() if failure.retried)
OUT_OF_MEMORY = frozenset({FailureCode.gpu_out_of_memory, FailureCode.host_out_of_memory})


def advice(code: FailureCode, data: Mapping[str, Any]) -> str:
    """What to change after this failure; more specific where `data` allows it."""
    if code == FailureCode.preempted and (limit := data.get("limit")):
        less = ", or ask for fewer `schedule.epochs`" if limit == "max_runtime_s" else ""
        return f"Raise `limits.{limit}`, or leave it out{less}; then submit the job again."
    if code in OUT_OF_MEMORY and data.get("batch_size") == 1:
        return (
            "Even one image at a time is too much: lower `schedule.max_size` (and `schedule.min_size`), or take a "
            "smaller `student`, a worker with more memory, or another `resources.device`."
        )
    if data.get("checkpoint") == "another_spec":
        return (
            "Its checkpoints are kept. Promote one to a model to continue from its weights (`student.weights`), or "
            "submit the job again to start from scratch. If only the service's version has changed since, report a bug."
        )
    return FAILURES[code].advice


def signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


class DatasetState(StrEnum):
    awaiting_upload = "awaiting_upload"
    """Registered without a path: its zip has not been uploaded yet, or not completely."""
    verifying = "verifying"
    ready = "ready"
    rejected = "rejected"


class PlanState(StrEnum):
    measuring = "measuring"
    measured = "measured"
    failed = "failed"


class TaskState(StrEnum):
    """Of an evaluation."""

    pending = "pending"
    """A worker has not finished it yet; `waiting_reason` says whether one has begun."""
    succeeded = "succeeded"
    failed = "failed"


class ModelState(StrEnum):
    awaiting_upload = "awaiting_upload"
    verifying = "verifying"
    ready = "ready"
    rejected = "rejected"


def allowed(before: State, after: State) -> bool:
    return after in MOVES[before]
