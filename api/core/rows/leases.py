"""Work that a worker takes for a while, whatever it is: the import of a data set or a model, the measuring of a plan.

Each claim raises `attempt`, the fencing token; each write carries it, as with jobs. What a row becomes at its end, its
own module says. Jobs have verbs of their own (`jobs`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from api.core.errors import Fenced
from api.core.rows import db
from api.core.rows.columns import Leased
from api.core.rows.swept import Moment, SweepResult

Row = TypeVar("Row", bound=Leased)


def claim(s: Session, kind: type[Row], worker_id: str, lease_s: float, *which: ColumnElement[bool]) -> Row | None:
    """Take the oldest row that no worker holds, of those that fit `which`; None if there is none."""
    waiting = select(kind).where(kind.state == kind.leased_in, kind.lease_owner.is_(None), *which)
    row = s.scalar(waiting.order_by(kind.created_at, kind.id).limit(1).with_for_update(skip_locked=True))
    if row is None:
        return None
    row.attempt += 1
    row.lease_owner, row.lease_expires = worker_id, db.now(s) + timedelta(seconds=lease_s)
    s.flush()
    return row


def beat(s: Session, kind: type[Leased], id: str, attempt: int, worker_id: str, lease_s: float) -> None:
    """Keep the lease. Raises Fenced if it was lost. The version stays: who polls has nothing new to see."""
    mine = update(kind).where(kind.id == id, kind.attempt == attempt, kind.lease_owner == worker_id)
    longer = mine.values(lease_expires=db.now(s) + timedelta(seconds=lease_s)).returning(kind.id)
    if s.scalar(longer.execution_options(synchronize_session=False)) is None:
        raise Fenced(id, attempt)


def hand_back(s: Session, kind: type[Leased], id: str, attempt: int) -> None:
    """The worker goes down in good order: another may take it, and the try does not count. Raises Fenced."""
    let_go(held(s, kind, id, attempt))
    s.flush()


def let_go(row: Leased) -> None:
    row.lease_owner = row.lease_expires = None


def held(s: Session, kind: type[Row], id: str, attempt: int) -> Row:
    """The row, locked, if this attempt still holds it; Fenced otherwise."""
    query = select(kind).where(kind.id == id, kind.attempt == attempt, kind.lease_owner.is_not(None))
    row = s.scalar(query.with_for_update().execution_options(populate_existing=True))
    if row is None:
        raise Fenced(id, attempt)
    return row


def lose(row: Leased, reason: str, most: int) -> str | None:
    """A try did not come to its end, so another worker may take the row: None. Why it is given up, after the last of
    `most` tries; the caller then ends it."""
    let_go(row)
    row.losses += 1
    if row.losses < most:
        return None
    return f"given up after {row.losses} tries that did not finish; the last: {reason}"


def sweep(s: Session, kind: type[Row], moment: Moment, lose: Callable[[Row, str], None]) -> SweepResult:
    """`lose` the rows whose lease has expired, with the reason; ring for those that wait for a worker."""
    query = select(kind).where(kind.state == kind.leased_in).with_for_update(skip_locked=True)
    free = []
    for row in s.scalars(query.execution_options(populate_existing=True)):
        if row.lease_expires is not None and row.lease_expires <= moment.at:
            lose(row, f"no heartbeat from {row.lease_owner}")
        if row.state == kind.leased_in and row.lease_owner is None:
            free.append(row.id)
    s.flush()
    return SweepResult(ring=free)
