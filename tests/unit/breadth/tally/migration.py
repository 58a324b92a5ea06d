"""Tallies: the boxes of each class in a data set."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "NEXT"
down_revision = "HEAD"
branch_labels = None
depends_on = None

COUNTING = sa.text("state = 'counting'")


def upgrade() -> None:
    op.create_table(
        "tallies",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("inputs", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("counts", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("listing_digest", sa.String(length=64), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expires", sa.DateTime(timezone=True), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('counting', 'counted', 'failed')", name=op.f("ck_tallies_state")),
        sa.CheckConstraint("(state = 'counted') = (counts IS NOT NULL)", name=op.f("ck_tallies_counted_has_counts")),
        sa.CheckConstraint("(counts IS NULL) = (listing_digest IS NULL)", name=op.f("ck_tallies_counts_have_listing")),
        sa.CheckConstraint("(state = 'failed') = (error IS NOT NULL)", name=op.f("ck_tallies_failed_has_error")),
        sa.CheckConstraint(
            "(state <> 'counting') = (finished_at IS NOT NULL)", name=op.f("ck_tallies_ended_has_finished_at")
        ),
        sa.CheckConstraint("(lease_owner IS NULL) = (lease_expires IS NULL)", name=op.f("ck_tallies_lease_whole")),
        sa.CheckConstraint(
            "lease_owner IS NULL OR (state = 'counting' AND attempt > 0)", name=op.f("ck_tallies_lease_only_counting")
        ),
        sa.CheckConstraint("attempt >= 0 AND losses >= 0", name=op.f("ck_tallies_counts")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_tallies_project_id")),
        sa.ForeignKeyConstraint(
            ["project_id", "listing_digest"],
            ["blobs.project_id", "blobs.digest"],
            name=op.f("fk_tallies_project_id_listing_digest"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tallies")),
    )
    op.create_index("ix_tallies_page", "tallies", ["project_id", "created_at", "id"])
    op.create_index("ix_tallies_counting", "tallies", ["created_at"], sqlite_where=COUNTING, postgresql_where=COUNTING)


def downgrade() -> None:
    op.drop_table("tallies")
