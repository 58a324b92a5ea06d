"""Pause, resume, stop, attempts and workers over HTTP; what a failure says."""

from __future__ import annotations

from typing import Any

import pytest

from api.core import workers
from api.core.jobs import attempts, record
from api.core.lifecycle import FAILURES, FailureCode
from api.core.rows import db
from fgd.events import Started

UNKNOWN = "job_" + "0" * 32


def post(client: Any, id: str, verb: str, **how: Any) -> Any:
    return client.post(f"/v1/jobs/{id}/{verb}", **how)


def write(given: Any, verb: Any, id: str, *arguments: Any, attempt: int = 1, **named: Any) -> None:
    with db.transaction(given.engine) as s:
        verb(s, id, attempt, *arguments, **named)


def test_a_job_is_paused_resumed_and_finished_early(client: Any, given: Any) -> None:
    id = given.running()
    paused = post(client, id, "pause")
    assert (paused.status_code, paused.json()["requested"]) == (202, "pause")
    assert paused.headers["ETag"] == f'"v{paused.json()["version"]}"'
    write(given, attempts.checkpoint, id, 5, "k", "c" * 64, 1)
    write(given, attempts.ended_as_requested, id, exit=75)

    view = client.get(f"/v1/jobs/{id}").json()
    assert (view["state"], view["requested"], view["finished_at"]) == ("paused", None, None)
    assert f"fgd job resume {id}" in view["waiting_reason"]
    assert client.get("/v1/jobs?state=paused").json()["items"][0]["id"] == id
    assert client.delete(f"/v1/jobs/{id}").status_code == 409

    assert post(client, id, "resume", json={}).json()["state"] == "queued"
    stopped = post(client, id, "stop")
    assert (stopped.status_code, stopped.json()["state"], stopped.json()["requested"]) == (202, "queued", "stop")
    assert post(client, id, "stop").json()["version"] == stopped.json()["version"]
    items = client.get(f"/v1/jobs/{id}/events").json()["items"]
    assert [item["type"] for item in items if item["type"].startswith(("job_", "pause", "stop"))] == [
        "job_submitted", "job_claimed", "pause_requested", "job_paused", "job_resumed", "stop_requested",
    ]  # fmt: skip


@pytest.mark.parametrize("verb", ["pause", "resume", "stop"])
def test_a_verb_that_cannot_be_is_a_problem_with_a_code(client: Any, given: Any, verb: str) -> None:
    unknown, ended = post(client, UNKNOWN, verb), post(client, given.succeeded(), verb)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "job_not_found")
    assert (ended.status_code, ended.json()["code"]) == (409, "job_finished")
    assert ended.headers["Content-Type"] == "application/problem+json"

    id = given.running()
    post(client, id, "cancel")
    assert (post(client, id, verb).status_code, post(client, id, verb).json()["code"]) == (409, "cancel_requested")


def test_a_resume_without_a_pause_and_a_stop_without_a_step_are_refused(client: Any, given: Any) -> None:
    id = given.job()
    assert post(client, id, "resume").json()["code"] == "not_paused"
    refused = post(client, id, "stop")
    assert (refused.status_code, refused.json()["code"]) == (409, "nothing_to_keep")


@pytest.mark.parametrize("code", FailureCode)
def test_every_failure_comes_with_advice(client: Any, given: Any, code: FailureCode) -> None:
    id = given.running(limits={"max_retries": 0})
    write(given, attempts.fail, id, code, "it went wrong", {"x": 1})

    failure = client.get(f"/v1/jobs/{id}").json()["failure"]
    assert (failure["code"], failure["data"]["x"], failure["retryable"]) == (code, 1, FAILURES[code].retried)
    assert failure["message"].startswith("it went wrong")
    assert failure["advice"] == FAILURES[code].advice


@pytest.mark.parametrize(
    ("code", "data", "says"),
    [
        (FailureCode.preempted, {"limit": "max_runtime_s"}, "`limits.max_runtime_s`"),
        (FailureCode.preempted, {"limit": "max_wait_s"}, "`limits.max_wait_s`"),
        (FailureCode.gpu_out_of_memory, {"batch_size": 1}, "one image at a time"),
    ],
)
def test_advice_is_to_the_point(client: Any, given: Any, code: FailureCode, data: dict[str, Any], says: str) -> None:
    id = given.running(schedule={"batch_size": 1})
    write(given, attempts.fail, id, code, "x", data)

    assert says in client.get(f"/v1/jobs/{id}").json()["failure"]["advice"]


def test_attempts_tell_where_and_how_each_ended(client: Any, given: Any) -> None:
    given.worker("wrk_a")
    id = given.running("wrk_a", resources={"on_out_of_memory": "halve"})
    started = Started(step=0, total_steps=9, epochs=1, device="a GPU", threads=1, precision="float32", versions={})
    write(given, record.record, id, [started])
    with db.transaction(given.engine) as s:
        attempts.beat(s, id, 1, "wrk_a", lease_s=20.0, progress=attempts.Progress(step=7))
    running = client.get(f"/v1/jobs/{id}/attempts").json()["items"]
    assert [(a["attempt"], a["outcome"], a["steps_done"], a["device"]) for a in running] == [(1, None, 7, "a GPU")]
    write(given, attempts.fail, id, FailureCode.trainer_killed, "killed", exit=-9)
    given.claim("wrk_a")
    write(given, attempts.fail, id, FailureCode.gpu_out_of_memory, "full", attempt=2, exit=1)
    given.claim("wrk_a")

    first, second, third = client.get(f"/v1/jobs/{id}/attempts").json()["items"]
    assert (first["host"], first["worker"], first["code"], first["reason"]) == (
        "here",
        "wrk_a",
        "trainer_killed",
        "killed",
    )
    assert (first["signal"], first["exit"], first["steps_done"], first["lost_steps"]) == ("SIGKILL", None, 7, 7)
    assert (second["signal"], second["exit"], second["steps_done"]) == (None, 1, 0)
    assert [a["spec"]["schedule"]["batch_size"] for a in (first, second, third)] == [8, 8, 4]
    assert third["spec"]["schedule"]["accumulate"] == 2
    assert client.get(f"/v1/jobs/{UNKNOWN}/attempts").status_code == 404
    assert client.get(f"/v1/jobs/{given.job()}/attempts").json() == {"items": []}


def test_workers_tell_what_they_have_and_run(client: Any, given: Any) -> None:
    given.worker("wrk_a", cuda=1)
    given.worker("wrk_b")
    id = given.running("wrk_a")
    with db.transaction(given.engine) as s:
        workers.beat(s, "wrk_b", "its disk is full")

    first, second = client.get("/v1/workers").json()["items"]
    assert (first["id"], first["live"], first["slots"], first["free_slots"]) == ("wrk_a", True, 2, 1)
    assert [(run["job"], run["attempt"]) for run in first["running"]] == [(id, 1)]
    assert first["devices"][0]["name"] == "a GPU"
    assert (second["complaint"], second["free_slots"], second["running"]) == ("its disk is full", 0, [])
    given.later(60)
    assert [worker["live"] for worker in client.get("/v1/workers").json()["items"]] == [False, False]


def test_a_job_that_only_complaining_workers_could_take_says_so(client: Any, given: Any) -> None:
    given.worker("wrk_a")
    with db.transaction(given.engine) as s:
        workers.beat(s, "wrk_a", "its disk is full")
    id = given.job()

    assert "takes no jobs: its disk is full" in client.get(f"/v1/jobs/{id}").json()["waiting_reason"]
    assert given.sweep().ring == []


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"schedule": {"on_non_finite": "ignore"}}, "/schedule/on_non_finite"),
        ({"resources": {"on_out_of_memory": "retry"}}, "/resources/on_out_of_memory"),
    ],
)
def test_a_policy_that_does_not_exist_is_refused_by_its_field(
    client: Any, given: Any, change: dict[str, Any], pointer: str
) -> None:
    answer = client.post("/v1/jobs", json=given.body(**change))

    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
