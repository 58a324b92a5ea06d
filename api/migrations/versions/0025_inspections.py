"""Inspections: what the report of a job shows of its networks beside AP."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

PENDING = sa.text("state = 'pending'")


def upgrade() -> None:
    op.create_table(
        "inspections",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("split", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("request", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("device", sa.String(length=16), nullable=False),
        sa.Column("blobs", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("result", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("files", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("error", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expires", sa.DateTime(timezone=True), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "lease_owner IS NULL OR (state = 'pending' AND attempt > 0)", name=op.f("ck_inspections_lease_only_pending")
        ),
        sa.CheckConstraint("(lease_owner IS NULL) = (lease_expires IS NULL)", name=op.f("ck_inspections_lease_whole")),
        sa.CheckConstraint("attempt >= 0 AND losses >= 0", name=op.f("ck_inspections_counts")),
        sa.CheckConstraint("state IN ('pending', 'succeeded', 'failed')", name=op.f("ck_inspections_state")),
        sa.CheckConstraint(
            "(state = 'succeeded') = (result IS NOT NULL)", name=op.f("ck_inspections_succeeded_has_result")
        ),
        sa.CheckConstraint("(result IS NULL) = (files IS NULL)", name=op.f("ck_inspections_result_has_files")),
        sa.CheckConstraint("(state = 'failed') = (error IS NOT NULL)", name=op.f("ck_inspections_failed_has_error")),
        sa.CheckConstraint(
            "(state <> 'pending') = (finished_at IS NOT NULL)", name=op.f("ck_inspections_ended_has_finished_at")
        ),
        sa.CheckConstraint("device IN ('auto', 'cpu', 'cuda')", name=op.f("ck_inspections_device")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_inspections_project_id")),
        sa.ForeignKeyConstraint(
            ["project_id", "job_id"], ["jobs.project_id", "jobs.id"], name=op.f("fk_inspections_project_id_job_id"),
            ondelete="CASCADE",
        ),
        sa.UniqueConstraint("job_id", "split", name=op.f("uq_inspections_job_id_split")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_inspections")),
    )
    op.create_index("ix_inspections_page", "inspections", ["project_id", "created_at", "id"])
    op.create_index(
        "ix_inspections_pending", "inspections", ["created_at"], sqlite_where=PENDING, postgresql_where=PENDING
    )


def downgrade() -> None:
    op.drop_table("inspections")
