"""POST /v1/evaluations and what can be asked of one: its classes, its figures, its file, its end."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from api.core import tasks
from api.core.rows import db
from api.core.rows.tables import Artifact, Evaluation
from fgd.evaluated import ClassFigures, EvaluationResult
from tests.unit.api.test_tasks import claimed, failed

URL = "/v1/evaluations"
RESULT = EvaluationResult(
    images=3, undecodable=0, boxes=4, detections=9, ap=41.5, ap50=70.0, ap75=None, ap_s=None, ap_m=41.5, ap_l=None,
    ar1=30.0, ar10=50.0, ar100=55.0, ar_s=None, ar_m=55.0, ar_l=None, precision_recall=(), confusion=None,
    per_class=(ClassFigures(name="cat", boxes=4, ap=41.5),), device="a processor", seconds=1.5,
)  # fmt: skip


def post(client: Any, **body: Any) -> Any:
    return client.post(URL, json=body)


def finished(given: Any, content: bytes = b"detections") -> str:
    """The id of the oldest one that waits, done."""
    claim = claimed(given, Evaluation)
    file = tasks.TaskFile("detections", "detections.npz", given.store.put_bytes(content), "application/zip")
    with db.transaction(given.engine) as s:
        tasks.finish(s, Evaluation, claim.id, claim.attempt, RESULT.model_dump(mode="json"), [file])
    return str(claim.id)


def test_a_jobs_student_is_evaluated_on_its_own_data_set_with_its_own_sizes(client: Any, given: Any) -> None:
    job = given.succeeded()

    answer = post(client, job=job)

    assert answer.status_code == 202, answer.text
    made = answer.json()
    assert answer.headers["location"] == f"{URL}/{made['id']}"
    assert (made["state"], made["result"], made["files"], made["error"]) == ("pending", None, [], None)
    assert (made["job"], made["model"], made["network"], made["which"]) == (job, None, "student", "last")
    assert (made["dataset"], made["split"]) == (given.look(job).dataset_id, "val")
    assert (made["min_size"], made["max_size"]) == (64, 64)
    assert "no worker is running" in made["waiting_reason"]
    assert made["classes"] == {"shared": ["cat", "dog"], "renamed": {}, "only_dataset": [], "only_network": []}


def test_classes_are_matched_by_name_and_what_one_side_alone_has_is_told(client: Any, given: Any) -> None:
    model = client.post("/v1/models", json={"name": "m", "job": given.succeeded(("Traffic_light", "N/A", "cow"))})
    dataset = given.dataset(classes=("cat", "traffic light"))

    made = post(client, model=model.json()["id"], dataset=dataset.id, split="train").json()

    assert made["classes"] == {
        "shared": ["traffic light"],
        "renamed": {"traffic light": "Traffic_light"},
        "only_dataset": ["cat"],
        "only_network": ["cow"],
    }


def test_no_class_in_common_is_refused_when_it_is_submitted(client: Any, given: Any) -> None:
    answer = post(client, job=given.succeeded(("cow",)), dataset=given.dataset().id)

    assert (answer.status_code, answer.json()["code"]) == (422, "no_common_class")
    assert answer.json()["errors"][0]["pointer"] == "/dataset"
    assert "'cow'" in answer.json()["detail"]
    assert "'cat', 'dog'" in answer.json()["detail"]


def test_everything_that_is_wrong_is_told_at_once(client: Any, given: Any) -> None:
    answer = post(client, job="job_" + "0" * 32, dataset=given.dataset().id, split="test")

    assert answer.status_code == 422
    assert [each["pointer"] for each in answer.json()["errors"]] == ["/job", "/split"]


def test_the_teacher_of_a_job_that_still_waits_can_be_evaluated(client: Any, given: Any) -> None:
    teacher = given.succeeded()
    job = client.post("/v1/jobs", json=given.body(teacher={"job": teacher}, methods=[{"kind": "fgd"}])).json()["id"]

    made = post(client, job=job, network="teacher")

    assert made.status_code == 202, made.text
    assert claimed(given, Evaluation).blobs["network"] == claimed_files(given, teacher)


def test_of_several_teachers_none_is_meant(client: Any, given: Any) -> None:
    teachers = {"a": {"job": given.succeeded()}, "b": {"job": given.succeeded()}}
    methods = [{"kind": "fgd", "teacher": name} for name in teachers]
    job = client.post("/v1/jobs", json=given.body(teachers=teachers, methods=methods))
    assert job.status_code == 201, job.text

    answer = post(client, job=job.json()["id"], network="teacher")

    assert (answer.status_code, answer.json()["code"]) == (422, "job_has_several_teachers")
    assert [each["pointer"] for each in answer.json()["errors"]] == ["/job"]


def claimed_files(given: Any, job: str) -> dict[str, str]:
    with db.reading(given.engine) as s:
        return dict(s.execute(select(Artifact.name, Artifact.digest).where(Artifact.job_id == job)).all())


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, ""),
        ({"model": "mdl_" + "0" * 32, "job": "job_" + "0" * 32}, "/job"),
        ({"model": "mdl_" + "0" * 32, "which": "best"}, "/which"),
        ({"model": "mdl_" + "0" * 32, "network": "teacher"}, "/network"),
        ({"job": "job_" + "0" * 32, "network": "teacher", "which": "best"}, "/network"),
        ({"job": "job_" + "0" * 32, "split": "validation"}, "/split"),
        ({"job": "job_" + "0" * 32, "batch_size": 0}, "/batch_size"),
        ({"job": "job_" + "0" * 32, "min_size": 8}, "/min_size"),
        ({"job": "job_" + "0" * 32, "confusion_score": 2}, "/confusion_score"),
        ({"job": "job_" + "0" * 32, "splitt": "val"}, "/splitt"),
        ({"job": "7"}, "/job"),
    ],
)
def test_a_field_that_is_wrong_is_named(client: Any, body: dict[str, Any], pointer: str) -> None:
    answer = post(client, **body)

    assert answer.status_code == 422
    assert [each["pointer"] for each in answer.json()["errors"]] == [pointer]


def test_it_shows_its_figures_and_its_detections_can_be_downloaded(client: Any, given: Any) -> None:
    id = post(client, job=given.succeeded()).json()["id"]
    assert client.get(f"{URL}/{id}/detections").json()["code"] == "no_file"
    finished(given, b"0123456789")

    made = client.get(f"{URL}/{id}").json()

    assert (made["state"], made["result"]["ap"], made["result"]["ap75"]) == ("succeeded", 41.5, None)
    (file,) = made["files"]
    assert (file["name"], file["size"], file["url"]) == ("detections.npz", 10, f"{URL}/{id}/detections")
    assert client.get(file["url"]).content == b"0123456789"
    part = client.get(file["url"], headers={"Range": "bytes=4-"})
    assert (part.status_code, part.content) == (206, b"456789")
    assert client.head(file["url"]).headers["content-length"] == "10"


def test_a_failed_one_says_why(client: Any, given: Any) -> None:
    id = post(client, job=given.succeeded()).json()["id"]
    failed(given, Evaluation, "gpu_out_of_memory", "too large")

    assert client.get(f"{URL}/{id}").json()["error"] == {
        "code": "gpu_out_of_memory", "message": "too large", "pointer": "",
    }  # fmt: skip


def test_a_gpu_that_no_worker_has_is_told(client: Any, given: Any) -> None:
    given.worker()
    reason = post(client, job=given.succeeded(), device="cuda").json()["waiting_reason"]
    assert "no worker has a GPU" in reason


def test_they_are_listed_newest_first(client: Any, given: Any) -> None:
    job = given.succeeded()
    ids = [post(client, job=job).json()["id"] for _ in range(3)]
    finished(given)

    first = client.get(f"{URL}?limit=2")
    second = client.get(first.links["next"]["url"]).json()

    assert [each["id"] for each in first.json()["items"] + second["items"]] == ids[::-1]
    assert [each["state"] for each in second["items"]] == ["succeeded"]
