"""What the methods of a job look at, after each step that is shown."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job_focus",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=True),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("(step IS NULL) = (epoch IS NULL)", name=op.f("ck_job_focus_step_has_epoch")),
        sa.ForeignKeyConstraint(
            ["project_id", "job_id"],
            ["jobs.project_id", "jobs.id"],
            name=op.f("fk_job_focus_project_id_job_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "digest"],
            ["blobs.project_id", "blobs.digest"],
            name=op.f("fk_job_focus_project_id_digest"),
        ),
        sa.PrimaryKeyConstraint("job_id", "name", name=op.f("pk_job_focus")),
    )
    op.create_index("ix_job_focus_blob", "job_focus", ["digest", "project_id"])


def downgrade() -> None:
    op.drop_table("job_focus")
