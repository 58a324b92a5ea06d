"""POST /v1/exports and what can be asked of one: its figures, its files, who can make it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from api.core import tasks, workers
from api.core.rows import db
from api.core.rows.tables import Export
from fgd.exported import ExportResult
from tests.unit.api.test_tasks import claimed
from worker import export

URL = "/v1/exports"
RESULT = ExportResult(
    format="onnx", size=(64, 96), batch=1, opset=18, compared_on="a synthetic image", detections=3, box_px=1e-5,
    score=1e-6, threads=1, torch_ms=4.0, onnxruntime_ms=2.0,
)  # fmt: skip


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> str:
    """SQLite alone: what differs between the two is tested with other tables."""
    (tmp_path / "fgd.db").write_bytes(migrated.read_bytes())
    return f"sqlite:///{tmp_path}/fgd.db"


def post(client: Any, **body: Any) -> Any:
    return client.post(URL, json=body)


def written(given: Any) -> str:
    """The id of the oldest one that waits, done."""
    claim = claimed(given, Export)
    files = [
        tasks.TaskFile("content", "model.onnx", given.store.put_bytes(b"0123456789"), "application/octet-stream"),
        tasks.TaskFile("usage", "model_onnx.py", given.store.put_bytes(b"print()"), "text/x-python"),
    ]
    with db.transaction(given.engine) as s:
        tasks.finish(s, Export, claim.id, claim.attempt, RESULT.model_dump(mode="json"), files)
    return str(claim.id)


def test_a_jobs_export_is_compared_on_its_own_data_set(client: Any, given: Any) -> None:
    job = given.succeeded()

    answer = post(client, job=job, which="best")

    assert answer.status_code == 202, answer.text
    made = answer.json()
    assert (made["format"], made["batch"], made["opset"], made["size"]) == ("onnx", 1, 18, None)
    assert (made["which"], made["dataset"]) == ("best", given.look(job).dataset_id)
    assert set(claimed(given, Export).blobs) == {"network", "dataset"}


def test_a_model_is_exported_without_a_data_set(client: Any, given: Any) -> None:
    model = client.post("/v1/models", json={"name": "m", "job": given.succeeded()}).json()["id"]

    made = post(client, model=model, size=[64, 96], batch="dynamic").json()

    assert (made["dataset"], made["size"], made["batch"]) == (None, [64, 96], "dynamic")
    assert set(claimed(given, Export).blobs) == {"network"}


def test_its_files_can_be_downloaded(client: Any, given: Any) -> None:
    id = post(client, job=given.succeeded()).json()["id"]
    assert client.get(f"{URL}/{id}/content").status_code == 409
    written(given)

    made = client.get(f"{URL}/{id}").json()

    assert made["result"]["detections"] == 3
    assert [client.get(file["url"]).content for file in made["files"]] == [b"0123456789", b"print()"]
    assert client.get(f"{URL}/{id}/content", headers={"Range": "bytes=-2"}).content == b"89"
    assert client.head(f"{URL}/{id}/usage").headers["content-length"] == "7"
    assert [each["id"] for each in client.get(URL).json()["items"]] == [id]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"format": "tflite"}, "/format"),
        ({"batch": 0}, "/batch"),
        ({"batch": "many"}, "/batch"),
        ({"opset": 15}, "/opset"),
        ({"size": [64]}, "/size/1"),
        ({"size": [64, 8]}, "/size/1"),
    ],
)
def test_a_field_that_is_wrong_is_named(client: Any, body: dict[str, Any], pointer: str) -> None:
    answer = post(client, job="job_" + "0" * 32, **body)

    assert answer.status_code == 422
    assert {each["pointer"] for each in answer.json()["errors"]} == {pointer}


def test_a_worker_without_the_packages_takes_none_and_it_is_told(
    client: Any, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{URL}/{post(client, job=given.succeeded()).json()['id']}"
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnx" else name)
    given.worker()
    with db.transaction(given.engine) as s:
        assert export.claim(s, "wrk_a", 20.0, ("cpu", "auto")) is None

    assert "no worker can export" in client.get(url).json()["waiting_reason"]
    facts = {"versions": {"onnx": "1", "onnxruntime": "1"}}
    with db.transaction(given.engine) as s:
        workers.register(s, "wrk_b", host="here", pid=2, slots=1, facts=facts)
    assert "no worker can export" not in client.get(url).json()["waiting_reason"]
