"""What the code must not write, the database refuses."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import JSON, inspect
from sqlalchemy.exc import IntegrityError

from api.core import models
from api.core.blobs import columns_of
from api.core.request_bodies import UploadModel
from api.core.rows import db
from api.core.rows.columns import BlobDigest, BlobFiles
from api.core.rows.tables import DEFAULT_PROJECT, Base

IMPOSSIBLE = {
    "queued": [
        "state = 'succeeded', finished_at = created_at",
        "state = 'failed', finished_at = created_at",
        "state = 'cancelled'",
        "state = 'running', attempt = 1, started_at = created_at",
        "state = 'dreaming'",
        "finished_at = created_at",
        "weights_digest = 'x'",
        "failure_code = 'worker_lost', failure_message = 'x'",
        "requested = 'cancel'",
        "phase = 'training'",
        "lease_owner = 'wrk_a', lease_expires = created_at",
        "attempt = 1",
        "attempt = -1",
        "device = 'tpu'",
        "dataset_id = 'ds_none'",
        "project_id = 'prj_other'",
    ],
    "running": [
        "lease_owner = NULL",
        "lease_expires = NULL",
        "requested = 'dance'",
        "attempt = 0",
        "state = 'queued'",
        "state = 'failed', lease_owner = NULL, lease_expires = NULL, phase = NULL, finished_at = created_at,"
        " failure_code = 'bad_luck', failure_message = 'x'",
    ],
}


@pytest.mark.parametrize(("state", "change"), [(state, change) for state in IMPOSSIBLE for change in IMPOSSIBLE[state]])
def test_an_impossible_job_is_refused(given: Any, state: str, change: str) -> None:
    given.running() if state == "running" else given.job()

    with pytest.raises(IntegrityError), given.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE jobs SET {change}")


@pytest.mark.parametrize(
    "change",
    [
        "state = 'verifying'",
        "state = 'rejected'",
        "archive_digest = NULL",
        "index_digest = NULL",
        "archive_digest = 'no such blob'",
        "error = 'x'",
        "lease_owner = 'wrk_a', lease_expires = created_at",
        "finished_at = NULL",
    ],
)
def test_an_impossible_data_set_is_refused(given: Any, change: str) -> None:
    given.dataset()

    with pytest.raises(IntegrityError), given.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE datasets SET {change}")


def test_a_job_has_one_live_attempt_and_one_end(given: Any) -> None:
    id = given.running()
    copy_attempt = (
        "INSERT INTO job_attempts SELECT job_id, 2, project_id, worker_id, host, started_at, NULL, NULL, NULL, NULL, 0,"
        " NULL, NULL, NULL, NULL, NULL, NULL FROM job_attempts"
    )
    end = "INSERT INTO job_events SELECT job_id, seq + {}, project_id, 'cancelled', at, 1, '{{}}' FROM job_events"

    with pytest.raises(IntegrityError), given.engine.begin() as connection:
        connection.exec_driver_sql(copy_attempt)
    with given.engine.begin() as connection:
        connection.exec_driver_sql(f"{end.format(10)} WHERE seq = 1")
        with pytest.raises(IntegrityError):
            connection.exec_driver_sql(f"{end.format(20)} WHERE seq = 1")
        connection.rollback()
    assert given.events(id) == ["job_submitted", "job_claimed"]


def test_every_table_carries_the_project(given: Any) -> None:
    for table in Base.metadata.sorted_tables:
        assert "project_id" in table.columns or table.name == "projects"


def test_every_constraint_has_a_name(given: Any) -> None:
    inspector = inspect(given.engine)
    for table in inspector.get_table_names():
        for found in (
            inspector.get_check_constraints(table),
            inspector.get_foreign_keys(table),
            inspector.get_unique_constraints(table),
        ):
            assert all(constraint["name"] for constraint in found), table  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "change",
    [
        "state = 'ready', finished_at = created_at",
        "state = 'rejected', finished_at = created_at",
        "state = 'verifying'",
        "state = 'dreaming'",
        "error = 'x'",
        "finished_at = created_at",
        "weights_digest = 'no such blob'",
        "tensors_digest = 'x'",
        "size = 3",
        "lease_owner = 'wrk_a', lease_expires = created_at",
        "losses = -1",
    ],
)
def test_an_impossible_model_is_refused(given: Any, change: str) -> None:
    with db.transaction(given.engine) as s:
        models.create(
            s,
            DEFAULT_PROJECT,
            UploadModel.model_validate({"name": "m", "detector": {"kind": "fcos"}, "classes": ["a"]}),
        )

    with pytest.raises(IntegrityError), given.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE models SET {change}")


def test_every_column_that_names_blobs_says_so_by_its_type() -> None:
    """By its type the collector finds it; a noun with another one would lose its blobs after an hour."""
    columns = [column for table in Base.metadata.sorted_tables for column in table.columns]
    inputs = {str(column) for column in columns if isinstance(column.type, JSON) and column.name == "inputs"}
    refer = {str(column) for column in columns if any(str(key.column) == "blobs.digest" for key in column.foreign_keys)}

    assert inputs <= {str(column) for column in columns_of(BlobFiles)}
    assert refer <= {str(column) for column in columns_of(BlobDigest)}


def test_a_digest_of_anything_but_a_blob_is_known_to_be_one() -> None:
    """Who adds a digest decides: Digest, or another word in this list."""
    columns = [column for table in Base.metadata.sorted_tables for column in table.columns]
    digests = {str(column) for column in columns if column.name.endswith(("digest", "sha256"))}

    assert digests - {str(column) for column in columns_of(BlobDigest)} == {
        "blobs.digest",
        "checkpoints.sha256",
        "datasets.upload_sha256",
        "idempotency_keys.body_sha256",
        "jobs.weights_digest",
        "models.tensors_digest",
        "models.upload_sha256",
        "tickets.sha256",
    }
