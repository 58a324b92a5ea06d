"""An Idempotency-Key may have made a data set."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_FK = "fk_idempotency_keys_project_id_dataset_id"
_CHECK = "ck_idempotency_keys_made_one"


def upgrade() -> None:
    with op.batch_alter_table("idempotency_keys") as table:
        table.add_column(sa.Column("dataset_id", sa.String(length=40), nullable=True))
        table.alter_column("job_id", existing_type=sa.String(length=40), nullable=True)
        table.create_foreign_key(
            op.f(_FK), "datasets", ["project_id", "dataset_id"], ["project_id", "id"], ondelete="CASCADE"
        )
        table.create_check_constraint(op.f(_CHECK), "(job_id IS NULL) <> (dataset_id IS NULL)")


def downgrade() -> None:
    op.execute("DELETE FROM idempotency_keys WHERE job_id IS NULL")
    with op.batch_alter_table("idempotency_keys") as table:
        table.drop_constraint(op.f(_CHECK), type_="check")
        table.drop_constraint(op.f(_FK), type_="foreignkey")
        table.alter_column("job_id", existing_type=sa.String(length=40), nullable=False)
        table.drop_column("dataset_id")
