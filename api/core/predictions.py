"""Predictions: what networks find in one picture. The verbs are those of all tasks, and after a day nothing is left.

Of a job the student looks at it, its teachers, and its control, where there are any. The picture is a blob that the row
names until it has ended; the collector deletes it soon after. Knows rows and the store; no pixels and no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from api.core import references, tasks
from api.core.blobs import remember_blobs
from api.core.errors import Conflict, Fault, Invalid
from api.core.lifecycle import State
from api.core.request_bodies import SubmitPrediction
from api.core.rows import db
from api.core.rows.crowd import expect_place
from api.core.rows.idempotency import Once
from api.core.rows.swept import Moment, SweepResult
from api.core.rows.tables import Job, Prediction
from api.core.settings import Settings
from api.core.store.names import BlobStore
from fgd.data.images import BadImage, refuse_other_files

PICTURE = "picture"
"""Its place in the row's blobs."""
KEEP = timedelta(days=1)
"""How long after its submission a prediction is deleted."""


@dataclass(frozen=True)
class Looker:
    """A network that looks at the picture."""

    role: str
    files: Mapping[str, str]
    job: str | None = None
    model: str | None = None
    """Where it comes from, as far as that has a name here."""


def submit(
    engine: Engine,
    store: BlobStore,
    settings: Settings,
    project_id: str,
    body: SubmitPrediction,
    picture: bytes,
    key: str | None,
) -> tuple[Prediction, bool]:
    """The prediction, and whether it is new (False: this Idempotency-Key made it before). Ring for a new one."""
    try:
        refuse_other_files(picture)
    except BadImage as error:
        raise Invalid(Fault("", "not_a_picture", f"the body: {error}")) from error
    digest, most = sha256(picture).hexdigest(), settings.max_waiting_tasks
    once = Once.of(Prediction, project_id, key, f"POST /v1/predictions of {digest}", body)
    with db.reading(engine) as s:
        if (prediction := once.replayed(s)) is not None:
            return prediction, False
        expect_place(s, Prediction, project_id, most, "FGD_MAX_WAITING_TASKS")
        lookers = list(_lookers(s, store, project_id, body))
    blob = store.put_bytes(picture)  # last: a refused request leaves no blob behind
    request = body.model_dump(mode="json") | {
        "picture": {"sha256": blob.digest, "size": blob.size},
        "networks": [{"role": each.role, "job": each.job, "model": each.model} for each in lookers],
    }
    blobs = {each.role: dict(each.files) for each in lookers} | {PICTURE: {PICTURE: blob.digest}}

    def insert(s: Session) -> Prediction:
        expect_place(s, Prediction, project_id, most, "FGD_MAX_WAITING_TASKS")
        remember_blobs(s, project_id, db.now(s), blob)
        return tasks.insert(s, Prediction, "pred", project_id, request, blobs)

    return once.make(engine, insert)


def sweep(s: Session, moment: Moment) -> SweepResult:
    """Free expired leases, forget old ones."""
    return tasks.sweep(s, Prediction, moment, KEEP)


def _lookers(s: Session, store: BlobStore, project_id: str, body: SubmitPrediction) -> Iterator[Looker]:
    """The networks that look, the first of which was named. Raises Invalid, Conflict."""
    try:
        if body.model is not None:
            yield Looker(
                "model", references.of_model(s, store, project_id, body.model, "model", "").files, model=body.model
            )
            return
        assert body.job is not None, "a request names a model or a job"
        student = references.of_job(s, store, project_id, body.job, "job", "", body.which)
        yield Looker("student", student.files, job=body.job)
    except Invalid as error:
        name = "job" if body.job is not None else "model"
        raise Invalid(*(Fault("", fault.code, fault.detail, name) for fault in error.errors)) from error
    except Conflict as error:
        raise Conflict(error.code, error.detail, error.retryable) from error
    job = s.scalars(select(Job).where(Job.project_id == project_id, Job.id == body.job)).one()
    refs: dict[str, Any] = {f"teachers/{name}": ref for name, ref in (job.spec.get("teachers") or {}).items()}
    for place, ref in {"teacher": job.spec.get("teacher"), **refs}.items():
        if (files := job.inputs.get(place)) and ref and all(map(store.exists, files.values())):
            yield Looker(place.replace("teachers/", "teacher "), files, job=ref.get("job"), model=ref.get("model"))
    if (control := _control(s, job)) is not None:
        try:
            yield Looker(
                "control", references.of_job(s, store, project_id, control, "job", "", body.which).files, control
            )
        except Invalid:  # its files are gone: then it is not there
            return


def _control(s: Session, job: Job) -> str | None:
    """The newest that has succeeded (see `jobs.controls`)."""
    if not job.taught or not job.twin:
        return None
    twins = select(Job.id).where(Job.project_id == job.project_id, Job.twin == job.twin, Job.taught.is_(False))
    return s.scalar(twins.where(Job.state == State.succeeded).order_by(Job.created_at.desc(), Job.id.desc()).limit(1))
