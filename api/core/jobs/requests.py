"""What people ask of jobs: submit, look, cancel, pause, resume, finish early.

Each takes a Session inside an open transaction and never commits. A job that does not run obeys at once; a running one
when its supervisor hears of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.core.errors import Conflict
from api.core.jobs.controls import twin
from api.core.jobs.moves import CANCELS, end, has_steps, move, pause, queue_to_finish
from api.core.jobs.record import add_event
from api.core.lifecycle import Requested, State
from api.core.rows import changing, db
from api.core.rows.ids import new_id
from api.core.rows.lookup import owned
from api.core.rows.tables import Job, JobEvent
from fgd.spec import JobSpec, SubmitJob


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
        twin=twin(resolved.model_dump(mode="json")),
        taught=bool(resolved.teacher_refs()),
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
    if wish == Requested.stop and job.state != State.running and not has_steps(s, job):
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
        end(s, job, at, State.cancelled)
    elif wish == Requested.pause:
        pause(s, job, at)
    else:
        queue_to_finish(job, at)
    s.flush()
    return job


def change(
    s: Session,
    project_id: str,
    job_id: str,
    *,
    name: str | None,
    metadata: Mapping[str, str] | None,
    priority: int | None,
    is_meant: changing.IsMeant,
) -> Job:
    """Another name or other labels, whatever the job does; what is None stays. Another priority is for a job that has
    not ended.

    Raises Conflict; Changed for another version.
    """
    job = changing.meant(s, Job, project_id, job_id, is_meant)
    if priority is not None and priority != job.priority:
        _refuse_the_ended(job)
    labels = None if metadata is None else dict(metadata)
    new = changing.put(job, {"name": name, "labels": labels, "priority": priority})
    if new and not State(job.state).terminal:  # the story of an ended job has had its last word
        told = {"metadata" if field == "labels" else field: value for field, value in new.items()}
        add_event(s, job, db.now(s), "job_changed", **told)
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
        move(job, State.queued)
        job.not_before = at
    elif job.requested == Requested.pause:
        add_event(s, job, at, "job_resumed")
        job.requested = None
    elif job.requested in CANCELS:
        raise Conflict("cancel_requested", f"{job_id} is being cancelled; it cannot be resumed")
    elif not _was_resumed(s, job):
        raise Conflict("not_paused", f"{job_id} is {job.state}, not paused; there is nothing to resume")
    s.flush()
    return job


def _done_already(job: Job, wish: Requested) -> bool:
    if wish in CANCELS:
        return job.state == State.cancelled or job.requested in (wish, Requested.cancel_now)
    return job.requested == wish or (wish == Requested.pause and job.state == State.paused)


def _refuse_the_ended(job: Job) -> None:
    if State(job.state).terminal:
        raise Conflict("job_finished", f"{job.id} has ended ({job.state}) and cannot be changed")


def _was_resumed(s: Session, job: Job) -> bool:
    """Its last word of pauses is that one ended: a request that is sent again gets the same answer."""
    told = select(JobEvent.type).where(JobEvent.job_id == job.id, JobEvent.type.in_(("pause_requested", "job_resumed")))
    return s.scalar(told.order_by(JobEvent.seq.desc()).limit(1)) == "job_resumed"
