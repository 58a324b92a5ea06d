"""The verbs of jobs. Each takes a Session inside an open transaction and never commits.

    people     submit, get, page, request, resume
    workers    claim, beat, record, checkpoint, pass_over, expect, expected, finish, fail, requeue, ended_as_requested
    anyone     sweep, waiting_reason, queue_position

The queue is a bell, the row is the truth: a claim is one conditional update, and it raises `attempt`, the fencing
token that every later write carries. Knows jobs and rows. Knows nothing of HTTP, processes or torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, func, not_, or_, select, true, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from api.core import checkpoints, datasets, db, models, plans, removal, workers
from api.core.cursor import Position, Slice, slice_of
from api.core.errors import Conflict
from api.core.idempotency import forget_old_keys
from api.core.ids import new_id
from api.core.lifecycle import OUT_OF_MEMORY, FailureCode, Requested, State, allowed
from api.core.owned import owned
from api.core.record import add_event, held, record
from api.core.selection import EVERY, Selection
from api.core.storage import Blob
from api.core.tables import Artifact, Attempt, Checkpoint, Job, JobEvent, WorkerRow
from api.core.waiting import queue_position, waiting_reason
from fgd.spec import FromJob, JobSpec, Schedule, SubmitJob
from fgd.stored import stored_spec

__all__ = [
    "ArtifactIn", "Claim", "Free", "Progress", "Saved", "Swept",
    "beat", "checkpoint", "claim", "ended_as_requested", "expect", "expected", "fail", "finish", "get", "page",
    "pass_over", "queue_position", "record", "request", "requeue", "resume", "submit", "sweep", "waiting_reason",
]  # fmt: skip

logger = logging.getLogger(__name__)

BACK_OFF_S = 30.0
"""Wait before the second retry; it doubles with each further one. The first retry is at once."""
MAX_BACK_OFF_S = 3600.0


RESERVE_S = 600.0
"""A job for several devices that has waited so long is overtaken no more."""
DEVICES = func.coalesce(Job.spec[("resources", "devices")].as_integer(), 1)
"""How many of a host's devices a job takes. Absent in what the first versions stored."""


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
    of: Free | None = None
    """The same with nothing taken, so that a job for several devices can be waited for. None: not told."""

    def most(self) -> dict[str, int]:
        """resources.device -> how many of them a job can have."""
        return {"cpu": self.cpu, "cuda": self.cuda, "auto": self.cuda if self.gpu_host else max(self.cpu, self.cuda)}

    def devices(self) -> list[str]:
        return [device for device, free in self.most().items() if free > 0]

    def fits(self) -> ColumnElement[bool]:
        """Whether a job's row fits in here."""
        return or_(*(and_(Job.device == device, free >= DEVICES) for device, free in self.most().items()))


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
    """Newest first; the others are for when the first is torn."""
    max_runtime_s: float | None = None
    """limits.max_runtime_s."""
    requested: Requested | None = None
    """A stop that was asked for while the job was queued: this attempt only exports."""
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
    return owned(s, Job, project_id, job_id)


def page(s: Session, project_id: str, after: Position | None, limit: int, selection: Selection = EVERY) -> Slice[Job]:
    """Newest first."""
    return slice_of(s, selection.of(select(Job).where(Job.project_id == project_id)), Job, after, limit)


CANCELS = (Requested.cancel, Requested.cancel_now)


def request(s: Session, project_id: str, job_id: str, wish: Requested) -> Job:
    """Ask for an end, a pause or an early finish: a job that does not run obeys at once, a running one when its
    supervisor hears of it.

    The same again changes nothing. Of pause and stop the later counts; a cancel stands over both, and `cancel_now`
    hurries it. Raises Conflict for a job that ended otherwise, that is being cancelled, or that has nothing to keep.
    """
    job = owned(s, Job, project_id, job_id, locked=True)
    if _done_already(job, wish):
        return job
    _refuse_the_ended(job)
    if job.requested in CANCELS and wish not in CANCELS:
        raise Conflict("cancel_requested", f"{job_id} is being cancelled; it can neither be paused nor finished early")
    if wish == Requested.stop and job.state != State.running and not _has_steps(s, job):
        raise Conflict(
            "nothing_to_keep",
            f"{job_id} is {job.state} and has no checkpoint, so there are no weights to finish with; cancel it instead",
        )
    at = db.now(s)
    if wish in CANCELS:
        add_event(s, job, at, "cancel_requested", mode="graceful" if wish == Requested.cancel else "now")
    else:
        add_event(s, job, at, f"{wish}_requested")
    if job.state == State.running:
        job.requested = wish
    elif wish in CANCELS:
        _end(s, job, at, State.cancelled)
    elif wish == Requested.pause:
        _pause(s, job, at)
    else:
        _queue_to_finish(job, at)
    s.flush()
    return job


def resume(s: Session, project_id: str, job_id: str) -> Job:
    """paused -> queued; a pause that is not done yet is taken back. A job that was resumed before stays as it is.

    Raises Conflict for any other.
    """
    job = owned(s, Job, project_id, job_id, locked=True)
    _refuse_the_ended(job)
    at = db.now(s)
    if job.state == State.paused:
        add_event(s, job, at, "job_resumed")
        _move(job, State.queued)
        job.not_before = at
    elif job.requested == Requested.pause:
        add_event(s, job, at, "job_resumed")
        job.requested = None
    elif job.requested in CANCELS:
        raise Conflict("cancel_requested", f"{job_id} is being cancelled; it can not be resumed")
    elif not _was_resumed(s, job):
        raise Conflict("not_paused", f"{job_id} is {job.state} and not paused; there is nothing to resume")
    s.flush()
    return job


def _done_already(job: Job, wish: Requested) -> bool:
    if wish in CANCELS:
        return job.state == State.cancelled or job.requested in (wish, Requested.cancel_now)
    return job.requested == wish or (wish == Requested.pause and job.state == State.paused)


def _refuse_the_ended(job: Job) -> None:
    if State(job.state).terminal:
        raise Conflict("job_finished", f"{job.id} has {job.state}; only a job that has not ended can be changed")


def _has_steps(s: Session, job: Job) -> bool:
    return s.scalar(select(Checkpoint.id).where(Checkpoint.job_id == job.id, Checkpoint.step > 0).limit(1)) is not None


def _was_resumed(s: Session, job: Job) -> bool:
    """Its last word of pauses is that one ended: a request that is sent again gets the same answer."""
    told = select(JobEvent.type).where(JobEvent.job_id == job.id, JobEvent.type.in_(("pause_requested", "job_resumed")))
    return s.scalar(told.order_by(JobEvent.seq.desc()).limit(1)) == "job_resumed"


# --- workers --------------------------------------------------------------------------------------------------


def claim(s: Session, worker_id: str, free: Free, lease_s: float = 20.0) -> Claim | None:
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
            _not_after_the_starved(s, at, free, enough),
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
    spec = _spec_now(job)
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
            Saved(row.step, row.key, row.sha256, row.size) for row in checkpoints.newest_first(s, job.id)
        ),
        max_runtime_s=job.limits.get("max_runtime_s"),
        requested=Requested(job.requested) if job.requested else None,
        ran_s=_ran_s(s, job.id),
    )


def _not_after_the_starved(s: Session, at: datetime, free: Free, enough: ColumnElement[bool]) -> ColumnElement[bool]:
    """Where a job that would fit this host, were it empty, has waited RESERVE_S: of those that take the same kind of
    device, only what goes before it. enough: whether the host has the cores for a job."""
    if free.of is None or max(free.of.most().values()) < 2:
        return true()
    since = at - timedelta(seconds=RESERVE_S)
    waits = and_(
        Job.state == State.queued, Job.not_before <= since, DEVICES > 1, free.of.fits(), not_(free.fits()), enough
    )
    lanes = (("cpu",), ("cuda", "auto")) if free.gpu_host else (("cpu", "cuda", "auto"),)
    return and_(true(), *(_not_after_one_that(s, waits, lane) for lane in lanes))


def _not_after_one_that(s: Session, waits: ColumnElement[bool], lane: Sequence[str]) -> ColumnElement[bool]:
    first = select(Job).where(waits, Job.device.in_(lane)).order_by(Job.priority.desc(), Job.created_at, Job.id)
    starved = s.scalars(first.limit(1)).first()
    if starved is None:
        return true()
    return or_(
        Job.device.not_in(lane),
        Job.priority > starved.priority,
        and_(Job.priority == starved.priority, Job.created_at < starved.created_at),
    )


def _spec_now(job: Job) -> JobSpec:
    """The job's spec; after it ran out of memory with smaller batches, and more of them to a step."""
    spec = stored_spec(job.spec)
    return spec if job.batch_size is None else spec.but(schedule=spec.schedule.in_batches_of(job.batch_size))


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


def pass_over(s: Session, job_id: str, attempt: int, torn: Sequence[str], unreadable: Sequence[str]) -> list[str]:
    """The attempt went on without these checkpoints, so nobody is offered them any more, nor do they take the place of
    one that is whole. Returns the keys of the objects to delete after the commit. Raises Fenced."""
    held(s, job_id, attempt)
    return checkpoints.drop_passed_over(s, job_id, torn, unreadable)


def expect(s: Session, job_id: str, attempt: int, blob: Blob) -> None:
    """A file of the result is about to be put into the store. Raises Fenced.

    The collector deletes only what has a row, so one that dies between the put and `finish` must have left one.
    """
    job = held(s, job_id, attempt)
    datasets.remember_blobs(s, job.project_id, db.now(s), blob)


def expected(s: Session, job_id: str, attempt: int, digests: Collection[str]) -> bool:
    """The files of the result are all in the store, and stay until `finish` names them. False: the collector took one
    while others were waited for, so `expect` and put them again. Raises Fenced."""
    return removal.keep(s, held(s, job_id, attempt).project_id, digests)


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

    Out of memory may be answered with smaller batches, if the spec says so. Returns the state the job is in now. A job
    whose cancel or pause was asked for is cancelled or paused rather than tried again.
    """
    job = held(s, job_id, attempt)
    at = db.now(s)
    code = FailureCode(code)
    _close_attempt(s, job, at, "failed", message, exit, code)
    if code in OUT_OF_MEMORY:
        _out_of_memory(s, job, at, code, message, data)
    elif code.retryable:
        add_event(s, job, at, "attempt_lost", attempt=job.attempt, reason=message, code=code)
        _lose(s, job, at, code, message, data)
    else:
        _fail(s, job, at, code, message, data)
    s.flush()
    return State(job.state)


def requeue(s: Session, job_id: str, attempt: int, reason: str, *, exit: int | None = None) -> State:
    """The host hands the job back in good order: queued again, not counted as a retry. Raises Fenced.

    A job whose cancel or pause was asked for is cancelled or paused instead. Returns the state the job is in now.
    """
    job = held(s, job_id, attempt)
    at = db.now(s)
    _close_attempt(s, job, at, "handed_back", reason, exit)
    if not _as_asked(s, job, at):
        _queue_again(s, job, at, at, reason=reason, counted=False)
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
    reason = f"requested: {wish}" if wish else "a pause was asked for and taken back"
    _close_attempt(s, job, at, outcome, reason, exit)
    if not _as_asked(s, job, at):
        _queue_again(s, job, at, at, reason=reason, counted=False)
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
    willing = {worker.id: worker.slots for worker in live if worker.complaint is None}
    theirs = select(func.count()).select_from(Job).where(Job.state == State.running, Job.lease_owner.in_(willing))
    free = max(0, sum(willing.values()) - (s.scalar(theirs) or 0))
    claimable = select(Job.id).where(Job.state == State.queued, Job.not_before <= at)
    ring = list(s.scalars(claimable.order_by(Job.priority.desc(), Job.created_at, Job.id).limit(free)))
    ring += [*datasets.sweep(s, at), *models.sweep(s, at)][: len(live)]
    ring += plans.sweep(s, at)[: len(live)]
    forget_old_keys(s, at)
    workers.forget_silent(s)
    swept = [job.id for job in lost if job.id not in stuck]
    return Swept(ring, swept, checkpoints.drop_of_the_ended(s), stuck)


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
    _close_attempt(s, job, at, "lost", reason, None, FailureCode.worker_lost)
    add_event(s, job, at, "attempt_lost", attempt=job.attempt, reason=reason, code=FailureCode.worker_lost)
    _lose(s, job, at, FailureCode.worker_lost, reason, None)


def _overdue(s: Session, at: datetime) -> list[Job]:
    """Jobs that no worker took within limits.max_wait_s; one that ran once waits as long as it must."""
    limit_s = Job.limits["max_wait_s"].as_float()
    bounded = select(Job).where(Job.state == State.queued, Job.attempt == 0, limit_s.is_not(None))
    rows = s.scalars(bounded.with_for_update(skip_locked=True).execution_options(populate_existing=True))
    # since its submission; for one that was paused before it ever ran, since it was resumed
    return [job for job in rows if (at - job.not_before).total_seconds() >= float(job.limits["max_wait_s"])]


def _give_up_waiting(s: Session, job: Job, at: datetime) -> None:
    allowed_s = float(job.limits["max_wait_s"])
    message = f"no worker took it within limits.max_wait_s ({allowed_s:g} s)"
    _fail(s, job, at, FailureCode.preempted, message, {"limit": "max_wait_s", "limit_s": allowed_s})


# --- moves ----------------------------------------------------------------------------------------------------


def _as_asked(s: Session, job: Job, at: datetime) -> bool:
    """Cancel or pause a job that lost its trainer, if that was asked for."""
    if job.requested in CANCELS:
        _end(s, job, at, State.cancelled)
    elif job.requested == Requested.pause:
        _pause(s, job, at)
    else:
        return False
    return True


def _pause(s: Session, job: Job, at: datetime) -> None:
    _move(job, State.paused)
    add_event(s, job, at, "job_paused")


def _queue_to_finish(job: Job, at: datetime) -> None:
    """A job that does not run is queued only to export what its checkpoint has."""
    if job.state != State.queued:
        _move(job, State.queued)
    job.requested, job.not_before = Requested.stop, at


def _lose(s: Session, job: Job, at: datetime, code: FailureCode, message: str, data: Mapping[str, Any] | None) -> None:
    """After a loss that another attempt may mend: as asked, queued again, or failed for good."""
    if _as_asked(s, job, at):
        return
    limit = int(job.limits["max_retries"])
    if job.retries >= limit:
        _fail(s, job, at, code, f"{message}; given up after {job.retries} retries", data)
        return
    job.retries += 1
    delay = timedelta(seconds=back_off_s(job.retries))
    _queue_again(s, job, at, at + delay, reason=message, code=code, retry=job.retries, of=limit, counted=True)


def _out_of_memory(
    s: Session, job: Job, at: datetime, code: FailureCode, message: str, data: Mapping[str, Any] | None
) -> None:
    """With resources.on_out_of_memory "halve": again with half the batch, down to one image; not counted as a retry:
    it ends by itself. Else failed, unless a person asked for another end: a cancel and a pause need no memory, and a
    stop has only to export what there is."""
    spec = _spec_now(job)
    now: Schedule = spec.schedule
    smaller = now.halved(spec.resources.devices) if spec.resources.on_out_of_memory == "halve" else None
    if smaller is None and (job.requested in (*CANCELS, Requested.pause) or _only_exports(s, job)):
        add_event(s, job, at, "attempt_lost", attempt=job.attempt, reason=message, code=code)
        _lose(s, job, at, code, message, {**(data or {}), "batch_size": now.batch_size})
        return
    if smaller is None:
        _fail(s, job, at, code, message, {**(data or {}), "batch_size": now.batch_size})
        return
    told = {"code": code, "batch_size": smaller.batch_size, "accumulate": smaller.accumulate, "before": now.batch_size}
    add_event(s, job, at, "batch_halved", **told)
    job.batch_size = smaller.batch_size
    if not _as_asked(s, job, at):
        _queue_again(s, job, at, at, reason=message, code=code, counted=False)


def _only_exports(s: Session, job: Job) -> bool:
    return job.requested == Requested.stop and _has_steps(s, job)


def back_off_s(retry: int) -> float:
    """Seconds before the n-th retry: 0, 30, 60, 120, ... up to an hour."""
    return 0.0 if retry <= 1 else min(BACK_OFF_S * 2.0 ** min(retry - 2, 32), MAX_BACK_OFF_S)


def _queue_again(s: Session, job: Job, at: datetime, not_before: datetime, **why: Any) -> None:
    """A stop is remembered: the next attempt has only to export."""
    stops = job.requested == Requested.stop
    _move(job, State.queued)
    job.not_before, job.requested = not_before, Requested.stop if stops else None
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


def _close_attempt(
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


def _ran_s(s: Session, job_id: str) -> float:
    """Seconds that the ended attempts of a job took."""
    query = select(Attempt.started_at, Attempt.finished_at).where(Attempt.job_id == job_id)
    return sum((ended - began).total_seconds() for began, ended in s.execute(query) if ended is not None)
