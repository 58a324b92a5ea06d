"""Imports under a lease, of whatever is imported: data sets, models. Each write carries the attempt, as with jobs.

verifying --the kind's own finish--> ready        from then on only its name changes
          --lose-------------------> verifying    tried again, MAX_IMPORTS times in all
          --reject-----------------> rejected

Claiming, beating and handing back are those of all leases.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from api.core.rows import db, leases
from api.core.rows.columns import Imported
from api.core.rows.swept import Moment, SweepResult

MAX_IMPORTS = 3
"""An import whose worker or reader was lost this many times will not be tried again."""
REJECTED = "rejected"
"""The same word in DatasetState and ModelState."""


def lose(s: Session, kind: type[Imported], id: str, attempt: int, reason: str) -> None:
    """The reader died or its host failed: verifying again, or rejected if that happened too often. Raises Fenced."""
    _lose(leases.held(s, kind, id, attempt), db.now(s), reason)
    s.flush()


def sweep(s: Session, kind: type[Imported], moment: Moment) -> SweepResult:
    """Free expired imports, give up on those that keep killing workers."""
    return leases.sweep(s, kind, moment, lambda row, reason: _lose(row, moment.at, reason))


def end(row: Imported, state: str, at: datetime, report: dict[str, Any] | None) -> None:
    row.state, row.finished_at, row.report = state, at, report
    row.upload_digest = None  # it is read, and no longer needed
    leases.let_go(row)


def _lose(row: Imported, at: datetime, reason: str) -> None:
    if error := leases.lose(row, reason, MAX_IMPORTS):
        row.error = error
        end(row, REJECTED, at, None)
