"""Alembic's entry: runs on the connection that `api.core.rows.db` opened, inside its transaction."""

from __future__ import annotations

import warnings

from alembic import context

from api.core.rows.tables import Base

connection = context.config.attributes["connection"]
COMPARED_NOT = {"ix_jobs_queued"} if connection.dialect.name == "sqlite" else set[str]()
"""Alembic reads an index's order back from PostgreSQL, not from SQLite."""
warnings.filterwarnings("ignore", message="autogenerate skipping metadata-specified expression-based index")
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=connection.dialect.name == "sqlite",  # SQLite changes a table by rewriting it
    compare_type=True,
    include_name=lambda name, kind, _: not (kind == "index" and name in COMPARED_NOT),
    include_object=lambda _, name, kind, *__: not (kind == "index" and name in COMPARED_NOT),
)
with context.begin_transaction():
    context.run_migrations()
