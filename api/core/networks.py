"""The network that a request names: a model, or the student or the teacher of a job. Knows rows and the store."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.core import references
from api.core.errors import Conflict, Invalid
from api.core.references import Findings, ReferencedWeights
from api.core.request_bodies import OfNetwork
from api.core.rows.tables import Job
from api.core.store.names import BlobStore


def named(s: Session, store: BlobStore, project_id: str, body: OfNetwork, found: Findings) -> ReferencedWeights | None:
    """None if it cannot be used, and `found` says why."""
    try:
        if body.model is not None:
            return references.of_model(s, store, project_id, body.model, "model", "/model")
        assert body.job is not None, "a request names a model or a job"
        if body.network == "teacher":
            return references.of_jobs_teacher(s, store, project_id, body.job, "/job")
        return references.of_job(s, store, project_id, body.job, "job", "/job", body.which)
    except Invalid as error:
        found.faults += error.errors
    except Conflict as error:
        found.conflicts.append(error)
    return None


def dataset_of_job(s: Session, project_id: str, body: OfNetwork) -> str | None:
    """The data set that the job was trained on; None for a model, or a job that is not there."""
    return s.scalar(select(Job.dataset_id).where(Job.project_id == project_id, Job.id == body.job))
