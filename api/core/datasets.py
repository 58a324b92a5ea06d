"""The verbs of data sets: submit, import under a lease, ready or rejected. Knows no files: the worker imports.

verifying --finish_import--> ready        immutable from then on
          --lose-----------> verifying    tried again, MAX_IMPORTS times in all
          --reject---------> rejected     the report says why
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.core import db, imports
from api.core.cursor import Position, Slice, slice_of
from api.core.errors import NotFound
from api.core.ids import new_id
from api.core.imports import MAX_IMPORTS, remember_blobs
from api.core.lifecycle import DatasetState
from api.core.storage import Blob
from api.core.tables import Dataset
from fgd.data.index import Report
from fgd.data.report import unread
from fgd.spec import SubmitDataset

__all__ = [
    "MAX_IMPORTS", "DatasetClaim", "beat_import", "claim_import", "finish_import", "get", "hand_back", "lose", "page",
    "reject", "remember_blobs", "submit", "sweep",
]  # fmt: skip


@dataclass(frozen=True)
class DatasetClaim:
    dataset_id: str
    project_id: str
    attempt: int
    """Fencing token."""
    name: str
    format: str
    path: str
    verify: str


def submit(s: Session, project_id: str, submit: SubmitDataset) -> Dataset:
    """A new data set, `verifying` until a worker has read it. The path has been checked by `references`."""
    dataset = Dataset(
        id=new_id("ds"),
        project_id=project_id,
        name=submit.name,
        format=submit.format,
        path=submit.path,
        verify=submit.verify,
        state=DatasetState.verifying,
        attempt=0,
        losses=0,
        created_at=db.now(s),
    )
    s.add(dataset)
    s.flush()
    return dataset


def get(s: Session, project_id: str, dataset_id: str) -> Dataset:
    dataset = s.scalar(select(Dataset).where(Dataset.project_id == project_id, Dataset.id == dataset_id))
    if dataset is None:
        raise NotFound("dataset", dataset_id)
    return dataset


def report_of(dataset: Dataset) -> Report:
    """What the import saw. Where it ended before there was anything to see, the report holds why, and no more."""
    if dataset.report is not None:
        return Report.model_validate(dataset.report)
    return unread(dataset.format, dataset.error or "the import came to no end")


def page(s: Session, project_id: str, after: Position | None, limit: int) -> Slice[Dataset]:
    """Newest first."""
    return slice_of(s, select(Dataset).where(Dataset.project_id == project_id), Dataset, after, limit)


def claim_import(s: Session, worker_id: str, lease_s: float = 20.0) -> DatasetClaim | None:
    """Take the oldest data set that waits for its import; None if there is none."""
    dataset = imports.claim(s, Dataset, worker_id, lease_s)
    if dataset is None:
        return None
    return DatasetClaim(
        dataset_id=dataset.id,
        project_id=dataset.project_id,
        attempt=dataset.attempt,
        name=dataset.name,
        format=dataset.format,
        path=dataset.path,
        verify=dataset.verify,
    )


def beat_import(s: Session, dataset_id: str, attempt: int, worker_id: str, lease_s: float = 20.0) -> None:
    """Keep the lease. Raises Fenced if it was lost."""
    imports.beat(s, Dataset, dataset_id, attempt, worker_id, lease_s)


def finish_import(s: Session, dataset_id: str, attempt: int, archive: Blob, index: Blob, report: Report) -> None:
    """verifying -> ready. Both blobs are in the store already. Raises Fenced."""
    dataset = imports.held(s, Dataset, dataset_id, attempt)
    at = db.now(s)
    remember_blobs(s, dataset.project_id, at, archive, index)
    dataset.archive_digest, dataset.index_digest = archive.digest, index.digest
    dataset.classes = list(report.classes)
    dataset.splits = {name: {"images": split.images, "boxes": split.boxes} for name, split in report.splits.items()}
    _end(dataset, DatasetState.ready, at, report)
    s.flush()


def reject(s: Session, dataset_id: str, attempt: int, report: Report | None, error: str) -> None:
    """verifying -> rejected; `error` in one sentence. Raises Fenced."""
    dataset = imports.held(s, Dataset, dataset_id, attempt)
    at = db.now(s)
    dataset.error = error
    _end(dataset, DatasetState.rejected, at, report)
    s.flush()


def hand_back(s: Session, dataset_id: str, attempt: int) -> None:
    """The worker goes down in good order: another may import, and the try does not count. Raises Fenced."""
    imports.hand_back(s, Dataset, dataset_id, attempt)


def lose(s: Session, dataset_id: str, attempt: int, reason: str) -> None:
    """The reader died or its host failed: verifying again, or rejected if that happened too often. Raises Fenced."""
    imports.lose(s, Dataset, dataset_id, attempt, reason)


def sweep(s: Session, at: datetime) -> list[str]:
    """Free expired imports, give up on those that keep killing workers; the ids that wait for a worker."""
    return imports.sweep(s, Dataset, at)


def _end(dataset: Dataset, state: DatasetState, at: datetime, report: Report | None) -> None:
    imports.end(dataset, state, at, report.model_dump(mode="json") if report is not None else None)
