"""What a job's methods looked at, step by step. Knows rows and blobs; nothing of what the files hold."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from api.core import blobs
from api.core.errors import NotFound
from api.core.rows.tables import Job, JobFocus
from api.core.rows.upsert import insert_for
from api.core.store.names import Blob
from fgd.focus_files import name_of


def keep(s: Session, job: Job, at: datetime, step: int | None, epoch: int | None, blob: Blob) -> None:
    """A file is in the store; it takes the place of an earlier one of the same step."""
    blobs.remember_blobs(s, job.project_id, at, blob)
    told = {"step": step, "epoch": epoch, "digest": blob.digest, "size": blob.size, "at": at}
    row = {"job_id": job.id, "name": name_of(step), "project_id": job.project_id, **told}
    statement = insert_for(s, JobFocus).on_conflict_do_update(index_elements=["job_id", "name"], set_=told)
    s.execute(statement, [row])


def rewind(s: Session, job_id: str, step: int) -> None:
    """An attempt goes on from `step`: what came after it did not happen."""
    later = delete(JobFocus).where(JobFocus.job_id == job_id, JobFocus.step > step)
    s.execute(later.execution_options(synchronize_session=False))


def steps(s: Session, job: Job) -> Sequence[JobFocus]:
    """Without the images, by step."""
    query = select(JobFocus).where(JobFocus.job_id == job.id, JobFocus.step.is_not(None))
    return s.scalars(query.order_by(JobFocus.step)).all()


def file(s: Session, job: Job, step: int | None) -> JobFocus:
    """Of a step, or the images. Raises NotFound."""
    row = s.get(JobFocus, (job.id, name_of(step)))
    if row is None:
        raise NotFound("focus", f"{job.id}, {'photos' if step is None else f'step {step}'}")
    return row
