from __future__ import annotations

import threading
from typing import Any

import pytest

from api.core.jobs import record
from api.core.rows import db
from fgd.events import Evaluated, Note, Started, Stepped

STARTED = Started(step=0, total_steps=20, epochs=2, device="cpu", threads=1, precision="float32", versions={})


def test_a_submitted_job_comes_back_whole_with_location_etag_and_resolved_numbers(client: Any, given: Any) -> None:
    body = given.body(teacher={"job": given.succeeded()}, methods=[{"kind": "fgd"}], metadata={"who": "me"})

    answer = client.post("/v1/jobs", json=body)

    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert answer.headers["etag"] == f'"v{job["version"]}"'
    assert job["state"] == "queued"
    assert job["metadata"] == {"who": "me"}
    assert job["spec"]["methods"][0]["alpha"] == 1.6e-3
    assert "lambda" in job["spec"]["methods"][0]
    assert job["waiting_reason"].startswith("no worker is running")
    assert client.get(answer.headers["location"]).json() == job


def test_inputs_of_a_distillation_name_every_blob(client: Any, given: Any) -> None:
    teacher = given.succeeded()
    body = given.body(teacher={"job": teacher}, methods=[{"kind": "fgd"}], student={"inherit": {"job": teacher}})

    id = client.post("/v1/jobs", json=body).json()["id"]

    inputs = given.look(id).inputs
    assert inputs["teacher"].keys() == inputs["inherit"].keys() == {"student.safetensors", "recipe.json"}
    assert inputs["dataset"].keys() == {"archive", "index"}
    assert all(given.store.exists(digest) for files in inputs.values() for digest in files.values())


def test_the_same_etag_answers_304_until_the_job_changes(client: Any, given: Any) -> None:
    id = given.job()
    tag = client.get(f"/v1/jobs/{id}").headers["etag"]

    same = client.get(f"/v1/jobs/{id}", headers={"If-None-Match": tag})
    assert same.status_code == 304
    assert same.headers["etag"] == tag
    assert same.content == b""

    given.claim()
    assert client.get(f"/v1/jobs/{id}", headers={"If-None-Match": tag}).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["", "/events", "/metrics", "/metrics/latest", "/metrics/tensorboard", "/logs", "/checkpoints", "/artifacts"],
)
@pytest.mark.parametrize("id", ["job_01920000000070008000000000000000", "job_1", "..%2f..%2fetc", "a%00b", "x" * 3000])
def test_an_unknown_job_is_a_404_problem_everywhere(client: Any, path: str, id: str) -> None:
    answer = client.get(f"/v1/jobs/{id}{path}")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] in ("job_not_found", "route_not_found")


# --- idempotency ----------------------------------------------------------------------------------------------


def test_the_same_key_and_body_make_one_job(client: Any, given: Any) -> None:
    body, headers = given.body(), {"Idempotency-Key": "once"}

    first = client.post("/v1/jobs", json=body, headers=headers)
    again = client.post("/v1/jobs", json=body, headers=headers)

    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert len(client.get("/v1/jobs").json()["items"]) == 1


def test_the_same_key_with_another_body_is_refused(client: Any, given: Any) -> None:
    dataset = given.dataset()
    client.post("/v1/jobs", json=given.body(dataset), headers={"Idempotency-Key": "once"})

    answer = client.post("/v1/jobs", json=given.body(dataset, seed=1), headers={"Idempotency-Key": "once"})

    assert answer.status_code == 422
    assert answer.json()["code"] == "idempotency_key_reused"
    assert answer.json()["errors"][0]["parameter"] == "Idempotency-Key"


def test_a_key_is_forgotten_after_a_day(client: Any, given: Any) -> None:
    body, headers = given.body(), {"Idempotency-Key": "once"}
    client.post("/v1/jobs", json=body, headers=headers)
    with db.transaction(given.engine) as s:
        s.connection().exec_driver_sql("UPDATE idempotency_keys SET created_at = '2020-01-01 00:00:00.000000'")

    assert client.post("/v1/jobs", json=body, headers=headers).status_code == 201


@pytest.mark.parametrize("before", ["nothing", "a job that was deleted"])
def test_twenty_requests_at_once_with_one_key_make_one_job(client: Any, given: Any, before: str) -> None:
    body, answers = given.body(), list[Any]()
    if before != "nothing":
        id = client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "once"}).json()["id"]
        client.post(f"/v1/jobs/{id}/cancel")
        assert client.delete(f"/v1/jobs/{id}").status_code == 204

    def post() -> None:
        answers.append(client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "once"}))

    threads = [threading.Thread(target=post) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "two words"])
def test_a_key_that_is_no_token_is_refused(client: Any, given: Any, key: str) -> None:
    answer = client.post("/v1/jobs", json=given.body(), headers={"Idempotency-Key": key})

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["parameter"].lower() == "idempotency-key"


# --- lists ----------------------------------------------------------------------------------------------------


def test_pages_hold_every_job_once_newest_first_even_while_jobs_are_added(client: Any, given: Any) -> None:
    dataset = given.dataset()
    ids = [given.job(dataset) for _ in range(7)]

    page = client.get("/v1/jobs?limit=3")
    seen = [job["id"] for job in page.json()["items"]]
    given.job(dataset)
    while link := page.links.get("next"):
        page = client.get(link["url"])
        seen += [job["id"] for job in page.json()["items"]]

    assert seen == ids[::-1]
    assert page.json()["next"] is None


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "limt=3", "limit=1000000000000"])
def test_a_bad_page_query_is_a_422_that_names_the_parameter(client: Any, query: str) -> None:
    answer = client.get(f"/v1/jobs?{query}")

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["parameter"] == query.split("=")[0]


def test_a_tampered_or_foreign_cursor_is_refused(client: Any, given: Any) -> None:
    dataset = given.dataset()
    given.dataset()
    given.job(dataset), given.job(dataset)
    cursor = client.get("/v1/jobs?limit=1").json()["next"]
    swapped = "B" if cursor[30] == "A" else "A"
    of_datasets = client.get("/v1/datasets?limit=1").json()["next"]

    for bad in (cursor[:30] + swapped + cursor[31:], cursor[:-2], "", "!!!!", "AAAA", "é", of_datasets):
        answer = client.get("/v1/jobs", params={"cursor": bad})
        if bad:
            assert answer.status_code == 400, bad
            assert answer.json()["code"] == "bad_cursor"


# --- cancel ---------------------------------------------------------------------------------------------------


def test_a_queued_job_is_cancelled_at_once_and_again_says_the_same(client: Any, given: Any) -> None:
    id = given.job()

    first = client.post(f"/v1/jobs/{id}/cancel", json={"mode": "graceful"})
    again = client.post(f"/v1/jobs/{id}/cancel", json={"mode": "graceful"})

    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["state"] == "cancelled"
    assert first.json() == again.json()
    assert given.events(id) == ["job_submitted", "cancel_requested", "cancelled"]


def test_a_running_job_is_asked_once_and_may_be_hurried(client: Any, given: Any) -> None:
    id = given.running()

    assert client.post(f"/v1/jobs/{id}/cancel").json()["requested"] == "cancel"
    version = client.post(f"/v1/jobs/{id}/cancel", json={}).json()["version"]
    assert client.post(f"/v1/jobs/{id}/cancel", json={"mode": "graceful"}).json()["version"] == version
    assert client.post(f"/v1/jobs/{id}/cancel", json={"mode": "now"}).json()["requested"] == "cancel_now"
    assert client.post(f"/v1/jobs/{id}/cancel", json={"mode": "graceful"}).json()["requested"] == "cancel_now"
    assert given.events(id)[2:] == ["cancel_requested", "cancel_requested"]


def test_a_finished_job_cannot_be_cancelled(client: Any, given: Any) -> None:
    answer = client.post(f"/v1/jobs/{given.succeeded()}/cancel")

    assert answer.status_code == 409
    assert answer.json()["code"] == "job_finished"


def test_cancel_knows_its_modes(client: Any, given: Any) -> None:
    answer = client.post(f"/v1/jobs/{given.job()}/cancel", json={"mode": "later"})

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/mode"


# --- what a job left behind -----------------------------------------------------------------------------------


def test_events_are_read_in_pages_without_a_gap(client: Any, given: Any) -> None:
    id = given.running()
    with db.transaction(given.engine) as s:
        record.record(s, id, 1, [Note(code="resumed", message=str(number)) for number in range(5)])

    page = client.get(f"/v1/jobs/{id}/events?limit=4").json()
    rest = client.get(f"/v1/jobs/{id}/events?after={page['next_after']}").json()
    end = client.get(f"/v1/jobs/{id}/events?after={rest['next_after']}").json()

    assert [event["seq"] for event in page["items"] + rest["items"]] == [1, 2, 3, 4, 5, 6, 7]
    assert rest["items"][-1] == {
        "seq": 7,
        "type": "note:resumed",
        "at": rest["items"][-1]["at"],
        "attempt": 1,
        "data": {"message": "4", "data": {}, "level": "info"},
    }
    assert end == {"items": [], "next_after": 7}


def test_metrics_progress_and_latest_tell_the_same_story(client: Any, given: Any) -> None:
    id = given.running()
    told = [
        STARTED,
        Stepped(step=5, epoch=1, values={"loss/total": 2.0}),
        Stepped(step=10, epoch=1, values={"loss/total": float("nan")}),
        Evaluated(step=10, epoch=1, split="val", values={"ap": 12.5, "ap_l": None}),
    ]
    with db.transaction(given.engine) as s:
        record.record(s, id, 1, told)

    points = client.get(f"/v1/jobs/{id}/metrics?name=loss/total").json()["items"]
    latest = client.get(f"/v1/jobs/{id}/metrics/latest").json()["items"]
    progress = client.get(f"/v1/jobs/{id}").json()["progress"]

    assert [(point["step"], point["value"]) for point in points] == [(5, 2.0), (10, None)]
    assert {(p["split"], p["name"]): p["value"] for p in latest} == {
        ("train", "loss/total"): None, ("val", "ap"): 12.5, ("val", "ap_l"): None,
    }  # fmt: skip
    assert progress["values"] == {"loss/total": None, "val/ap": 12.5, "val/ap_l": None}
    assert (progress["step"], progress["total_steps"], progress["epoch"], progress["epochs"]) == (10, 20, 1, 2)


def test_a_log_is_read_by_byte_offsets(client: Any, given: Any) -> None:
    id = given.running()
    with db.transaction(given.engine) as s:
        record.record(s, id, 1, [], "grün\n".encode())
        record.record(s, id, 1, [], b"\xff\x00 raw")

    whole = client.get(f"/v1/jobs/{id}/logs")
    tail = client.get(f"/v1/jobs/{id}/logs?attempt=1&after_offset=4")

    assert whole.content == "grün\n".encode() + b"\xff\x00 raw"
    assert tail.content == whole.content[4:]
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"
    assert (tail.headers["x-next-offset"], tail.headers["x-attempt"]) == (str(len(whole.content)), "1")
    assert client.get(f"/v1/jobs/{id}/logs?after_offset=999").content == b""
    assert client.get(f"/v1/jobs/{id}/logs?attempt=2").status_code == 404


def test_a_job_that_never_ran_has_an_empty_log(client: Any, given: Any) -> None:
    answer = client.get(f"/v1/jobs/{given.job()}/logs")

    assert answer.status_code == 200
    assert (answer.content, answer.headers["x-attempt"], answer.headers["x-next-offset"]) == (b"", "0", "0")
