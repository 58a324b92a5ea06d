"""Taking a job in: replay, look up, insert. The one place where a request spans several transactions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.core import datasets, db, idempotency, jobs, references
from api.core.errors import Conflict
from api.core.storage import BlobStore
from api.core.tables import Job
from fgd import presets
from fgd.spec import SubmitDataset, SubmitJob

OPERATION = "POST /v1/jobs"


def submit_job(
    engine: Engine, store: BlobStore, roots: Sequence[Path], project_id: str, body: SubmitJob, key: str | None
) -> tuple[Job, bool]:
    """The job, and whether it is new (False: this Idempotency-Key made it before). Ring for a new one.

    Files are copied before the write lock is taken: a large teacher must not hold up the heartbeats of others.
    """
    spec = presets.resolve(body.spec())
    digest = hashlib.sha256(body.model_dump_json().encode()).hexdigest()
    with db.reading(engine) as s:
        if key is not None and (job := idempotency.replayed(s, project_id, key, OPERATION, digest)):
            return job, False
        inputs = references.resolve(s, store, roots, project_id, spec)
    try:
        with db.transaction(engine) as s:
            if key is not None and (job := idempotency.replayed(s, project_id, key, OPERATION, digest)):
                return job, False
            datasets.remember_blobs(s, project_id, db.now(s), *inputs.packed)
            job = jobs.submit(s, project_id, body, spec, inputs=inputs.files)
            if key is not None:
                idempotency.remember(s, project_id, key, OPERATION, digest, job)
            return job, True
    except IntegrityError as error:
        return _after_a_race(engine, project_id, key, digest, error), False


def _after_a_race(engine: Engine, project_id: str, key: str | None, digest: str, error: IntegrityError) -> Job:
    """Another request with the same key committed between our look and our insert (PostgreSQL only)."""
    if key is None:
        raise error
    with db.reading(engine) as s:
        job = idempotency.replayed(s, project_id, key, OPERATION, digest)
    if job is None:
        raise Conflict("idempotency_key_in_use", "a request with this key is in flight; send it again", True) from error
    return job


def submit_dataset(s: Session, roots: Sequence[Path], project_id: str, body: SubmitDataset) -> str:
    """The id of a new data set, whose folder lies below a data root. Ring for it after the commit."""
    folder = references.folder_below(roots, body.path, "/path")
    return datasets.submit(s, project_id, body.but(path=str(folder))).id
