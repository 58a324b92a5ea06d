"""Models, which jobs refer to them, and an Idempotency-Key that may have made one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_FK = "fk_idempotency_keys_project_id_model_id"
_CHECK = "ck_idempotency_keys_made_one"
_ONE_OF_TWO = "(job_id IS NULL) <> (dataset_id IS NULL)"
_ONE_OF_THREE = (
    "CASE WHEN job_id IS NULL THEN 0 ELSE 1 END + CASE WHEN dataset_id IS NULL THEN 0 ELSE 1 END"
    " + CASE WHEN model_id IS NULL THEN 0 ELSE 1 END = 1"
)


def upgrade() -> None:
    op.create_table(
        "models",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("recipe", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("source", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("upload_digest", sa.String(length=64), nullable=True),
        sa.Column("upload_sha256", sa.String(length=64), nullable=True),
        sa.Column("weights_digest", sa.String(length=64), nullable=True),
        sa.Column("recipe_digest", sa.String(length=64), nullable=True),
        sa.Column("tensors_digest", sa.String(length=64), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expires", sa.DateTime(timezone=True), nullable=True),
        sa.Column("report", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('awaiting_upload', 'verifying', 'ready', 'rejected')", name=op.f("ck_models_state")
        ),
        sa.CheckConstraint(
            "(state = 'verifying') = (upload_digest IS NOT NULL)", name=op.f("ck_models_verifying_has_upload")
        ),
        sa.CheckConstraint("(state = 'ready') = (weights_digest IS NOT NULL)", name=op.f("ck_models_ready_has_weights")),
        sa.CheckConstraint(
            "(weights_digest IS NULL) = (recipe_digest IS NULL)", name=op.f("ck_models_weights_have_recipe")
        ),
        sa.CheckConstraint(
            "(weights_digest IS NULL) = (tensors_digest IS NULL)", name=op.f("ck_models_weights_have_tensors")
        ),
        sa.CheckConstraint("(weights_digest IS NULL) = (size IS NULL)", name=op.f("ck_models_weights_have_size")),
        sa.CheckConstraint("(state = 'rejected') = (error IS NOT NULL)", name=op.f("ck_models_rejected_has_error")),
        sa.CheckConstraint(
            "(state IN ('ready', 'rejected')) = (finished_at IS NOT NULL)", name=op.f("ck_models_ended_has_finished_at")
        ),
        sa.CheckConstraint("(lease_owner IS NULL) = (lease_expires IS NULL)", name=op.f("ck_models_lease_whole")),
        sa.CheckConstraint(
            "lease_owner IS NULL OR (state = 'verifying' AND attempt > 0)", name=op.f("ck_models_lease_only_verifying")
        ),
        sa.CheckConstraint("attempt >= 0 AND losses >= 0", name=op.f("ck_models_counts")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_models_project_id")),
        sa.ForeignKeyConstraint(
            ["project_id", "upload_digest"],
            ["blobs.project_id", "blobs.digest"],
            name=op.f("fk_models_project_id_upload_digest"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "weights_digest"],
            ["blobs.project_id", "blobs.digest"],
            name=op.f("fk_models_project_id_weights_digest"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "recipe_digest"],
            ["blobs.project_id", "blobs.digest"],
            name=op.f("fk_models_project_id_recipe_digest"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_models_project_id_id")),
    )
    op.create_index("ix_models_page", "models", ["project_id", "created_at", "id"])
    op.create_index(
        "ix_models_verifying",
        "models",
        ["created_at"],
        sqlite_where=sa.text("state = 'verifying'"),
        postgresql_where=sa.text("state = 'verifying'"),
    )
    op.create_table(
        "job_models",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("model_id", sa.String(length=40), nullable=False),
        sa.CheckConstraint("role IN ('teacher', 'inherit', 'weights')", name=op.f("ck_job_models_role")),
        sa.ForeignKeyConstraint(
            ["project_id", "job_id"],
            ["jobs.project_id", "jobs.id"],
            name=op.f("fk_job_models_project_id_job_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "model_id"],
            ["models.project_id", "models.id"],
            name=op.f("fk_job_models_project_id_model_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", "role", name=op.f("pk_job_models")),
    )
    op.create_index("ix_job_models_model", "job_models", ["model_id"])
    with op.batch_alter_table("idempotency_keys") as table:
        table.drop_constraint(op.f(_CHECK), type_="check")
        table.add_column(sa.Column("model_id", sa.String(length=40), nullable=True))
        table.create_foreign_key(
            op.f(_FK), "models", ["project_id", "model_id"], ["project_id", "id"], ondelete="CASCADE"
        )
        table.create_check_constraint(op.f(_CHECK), _ONE_OF_THREE)


def downgrade() -> None:
    op.execute("DELETE FROM idempotency_keys WHERE model_id IS NOT NULL")
    with op.batch_alter_table("idempotency_keys") as table:
        table.drop_constraint(op.f(_CHECK), type_="check")
        table.drop_constraint(op.f(_FK), type_="foreignkey")
        table.drop_column("model_id")
        table.create_check_constraint(op.f(_CHECK), _ONE_OF_TWO)
    op.drop_index("ix_job_models_model", table_name="job_models")
    op.drop_table("job_models")
    op.drop_index(
        "ix_models_verifying",
        table_name="models",
        sqlite_where=sa.text("state = 'verifying'"),
        postgresql_where=sa.text("state = 'verifying'"),
    )
    op.drop_index("ix_models_page", table_name="models")
    op.drop_table("models")
