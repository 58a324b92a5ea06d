"""POST /v1/plans, its alias POST /v1/jobs?dry_run=true, and GET /v1/plans/{id}."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from sqlalchemy import func, select

from api.core import plans
from api.core.rows import db
from api.core.rows.tables import IdempotencyKey, Job, Plan
from fgd.budget import BudgetRow, BudgetTable, FindStudent, Latency, ready_spec
from fgd.detector_specs import FCOS
from fgd.outline import Size
from fgd.process.stopwatch import Timing
from tests.unit.api.core.test_plans import MEASURED

PLANS, ALIAS = "/v1/plans", "/v1/jobs?dry_run=true"


def counted(given: Any, table: Any) -> int:
    with db.reading(given.engine) as s:
        return s.scalar(select(func.count()).select_from(table)) or 0


@pytest.mark.parametrize("path", [PLANS, ALIAS])
def test_what_is_known_without_trying_is_told_at_once_and_no_job_is_made(client: Any, given: Any, path: str) -> None:
    began = time.monotonic()
    answer = client.post(path, json=given.body(schedule={"epochs": 3, "batch_size": 8, "scales": [240]}))

    assert time.monotonic() - began < 10
    assert answer.status_code == 202
    plan = answer.json()
    assert answer.headers["location"] == f"/v1/plans/{plan['id']}"
    assert (plan["state"], plan["measured"], plan["error"]) == ("measuring", None, None)
    assert "no worker is running" in plan["waiting_reason"]
    known = plan["outline"]
    assert (known["steps_per_epoch"], known["total_steps"], known["evaluations"]) == (5, 15, 3)
    assert known["images"] == {"train": 40, "val": 40}
    assert known["sizes"] == [{"min_size": 240, "max_size": 320}]
    assert [each["pointer"] for each in known["warnings"]] == ["/schedule/scales"]
    assert counted(given, Job) == 0
    assert client.get("/v1/jobs").json()["items"] == []


def test_levels_and_adapters_of_a_distillation_are_told(client: Any, given: Any) -> None:
    teacher = given.succeeded(detector={"kind": "fcos", "fpn_channels": 96})
    body = given.body(teacher={"job": teacher}, methods=[{"kind": "fgd"}], student={"fpn_channels": 64})

    plan = client.post(PLANS, json=body).json()

    assert [each["stride"] for each in plan["outline"]["levels"]] == [8, 16, 32, 64, 128]
    adapters = plan["outline"]["adapters"]
    assert {(each["layer"], each["from_channels"], each["to_channels"]) for each in adapters} == {
        ("1x1 convolution", 64, 96)
    }
    assert plan["spec"]["methods"][0]["alpha"] is not None, "resolved, as a job's"


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"schedule": {"batch_size": 41}}, "/schedule/batch_size"),
        ({"schedule": {"batch_size": 8, "accumulate": 6}}, "/schedule/accumulate"),
        ({"schedule": {"scales": [1]}}, "/schedule/scales/0"),
        ({"dataset": "ds_" + "0" * 32}, "/dataset"),
        ({"teacher": {"job": "job_" + "0" * 32}, "methods": [{"kind": "fgd"}]}, "/teacher/job"),
        ({"methods": [{"kind": "fgd"}]}, "/methods"),
    ],
)
@pytest.mark.parametrize("path", [PLANS, ALIAS, "/v1/jobs"])
def test_what_a_job_is_refused_for_a_plan_is_too(
    client: Any, given: Any, path: str, changes: dict[str, Any], pointer: str
) -> None:
    answer = client.post(path, json=given.body() | changes)

    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert (counted(given, Plan), counted(given, Job)) == (0, 0)


def test_a_dry_run_uses_up_no_idempotency_key(client: Any, given: Any) -> None:
    body, headers = given.body(), {"Idempotency-Key": "k"}
    assert client.post(ALIAS, json=body, headers=headers).status_code == 202
    assert counted(given, IdempotencyKey) == 0
    assert client.post("/v1/jobs", json=body, headers=headers).status_code == 201


def test_dry_run_false_is_a_job(client: Any, given: Any) -> None:
    assert client.post("/v1/jobs?dry_run=false", json=given.body()).status_code == 201
    assert client.post("/v1/jobs?dry_run=perhaps", json=given.body()).status_code == 422


def measure_soon(given: Any, after_s: float) -> threading.Thread:
    """A worker that takes the next plan and has measured it after a while."""

    def work() -> None:
        while True:
            with db.transaction(given.engine) as s:
                claim = plans.claim(s, "wrk_a", ("cpu", "auto"), lease_s=20.0)
            if claim is not None:
                break
            time.sleep(0.02)
        time.sleep(after_s)
        with db.transaction(given.engine) as s:
            plans.finish(s, claim.id, claim.attempt, MEASURED, 0)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_an_answer_that_may_wait_comes_as_soon_as_it_is_measured(client: Any, given: Any) -> None:
    body = given.body()
    worker = measure_soon(given, 0.3)
    began = time.monotonic()
    answer = client.post(PLANS, json=body, headers={"Prefer": "wait=20"})
    worker.join()

    assert time.monotonic() - began < 15
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=20"
    assert answer.json()["measured"]["hours"] == 1.5
    assert answer.json()["measured"]["trainings_beside"] == 0


def test_an_answer_waits_no_longer_than_it_may(client: Any, given: Any) -> None:
    began = time.monotonic()
    answer = client.post(PLANS, json=given.body(), headers={"Prefer": "wait=1"})
    assert 0.9 < time.monotonic() - began < 20
    assert answer.status_code == 202


def test_a_plan_can_be_asked_for_later_and_waited_for(client: Any, given: Any) -> None:
    location = client.post(PLANS, json=given.body()).headers["location"]
    tag = client.get(location).headers["etag"]
    assert client.get(location, headers={"If-None-Match": tag}).status_code == 304
    worker = measure_soon(given, 0.2)
    seen = []
    while seen[-1:] != ["measured"]:  # first a worker takes it
        answer = client.get(location, headers={"Prefer": "respond-async, wait=20", "If-None-Match": tag})
        assert answer.status_code == 200
        tag = answer.headers["etag"]
        seen.append(answer.json()["state"])
    worker.join()
    assert len(seen) <= 2


def test_a_failed_plan_says_why(client: Any, given: Any) -> None:
    location = client.post(PLANS, json=given.body()).headers["location"]
    with db.transaction(given.engine) as s:
        claim = plans.claim(s, "wrk_a", ("auto",), lease_s=20.0)
        assert claim is not None
        plans.fail(s, claim.id, claim.attempt, "gpu_out_of_memory", "too large")
    plan = client.get(location).json()
    assert plan["error"] == {"code": "gpu_out_of_memory", "message": "too large", "pointer": ""}


def test_a_plan_that_is_not_there_is_a_404(client: Any) -> None:
    answer = client.get("/v1/plans/plan_" + "0" * 32)
    assert (answer.status_code, answer.json()["code"]) == (404, "plan_not_found")


def test_one_too_many_is_answered_at_once_for_its_plan_is_made(client: Any, given: Any, settings: Any) -> None:
    waiters = client.app.state.service.waiters
    taken = [waiters.take(f"10.0.0.{n}") for n in range(settings.max_waiters)]
    began = time.monotonic()
    answer = client.post("/v1/plans", json=given.body(), headers={"Prefer": "wait=60"})
    for give_back in taken:
        give_back()

    assert answer.status_code == 202
    assert time.monotonic() - began < 20
    assert client.get(answer.headers["location"]).status_code == 200


def test_a_server_that_closes_answers_whoever_waits(client: Any, given: Any) -> None:
    body = given.body()
    threading.Timer(0.5, client.app.state.service.changes.end_waits).start()
    began = time.monotonic()
    assert client.post("/v1/plans", json=body, headers={"Prefer": "wait=60"}).status_code == 202
    assert time.monotonic() - began < 20


# --- which student fits a latency -----------------------------------------------------------------------------


def question(given: Any, **changes: Any) -> dict[str, Any]:
    return {"dataset": given.dataset().id, "latency_budget_ms": 15, "threads": 1} | changes


def found_by(question: dict[str, Any]) -> BudgetTable:
    """What a worker answers, to whom everything is a path."""
    asked = FindStudent.model_validate(question)
    timing = Latency.of([Timing(9.0), Timing(10.0), Timing(11.0)])
    at_work = asked.but(dataset={"path": "/work/set"}, teacher={"path": "/work/t"} if asked.teacher else None)
    row = BudgetRow(
        title="FCOS R18, FPN 64", student={"kind": "fcos"}, size=Size(min_size=64, max_size=80), input=(64, 80),
        latency=timing, verdict="fits", parameters=1, gflops=1.0, mb=1.0, capacity=1.0, levels=5, levels_shared=None,
        small_box_px=None, median_box_px=None, spec=ready_spec(at_work, FCOS(), Size(min_size=64, max_size=80), 40),
    )  # fmt: skip
    return BudgetTable(
        latency_budget_ms=15, runtime="onnxruntime", threads=1, device="a processor", message="it fits", fits=True,
        missed_by_ms=None, noise=1.1, waited_share=0.0, rows=(row,), teacher=None, candidates=1, timed=1, seconds=1.0,
    )  # fmt: skip


def test_students_are_found_by_a_worker_and_their_specs_are_ready(client: Any, given: Any) -> None:
    body = question(given, teacher={"job": given.succeeded(detector={"kind": "fcos", "fpn_channels": 96})})
    answer = client.post(PLANS, json=body)
    assert answer.status_code == 202
    location, plan = answer.headers["location"], answer.json()
    assert (plan["spec"], plan["outline"], plan["measured"], plan["students"]) == (None, None, None, None)
    assert plan["question"]["latency_budget_ms"] == 15
    assert "no worker is running" in plan["waiting_reason"]

    with db.transaction(given.engine) as s:
        claim = plans.claim(s, "wrk_a", ("cpu", "auto"), lease_s=20.0)
        assert claim is not None
        assert claim.question == FindStudent.model_validate(body)
        assert set(claim.inputs) == {"dataset", "teacher"}
        plans.tell(s, claim.id, claim.attempt, "timing a spread of students, 3 done")
    assert client.get(location).json()["phase"] == "timing a spread of students, 3 done"
    table = found_by(body).asked_by(claim.question)
    with db.transaction(given.engine) as s:
        plans.finish_search(s, claim.id, claim.attempt, table, 2)

    plan = client.get(location).json()
    assert (plan["state"], plan["phase"], plan["measured"]) == ("measured", None, None)
    assert plan["students"]["trainings_beside"] == 2
    (row,) = plan["students"]["rows"]
    assert (row["spec"]["dataset"], row["spec"]["teacher"]["job"]) == (body["dataset"], body["teacher"]["job"])
    made = client.post("/v1/jobs", json=row["spec"])
    assert made.status_code == 201, made.json()
    assert made.json()["spec"]["latency_budget_ms"] == 15


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"latency_budget_ms": 0}, "/latency_budget_ms"),
        ({"latency_budget_ms": None}, "/latency_budget_ms"),
        ({"dataset": "ds_" + "0" * 32}, "/dataset"),
        ({"teacher": {"job": "job_" + "0" * 32}}, "/teacher/job"),
        ({"size": {"min_size": 64}}, "/size/max_size"),
        ({"size": {"min_size": 64, "max_size": 32}}, "/size"),
        ({"runtime": "tensorrt"}, "/runtime"),
        ({"threads": 0}, "/threads"),
        ({"seconds": 1}, "/seconds"),
        ({"schedule": {"epochs": 3}}, "/schedule"),
    ],
)
def test_a_question_that_can_not_be_answered_is_refused_at_its_field(
    client: Any, given: Any, changes: dict[str, Any], pointer: str
) -> None:
    answer = client.post(PLANS, json=question(given) | changes)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert counted(given, Plan) == 0


def test_a_body_with_a_student_is_a_jobs_whose_budget_is_measured_later(client: Any, given: Any) -> None:
    plan = client.post(PLANS, json=given.body(latency_budget_ms=15)).json()
    assert (plan["question"], plan["spec"]["latency_budget_ms"]) == (None, 15)
    answer = client.post(PLANS, json=given.body(latency_budget_ms=15, runtime="torch"))
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/runtime"]


def test_a_search_that_a_worker_gave_up_says_no_more_how_far_it_is(client: Any, given: Any) -> None:
    location = client.post(PLANS, json=question(given)).headers["location"]
    for attempt in (1, 2):
        with db.transaction(given.engine) as s:
            claim = plans.claim(s, "wrk_a", ("cpu", "auto"), lease_s=20.0)
            assert claim is not None
            plans.tell(s, claim.id, attempt, "timing")
            plans.lose(s, claim.id, attempt, "it crashed")
        assert client.get(location).json()["phase"] is None
    assert client.get(location).json()["error"]["code"] == "worker_lost"
