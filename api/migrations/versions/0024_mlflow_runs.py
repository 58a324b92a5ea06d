"""How far each job has been brought to an MLflow server."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

OPEN = sa.text("NOT done")


def upgrade() -> None:
    op.create_table(
        "mlflow_runs",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("logged_step", sa.BigInteger(), nullable=True),
        sa.Column("seen_version", sa.Integer(), nullable=True),
        sa.Column("done", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=False),
        sa.Column("taken_by", sa.Text(), nullable=True),
        sa.Column("taken_until", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(taken_by IS NULL) = (taken_until IS NULL)", name=op.f("ck_mlflow_runs_taken_whole")),
        sa.CheckConstraint("failures >= 0", name=op.f("ck_mlflow_runs_failures")),
        sa.ForeignKeyConstraint(
            ["project_id", "job_id"],
            ["jobs.project_id", "jobs.id"],
            name=op.f("fk_mlflow_runs_project_id_job_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_mlflow_runs")),
    )
    op.create_index("ix_mlflow_runs_open", "mlflow_runs", ["not_before"], sqlite_where=OPEN, postgresql_where=OPEN)


def downgrade() -> None:
    op.drop_table("mlflow_runs")
