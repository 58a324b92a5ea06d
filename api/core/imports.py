"""Imports under a lease, of whatever is imported: data sets, models. Each write carries the attempt, as with jobs.

verifying --the kind's own finish--> ready        immutable from then on
          --lose-------------------> verifying    tried again, MAX_IMPORTS times in all
          --reject-----------------> rejected
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.core import db
from api.core.errors import Fenced
from api.core.record import insert_for
from api.core.storage import Blob
from api.core.tables import BlobRow, Dataset, Model

MAX_IMPORTS = 3
"""An import whose worker or reader was lost so many times will not be tried again."""
VERIFYING, REJECTED = "verifying", "rejected"
"""The same words in DatasetState and ModelState."""

Row = TypeVar("Row", bound=Dataset | Model)


def claim(s: Session, kind: type[Row], worker_id: str, lease_s: float) -> Row | None:
    """Take the oldest that waits for its import; None if there is none."""
    waiting = select(kind).where(kind.state == VERIFYING, kind.lease_owner.is_(None))
    row = s.scalar(waiting.order_by(kind.created_at, kind.id).limit(1).with_for_update(skip_locked=True))
    if row is None:
        return None
    row.attempt += 1
    row.lease_owner, row.lease_expires = worker_id, db.now(s) + timedelta(seconds=lease_s)
    s.flush()
    return row


def beat(s: Session, kind: type[Row], id: str, attempt: int, worker_id: str, lease_s: float) -> None:
    """Keep the lease. Raises Fenced if it was lost."""
    row = held(s, kind, id, attempt)
    if row.lease_owner != worker_id:
        raise Fenced(id, attempt)
    row.lease_expires = db.now(s) + timedelta(seconds=lease_s)
    s.flush()


def hand_back(s: Session, kind: type[Row], id: str, attempt: int) -> None:
    """The worker goes down in good order: another may import, and the try does not count. Raises Fenced."""
    row = held(s, kind, id, attempt)
    row.lease_owner = row.lease_expires = None
    s.flush()


def lose(s: Session, kind: type[Row], id: str, attempt: int, reason: str) -> None:
    """The reader died or its host failed: verifying again, or rejected if that happened too often. Raises Fenced."""
    _lose(held(s, kind, id, attempt), db.now(s), reason)
    s.flush()


def sweep(s: Session, kind: type[Row], at: datetime) -> list[str]:
    """Free expired imports, give up on those that keep killing workers; the ids that wait for a worker."""
    query = select(kind).where(kind.state == VERIFYING).with_for_update(skip_locked=True)
    waiting = []
    for row in s.scalars(query.execution_options(populate_existing=True)):
        if row.lease_expires is not None and row.lease_expires <= at:
            _lose(row, at, f"no heartbeat from {row.lease_owner}")
        if row.state == VERIFYING and row.lease_owner is None:
            waiting.append(row.id)
    s.flush()
    return waiting


def held(s: Session, kind: type[Row], id: str, attempt: int) -> Row:
    """The row, locked, if this attempt still imports it; Fenced otherwise."""
    query = select(kind).where(kind.id == id, kind.attempt == attempt, kind.lease_owner.is_not(None))
    row = s.scalar(query.with_for_update().execution_options(populate_existing=True))
    if row is None:
        raise Fenced(id, attempt)
    return row


def end(row: Dataset | Model, state: str, at: datetime, report: dict[str, Any] | None) -> None:
    row.state, row.finished_at, row.report = state, at, report
    row.lease_owner = row.lease_expires = row.upload_digest = None  # an upload is read, and no longer needed


def remember_blobs(s: Session, project_id: str, at: datetime, *blobs: Blob) -> None:
    """Make files of the store part of the service; the same content twice is one row."""
    rows = [{"project_id": project_id, "digest": b.digest, "size": b.size, "created_at": at} for b in blobs]
    if rows:
        again = {"unused_since": None}
        insert = insert_for(s, BlobRow).on_conflict_do_update(index_elements=["project_id", "digest"], set_=again)
        s.execute(insert, rows)


def _lose(row: Dataset | Model, at: datetime, reason: str) -> None:
    row.lease_owner = row.lease_expires = None
    row.losses += 1
    if row.losses >= MAX_IMPORTS:
        row.error = f"given up after {row.losses} tries that did not come to their end; the last: {reason}"
        end(row, REJECTED, at, None)
