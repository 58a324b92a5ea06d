"""A data set may be uploaded as a zip, and may lack a val split."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_FK = "fk_datasets_project_id_upload_digest"
_STATE = "ck_datasets_state"
_ENDED = "ck_datasets_ended_has_finished_at"
_NO_PATH = "ck_datasets_awaiting_has_no_path"
_DIGEST = "ck_datasets_verifying_upload_has_digest"


def upgrade() -> None:
    with op.batch_alter_table("datasets") as table:
        table.add_column(sa.Column("val_fraction", sa.Double(), nullable=True))
        table.add_column(sa.Column("group_by", sa.String(length=16), server_default="none", nullable=False))
        table.add_column(sa.Column("upload_length", sa.BigInteger(), nullable=True))
        table.add_column(sa.Column("upload_digest", sa.String(length=64), nullable=True))
        table.alter_column("path", existing_type=sa.Text(), nullable=True)
        table.create_foreign_key(
            op.f(_FK), "blobs", ["project_id", "upload_digest"], ["project_id", "digest"]
        )
        table.drop_constraint(op.f(_STATE), type_="check")
        table.drop_constraint(op.f(_ENDED), type_="check")
        table.create_check_constraint(
            op.f(_STATE), "state IN ('awaiting_upload', 'verifying', 'ready', 'rejected')"
        )
        table.create_check_constraint(
            op.f(_ENDED), "(state IN ('ready', 'rejected')) = (finished_at IS NOT NULL)"
        )
        table.create_check_constraint(op.f(_NO_PATH), "state <> 'awaiting_upload' OR path IS NULL")
        table.create_check_constraint(
            op.f(_DIGEST), "(state = 'verifying' AND path IS NULL) = (upload_digest IS NOT NULL)"
        )


def downgrade() -> None:
    op.execute("DELETE FROM datasets WHERE state = 'awaiting_upload' OR upload_digest IS NOT NULL")
    op.execute("UPDATE datasets SET path = '' WHERE path IS NULL")
    with op.batch_alter_table("datasets") as table:
        for name in (_DIGEST, _NO_PATH, _ENDED, _STATE):
            table.drop_constraint(op.f(name), type_="check")
        table.create_check_constraint(op.f(_STATE), "state IN ('verifying', 'ready', 'rejected')")
        table.create_check_constraint(op.f(_ENDED), "(state <> 'verifying') = (finished_at IS NOT NULL)")
        table.drop_constraint(op.f(_FK), type_="foreignkey")
        table.alter_column("path", existing_type=sa.Text(), nullable=False)
        for name in ("upload_digest", "upload_length", "group_by", "val_fraction"):
            table.drop_column(name)
