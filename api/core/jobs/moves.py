"""The moves of a job from one state to another, as rows and events. Called by the verbs of people, workers and the
sweep, inside their transactions.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.core import datasets
from api.core.jobs import checkpoints
from api.core.jobs.record import add_event
from api.core.lifecycle import FailureCode, Requested, State, allowed
from api.core.rows.tables import Attempt, Checkpoint, Dataset, Job
from fgd.errors import SpecError
from fgd.outline import refuse_single_values
from fgd.spec import JobSpec, Schedule
from fgd.stored import stored_spec

BACK_OFF_S = 30.0
"""Wait before the second retry; it doubles with each further one. The first retry is at once."""

MAX_BACK_OFF_S = 3600.0

CANCELS = (Requested.cancel, Requested.cancel_now)


def has_steps(s: Session, job: Job) -> bool:
    return s.scalar(select(Checkpoint.id).where(Checkpoint.job_id == job.id, Checkpoint.step > 0).limit(1)) is not None


def spec_now(job: Job) -> JobSpec:
    """The job's spec; after it ran out of memory with smaller batches, and more of them to a step."""
    spec = stored_spec(job.spec)
    return spec if job.batch_size is None else spec.but(schedule=spec.schedule.in_batches_of(job.batch_size))


def as_asked(s: Session, job: Job, at: datetime) -> bool:
    """Cancel or pause a job that lost its trainer, if that was asked for."""
    if job.requested in CANCELS:
        end(s, job, at, State.cancelled)
    elif job.requested == Requested.pause:
        pause(s, job, at)
    else:
        return False
    return True


def pause(s: Session, job: Job, at: datetime) -> None:
    move(job, State.paused)
    add_event(s, job, at, "job_paused")


def queue_to_finish(job: Job, at: datetime) -> None:
    """A job that does not run is queued only to export what its checkpoint has."""
    if job.state != State.queued:
        move(job, State.queued)
    job.requested, job.not_before = Requested.stop, at


def lose(s: Session, job: Job, at: datetime, code: FailureCode, message: str, data: Mapping[str, Any] | None) -> None:
    """After a loss that another attempt may mend: as asked, queued again, or failed for good."""
    if as_asked(s, job, at):
        return
    limit = int(job.limits["max_retries"])
    if job.retries >= limit:
        give_up(s, job, at, code, f"{message}; given up after {job.retries} retries", data)
        return
    job.retries += 1
    delay = timedelta(seconds=back_off_s(job.retries))
    queue_again(s, job, at, at + delay, reason=message, code=code, retry=job.retries, of=limit, counted=True)


def out_of_memory(
    s: Session, job: Job, at: datetime, code: FailureCode, message: str, data: Mapping[str, Any] | None
) -> None:
    """With resources.on_out_of_memory "halve": again with half the batch, down to one image; not counted as a retry:
    it ends by itself. Else failed, unless a person asked for another end: a cancel and a pause need no memory, and a
    stop has only to export what there is."""
    spec = spec_now(job)
    now: Schedule = spec.schedule
    smaller = _halved(s, job, spec) if spec.resources.on_out_of_memory == "halve" else None
    if smaller is None and (job.requested in (*CANCELS, Requested.pause) or only_exports(s, job)):
        add_event(s, job, at, "attempt_lost", attempt=job.attempt, reason=message, code=code)
        lose(s, job, at, code, message, {**(data or {}), "batch_size": now.batch_size})
        return
    if smaller is None:
        give_up(s, job, at, code, message, {**(data or {}), "batch_size": now.batch_size})
        return
    told = {"code": code, "batch_size": smaller.batch_size, "accumulate": smaller.accumulate, "before": now.batch_size}
    add_event(s, job, at, "batch_halved", **told)
    job.batch_size = smaller.batch_size
    if not as_asked(s, job, at):
        queue_again(s, job, at, at, reason=message, code=code, counted=False)


def _halved(s: Session, job: Job, spec: JobSpec) -> Schedule | None:
    """None where there is no smaller batch, or torch would refuse it."""
    smaller = spec.schedule.halved(spec.resources.devices)
    if smaller is not None:
        try:
            refuse_single_values(spec.but(schedule=smaller), datasets.squarest(s.get_one(Dataset, job.dataset_id)))
        except SpecError:
            return None
    return smaller


def only_exports(s: Session, job: Job) -> bool:
    return job.requested == Requested.stop and has_steps(s, job)


def back_off_s(retry: int) -> float:
    """Seconds before the n-th retry: 0, 30, 60, 120, ... up to an hour."""
    return 0.0 if retry <= 1 else min(BACK_OFF_S * 2.0 ** min(retry - 2, 32), MAX_BACK_OFF_S)


def queue_again(s: Session, job: Job, at: datetime, not_before: datetime, **why: Any) -> None:
    """A stop is remembered: the next attempt has only to export."""
    stops = job.requested == Requested.stop
    move(job, State.queued)
    job.not_before, job.requested = not_before, Requested.stop if stops else None
    add_event(s, job, at, "requeued", delay_s=(not_before - at).total_seconds(), **why)


def give_up(
    s: Session, job: Job, at: datetime, code: FailureCode, message: str, data: Mapping[str, Any] | None
) -> None:
    job.failure_code, job.failure_message, job.failure_data = code, message, dict(data or {})
    end(s, job, at, State.failed, code=code, message=message, data=dict(data or {}))


def end(s: Session, job: Job, at: datetime, state: State, **told: Any) -> None:
    move(job, state)
    job.finished_at = at
    add_event(s, job, at, state, **told)


def move(job: Job, state: State) -> None:
    before = State(job.state)
    assert allowed(before, state), f"{before} -> {state} is not a move"
    job.state = state
    job.lease_owner = job.lease_expires = job.phase = job.requested = None


def close_attempt(
    s: Session,
    job: Job,
    at: datetime,
    outcome: str,
    reason: str | None,
    exit: int | None,
    code: FailureCode | None = None,
) -> None:
    row = s.get_one(Attempt, (job.id, job.attempt))
    row.finished_at, row.outcome, row.reason, row.exit, row.code = at, outcome, reason, exit, code
    if row.first_step is None:
        return
    row.last_step = int((job.progress or {}).get("step") or row.first_step)
    kept = checkpoints.newest_first(s, job.id)
    begins_at = row.last_step if outcome == "succeeded" else kept[0].step if kept else 0
    row.lost_steps = max(0, row.last_step - begins_at)
