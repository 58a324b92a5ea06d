"""The verbs of jobs. Each takes a Session inside an open transaction and never commits.

    people     submit, get, page, request
    workers    claim, beat, record, checkpoint, expect, finish, fail, requeue, ended_as_requested
    anyone     sweep, waiting_reason, queue_position

The queue is a bell, the row is the truth: a claim is one conditional update, and it raises `attempt`, the fencing
token that every later write carries. Knows jobs and rows. Knows nothing of HTTP, processes or torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, or_, select, true, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from api.core import datasets, db, models, plans, workers
from api.core.cursor import Position, Slice, slice_of
from api.core.errors import Conflict, NotFound
from api.core.idempotency import forget_old_keys
from api.core.ids import new_id
from api.core.lifecycle import TERMINAL, FailureCode, Requested, State, allowed
from api.core.record import add_event, held, record
from api.core.selection import EVERY, Selection
from api.core.storage import Blob
from api.core.tables import Artifact, Attempt, Checkpoint, Job, WorkerRow
from api.core.waiting import queue_position, waiting_reason
from fgd.spec import FromJob, JobSpec, SubmitJob

__all__ = [
    "ArtifactIn", "Claim", "Free", "Progress", "Saved", "Swept",
    "beat", "checkpoint", "claim", "ended_as_requested", "expect", "fail", "finish", "get", "page", "queue_position",
    "record", "request", "requeue", "submit", "sweep", "waiting_reason",
]  # fmt: skip

logger = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
"""The last, and the one before it in case the last is torn."""
BACK_OFF_S = 30.0
"""Wait before the second retry; it doubles with each further one. The first retry is at once."""
MAX_BACK_OFF_S = 3600.0


@dataclass(frozen=True)
class Free:
    """What a worker can take now: jobs on the processor, jobs on a GPU.

    gpu_host: the host has a GPU, so a job with device "auto" waits for one rather than run on the processor.
    """

    cpu: int
    cuda: int
    gpu_host: bool = False
    cores: int | None = None
    """Processor cores of the host; a job that wants more threads is not for it. None: not told."""

    def devices(self) -> list[str]:
        fits = {"cpu": self.cpu, "cuda": self.cuda, "auto": self.cuda if self.gpu_host else max(self.cpu, self.cuda)}
        return [device for device, free in fits.items() if free > 0]


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint."""

    step: int
    key: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Claim:
    job_id: str
    project_id: str
    attempt: int
    """Fencing token."""
    spec: JobSpec
    """Resolved; its references are ids."""
    inputs: Mapping[str, Mapping[str, str]]
    """Blobs to stage: {"dataset": {"archive": sha256, "index": sha256}, "teacher": {file: sha256}, "inherit": ...}"""
    checkpoints: tuple[Saved, ...] = ()
    """Newest first; the second is for when the first is torn."""
    max_runtime_s: float | None = None
    """limits.max_runtime_s."""
    ran_s: float = 0.0
    """Seconds that earlier attempts took of it."""

    @property
    def checkpoint(self) -> Saved | None:
        return self.checkpoints[0] if self.checkpoints else None


@dataclass(frozen=True)
class Progress:
    step: int
    total_steps: int | None = None
    epoch: int | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class ArtifactIn:
    name: str
    digest: str
    size: int
    media_type: str = "application/octet-stream"


@dataclass(frozen=True)
class Swept:
    ring: list[str] = field(default_factory=list)
    """Ids of jobs, data sets, models and plans for which a worker is free: ring for each after the commit."""
    lost: list[str] = field(default_factory=list)
    """Jobs whose attempt was lost."""
    rubbish: list[str] = field(default_factory=list)
    """Keys of checkpoints of jobs that have ended: delete those objects after the commit."""
    stuck: list[str] = field(default_factory=list)
    """Jobs that could not be put right; the log says why."""


# --- people ---------------------------------------------------------------------------------------------------


def submit(
    s: Session,
    project_id: str,
    submit: SubmitJob,
    resolved: JobSpec,
    *,
    inputs: Mapping[str, Mapping[str, str]],
) -> Job:
    """Insert a queued job and its first event. `inputs`: see Claim. The dataset of `resolved` is an id."""
    at = db.now(s)
    teacher, inherit = resolved.teacher, resolved.student.inherit
    job = Job(
        id=new_id("job"),
        project_id=project_id,
        name=resolved.name,
        state=State.queued,
        spec=resolved.model_dump(mode="json"),
        inputs={name: dict(files) for name, files in inputs.items()},
        labels=dict(submit.metadata),
        priority=submit.priority,
        device=resolved.resources.device,
        limits=submit.limits.model_dump(mode="json"),
        dataset_id=resolved.dataset,
        teacher_job_id=teacher.job if isinstance(teacher, FromJob) else None,
        inherit_job_id=inherit.job if isinstance(inherit, FromJob) else None,
        attempt=0,
        retries=0,
        event_seq=0,
        not_before=at,
        created_at=at,
    )
    s.add(job)
    s.flush()
    add_event(s, job, at, "job_submitted", name=job.name)
    s.flush()
    return job


def get(s: Session, project_id: str, job_id: str) -> Job:
    """Raises NotFound, for another project's job too."""
    job = s.scalar(select(Job).where(Job.project_id == project_id, Job.id == job_id))
    if job is None:
        raise NotFound("job", job_id)
    return job


def page(s: Session, project_id: str, after: Position | None, limit: int, selection: Selection = EVERY) -> Slice[Job]:
    """Newest first."""
    return slice_of(s, selection.of(select(Job).where(Job.project_id == project_id)), Job, after, limit)


def request(s: Session, project_id: str, job_id: str, wish: Requested) -> Job:
    """Cancel a job: a queued one at once, a running one when its supervisor hears of it.

    The same again changes nothing; `cancel_now` after `cancel` hurries. Raises Conflict for a job that ended otherwise.
    """
    if wish not in (Requested.cancel, Requested.cancel_now):
        raise Conflict("not_supported", f"{wish} is not available yet")
    job = s.scalar(select(Job).where(Job.project_id == project_id, Job.id == job_id).with_for_update())
    if job is None:
        raise NotFound("job", job_id)
    if job.state == State.cancelled or job.requested in (wish, Requested.cancel_now):
        return job
    if State(job.state).terminal:
        raise Conflict("job_finished", f"{job_id} has {job.state}; only a queued or running job can be cancelled")
    at = db.now(s)
    add_event(s, job, at, "cancel_requested", mode="graceful" if wish == Requested.cancel else "now")
    if job.state == State.running:
        job.requested = wish
    else:
        _end(s, job, at, State.cancelled)
    s.flush()
    return job


# --- workers --------------------------------------------------------------------------------------------------


def claim(s: Session, worker_id: str, free: Free, lease_s: float = 20.0) -> Claim | None:
    """Take the best queued job that fits `free` (priority, then age); None if there is none."""
    at = db.now(s)
    threads = Job.spec[("resources", "threads")].as_integer()
    fits = true() if free.cores is None else or_(threads.is_(None), threads <= free.cores)
    best = (
        select(Job.id)
        .where(Job.state == State.queued, Job.not_before <= at, Job.device.in_(free.devices()), fits)
        .order_by(Job.priority.desc(), Job.created_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    taken = (
        update(Job)
        .where(Job.id == best, Job.state == State.queued)
        .values(
            state=State.running,
            attempt=Job.attempt + 1,
            lease_owner=worker_id,
            lease_expires=at + timedelta(seconds=lease_s),
            phase="staging",
            started_at=func.coalesce(Job.started_at, at),
            version=Job.version + 1,
        )
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    job_id = s.scalar(taken)
    if job_id is None:
        return None
    job = s.get_one(Job, job_id, populate_existing=True)
    worker = s.get(WorkerRow, worker_id)
    s.add(
        Attempt(
            job_id=job.id,
            attempt=job.attempt,
            project_id=job.project_id,
            worker_id=worker_id,
            host=worker.host if worker else "",
            started_at=at,
            log_bytes=0,
        )
    )
    add_event(s, job, at, "job_claimed", worker=worker_id, host=worker.host if worker else "")
    s.flush()
    return Claim(
        job_id=job.id,
        project_id=job.project_id,
        attempt=job.attempt,
        spec=JobSpec.model_validate(job.spec),
        inputs=job.inputs,
        checkpoints=tuple(
            Saved(row.step, row.key, row.sha256, row.size) for row in _checkpoints(s, job.id)[:KEPT_CHECKPOINTS]
        ),
        max_runtime_s=job.limits.get("max_runtime_s"),
        ran_s=_ran_s(s, job.id),
    )


def beat(
    s: Session,
    job_id: str,
    attempt: int,
    worker_id: str,
    lease_s: float = 20.0,
    progress: Progress | None = None,
) -> Requested | None:
    """Prolong the lease; hear what a person asked for. Raises Fenced if the attempt is stale."""
    job = held(s, job_id, attempt, worker_id)
    job.lease_expires = db.now(s) + timedelta(seconds=lease_s)
    if progress is not None:
        told = {name: value for name, value in vars(progress).items() if value is not None}
        before = job.progress or {"step": 0, "total_steps": None, "epoch": 0, "epochs": None, "values": {}}
        job.progress = {**before, **told}
    s.flush()
    return Requested(job.requested) if job.requested else None


def checkpoint(s: Session, job_id: str, attempt: int, step: int, key: str, sha256: str, size: int) -> list[str]:
    """Commit a checkpoint that lies in the store under `key`. Raises Fenced.

    Returns the keys of checkpoints that are no longer needed: delete those objects after the commit.
    """
    job = held(s, job_id, attempt)
    at = db.now(s)
    again = s.scalar(select(Checkpoint).where(Checkpoint.key == key))
    if again is None:
        s.add(
            Checkpoint(
                id=new_id("ckpt"),
                project_id=job.project_id,
                job_id=job_id,
                attempt=attempt,
                step=step,
                key=key,
                sha256=sha256,
                size=size,
                created_at=at,
            )
        )
        add_event(s, job, at, "checkpoint_saved", step=step, size=size)
        s.flush()
    superseded = _checkpoints(s, job_id)[KEPT_CHECKPOINTS:]
    s.execute(delete(Checkpoint).where(Checkpoint.id.in_([row.id for row in superseded])))
    return [row.key for row in superseded]


def expect(s: Session, job_id: str, attempt: int, blob: Blob) -> None:
    """A file of the result is about to be put into the store. Raises Fenced.

    The collector deletes only what has a row, so one that dies between the put and `finish` must have left one.
    """
    job = held(s, job_id, attempt)
    datasets.remember_blobs(s, job.project_id, db.now(s), blob)


def finish(
    s: Session,
    job_id: str,
    attempt: int,
    files: Sequence[ArtifactIn],
    weights_digest: str,
    *,
    exit: int | None = 0,
) -> None:
    """running -> succeeded, whatever was asked meanwhile. The files are in the store already. Raises Fenced."""
    job = held(s, job_id, attempt)
    at = db.now(s)
    datasets.remember_blobs(s, job.project_id, at, *(Blob(file.digest, file.size) for file in files))
    for file in files:
        s.add(
            Artifact(
                id=new_id("art"),
                project_id=job.project_id,
                job_id=job_id,
                name=file.name,
                digest=file.digest,
                size=file.size,
                media_type=file.media_type,
                created_at=at,
            )
        )
    _close_attempt(s, job, at, "succeeded", None, exit)
    job.weights_digest = weights_digest
    _end(s, job, at, State.succeeded, weights_digest=weights_digest, files=[file.name for file in files])
    s.flush()


def fail(
    s: Session,
    job_id: str,
    attempt: int,
    code: FailureCode,
    message: str,
    data: Mapping[str, Any] | None = None,
    *,
    exit: int | None = None,
) -> State:
    """The attempt went wrong: try again if that can help and retries are left, else running -> failed. Raises Fenced.

    Returns the state the job is in now. A job whose cancel was asked for is cancelled rather than tried again.
    """
    job = held(s, job_id, attempt)
    at = db.now(s)
    code = FailureCode(code)
    _close_attempt(s, job, at, "failed", message, exit)
    if code.retryable:
        add_event(s, job, at, "attempt_lost", attempt=job.attempt, reason=message)
        _lose(s, job, at, code, message, data)
    else:
        _fail(s, job, at, code, message, data)
    s.flush()
    return State(job.state)


def requeue(s: Session, job_id: str, attempt: int, reason: str, *, exit: int | None = None) -> State:
    """The host hands the job back in good order: queued again, not counted as a retry. Raises Fenced.

    A job whose cancel was asked for is cancelled instead. Returns the state the job is in now.
    """
    job = held(s, job_id, attempt)
    at = db.now(s)
    _close_attempt(s, job, at, "handed_back", reason, exit)
    if job.requested is not None:
        _end(s, job, at, State.cancelled)
    else:
        _queue_again(s, job, at, at, reason=reason, counted=False)
    s.flush()
    return State(job.state)


def ended_as_requested(s: Session, job_id: str, attempt: int, *, exit: int | None = None) -> State:
    """The trainer ended because a person asked: cancel, cancel_now -> cancelled. Raises Fenced.

    Raises Conflict where nobody asked.
    """
    job = held(s, job_id, attempt)
    if job.requested is None:
        raise Conflict("nothing_requested", f"{job_id}: nobody asked the trainer to end; use requeue or fail")
    at = db.now(s)
    _close_attempt(s, job, at, "cancelled", f"requested: {job.requested}", exit)
    _end(s, job, at, State.cancelled)
    s.flush()
    return State(job.state)


# --- anyone ---------------------------------------------------------------------------------------------------


def sweep(s: Session, lease_s: float = 20.0) -> Swept:
    """Put right what the silent left behind. Idempotent; may run anywhere, and twice at once.

    It rings no more often than there is room, and not at all where no worker lives: bells nobody hears would pile up.
    """
    at = db.now(s)
    expired = select(Job).where(Job.state == State.running, Job.lease_expires <= at).with_for_update(skip_locked=True)
    lost = list(s.scalars(expired.execution_options(populate_existing=True)))
    stuck = _each(s, lost, lambda job: _lose_silent(s, job, at))
    stuck += _each(s, _overdue(s, at), lambda job: _give_up_waiting(s, job, at))
    live = workers.live(s, lease_s)
    running = s.scalar(select(func.count()).select_from(Job).where(Job.state == State.running)) or 0
    free = max(0, sum(worker.slots for worker in live) - running)
    claimable = select(Job.id).where(Job.state == State.queued, Job.not_before <= at)
    ring = list(s.scalars(claimable.order_by(Job.priority.desc(), Job.created_at, Job.id).limit(free)))
    ring += [*datasets.sweep(s, at), *models.sweep(s, at)][: len(live)]
    ring += plans.sweep(s, at)[: len(live)]
    forget_old_keys(s, at)
    workers.forget_silent(s)
    swept = [job.id for job in lost if job.id not in stuck]
    return Swept(ring, swept, _drop_checkpoints_of_the_ended(s), stuck)


def _each(s: Session, found: Sequence[Job], act: Callable[[Job], None]) -> list[str]:
    """Put right one job after the other; the ids of those that could not be: one bad row must not keep the others."""
    stuck = []
    for job in found:
        try:
            with s.begin_nested():
                act(job)
                s.flush()
        except OperationalError:  # the database, not the job
            raise
        except Exception:
            logger.exception("%s could not be put right", job.id)
            stuck.append(job.id)
    return stuck


def _lose_silent(s: Session, job: Job, at: datetime) -> None:
    reason = f"no heartbeat from {job.lease_owner}"
    _close_attempt(s, job, at, "lost", reason, None)
    add_event(s, job, at, "attempt_lost", attempt=job.attempt, reason=reason)
    _lose(s, job, at, FailureCode.worker_lost, reason, None)


def _overdue(s: Session, at: datetime) -> list[Job]:
    """Jobs that no worker took within limits.max_wait_s; one that ran once waits as long as it must."""
    limit_s = Job.limits["max_wait_s"].as_float()
    bounded = select(Job).where(Job.state == State.queued, Job.attempt == 0, limit_s.is_not(None))
    rows = s.scalars(bounded.with_for_update(skip_locked=True).execution_options(populate_existing=True))
    return [job for job in rows if (at - job.created_at).total_seconds() >= float(job.limits["max_wait_s"])]


def _give_up_waiting(s: Session, job: Job, at: datetime) -> None:
    allowed_s = float(job.limits["max_wait_s"])
    message = f"no worker took it within limits.max_wait_s ({allowed_s:g} s)"
    _fail(s, job, at, FailureCode.preempted, message, {"limit": "max_wait_s", "limit_s": allowed_s})


def _drop_checkpoints_of_the_ended(s: Session) -> list[str]:
    ended = select(Job.id).where(Job.id == Checkpoint.job_id, Job.state.in_(TERMINAL)).exists()
    return list(s.scalars(delete(Checkpoint).where(ended).returning(Checkpoint.key)))


# --- moves ----------------------------------------------------------------------------------------------------


def _lose(s: Session, job: Job, at: datetime, code: FailureCode, message: str, data: Mapping[str, Any] | None) -> None:
    """After a loss that another attempt may mend: cancelled if asked, queued again, or failed for good."""
    if job.requested is not None:
        _end(s, job, at, State.cancelled)
        return
    limit = int(job.limits["max_retries"])
    if job.retries >= limit:
        _fail(s, job, at, code, f"{message}; given up after {job.retries} retries", data)
        return
    job.retries += 1
    delay = timedelta(seconds=back_off_s(job.retries))
    _queue_again(s, job, at, at + delay, reason=message, code=code, retry=job.retries, of=limit, counted=True)


def back_off_s(retry: int) -> float:
    """Seconds before the n-th retry: 0, 30, 60, 120, ... up to an hour."""
    return 0.0 if retry <= 1 else min(BACK_OFF_S * 2.0 ** min(retry - 2, 32), MAX_BACK_OFF_S)


def _queue_again(s: Session, job: Job, at: datetime, not_before: datetime, **why: Any) -> None:
    _move(job, State.queued)
    job.not_before = not_before
    add_event(s, job, at, "requeued", delay_s=(not_before - at).total_seconds(), **why)


def _fail(s: Session, job: Job, at: datetime, code: FailureCode, message: str, data: Mapping[str, Any] | None) -> None:
    job.failure_code, job.failure_message, job.failure_data = code, message, dict(data or {})
    _end(s, job, at, State.failed, code=code, message=message, data=dict(data or {}))


def _end(s: Session, job: Job, at: datetime, state: State, **told: Any) -> None:
    _move(job, state)
    job.finished_at = at
    add_event(s, job, at, state, **told)


def _move(job: Job, state: State) -> None:
    before = State(job.state)
    assert allowed(before, state), f"{before} -> {state} is not a move"
    job.state = state
    job.lease_owner = job.lease_expires = job.phase = job.requested = None


def _close_attempt(s: Session, job: Job, at: datetime, outcome: str, reason: str | None, exit: int | None) -> None:
    row = s.get_one(Attempt, (job.id, job.attempt))
    row.finished_at, row.outcome, row.reason, row.exit = at, outcome, reason, exit


def _ran_s(s: Session, job_id: str) -> float:
    """Seconds that the ended attempts of a job took."""
    query = select(Attempt.started_at, Attempt.finished_at).where(Attempt.job_id == job_id)
    return sum((ended - began).total_seconds() for began, ended in s.execute(query) if ended is not None)


def _checkpoints(s: Session, job_id: str) -> Sequence[Checkpoint]:
    """Newest first: by attempt, for an attempt that fell back to an older step goes on from there."""
    query = select(Checkpoint).where(Checkpoint.job_id == job_id)
    return s.scalars(query.order_by(Checkpoint.attempt.desc(), Checkpoint.step.desc())).all()
