"""A job may have several teachers: the role of each has its name in it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_CHECK = "ck_job_models_role"
_ONE_TEACHER = "role IN ('teacher', 'inherit', 'weights')"


def upgrade() -> None:
    with op.batch_alter_table("job_parents") as table:
        table.alter_column("role", existing_type=sa.String(length=16), type_=sa.String(length=64))
    with op.batch_alter_table("job_models") as table:
        table.alter_column("role", existing_type=sa.String(length=16), type_=sa.String(length=64))
        table.drop_constraint(op.f(_CHECK), type_="check")
        table.create_check_constraint(op.f(_CHECK), f"{_ONE_TEACHER} OR role LIKE 'teachers/%'")


def downgrade() -> None:
    for name in ("job_parents", "job_models"):  # jobs that a version with one teacher cannot run anyway
        op.execute(f"DELETE FROM {name} WHERE role LIKE 'teachers/%'")
    with op.batch_alter_table("job_models") as table:
        table.drop_constraint(op.f(_CHECK), type_="check")
        table.create_check_constraint(op.f(_CHECK), _ONE_TEACHER)
        table.alter_column("role", existing_type=sa.String(length=64), type_=sa.String(length=16))
    with op.batch_alter_table("job_parents") as table:
        table.alter_column("role", existing_type=sa.String(length=64), type_=sa.String(length=16))
