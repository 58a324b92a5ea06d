"""The row of a project by its id, which is what every verb of people begins with, and its end; or its version alone, or
some of its columns, for those who poll.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, bindparam, literal, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Session

from api.core.errors import Conflict, NotFound
from api.core.rows.columns import Noun
from api.core.rows.db import Columns, Query, Reader

Column = InstrumentedAttribute[Any] | ColumnElement[Any]
Row = TypeVar("Row", bound=Noun)


@dataclass(frozen=True)
class Seen:
    """A row at one look."""

    version: int
    ended: bool
    """It changes no more by itself."""
    event_seq: int
    """Of a job; 0 for others."""


def owned(s: Session, kind: type[Row], project_id: str, id: str, *, locked: bool = False) -> Row:
    """Raises NotFound, for another project's row too. locked: nobody else writes it before the commit."""
    query = select(kind).where(kind.project_id == project_id, kind.id == id)
    if locked:
        query = query.with_for_update().execution_options(populate_existing=True)
    row = s.scalar(query)
    if row is None:
        raise not_found(kind, id)
    return row


def delete_row(s: Session, row: Noun) -> None:
    """Raises Conflict while a row of any other table refers to it. Its blobs stay until nothing refers to them."""
    in_use = Conflict(f"{row.noun()}_in_use", f"something else still refers to {row.id}; delete that first")
    try:
        s.delete(row)
        s.flush()
    except IntegrityError as error:
        raise in_use from error


def version(s: Reader, kind: type[Noun], project_id: str, id: str) -> int:
    """One column, which its ETag names. Raises NotFound."""
    found = s.scalar(_version(kind), {"project": project_id, "row": id})  # type: ignore[arg-type]  # a class has a hash
    if found is None:
        raise not_found(kind, id)
    return int(found)


def seen(s: Reader, kind: type[Noun], ids: Sequence[str]) -> dict[str, Seen]:
    """Rows of any project, by id; those that are gone are left out."""
    rows = s.execute(_seen(kind), {"ids": list(ids)})  # type: ignore[arg-type]
    return {id: Seen(*what) for id, *what in rows}


def columns_of(s: Reader, query: Query, kind: type[Noun], project_id: str, id: str) -> Columns:
    """The row of a query made by `by_id`. Raises NotFound."""
    found = s.execute(query, {"project": project_id, "row": id}).one_or_none()
    if found is None:
        raise not_found(kind, id)
    return found


def by_id(kind: type[Noun], *columns: Column) -> Query:
    """Made once and asked often: writing a statement down takes ten times as long as asking it."""
    return select(*columns).where(kind.project_id == bindparam("project"), kind.id == bindparam("row"))


def not_found(kind: type[Noun], id: str) -> NotFound:
    return NotFound(kind.noun(), id)  # job_not_found, dataset_not_found, ...


@cache
def _version(kind: type[Noun]) -> Query:
    return by_id(kind, kind.version_shown())


@cache
def _seen(kind: type[Noun]) -> Query:
    seq = getattr(kind, "event_seq", literal(0))
    columns = (kind.id, kind.version_shown(), kind.end_shown().is_not(None), seq)
    return select(*columns).where(kind.id.in_(bindparam("ids", expanding=True)))
