"""Plans: what a job would do and cost."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "plans",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("spec", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("inputs", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("device", sa.String(length=16), nullable=False),
        sa.Column("outline", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expires", sa.DateTime(timezone=True), nullable=True),
        sa.Column("measured", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("error", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('measuring', 'measured', 'failed')", name=op.f("ck_plans_state")),
        sa.CheckConstraint("(state = 'measured') = (measured IS NOT NULL)", name=op.f("ck_plans_measured_has_figures")),
        sa.CheckConstraint("(state = 'failed') = (error IS NOT NULL)", name=op.f("ck_plans_failed_has_error")),
        sa.CheckConstraint(
            "(state <> 'measuring') = (finished_at IS NOT NULL)", name=op.f("ck_plans_ended_has_finished_at")
        ),
        sa.CheckConstraint("(lease_owner IS NULL) = (lease_expires IS NULL)", name=op.f("ck_plans_lease_whole")),
        sa.CheckConstraint(
            "lease_owner IS NULL OR (state = 'measuring' AND attempt > 0)", name=op.f("ck_plans_lease_only_measuring")
        ),
        sa.CheckConstraint("device IN ('auto', 'cpu', 'cuda')", name=op.f("ck_plans_device")),
        sa.CheckConstraint("attempt >= 0 AND losses >= 0", name=op.f("ck_plans_counts")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_plans_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plans")),
    )
    op.create_index(
        "ix_plans_measuring",
        "plans",
        ["created_at"],
        sqlite_where=sa.text("state = 'measuring'"),
        postgresql_where=sa.text("state = 'measuring'"),
    )


def downgrade() -> None:
    op.drop_table("plans")
