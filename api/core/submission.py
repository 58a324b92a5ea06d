"""Taking a job or a data set in: replay, look up, insert. The one place where a request spans several transactions.

Files are read, and copied, before the write lock is taken: a large teacher, or a folder on a slow disk, must not hold
up the heartbeats of others.
"""

from __future__ import annotations

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.core import blobs, datasets, plans, references
from api.core.errors import Fault, Invalid
from api.core.jobs import requests
from api.core.request_bodies import SubmitDataset
from api.core.rows import db
from api.core.rows.crowd import expect_place
from api.core.rows.idempotency import Once
from api.core.rows.tables import Dataset, Job, Plan
from api.core.settings import Settings
from api.core.store.names import BlobStore
from fgd import presets
from fgd.budget import FindStudent
from fgd.errors import SpecError
from fgd.outline import outline
from fgd.spec import SubmitJob


def submit_job(
    engine: Engine, store: BlobStore, settings: Settings, project_id: str, body: SubmitJob, key: str | None
) -> tuple[Job, bool]:
    """The job, and whether it is new (False: this Idempotency-Key made it before). Ring for a new one."""
    spec = presets.resolve(body.spec())
    once = Once.of(Job, project_id, key, "POST /v1/jobs", body)
    with db.reading(engine) as s:
        if (job := once.replayed(s)) is not None:
            return job, False
        inputs = references.resolve(s, store, settings.data_roots, project_id, spec)

    def insert(s: Session) -> Job:
        expect_place(s, Job, project_id, settings.max_queued_jobs, "FGD_MAX_QUEUED_JOBS")
        blobs.remember_blobs(s, project_id, db.now(s), *inputs.packed)
        job = requests.submit(s, project_id, body, spec, inputs=inputs.files)
        references.link(s, job, spec)
        return job

    return once.make(engine, insert)


def plan_job(engine: Engine, store: BlobStore, settings: Settings, project_id: str, body: SubmitJob) -> Plan:
    """What the job would do; a worker will measure what it costs. Refuses what submit_job would; inserts no job."""
    spec = presets.resolve(body.spec())
    with db.reading(engine) as s:
        expect_place(s, Plan, project_id, settings.max_waiting_plans, "FGD_MAX_WAITING_PLANS")
        inputs = references.resolve(s, store, settings.data_roots, project_id, spec)
    try:
        known = outline(spec, inputs.images, inputs.teachers, inputs.classes)
    except SpecError as error:
        raise Invalid(Fault(error.pointer, "impossible_spec", error.message)) from error
    with db.transaction(engine) as s:
        expect_place(s, Plan, project_id, settings.max_waiting_plans, "FGD_MAX_WAITING_PLANS")
        blobs.remember_blobs(s, project_id, db.now(s), *inputs.packed)
        return plans.submit(s, project_id, spec, known, inputs.files)


def plan_student(engine: Engine, store: BlobStore, settings: Settings, project_id: str, question: FindStudent) -> Plan:
    """A worker will look for students that fit the budget. Refuses a data set or teacher that a job could not have."""
    spec = presets.resolve(question.template())
    with db.reading(engine) as s:
        expect_place(s, Plan, project_id, settings.max_waiting_plans, "FGD_MAX_WAITING_PLANS")
        inputs = references.resolve(s, store, settings.data_roots, project_id, spec)
    known = outline(spec, inputs.images, inputs.teachers, inputs.classes)
    spec = spec.but(resources={"device": "cpu", "threads": question.threads})  # what is timed, runs on the processor
    with db.transaction(engine) as s:
        expect_place(s, Plan, project_id, settings.max_waiting_plans, "FGD_MAX_WAITING_PLANS")
        blobs.remember_blobs(s, project_id, db.now(s), *inputs.packed)
        return plans.submit(s, project_id, spec, known, inputs.files, question)


def submit_dataset(
    engine: Engine, settings: Settings, project_id: str, body: SubmitDataset, key: str | None
) -> tuple[Dataset, bool]:
    """The data set, whose folder, if it names one, lies below a data root; and whether it is new. Ring for one with a
    folder."""
    once = Once.of(Dataset, project_id, key, "POST /v1/datasets", body)
    with db.reading(engine) as s:
        if (dataset := once.replayed(s)) is not None:
            return dataset, False
    if body.path is not None:
        body = body.but(path=str(references.folder_below(settings.data_roots, body.path, "/path", or_zip=True)))

    def insert(s: Session) -> Dataset:
        expect_place(s, Dataset, project_id, settings.max_waiting_imports, "FGD_MAX_WAITING_IMPORTS")
        return datasets.submit(s, project_id, body)

    return once.make(engine, insert)
