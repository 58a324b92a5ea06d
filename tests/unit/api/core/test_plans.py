"""The verbs of plans: leased, fenced, ended once; and what a rehearsal's end means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from api.core import plans, submission
from api.core.errors import Fenced, NotFound
from api.core.lifecycle import PlanState
from api.core.rows import db, leases
from api.core.rows.tables import DEFAULT_PROJECT, Plan
from api.core.settings import Settings
from fgd.budget import BudgetTable
from fgd.outline import Measurement
from fgd.spec import SubmitJob
from worker import student_search
from worker.child_answer import Refused
from worker.leased_child import TAIL, ChildBroken
from worker.rehearsal import ending

MEASURED = Measurement(
    device="a processor", threads=2, precision="float32", student_parameters=11, teacher_parameters=None,
    method_parameters=0, memory_peak_mb=1.0, cache_mb=1.0, s_per_step=0.5, steps=5, s_per_image_evaluated=0.1,
    s_to_start=1.0, hours=1.5, training_hours=1.0, checkpoint_mb=1.0, result_mb=1.0, disk_mb=8.0,
)  # fmt: skip


def planned(given: Any, **changes: Any) -> str:
    body = SubmitJob.model_validate(given.body(**changes))
    return submission.plan_job(given.engine, given.store, Settings(data_roots=(given.roots,)), DEFAULT_PROJECT, body).id


def claim(given: Any, worker: str = "wrk_a", devices: tuple[str, ...] = ("cpu", "auto")) -> plans.PlanClaim | None:
    with db.transaction(given.engine) as s:
        return plans.claim(s, worker, devices, lease_s=20.0)


def taken(given: Any, worker: str = "wrk_a") -> plans.PlanClaim:
    claimed = claim(given, worker)
    assert claimed is not None
    return claimed


def look(given: Any, id: str) -> Plan:
    with db.reading(given.engine) as s:
        return plans.get(s, DEFAULT_PROJECT, id)


def expire(given: Any) -> None:
    with given.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE plans SET lease_expires = '2020-01-01 00:00:00.000000'")


def test_a_plan_inserts_no_job(given: Any) -> None:
    id = planned(given)
    assert look(given, id).state == PlanState.measuring
    assert given.claim() is None


def test_the_oldest_plan_that_fits_is_taken_once(given: Any) -> None:
    first, second = planned(given), planned(given)
    gpu = planned(given, resources={"device": "cuda"})
    assert [taken(given).id, taken(given).id] == [first, second]
    assert claim(given) is None
    claimed = claim(given, devices=("cuda", "auto"))
    assert claimed is not None
    assert claimed.id == gpu


def test_a_claim_holds_the_resolved_spec_and_its_inputs(given: Any) -> None:
    planned(given)
    claimed = taken(given)
    assert set(claimed.inputs["dataset"]) == {"archive", "index"}
    assert claimed.attempt == 1


def test_a_measured_plan_has_its_figures(given: Any) -> None:
    id = planned(given)
    claimed = taken(given)
    with db.transaction(given.engine) as s:
        plans.finish(s, id, claimed.attempt, MEASURED, trainings_beside=1)
    plan = look(given, id)
    assert (plan.state, plan.measured["hours"], plan.measured["trainings_beside"]) == ("measured", 1.5, 1)  # type: ignore[index]
    assert plan.finished_at is not None
    assert plan.lease_owner is None
    with pytest.raises(Fenced), db.transaction(given.engine) as s:
        plans.fail(s, id, claimed.attempt, "user_error", "too late")


def test_a_worker_that_lost_its_lease_writes_nothing(given: Any) -> None:
    id = planned(given)
    old = taken(given)
    expire(given)
    given.sweep()
    new = taken(given, "wrk_b")
    assert new.attempt == 2
    for write in (
        lambda s: plans.finish(s, id, old.attempt, MEASURED, 0),
        lambda s: leases.beat(s, Plan, id, old.attempt, "wrk_a", lease_s=20.0),
        lambda s: leases.beat(s, Plan, id, new.attempt, "wrk_a", lease_s=20.0),
        lambda s: leases.hand_back(s, Plan, id, old.attempt),
    ):
        with pytest.raises(Fenced), db.transaction(given.engine) as s:
            write(s)
    with db.transaction(given.engine) as s:
        leases.beat(s, Plan, id, new.attempt, "wrk_b", lease_s=20.0)


def test_a_rehearsal_that_keeps_dying_is_given_up(given: Any) -> None:
    id = planned(given)
    for _ in range(plans.MAX_TRIES):
        claimed = taken(given)
        with db.transaction(given.engine) as s:
            plans.lose(s, id, claimed.attempt, "ended by signal 9")
    plan = look(given, id)
    assert (plan.state, plan.error["code"]) == ("failed", "worker_lost")  # type: ignore[index]
    assert "signal 9" in plan.error["message"]  # type: ignore[index]


def test_a_plan_that_was_handed_back_is_taken_again_and_the_try_does_not_count(given: Any) -> None:
    id = planned(given)
    for _ in range(plans.MAX_TRIES + 1):
        claimed = taken(given)
        with db.transaction(given.engine) as s:
            leases.hand_back(s, Plan, id, claimed.attempt)
    assert (look(given, id).state, look(given, id).losses) == ("measuring", 0)


def test_the_sweep_rings_for_plans_that_wait_where_a_worker_lives(given: Any) -> None:
    id = planned(given)
    assert given.sweep().ring == []
    given.worker()
    assert given.sweep().ring == [id]
    taken(given)
    assert given.sweep().ring == []


def test_old_plans_are_forgotten(given: Any) -> None:
    old, new = planned(given), planned(given)
    with given.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE plans SET created_at = '2020-01-01 00:00:00.000000' WHERE id = '{old}'")
    given.sweep()
    with pytest.raises(NotFound):
        look(given, old)
    assert look(given, new).id == new


@pytest.mark.parametrize(
    "change",
    [
        "state = 'measured', finished_at = created_at",
        "state = 'failed', finished_at = created_at",
        "state = 'dreaming'",
        "finished_at = created_at",
        "measured = '{}'",
        "error = '{}'",
        "lease_owner = 'wrk_a'",
        "lease_owner = 'wrk_a', lease_expires = created_at",
        "device = 'tpu'",
        "losses = -1",
        "project_id = 'prj_other'",
    ],
)
def test_an_impossible_plan_is_refused(given: Any, change: str) -> None:
    planned(given)
    with pytest.raises(IntegrityError), given.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE plans SET {change}")


def test_why_a_plan_waits_is_told(given: Any) -> None:
    def why(id: str) -> str | None:
        with db.reading(given.engine) as s:
            return plans.waiting_reason(s, plans.get(s, DEFAULT_PROJECT, id), lease_s=20.0)

    id, gpu = planned(given), planned(given, resources={"device": "cuda"})
    assert "no worker is running" in str(why(id))
    given.worker()
    assert "other plans" in str(why(id))
    assert "GPU" in str(why(gpu))
    taken(given)
    assert why(id) is None


# --- how a rehearsal ended ------------------------------------------------------------------------------------


def answered(folder: Path, content: Any, log: str = "") -> Path:
    """The work folder of a rehearsal that has ended."""
    (folder / "plan.json").write_text(content if isinstance(content, str) else json.dumps(content))
    (folder / TAIL).write_text(log)
    return folder


def test_an_answer_is_read(tmp_path: Path) -> None:
    assert ending(0, answered(tmp_path, {"levels": [], "measured": MEASURED.model_dump()})) == MEASURED
    error = {"code": "gpu_out_of_memory", "message": "too large", "pointer": ""}
    assert ending(1, answered(tmp_path, {"error": error})) == Refused("gpu_out_of_memory", "too large", "")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"measured": {}}', '{"measured": null}', '{"error": 3}'])
@pytest.mark.parametrize("code", [0, 1])
def test_an_answer_that_is_none_is_tried_again(tmp_path: Path, content: str, code: int) -> None:
    end = ending(code, answered(tmp_path, content, "some\nlast words\n"))
    assert isinstance(end, ChildBroken)
    assert "last words" in end.reason


def test_a_rehearsal_that_was_killed_or_left_no_answer_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / TAIL).write_text("x")
    for code in (-9, 0, 1, 2):
        assert isinstance(ending(code, tmp_path), ChildBroken)


def test_the_answer_of_a_search_is_read(tmp_path: Path) -> None:
    table = {
        "latency_budget_ms": 15.0, "runtime": "torch", "threads": 1, "device": "x", "message": "m", "fits": False,
        "missed_by_ms": 2.0, "noise": 1.0, "waited_share": 0.0, "rows": [], "teacher": None, "candidates": 1,
        "timed": 1, "seconds": 1.0, "warnings": [],
    }  # fmt: skip
    (tmp_path / TAIL).write_text("last words")
    file = tmp_path / student_search.ANSWER
    file.write_text(json.dumps(table))
    found = student_search.ending(0, tmp_path)
    assert isinstance(found, BudgetTable)
    assert found.model_dump(mode="json") == table
    file.write_text(json.dumps({"error": {"code": "user_error", "message": "no", "pointer": "/teacher"}}))
    assert student_search.ending(2, tmp_path) == Refused("user_error", "no", "/teacher")
    file.write_text(json.dumps(table | {"rows": 3}))
    assert isinstance(student_search.ending(0, tmp_path), ChildBroken)
