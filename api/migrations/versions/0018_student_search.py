"""Plans that look for a student: their question, and how far they are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("plans", sa.Column("question", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("plans", sa.Column("phase", sa.Text(), nullable=True))


def downgrade() -> None:
    op.execute("DELETE FROM plans WHERE question IS NOT NULL")  # an earlier version would rehearse a job for them
    op.drop_column("plans", "phase")
    op.drop_column("plans", "question")
