"""The verbs of data sets: submit, import under a lease, ready or rejected. Knows no files: the worker imports.

awaiting_upload ---> verifying           see uploading
verifying --finish_import--> ready        from then on only its name changes
          --lose-----------> verifying    tried again, MAX_IMPORTS times in all
          --reject---------> rejected     the report says why
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.core import imports, uploading
from api.core.blobs import remember_blobs
from api.core.errors import Conflict
from api.core.lifecycle import DatasetState
from api.core.request_bodies import SubmitDataset
from api.core.rows import db, leases
from api.core.rows.ids import new_id
from api.core.rows.lookup import delete_row, owned
from api.core.rows.swept import Moment, SweepResult
from api.core.rows.tables import Dataset, Job, Study
from api.core.store.names import Blob
from fgd.data.index import Report
from fgd.data.report import unread
from fgd.outline import squarest_of

_USERS_TOLD = 20


@dataclass(frozen=True)
class DatasetClaim:
    id: str
    project_id: str
    attempt: int
    """Fencing token."""
    name: str
    format: str
    path: str | None
    upload_digest: str | None
    """Exactly one of the two: a folder, or a zip in the store."""
    verify: str
    val_fraction: float | None
    group_by: str


def submit(s: Session, project_id: str, submit: SubmitDataset) -> Dataset:
    """A new data set, `verifying` until a worker has read it, or waiting for its upload where it has no path.

    The path has been checked by `references`.
    """
    dataset = Dataset(
        id=new_id("ds"),
        project_id=project_id,
        name=submit.name,
        format=submit.format,
        path=submit.path,
        verify=submit.verify,
        val_fraction=submit.val_fraction,
        group_by=submit.group_by,
        state=DatasetState.awaiting_upload if submit.path is None else DatasetState.verifying,
        attempt=0,
        losses=0,
        created_at=db.now(s),
    )
    s.add(dataset)
    s.flush()
    return dataset


def get(s: Session, project_id: str, dataset_id: str) -> Dataset:
    """Raises NotFound, for another project's data set too."""
    return owned(s, Dataset, project_id, dataset_id)


def squarest(dataset: Dataset) -> float:
    """Of a ready data set: see fgd.outline.refuse_single_values."""
    train = ((dataset.report or {}).get("splits") or {}).get("train")
    return squarest_of(train["width"], train["height"]) if train is not None else math.inf


def report_of(dataset: Dataset) -> Report:
    """What the import saw. Where it ended before there was anything to see, the report holds why, and no more."""
    if dataset.report is not None:
        return Report.model_validate(dataset.report)
    return unread(dataset.format, dataset.error or "the import did not finish")


def delete(s: Session, project_id: str, dataset_id: str) -> None:
    """Raises NotFound; Conflict naming the jobs that use it. Its blobs stay until nothing refers to them."""
    dataset = owned(s, Dataset, project_id, dataset_id, locked=True)
    users = select(Job.id).where(Job.project_id == project_id, Job.dataset_id == dataset_id).order_by(Job.id)
    jobs = list(s.scalars(users.limit(_USERS_TOLD + 1)))
    if jobs:
        more = " and others" if len(jobs) > _USERS_TOLD else ""
        told = ", ".join(jobs[:_USERS_TOLD]) + more
        raise Conflict("dataset_in_use", f"{dataset_id} is used by {told}; delete those jobs first")
    study = s.scalar(select(Study.id).where(Study.project_id == project_id, Study.dataset_id == dataset_id).limit(1))
    if study is not None:
        raise Conflict("dataset_in_use", f"{dataset_id} is used by {study}; delete that study first")
    delete_row(s, dataset)


def claim_import(s: Session, worker_id: str, lease_s: float) -> DatasetClaim | None:
    """Take the oldest data set that waits for its import; None if there is none."""
    dataset = leases.claim(s, Dataset, worker_id, lease_s)
    if dataset is None:
        return None
    return DatasetClaim(
        id=dataset.id,
        project_id=dataset.project_id,
        attempt=dataset.attempt,
        name=dataset.name,
        format=dataset.format,
        path=dataset.path,
        upload_digest=dataset.upload_digest,
        verify=dataset.verify,
        val_fraction=dataset.val_fraction,
        group_by=dataset.group_by,
    )


def finish_import(s: Session, dataset_id: str, attempt: int, archive: Blob, index: Blob, report: Report) -> None:
    """verifying -> ready. Both blobs are in the store already. Raises Fenced."""
    dataset = leases.held(s, Dataset, dataset_id, attempt)
    at = db.now(s)
    remember_blobs(s, dataset.project_id, at, archive, index)
    dataset.archive_digest, dataset.index_digest = archive.digest, index.digest
    dataset.classes = list(report.classes)
    dataset.splits = {name: {"images": split.images, "boxes": split.boxes} for name, split in report.splits.items()}
    _end(dataset, DatasetState.ready, at, report)
    s.flush()


def reject(s: Session, dataset_id: str, attempt: int, report: Report | None, error: str) -> None:
    """verifying -> rejected; `error` in one sentence. Raises Fenced."""
    dataset = leases.held(s, Dataset, dataset_id, attempt)
    at = db.now(s)
    dataset.error = error
    _end(dataset, DatasetState.rejected, at, report)
    s.flush()


def sweep(s: Session, moment: Moment) -> SweepResult:
    """Free expired imports, give up on those that keep killing workers, and on uploads that never came."""
    uploading.give_up(s, Dataset, moment.at)
    return imports.sweep(s, Dataset, moment)


def _end(dataset: Dataset, state: DatasetState, at: datetime, report: Report | None) -> None:
    imports.end(dataset, state, at, report.model_dump(mode="json") if report is not None else None)
