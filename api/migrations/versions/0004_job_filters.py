"""Indexes for lists of jobs by state and name and for what refers to a job; when a blob fell out of use."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_INDEXES = {
    "ix_jobs_page_by_state": ("jobs", ["project_id", "state", "created_at", "id"]),
    "ix_jobs_page_by_name": ("jobs", ["project_id", "name", "created_at", "id"]),
    "ix_jobs_teacher": ("jobs", ["project_id", "teacher_job_id"]),
    "ix_jobs_inherit": ("jobs", ["project_id", "inherit_job_id"]),
    "ix_artifacts_blob": ("artifacts", ["digest", "project_id"]),
}


def upgrade() -> None:
    op.add_column("blobs", sa.Column("unused_since", sa.DateTime(timezone=True), nullable=True))
    for name, (table, columns) in _INDEXES.items():
        op.create_index(name, table, columns)


def downgrade() -> None:
    for name, (table, _) in _INDEXES.items():
        op.drop_index(name, table_name=table)
    op.drop_column("blobs", "unused_since")  # not in batch: a new copy of a table that others refer to breaks them
