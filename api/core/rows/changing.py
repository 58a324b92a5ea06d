"""What people change of a row later: its name, and a job's labels and priority.

Takes a Session inside an open transaction and never commits. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from api.core.errors import Changed
from api.core.rows import lookup
from api.core.rows.columns import Noun
from api.core.rows.lookup import owned

Row = TypeVar("Row", bound=Noun)
IsMeant = Callable[[int], bool]
"""Whether this version is the one to change."""


def rename(s: Session, kind: type[Noun], project_id: str, id: str, *, name: str | None, is_meant: IsMeant) -> None:
    """Another name, whatever state it is in; None: it stays. For tables with a column `name`. Raises NotFound; Changed
    for another version."""
    put(meant(s, kind, project_id, id, is_meant), {"name": name})
    s.flush()


def meant(s: Session, kind: type[Row], project_id: str, id: str, is_meant: IsMeant) -> Row:
    """The row, locked. Raises NotFound; Changed for another version."""
    row = owned(s, kind, project_id, id, locked=True)
    if not is_meant(version := lookup.version(s, kind, project_id, id)):
        raise Changed(id, version)
    return row


def put(row: Noun, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Write what differs, and return it; what is None stays. If nothing differs there is no new version."""
    new = {field: value for field, value in wanted.items() if value is not None and value != getattr(row, field)}
    for field, value in new.items():
        setattr(row, field, value)
    return new
