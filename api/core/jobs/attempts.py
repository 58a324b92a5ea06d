"""The verbs of workers: claim a job, report what its attempt does, end it.

Each takes a Session inside an open transaction and never commits. The queue is a bell, the row is the truth: a claim
is one conditional update, and it raises `attempt`, the fencing token that every later write carries; a stale one is
Fenced.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func, or_, select, true, update
from sqlalchemy.orm import Session

from api.core import blobs
from api.core.jobs import checkpoints, focus
from api.core.jobs.moves import (
    CANCELS,
    as_asked,
    close_attempt,
    end,
    give_up,
    lose,
    out_of_memory,
    queue_again,
    spec_now,
)
from api.core.jobs.queue_order import DEVICES, Free, not_after_the_starved
from api.core.jobs.record import add_event, held
from api.core.lifecycle import OUT_OF_MEMORY, FailureCode, Requested, State
from api.core.rows import db
from api.core.rows.ids import new_id
from api.core.rows.tables import Artifact, Attempt, Checkpoint, Dataset, Job, WorkerRow
from api.core.store.names import Blob
from fgd.spec import JobSpec


@dataclass(frozen=True)
class SavedCheckpoint:
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
    checkpoints: tuple[SavedCheckpoint, ...] = ()
    """Newest first; the others are for when the first is torn."""
    max_runtime_s: float | None = None
    """limits.max_runtime_s."""
    requested: Requested | None = None
    """A stop that was asked for while the job was queued: this attempt only exports."""
    ran_s: float = 0.0
    """Seconds that earlier attempts took of it."""
    dataset_name: str | None = None

    @property
    def checkpoint(self) -> SavedCheckpoint | None:
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


def claim(s: Session, worker_id: str, free: Free, lease_s: float) -> Claim | None:
    """Take the best queued job that fits `free` (priority, then age); None if there is none.

    A job for several devices that has waited long has a host's next free devices kept for it.
    """
    at = db.now(s)
    threads = Job.spec[("resources", "threads")].as_integer() * DEVICES
    enough = true() if free.cores is None else or_(threads.is_(None), threads <= free.cores)
    best = (
        select(Job.id)
        .where(
            Job.state == State.queued,
            Job.not_before <= at,
            free.fits(),
            enough,
            not_after_the_starved(s, at, free, enough),
        )
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
    spec = spec_now(job)
    s.add(
        Attempt(
            job_id=job.id,
            attempt=job.attempt,
            project_id=job.project_id,
            worker_id=worker_id,
            host=worker.host if worker else "",
            started_at=at,
            log_bytes=0,
            spec=None if job.batch_size is None else spec.model_dump(mode="json"),
        )
    )
    add_event(s, job, at, "job_claimed", worker=worker_id, host=worker.host if worker else "")
    s.flush()
    return Claim(
        job_id=job.id,
        project_id=job.project_id,
        attempt=job.attempt,
        spec=spec,
        inputs=job.inputs,
        checkpoints=tuple(
            SavedCheckpoint(row.step, row.key, row.sha256, row.size) for row in checkpoints.newest_first(s, job.id)
        ),
        max_runtime_s=job.limits.get("max_runtime_s"),
        requested=Requested(job.requested) if job.requested else None,
        ran_s=_ran_s(s, job.id),
        dataset_name=s.scalar(select(Dataset.name).where(Dataset.id == job.dataset_id)),
    )


def beat(
    s: Session,
    job_id: str,
    attempt: int,
    worker_id: str,
    lease_s: float,
    progress: Progress | None = None,
) -> Requested | None:
    """Prolong the lease; hear what a person asked for. Raises Fenced if the attempt is stale. Without progress the
    version stays: who polls has nothing new to see."""
    job = held(s, job_id, attempt, worker_id)
    longer = update(Job).where(Job.id == job_id).values(lease_expires=db.now(s) + timedelta(seconds=lease_s))
    s.execute(longer.execution_options(synchronize_session=False))
    if progress is not None:
        told = {name: value for name, value in vars(progress).items() if value is not None}
        before = job.progress or {"step": 0, "total_steps": None, "epoch": 0, "epochs": None, "values": {}}
        job.progress = {**before, **told}
    s.flush()
    return Requested(job.requested) if job.requested else None


def checkpoint(
    s: Session, job_id: str, attempt: int, step: int, key: str, sha256: str, size: int, *, best: bool = False
) -> list[str]:
    """Commit a checkpoint that lies in the store under `key`. Raises Fenced.

    best: none before it had so good an AP. Returns the keys of checkpoints that are no longer needed: delete those
    objects after the commit.
    """
    job = held(s, job_id, attempt)
    at = db.now(s)
    if best:
        checkpoints.dethrone(s, job_id)
    again = s.scalar(select(Checkpoint).where(Checkpoint.key == key))
    if again is not None:
        again.sha256, again.size, again.best = sha256, size, best or again.best
    else:
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
                best=best,
                created_at=at,
            )
        )
        add_event(s, job, at, "checkpoint_saved", step=step, size=size, best=best)
    s.flush()
    return checkpoints.drop_superseded(s, job_id)


def looked_at(s: Session, job_id: str, attempt: int, step: int | None, epoch: int | None, blob: Blob) -> None:
    """What the methods looked at after a step is in the store; step None: the images. Raises Fenced."""
    focus.keep(s, held(s, job_id, attempt), db.now(s), step, epoch, blob)


def pass_over(s: Session, job_id: str, attempt: int, torn: Sequence[str], unreadable: Sequence[str]) -> list[str]:
    """The attempt went on without these checkpoints, so nobody is offered them any more, nor do they take the place of
    one that is whole. Returns the keys of the objects to delete after the commit. Raises Fenced."""
    held(s, job_id, attempt)
    return checkpoints.drop_passed_over(s, job_id, torn, unreadable)


def expect(s: Session, job_id: str, attempt: int, blob: Blob) -> None:
    """A file is about to be put into the store. Raises Fenced.

    The collector deletes only what has a row, so one that dies between the put and `finish` must have left one.
    """
    job = held(s, job_id, attempt)
    blobs.remember_blobs(s, job.project_id, db.now(s), blob)


def expected(s: Session, job_id: str, attempt: int, digests: Collection[str]) -> bool:
    """The files of the result are all in the store, and stay until `finish` names them. False: the collector took one
    while others were waited for, so `expect` and put them again. Raises Fenced."""
    return blobs.keep(s, held(s, job_id, attempt).project_id, digests)


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
    blobs.remember_blobs(s, job.project_id, at, *(Blob(file.digest, file.size) for file in files))
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
    close_attempt(s, job, at, "succeeded", None, exit)
    job.weights_digest = weights_digest
    end(s, job, at, State.succeeded, weights_digest=weights_digest, files=[file.name for file in files])
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

    Out of memory may be answered with smaller batches, if the spec says so. Returns the state the job is in now. A job
    whose cancel or pause was asked for is cancelled or paused rather than tried again.
    """
    job = held(s, job_id, attempt)
    at = db.now(s)
    code = FailureCode(code)
    close_attempt(s, job, at, "failed", message, exit, code)
    if code in OUT_OF_MEMORY:
        out_of_memory(s, job, at, code, message, data)
    elif code.retryable:
        add_event(s, job, at, "attempt_lost", attempt=job.attempt, reason=message, code=code)
        lose(s, job, at, code, message, data)
    else:
        give_up(s, job, at, code, message, data)
    s.flush()
    return State(job.state)


def requeue(s: Session, job_id: str, attempt: int, reason: str, *, exit: int | None = None) -> State:
    """The host hands the job back in good order: queued again, not counted as a retry. Raises Fenced.

    A job whose cancel or pause was asked for is cancelled or paused instead. Returns the state the job is in now.
    """
    job = held(s, job_id, attempt)
    at = db.now(s)
    close_attempt(s, job, at, "handed_back", reason, exit)
    if not as_asked(s, job, at):
        queue_again(s, job, at, at, reason=reason, counted=False)
    s.flush()
    return State(job.state)


def ended_as_requested(s: Session, job_id: str, attempt: int, *, exit: int | None = None) -> State:
    """The trainer ended because a person asked; what is asked now decides: cancel -> cancelled, pause -> paused.

    If that was taken back meanwhile, or is a stop by now, the job is queued again. Raises Fenced.
    """
    job = held(s, job_id, attempt)
    at = db.now(s)
    wish = job.requested
    outcome = "cancelled" if wish in CANCELS else "paused" if wish == Requested.pause else "handed_back"
    reason = f"requested: {wish}" if wish else "a pause was requested and withdrawn"
    close_attempt(s, job, at, outcome, reason, exit)
    if not as_asked(s, job, at):
        queue_again(s, job, at, at, reason=reason, counted=False)
    s.flush()
    return State(job.state)


def _ran_s(s: Session, job_id: str) -> float:
    """Seconds that the ended attempts of a job took."""
    query = select(Attempt.started_at, Attempt.finished_at).where(Attempt.job_id == job_id)
    return sum((ended - began).total_seconds() for began, ended in s.execute(query) if ended is not None)
