"""POST /v1/predictions: the picture, the networks that look at it, and how soon all of it is forgotten."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from api.core import tasks
from api.core.jobs import attempts
from api.core.rows import db
from api.core.rows.tables import Job, Prediction
from api.core.sweeper import Sweeper
from fgd.predicted import Detection, NetworkDetections, PredictionResult
from tests.unit.api.test_tasks import claimed

URL = "/v1/predictions"
PICTURE = b"GIF89a a picture"
RESULT = PredictionResult(
    width=64, height=48, orientation=1,
    networks=(
        NetworkDetections(
            role="student", seconds=0.1,
            detections=(Detection(box=(1.0, 2.0, 3.0, 4.5), score=0.75, name="cat", label=1),),
        ),
    ),
)  # fmt: skip


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> str:
    """SQLite alone: what differs between the two is tested with other tables."""
    (tmp_path / "fgd.db").write_bytes(migrated.read_bytes())
    return f"sqlite:///{tmp_path}/fgd.db"


def post(client: Any, content: bytes = PICTURE, headers: dict[str, str] | None = None, **query: Any) -> Any:
    return client.post(URL, params=query, content=content, headers=headers or {})


def taught(given: Any, client: Any) -> tuple[str, str, str]:
    """The ids of a distilled job that has ended, its teacher and its control."""
    teacher, dataset = given.succeeded(), given.dataset()
    control = given.succeeded()
    job = client.post("/v1/jobs", json=given.body(dataset, teacher={"job": teacher}, methods=[{"kind": "fgd"}]))
    assert job.status_code == 201, job.text
    given.claim()
    id = job.json()["id"]
    recipe = given.look(id).inputs["teacher"]["recipe.json"]
    weights = given.store.put_bytes(b"weights")
    files = [attempts.ArtifactIn("student.safetensors", weights.digest, weights.size)]
    files.append(attempts.ArtifactIn("recipe.json", recipe, given.store.size(recipe)))
    with db.transaction(given.engine) as s:
        attempts.finish(s, id, 1, files, "e" * 64)
        twin = s.get_one(Job, id).twin
        assert twin
        s.execute(update(Job).where(Job.id == control).values(twin=twin, taught=False))
    return id, teacher, control


def test_student_teacher_and_control_look_at_the_picture(client: Any, given: Any) -> None:
    job, teacher, control = taught(given, client)

    answer = post(client, job=job, score=0.5)

    assert answer.status_code == 202, answer.text
    made = answer.json()
    assert made["networks"] == [
        {"role": "student", "job": job, "model": None},
        {"role": "teacher", "job": teacher, "model": None},
        {"role": "control", "job": control, "model": None},
    ]
    assert (made["score"], made["picture"]["size"], made["result"]) == (0.5, len(PICTURE), None)
    blobs = claimed(given, Prediction).blobs
    assert set(blobs) == {"student", "teacher", "control", "picture"}


def test_a_job_without_a_teacher_and_a_model_look_alone(client: Any, given: Any) -> None:
    job = given.succeeded()
    model = client.post("/v1/models", json={"name": "m", "job": job}).json()["id"]

    assert [each["role"] for each in post(client, job=job).json()["networks"]] == ["student"]
    assert post(client, model=model).json()["networks"] == [{"role": "model", "job": None, "model": model}]


def test_the_picture_goes_when_it_was_looked_at_and_the_answer_after_a_day(client: Any, given: Any) -> None:
    id = post(client, job=given.succeeded()).json()["id"]
    claim = claimed(given, Prediction)
    picture = claim.blobs["picture"]["picture"]
    assert b"".join(given.store.read(picture)) == PICTURE
    with db.transaction(given.engine) as s:
        tasks.finish(s, Prediction, id, claim.attempt, RESULT.model_dump(mode="json"), [])

    told = client.get(f"{URL}/{id}").json()
    assert told["result"]["networks"][0]["detections"][0]["box"] == [1.0, 2.0, 3.0, 4.5]
    sweeper = Sweeper(given.engine, given.store, None, lease_s=20.0)
    sweeper.collect()
    given.earlier("blobs", "unused_since", 7200)
    for file in (given.store.root / "sha256").rglob("*"):
        if file.is_file():
            age(file)
    sweeper.collect()
    assert not given.store.exists(picture)

    given.earlier("predictions", "created_at", 25 * 3600)
    given.sweep()
    assert client.get(f"{URL}/{id}").status_code == 404


def age(file: Path) -> None:
    os.utime(file, (time.time() - 7200,) * 2)


def test_one_that_no_worker_takes_is_forgotten_with_its_picture(client: Any, given: Any) -> None:
    post(client, job=given.succeeded())
    given.earlier("predictions", "created_at", 25 * 3600)
    given.sweep()
    assert client.get(URL).json()["items"] == []


def test_the_same_request_under_a_key_is_one_and_another_picture_is_refused(client: Any, given: Any) -> None:
    job, key = given.succeeded(), {"Idempotency-Key": "once"}
    first, again = post(client, headers=key, job=job), post(client, headers=key, job=job)
    assert first.json()["id"] == again.json()["id"]
    other = post(client, b"GIF89a another", headers=key, job=job)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"%PDF-1.7", "a PDF"), (b"hello", "not an image"), (b"<html>", "a web page"), (b"\0\0\0\x18ftypheic", "HEIC")],
)
def test_what_is_no_picture_is_refused_at_once_and_kept_nowhere(
    client: Any, given: Any, content: bytes, words: str
) -> None:
    job = given.succeeded()
    before = list(given.store.blobs(older_than_s=0))
    answer = post(client, content, job=job)
    assert (answer.status_code, answer.json()["code"]) == (422, "not_a_picture")
    assert words in answer.json()["detail"]
    assert post(client, job="job_" + "0" * 32).status_code == 422
    assert list(given.store.blobs(older_than_s=0)) == before


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ({}, "job"),
        ({"job": "7"}, "job"),
        ({"job": "job_" + "0" * 32}, "job"),
        ({"model": "mdl_" + "0" * 32}, "model"),
        ({"model": "mdl_" + "0" * 32, "which": "best"}, "which"),
        ({"job": "job_" + "0" * 32, "score": 2}, "score"),
        ({"job": "job_" + "0" * 32, "scor": 0.2}, "scor"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(client: Any, query: dict[str, Any], parameter: str) -> None:
    answer = post(client, **query)
    assert answer.status_code == 422, answer.text
    assert [each["parameter"] for each in answer.json()["errors"]] == [parameter]
