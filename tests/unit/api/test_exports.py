"""POST /v1/exports and what can be asked of one: its figures, its files, who can make it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from api.core import tasks, workers
from api.core.rows import db
from api.core.rows.tables import Dataset, Export
from fgd.detector_specs import FCOS
from fgd.exported import ExportResult
from tests.unit.api.test_tasks import claimed
from worker import export
from worker.take import WORK

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


def written(given: Any, *, report: bool = True) -> str:
    """The id of the oldest one that waits, done. report: with one, as files in INT8 have it."""
    claim = claimed(given, Export)
    files = [
        tasks.TaskFile("content", "model.onnx", given.store.put_bytes(b"0123456789"), "application/octet-stream"),
        tasks.TaskFile("usage", "model_onnx.py", given.store.put_bytes(b"print()"), "text/x-python"),
    ]
    if report:
        files.append(tasks.TaskFile("report", "model_int8.json", given.store.put_bytes(b"{}"), "application/json"))
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
    assert [client.get(file["url"]).content for file in made["files"]] == [b"0123456789", b"print()", b"{}"]
    assert client.get(f"{URL}/{id}/content", headers={"Range": "bytes=-2"}).content == b"89"
    assert client.head(f"{URL}/{id}/usage").headers["content-length"] == "7"
    assert [each["id"] for each in client.get(URL).json()["items"]] == [id]


def test_an_export_in_int8_says_what_it_may_lose_and_reads_the_data_set(client: Any, given: Any) -> None:
    job = given.succeeded()

    made = [post(client, job=job, format="onnx-int8", **more).json() for more in ({}, {"max_ap_loss": 0})]

    assert [(each["format"], each["max_ap_loss"]) for each in made] == [("onnx-int8", 0.5), ("onnx-int8", 0.0)]
    assert set(claimed(given, Export).blobs) == {"network", "dataset"}
    assert post(client, job=job).json()["max_ap_loss"] is None


def test_an_export_in_int8_waits_for_evaluations_and_not_before_others(client: Any, given: Any) -> None:
    """It evaluates, and who tries a picture must not wait for that."""
    job = given.succeeded()
    slow, quick = (post(client, job=job, format=each).json()["id"] for each in ("onnx-int8", "onnx"))
    with db.transaction(given.engine) as s:
        claims = [claim(s, "wrk_a", 20.0, ("cpu", "auto")) for claim in (export.claim, export.claim_int8)]
        none = [claim(s, "wrk_a", 20.0, ("cpu", "auto")) for claim in (export.claim, export.claim_int8)]
    assert [each.claim.id for each in claims if each is not None] == [quick, slow]
    assert none == [None, None]
    lanes = {work.claim: work.lanes for work in WORK}
    assert (lanes[export.claim], lanes[export.claim_int8]) == (("quick",), ("evaluation",))


def test_a_model_in_int8_needs_a_data_set_that_it_knows(client: Any, given: Any) -> None:
    job = given.succeeded()
    model = client.post("/v1/models", json={"name": "m", "job": job}).json()["id"]
    body = {"model": model, "format": "onnx-int8"}

    without, strange = post(client, **body), post(client, **body, dataset=given.dataset(classes=("a", "strange")).id)

    assert (without.status_code, without.json()["code"]) == (422, "dataset_missing")
    assert [each["pointer"] for each in without.json()["errors"]] == ["/dataset"]
    assert (strange.status_code, strange.json()["code"]) == (422, "no_common_class")
    assert post(client, **body, dataset=given.look(job).dataset_id).status_code == 202


@pytest.mark.parametrize(
    ("splits", "code", "says"),
    [
        ({"val": {"images": 2, "boxes": 3}}, "split_not_found", "calibrated on training images, and"),
        ({"train": {"images": 2, "boxes": 3}, "test": {"images": 1, "boxes": 1}}, "split_not_found", "test, train"),
        ({"train": {"images": 2, "boxes": 3}, "val": {"images": 2, "boxes": 0}}, "no_boxes", "judged on boxes"),
    ],
)
def test_a_data_set_without_what_int8_needs_is_refused(
    client: Any, given: Any, splits: dict[str, Any], code: str, says: str
) -> None:
    job = given.succeeded()
    with db.transaction(given.engine) as s:
        s.get_one(Dataset, given.look(job).dataset_id).splits = splits

    answer = post(client, job=job, format="onnx-int8")

    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert [(each["pointer"], says in each["detail"]) for each in answer.json()["errors"]] == [("/dataset", True)]
    assert post(client, job=job).status_code == 202, "a float32 file needs no split"


@pytest.mark.parametrize("batch", [2, "dynamic"])
@pytest.mark.parametrize("format", ["onnx", "onnx-int8"])
def test_faster_rcnn_for_several_images_is_refused_at_once(client: Any, given: Any, batch: Any, format: str) -> None:
    job = given.succeeded(detector={"kind": "faster_rcnn"})

    answer = post(client, job=job, batch=batch, format=format)

    assert (answer.status_code, answer.json()["code"]) == (422, "one_image_at_a_time")
    assert [each["pointer"] for each in answer.json()["errors"]] == ["/batch"]
    assert post(client, job=job, format=format).status_code == 202


def test_a_family_without_a_graph_is_refused_at_once(client: Any, given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = given.succeeded()
    monkeypatch.setattr(FCOS, "exportable", False)

    answer = post(client, job=job)

    assert (answer.status_code, answer.json()["code"]) == (422, "not_exportable")
    assert [each["pointer"] for each in answer.json()["errors"]] == ["/job"]


def test_a_file_that_an_export_was_made_without_is_named_with_those_that_it_has(client: Any, given: Any) -> None:
    id = post(client, job=given.succeeded()).json()["id"]
    written(given, report=False)

    answer = client.get(f"{URL}/{id}/report")

    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (409, "no_file", False)
    assert "made without report; it has content, usage" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"max_ap_loss": 0.5}, "/max_ap_loss"),
        ({"max_ap_loss": 0.5, "format": "onnx"}, "/max_ap_loss"),
        ({"max_ap_loss": -0.1, "format": "onnx-int8"}, "/max_ap_loss"),
        ({"max_ap_loss": 101, "format": "onnx-int8"}, "/max_ap_loss"),
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
