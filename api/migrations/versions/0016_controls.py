"""A job knows its AP, and what it has in common with its control: lists are sorted by both."""

from __future__ import annotations

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

BATCH = 500
COLUMNS = ("twin", "taught", "ap", "ap_step")
QUEUED = sa.text("state = 'queued'")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("twin", sa.String(length=32), nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("taught", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("jobs", sa.Column("ap", sa.Double(), nullable=True))
    op.add_column("jobs", sa.Column("ap_step", sa.BigInteger(), nullable=True))
    op.create_index("ix_jobs_twin", "jobs", ["project_id", "twin", "taught"])
    latest = "SELECT {} FROM series WHERE series.job_id = jobs.id AND series.name = 'ap' AND series.split = 'val'"
    for column, of in (("ap", "latest_value"), ("ap_step", "latest_step")):
        op.execute(f"UPDATE jobs SET {column} = ({latest.format(of)})")
    _fill_twins()


def _fill_twins() -> None:
    bind = op.get_bind()
    jobs = sa.table("jobs", sa.column("id"), sa.column("spec", sa.JSON()), sa.column("twin"), sa.column("taught"))
    put = jobs.update().where(jobs.c.id == sa.bindparam("of"))
    put = put.values(twin=sa.bindparam("as_twin"), taught=sa.bindparam("as_taught", type_=sa.Boolean()))
    after = ""
    while True:
        rows = bind.execute(
            sa.select(jobs.c.id, jobs.c.spec).where(jobs.c.id > after).order_by(jobs.c.id).limit(BATCH)
        ).all()
        if not rows:
            return
        told = [
            {"of": id, "as_twin": _twin(spec), "as_taught": spec.get("teacher") is not None} for id, spec in rows
        ]
        bind.execute(put, told)
        after = rows[-1].id


def _twin(spec: dict) -> str:
    """As api/core/jobs/controls.py does at this version."""
    schedule = dict(spec.get("schedule") or {})
    for name in ("checkpoint_s", "checkpoint_steps", "on_non_finite"):
        schedule.pop(name, None)
    common = {**{name: spec.get(name) for name in ("student", "dataset", "seed")}, "schedule": schedule}
    text = json.dumps(_without_nulls(common), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def downgrade() -> None:
    op.drop_index("ix_jobs_twin", table_name="jobs")
    op.drop_index("ix_jobs_queued", table_name="jobs")
    with op.batch_alter_table("jobs") as table:
        for column in COLUMNS:
            table.drop_column(column)
    columns = [sa.text("priority DESC"), "created_at", "id"]
    op.create_index("ix_jobs_queued", "jobs", columns, sqlite_where=QUEUED, postgresql_where=QUEUED)
