"""Checkpoints that are kept: the best, and those that somebody pinned."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("best", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("checkpoints", sa.Column("pinned", sa.Boolean(), server_default=sa.false(), nullable=False))


def downgrade() -> None:
    op.drop_column("checkpoints", "pinned")
    op.drop_column("checkpoints", "best")
