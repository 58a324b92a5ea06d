"""Which jobs a job refers to, in whatever field: a table in place of a column for each of two."""

from __future__ import annotations

from contextlib import AbstractContextManager

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

COLUMNS = {"teacher": "teacher_job_id", "inherit": "inherit_job_id"}
QUEUED = sa.text("state = 'queued'")


def _begun_from() -> str:
    """The job that student.weights names, which had no column."""
    if op.get_bind().dialect.name == "postgresql":
        return "spec -> 'student' -> 'weights' ->> 'job'"
    return "json_extract(spec, '$.student.weights.job')"


def upgrade() -> None:
    op.create_table(
        "job_parents",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("parent_id", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id", "job_id"],
            ["jobs.project_id", "jobs.id"],
            name=op.f("fk_job_parents_project_id_job_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "parent_id"],
            ["jobs.project_id", "jobs.id"],
            name=op.f("fk_job_parents_project_id_parent_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", "role", name=op.f("pk_job_parents")),
    )
    op.create_index("ix_job_parents_parent", "job_parents", ["parent_id"])
    for role, parent in {**COLUMNS, "weights": _begun_from()}.items():
        op.execute(
            "INSERT INTO job_parents (job_id, role, project_id, parent_id)"
            f" SELECT id, '{role}', project_id, parent FROM (SELECT id, project_id, {parent} AS parent FROM jobs) AS j"
            " WHERE EXISTS (SELECT 1 FROM jobs AS p WHERE p.id = j.parent AND p.project_id = j.project_id)"
        )
    for role in COLUMNS:
        op.drop_index(f"ix_jobs_{role}", table_name="jobs")
    with _jobs() as table:
        for column in COLUMNS.values():
            table.drop_constraint(op.f(f"fk_jobs_project_id_{column}"), type_="foreignkey")
            table.drop_column(column)
    _index_queue()


def downgrade() -> None:
    with _jobs() as table:
        for column in COLUMNS.values():
            table.add_column(sa.Column(column, sa.String(length=40), nullable=True))
    for role, column in COLUMNS.items():
        parent = f"SELECT parent_id FROM job_parents WHERE job_id = jobs.id AND role = '{role}'"
        op.execute(f"UPDATE jobs SET {column} = ({parent})")
    with op.batch_alter_table("jobs") as table:
        for column in COLUMNS.values():
            key = op.f(f"fk_jobs_project_id_{column}")
            table.create_foreign_key(key, "jobs", ["project_id", column], ["project_id", "id"])
    for role, column in COLUMNS.items():
        op.create_index(f"ix_jobs_{role}", "jobs", ["project_id", column])
    _index_queue()
    op.drop_table("job_parents")


def _jobs() -> AbstractContextManager[BatchOperations]:
    """SQLite rewrites the table, and does not say again that the index of the queue falls by priority."""
    op.drop_index("ix_jobs_queued", table_name="jobs")
    return op.batch_alter_table("jobs")


def _index_queue() -> None:
    columns = [sa.text("priority DESC"), "created_at", "id"]
    op.create_index("ix_jobs_queued", "jobs", columns, sqlite_where=QUEUED, postgresql_where=QUEUED)
