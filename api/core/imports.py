"""Imports under a lease, of whatever is imported: data sets, models. Each write carries the attempt, as with jobs.

verifying --the kind's own finish--> ready        immutable from then on
          --lose-------------------> verifying    tried again, MAX_IMPORTS times in all
          --reject-----------------> rejected

beat, hand_back and held are those of all leases.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from api.core.rows import db, leases
from api.core.rows.leases import beat, hand_back, held
from api.core.rows.tables import Dataset, Model

__all__ = ["beat", "claim", "end", "hand_back", "held", "lose", "sweep"]

MAX_IMPORTS = 3
"""An import whose worker or reader was lost so many times will not be tried again."""
VERIFYING, REJECTED = "verifying", "rejected"
"""The same words in DatasetState and ModelState."""

Row = TypeVar("Row", bound=Dataset | Model)


def claim(s: Session, kind: type[Row], worker_id: str, lease_s: float) -> Row | None:
    """Take the oldest that waits for its import; None if there is none."""
    return leases.claim(s, kind, leases.waiting(kind, VERIFYING), worker_id, lease_s)


def lose(s: Session, kind: type[Row], id: str, attempt: int, reason: str) -> None:
    """The reader died or its host failed: verifying again, or rejected if that happened too often. Raises Fenced."""
    _lose(held(s, kind, id, attempt), db.now(s), reason)
    s.flush()


def sweep(s: Session, kind: type[Row], at: datetime) -> list[str]:
    """Free expired imports, give up on those that keep killing workers; the ids that wait for a worker."""
    return leases.sweep(s, kind, VERIFYING, at, lambda row, reason: _lose(row, at, reason))


def end(row: Dataset | Model, state: str, at: datetime, report: dict[str, Any] | None) -> None:
    row.state, row.finished_at, row.report = state, at, report
    row.upload_digest = None  # it is read, and no longer needed
    leases.let_go(row)


def _lose(row: Dataset | Model, at: datetime, reason: str) -> None:
    leases.let_go(row)
    row.losses += 1
    if row.losses >= MAX_IMPORTS:
        row.error = f"given up after {row.losses} tries that did not come to their end; the last: {reason}"
        end(row, REJECTED, at, None)
