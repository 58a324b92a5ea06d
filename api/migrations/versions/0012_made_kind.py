"""An Idempotency-Key names what it made by kind and id: a new kind needs no column here."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

KINDS = {"job": "jobs", "dataset": "datasets", "model": "models"}
_CHECK = "ck_idempotency_keys_made_one"
_ONE = (
    "CASE WHEN job_id IS NULL THEN 0 ELSE 1 END + CASE WHEN dataset_id IS NULL THEN 0 ELSE 1 END"
    " + CASE WHEN model_id IS NULL THEN 0 ELSE 1 END = 1"
)


def _key(kind: str) -> str:
    return f"fk_idempotency_keys_project_id_{kind}_id"


def upgrade() -> None:
    with op.batch_alter_table("idempotency_keys") as table:
        table.add_column(sa.Column("made_kind", sa.String(length=32), nullable=True))
        table.add_column(sa.Column("made_id", sa.String(length=40), nullable=True))
    for kind in KINDS:
        made = f"UPDATE idempotency_keys SET made_kind = '{kind}', made_id = {kind}_id WHERE {kind}_id IS NOT NULL"
        op.execute(made)
    with op.batch_alter_table("idempotency_keys") as table:
        table.drop_constraint(op.f(_CHECK), type_="check")
        for kind in KINDS:
            table.drop_constraint(op.f(_key(kind)), type_="foreignkey")
            table.drop_column(f"{kind}_id")
        table.alter_column("made_kind", existing_type=sa.String(length=32), nullable=False)
        table.alter_column("made_id", existing_type=sa.String(length=40), nullable=False)


def downgrade() -> None:
    """Keys of things that are gone, or of later kinds, are forgotten: there the tables before forgot them too."""
    with op.batch_alter_table("idempotency_keys") as table:
        for kind in KINDS:
            table.add_column(sa.Column(f"{kind}_id", sa.String(length=40), nullable=True))
    for kind, things in KINDS.items():
        there = f"made_kind = '{kind}' AND made_id IN (SELECT id FROM {things})"
        op.execute(f"UPDATE idempotency_keys SET {kind}_id = made_id WHERE {there}")
    op.execute("DELETE FROM idempotency_keys WHERE job_id IS NULL AND dataset_id IS NULL AND model_id IS NULL")
    with op.batch_alter_table("idempotency_keys") as table:
        for kind, things in KINDS.items():
            table.create_foreign_key(
                op.f(_key(kind)), things, ["project_id", f"{kind}_id"], ["project_id", "id"], ondelete="CASCADE"
            )
        table.create_check_constraint(op.f(_CHECK), _ONE)
        table.drop_column("made_kind")
        table.drop_column("made_id")
