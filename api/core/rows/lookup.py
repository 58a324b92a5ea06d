"""The row of a project by its id, which is what every verb of people begins with; and its end."""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.core.errors import Conflict, NotFound
from api.core.rows.columns import Noun

Row = TypeVar("Row", bound=Noun)


def owned(s: Session, kind: type[Row], project_id: str, id: str, *, locked: bool = False) -> Row:
    """Raises NotFound, for another project's row too. locked: nobody else writes it before the commit."""
    query = select(kind).where(kind.project_id == project_id, kind.id == id)
    if locked:
        query = query.with_for_update().execution_options(populate_existing=True)
    row = s.scalar(query)
    if row is None:
        raise NotFound(kind.noun(), id)  # job_not_found, dataset_not_found, ...
    return row


def delete_row(s: Session, row: Noun) -> None:
    """Raises Conflict while a row of any other table refers to it. Its blobs stay until nothing refers to them."""
    in_use = Conflict(f"{row.noun()}_in_use", f"something else still refers to {row.id}; delete that first")
    try:
        s.delete(row)
        s.flush()
    except IntegrityError as error:
        raise in_use from error
