"""Alembic's entry: runs on the connection that `api.core.db` opened, inside its transaction."""

from __future__ import annotations

from alembic import context

from api.core.tables import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=connection.dialect.name == "sqlite",  # SQLite changes a table by writing it anew
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
