"""Pause, resume and stop; what an attempt ran with and lost; what a worker complains of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_REQUESTED, _OUTCOME = "ck_jobs_requested", "ck_job_attempts_outcome"
_OF_RUNNING = "requested IS NULL OR (state = 'running' AND requested IN ('pause', 'cancel', 'cancel_now', 'stop'))"
_ENDS = "'succeeded', 'failed', 'cancelled', 'lost', 'handed_back'"
_OF_ATTEMPTS = {
    "code": sa.String(length=32),
    "device": sa.Text(),
    "spec": sa.JSON(none_as_null=True),
    "first_step": sa.BigInteger(),
    "last_step": sa.BigInteger(),
    "lost_steps": sa.BigInteger(),
}


def upgrade() -> None:
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("batch_size", sa.Integer(), nullable=True))
        table.drop_constraint(op.f(_REQUESTED), type_="check")
        table.create_check_constraint(
            op.f(_REQUESTED), f"{_OF_RUNNING} OR (state = 'queued' AND requested = 'stop')"
        )
        table.create_check_constraint(op.f("ck_jobs_batch_size"), "batch_size IS NULL OR batch_size > 0")
    with op.batch_alter_table("job_attempts") as table:
        for name, kind in _OF_ATTEMPTS.items():
            table.add_column(sa.Column(name, kind, nullable=True))
        table.drop_constraint(op.f(_OUTCOME), type_="check")
        table.create_check_constraint(op.f(_OUTCOME), f"outcome IS NULL OR outcome IN ({_ENDS}, 'paused')")
    with op.batch_alter_table("workers") as table:
        table.add_column(sa.Column("complaint", sa.Text(), nullable=True))


def downgrade() -> None:
    op.execute("UPDATE jobs SET requested = NULL WHERE state = 'queued'")
    op.execute("UPDATE job_attempts SET outcome = 'handed_back' WHERE outcome = 'paused'")
    with op.batch_alter_table("workers") as table:
        table.drop_column("complaint")
    with op.batch_alter_table("job_attempts") as table:
        table.drop_constraint(op.f(_OUTCOME), type_="check")
        table.create_check_constraint(op.f(_OUTCOME), f"outcome IS NULL OR outcome IN ({_ENDS})")
        for name in _OF_ATTEMPTS:
            table.drop_column(name)
    with op.batch_alter_table("jobs") as table:
        table.drop_constraint(op.f("ck_jobs_batch_size"), type_="check")
        table.drop_constraint(op.f(_REQUESTED), type_="check")
        table.create_check_constraint(op.f(_REQUESTED), _OF_RUNNING)
        table.drop_column("batch_size")
