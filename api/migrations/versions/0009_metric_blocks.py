"""Blocks of metric points: the extremes of 64 neighbours, for plots of long jobs. Those of old jobs are made here."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_FILL = """
INSERT INTO metric_blocks
    (job_id, series_id, last_step, project_id, first_step, least, least_step, greatest, greatest_step)
SELECT b.job_id, b.series_id, b.last_step, b.project_id, b.first_step, b.least,
    (SELECT p.step FROM metric_points p WHERE p.job_id = b.job_id AND p.series_id = b.series_id
        AND p.step BETWEEN b.first_step AND b.last_step AND p.value = b.least ORDER BY p.step LIMIT 1),
    b.greatest,
    (SELECT p.step FROM metric_points p WHERE p.job_id = b.job_id AND p.series_id = b.series_id
        AND p.step BETWEEN b.first_step AND b.last_step AND p.value = b.greatest ORDER BY p.step LIMIT 1)
FROM (
    SELECT job_id, series_id, project_id, number, min(step) AS first_step, max(step) AS last_step,
        min(value) AS least, max(value) AS greatest
    FROM (
        SELECT job_id, series_id, project_id, step, value,
            (row_number() OVER (PARTITION BY job_id, series_id ORDER BY step) - 1) / 64 AS number
        FROM metric_points
    ) AS numbered
    GROUP BY job_id, series_id, project_id, number
    HAVING count(*) = 64
) AS b
"""
_COVERED = """
UPDATE series SET covered = (
    SELECT max(b.last_step) FROM metric_blocks b WHERE b.job_id = series.job_id AND b.series_id = series.id
)
"""
_LOOSE = """
UPDATE series SET loose = (
    SELECT count(*) FROM metric_points p WHERE p.job_id = series.job_id AND p.series_id = series.id
        AND (series.covered IS NULL OR p.step > series.covered)
)
"""


def upgrade() -> None:
    op.create_table(
        "metric_blocks",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("series_id", sa.BigInteger(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("first_step", sa.BigInteger(), nullable=False),
        sa.Column("least", sa.Double(), nullable=True),
        sa.Column("least_step", sa.BigInteger(), nullable=True),
        sa.Column("greatest", sa.Double(), nullable=True),
        sa.Column("greatest_step", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("first_step <= last_step", name=op.f("ck_metric_blocks_steps")),
        sa.ForeignKeyConstraint(
            ["project_id", "job_id"],
            ["jobs.project_id", "jobs.id"],
            name=op.f("fk_metric_blocks_project_id_job_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["job_id", "series_id"],
            ["series.job_id", "series.id"],
            name=op.f("fk_metric_blocks_job_id_series_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", "series_id", "last_step", name=op.f("pk_metric_blocks")),
    )
    op.add_column("series", sa.Column("covered", sa.BigInteger(), nullable=True))
    op.add_column("series", sa.Column("loose", sa.Integer(), server_default="0", nullable=False))
    for statement in (_FILL, _COVERED, _LOOSE):
        op.execute(statement)


def downgrade() -> None:
    with op.batch_alter_table("series") as batch:
        batch.drop_column("loose")
        batch.drop_column("covered")
    op.drop_table("metric_blocks")
