"""Data sets and models remember the same of their upload: the length of the whole, and the SHA-256 for good."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("models", sa.Column("upload_length", sa.BigInteger(), nullable=True))
    op.add_column("datasets", sa.Column("upload_sha256", sa.String(length=64), nullable=True))
    op.execute("UPDATE datasets SET upload_sha256 = upload_digest WHERE upload_digest IS NOT NULL")


def downgrade() -> None:
    op.drop_column("datasets", "upload_sha256")
    op.drop_column("models", "upload_length")
