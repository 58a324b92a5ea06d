"""DELETE /v1/jobs/{id}, and the content that nothing refers to any more."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from api.core import blobs, references
from api.core.errors import NotFound
from api.core.jobs import attempts, record, removal, requests
from api.core.lifecycle import Requested
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Base, BlobRow
from api.core.store.names import Blob
from api.core.sweeper import Sweeper
from fgd.events import Stepped
from fgd.references import named_weights
from fgd.spec import SubmitJob

WEIGHTS = b"the weights"


@pytest.fixture
def sweeper(given: Any) -> Sweeper:
    return Sweeper(given.engine, given.store, None, lease_s=20.0)


def cancel(given: Any, id: str) -> None:
    with db.transaction(given.engine) as s:
        requests.request(s, DEFAULT_PROJECT, id, Requested.cancel)


def rows_that_name(given: Any, id: str) -> dict[str, int]:
    found = {}
    with given.engine.connect() as connection:
        for table in Base.metadata.sorted_tables:
            for column in table.columns:
                if column.name in ("job_id", "parent_id") or str(column) == "jobs.id":
                    query = text(f"SELECT count(*) FROM {table.name} WHERE {column.name} = :id")
                    found[f"{table.name}.{column.name}"] = connection.execute(query, {"id": id}).scalar_one()
    return found


def pass_time(given: Any, hours: float) -> None:
    """For blobs: in their rows and on disk."""
    given.earlier("blobs", "unused_since", hours * 3600)
    then = time.time() - hours * 3600
    for file in (given.store.root / "sha256").rglob("*"):
        if file.is_file():
            os.utime(file, (then, then))


def collect(given: Any, sweeper: Sweeper) -> None:
    """Two sweeps, with the grace between them."""
    sweeper.collect()
    pass_time(given, 2)
    sweeper.collect()


def row_of(given: Any, digest: str) -> BlobRow | None:
    with db.reading(given.engine) as s:
        return s.get(BlobRow, (DEFAULT_PROJECT, digest))


# --- the job --------------------------------------------------------------------------------------------------


def test_an_ended_job_goes_with_all_its_rows(client: Any, given: Any) -> None:
    id = client.post("/v1/jobs", json=given.body(), headers={"Idempotency-Key": "k"}).json()["id"]
    given.claim()
    with db.transaction(given.engine) as s:
        record.record(s, id, 1, [Stepped(step=1, epoch=1, values={"loss/total": 1.0})], b"log")
        attempts.checkpoint(s, id, 1, 1, f"jobs/{id}/a1/1.pt", "c" * 64, 7)
        blob = given.store.put_bytes(WEIGHTS)
        attempts.finish(s, id, 1, [attempts.ArtifactIn("student.safetensors", blob.digest, blob.size)], "e" * 64)
    artifact = client.get(f"/v1/jobs/{id}/artifacts").json()["items"][0]["id"]

    answer = client.delete(f"/v1/jobs/{id}")

    assert (answer.status_code, answer.content) == (204, b"")
    assert set(rows_that_name(given, id).values()) == {0}
    assert client.get(f"/v1/jobs/{id}").json()["code"] == "job_not_found"
    assert client.get(f"/v1/artifacts/{artifact}/content").status_code == 404
    assert client.delete(f"/v1/jobs/{id}").json()["code"] == "job_not_found"
    assert client.get("/v1/jobs").json()["items"] == []


def test_the_key_of_a_deleted_job_makes_a_new_one_and_then_only_that(client: Any, given: Any) -> None:
    body, headers = given.body(), {"Idempotency-Key": "once"}
    first = client.post("/v1/jobs", json=body, headers=headers).json()["id"]
    cancel(given, first)
    client.delete(f"/v1/jobs/{first}")

    second, again = (client.post("/v1/jobs", json=body, headers=headers) for _ in range(2))

    assert (second.status_code, again.status_code) == (201, 200)
    assert first != second.json()["id"] == again.json()["id"]


def test_the_files_of_its_checkpoints_go_at_once(client: Any, given: Any, tmp_path: Path) -> None:
    id = given.running()
    (tmp_path / "ckpt").write_bytes(b"weights")
    given.store.put_object(f"jobs/{id}/a1/1.pt", tmp_path / "ckpt")
    with db.transaction(given.engine) as s:
        attempts.checkpoint(s, id, 1, 1, f"jobs/{id}/a1/1.pt", "c" * 64, 7)
        attempts.finish(s, id, 1, [], "e" * 64)

    assert client.delete(f"/v1/jobs/{id}").status_code == 204

    assert list(given.store.objects(older_than_s=0)) == []


@pytest.mark.parametrize("start", ["job", "running"])
def test_a_job_that_has_not_ended_stays(client: Any, given: Any, start: str) -> None:
    id = getattr(given, start)()

    answer = client.delete(f"/v1/jobs/{id}")

    assert (answer.status_code, answer.json()["code"]) == (409, "job_running")
    assert client.get(f"/v1/jobs/{id}").status_code == 200


REFERENCES = {
    "/teacher/job": lambda job: {"teacher": {"job": job}, "methods": [{"kind": "fgd"}]},
    "/teachers/cells/job": lambda job: {
        "teachers": {"cells": {"job": job}},
        "methods": [{"kind": "fgd", "teacher": "cells"}],
    },
    "/student/inherit/job": lambda job: {"student": {"inherit": {"job": job}}},
    "/student/weights/job": lambda job: {"student": {"weights": {"job": job}}},
}
"""Every field that may name a job."""


def test_every_field_that_may_name_a_job_is_tried_here() -> None:
    body = SubmitJob.model_validate(
        {"name": "j", "dataset": f"ds_{'0' * 32}"}
        | {"teacher": {"job": f"job_{'1' * 32}"}, "teachers": {"cells": {"job": f"job_{'4' * 32}"}}}
        | {"methods": [{"kind": "fgd"}, {"kind": "fgd", "teacher": "cells"}]}
        | {"student": {"inherit": {"job": f"job_{'2' * 32}"}, "weights": {"model": f"mdl_{'3' * 32}"}}}
    )
    named = named_weights(body.spec())
    assert {f"{each.pointer}/job" for each in named} == REFERENCES.keys()
    assert [each.role for each in named] == ["teacher", "teachers/cells", "weights", "inherit"]
    schemas = SubmitJob.model_json_schema()["$defs"]
    fields = {
        name
        for schema in schemas.values()
        for name, field in schema.get("properties", {}).items()
        if "FromJob" in str(field)
    }
    assert {*fields, "teacher", "teachers"} == {each.role.partition("/")[0] for each in named}


@pytest.mark.parametrize("field", REFERENCES)
def test_a_job_stays_while_another_needs_its_weights_and_may_go_afterwards(client: Any, given: Any, field: str) -> None:
    parent = given.succeeded()
    answer = client.post("/v1/jobs", json=given.body(**REFERENCES[field](parent)))
    assert answer.status_code == 201, answer.text
    child = answer.json()["id"]

    refused = client.delete(f"/v1/jobs/{parent}")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_in_use")
    assert child in refused.json()["detail"]

    cancel(given, child)
    assert client.delete(f"/v1/jobs/{parent}").status_code == 204

    assert parent in str(client.get(f"/v1/jobs/{child}").json()["spec"])
    assert set(rows_that_name(given, parent).values()) == {0}


def test_another_project_s_job_cannot_be_deleted(client: Any, given: Any) -> None:
    id = given.succeeded()
    with given.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO projects SELECT 'prj_other', 'other', cursor_key, created_at FROM projects"
        )
    with db.transaction(given.engine) as s, pytest.raises(NotFound):
        removal.delete_job(s, "prj_other", id)

    assert client.get(f"/v1/jobs/{id}").status_code == 200


@pytest.mark.parametrize("field", REFERENCES)
def test_a_job_that_is_deleted_while_another_that_needs_it_is_submitted_is_told(
    client: Any, given: Any, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = given.succeeded()
    resolve = references.resolve

    def resolve_and_be_late(*how: Any) -> Any:
        found = resolve(*how)
        assert client.delete(f"/v1/jobs/{parent}").status_code == 204
        return found

    monkeypatch.setattr("api.core.references.resolve", resolve_and_be_late)
    answer = client.post("/v1/jobs", json=given.body(**REFERENCES[field](parent)))

    assert answer.status_code == 422
    assert [(error["pointer"], error["code"]) for error in answer.json()["errors"]] == [
        (field, "teacher_not_found" if "teacher" in field else f"{field.split('/')[-2]}_not_found")
    ]


# --- its blobs ------------------------------------------------------------------------------------------------


def test_a_result_s_file_goes_after_the_grace_and_not_before(client: Any, given: Any, sweeper: Sweeper) -> None:
    id, digest = given.artifact(WEIGHTS)
    client.delete(f"/v1/jobs/{id}")

    sweeper.collect()
    assert given.store.exists(digest)
    sweeper.collect()
    assert row_of(given, digest)

    pass_time(given, 2)
    sweeper.collect()

    assert not given.store.exists(digest)
    assert row_of(given, digest) is None


def test_content_that_another_job_has_too_stays(client: Any, given: Any, sweeper: Sweeper) -> None:
    first, digest = given.artifact(WEIGHTS)
    second, same = given.artifact(WEIGHTS)
    assert digest == same

    client.delete(f"/v1/jobs/{first}")
    collect(given, sweeper)
    assert given.store.exists(digest)

    client.delete(f"/v1/jobs/{second}")
    collect(given, sweeper)
    assert not given.store.exists(digest)


def test_what_a_data_set_or_the_inputs_of_a_job_name_stays(client: Any, given: Any, sweeper: Sweeper) -> None:
    teacher = given.succeeded()
    files = [artifact["sha256"] for artifact in client.get(f"/v1/jobs/{teacher}/artifacts").json()["items"]]
    student = client.post("/v1/jobs", json=given.body(**REFERENCES["/teacher/job"](teacher))).json()["id"]
    cancel(given, student)
    client.delete(f"/v1/jobs/{teacher}")

    collect(given, sweeper)
    assert all(map(given.store.exists, files))
    assert given.store.exists(given.store.put_bytes(b"archive").digest)

    client.delete(f"/v1/jobs/{student}")
    collect(given, sweeper)
    assert not any(map(given.store.exists, files))
    assert all(row_of(given, given.store.put_bytes(data).digest) for data in (b"archive", b"index"))


def test_the_file_stays_while_another_project_has_the_content(client: Any, given: Any, sweeper: Sweeper) -> None:
    id, digest = given.artifact(WEIGHTS)
    with given.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO projects SELECT 'prj_other', 'other', cursor_key, created_at FROM projects"
        )
    with db.transaction(given.engine) as s:
        blobs.remember_blobs(s, "prj_other", db.now(s), Blob(digest, len(WEIGHTS)))
    client.delete(f"/v1/jobs/{id}")
    sweeper.collect()
    with given.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE blobs SET unused_since = NULL WHERE project_id = 'prj_other'")
    pass_time(given, 2)
    with db.transaction(given.engine) as s:
        assert blobs.collect_blob(s, given.store, DEFAULT_PROJECT, digest)

    assert given.store.exists(digest)
    assert row_of(given, digest) is None


def test_content_that_is_used_again_within_the_grace_stays(client: Any, given: Any, sweeper: Sweeper) -> None:
    id, digest = given.artifact(WEIGHTS)
    client.delete(f"/v1/jobs/{id}")
    sweeper.collect()
    pass_time(given, 2)

    given.artifact(WEIGHTS)
    sweeper.collect()

    row = row_of(given, digest)
    assert given.store.exists(digest)
    assert row is not None
    assert row.unused_since is None


def test_content_that_was_just_put_again_stays_though_no_row_names_it_yet(
    client: Any, given: Any, sweeper: Sweeper
) -> None:
    id, digest = given.artifact(WEIGHTS)
    client.delete(f"/v1/jobs/{id}")
    sweeper.collect()
    pass_time(given, 2)

    given.store.put_bytes(WEIGHTS)  # by a request that has not committed
    sweeper.collect()

    assert given.store.path(digest, verify=True)
    assert row_of(given, digest)


def test_a_reference_that_comes_between_the_look_and_the_deletion_wins(
    client: Any, given: Any, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    id, digest = given.artifact(WEIGHTS)
    client.delete(f"/v1/jobs/{id}")
    sweeper.collect()
    pass_time(given, 2)
    long_unused = blobs.long_unused

    def look_and_be_late(*how: Any) -> Any:
        found = list(long_unused(*how))
        assert (DEFAULT_PROJECT, digest) in found
        late.append(digest)
        return found

    late: list[str] = []
    collect_blob = blobs.collect_blob

    def after_a_job(s: Any, *how: Any) -> bool:
        job = SubmitJob.model_validate(given.body(given_dataset))
        requests.submit(s, DEFAULT_PROJECT, job, job.spec(), inputs={"teacher": {"student.safetensors": digest}})
        return collect_blob(s, *how)

    given_dataset = given.dataset()
    monkeypatch.setattr("api.core.sweeper.long_unused", look_and_be_late)
    monkeypatch.setattr("api.core.sweeper.collect_blob", after_a_job)
    sweeper.collect()

    assert late
    assert given.store.exists(digest)
    assert row_of(given, digest)


def test_a_file_without_a_row_is_never_touched(given: Any, sweeper: Sweeper) -> None:
    """After the restore of an older database, it is all that is left of a newer result."""
    digest = given.store.put_bytes(b"newer than the database").digest

    collect(given, sweeper)

    assert given.store.exists(digest)


def test_a_blob_whose_file_is_gone_loses_its_row_too(client: Any, given: Any, sweeper: Sweeper) -> None:
    id, digest = given.artifact(WEIGHTS)
    client.delete(f"/v1/jobs/{id}")
    given.store.delete(digest)

    collect(given, sweeper)

    assert row_of(given, digest) is None
