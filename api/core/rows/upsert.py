"""INSERT with ON CONFLICT, which both databases have and SQLAlchemy keeps in two places."""

from __future__ import annotations

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from api.core.rows.tables import Base


def insert_for(s: Session, table: type[Base]) -> sqlite.Insert | postgresql.Insert:
    return sqlite.insert(table) if s.get_bind().dialect.name == "sqlite" else postgresql.insert(table)
