"""The verbs of plans: what a job would do, known at once, and what it would cost, measured by a worker under a lease;
or which students answer within a time, found by a worker likewise.

measuring --finish--> measured    what the rehearsal of a few steps showed, or the search for a student found
          --fail----> failed      the job cannot be trained like this, or the rehearsal did not finish
          --lose----> measuring   tried again, MAX_TRIES times in all

A plan inserts no job. Knows rows; knows no files and no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from api.core import workers
from api.core.lifecycle import PlanState
from api.core.rows import db, leases
from api.core.rows.db import Reader
from api.core.rows.ids import new_id
from api.core.rows.lookup import owned
from api.core.rows.swept import Moment, SweepResult
from api.core.rows.tables import Plan
from fgd.budget import BudgetTable, FindStudent
from fgd.outline import Measurement, Outline
from fgd.spec import JobSpec
from fgd.stored import stored_spec

MAX_TRIES = 2
"""A rehearsal whose worker or process was lost so many times will not be tried again."""
KEEP = timedelta(days=7)
"""Plans are forgotten so long after they were asked for."""


@dataclass(frozen=True)
class PlanClaim:
    id: str
    project_id: str
    attempt: int
    """Fencing token."""
    spec: JobSpec
    """Resolved; its references are ids."""
    inputs: Mapping[str, Mapping[str, str]]
    """Blobs to stage, as a job's."""
    device: str
    question: FindStudent | None
    """A student is looked for, and `spec` has any."""


def submit(
    s: Session,
    project_id: str,
    resolved: JobSpec,
    outline: Outline,
    inputs: Mapping[str, Mapping[str, str]],
    question: FindStudent | None = None,
) -> Plan:
    """A new plan, `measuring` until a worker has rehearsed it, or has found students for the question."""
    plan = Plan(
        id=new_id("plan"),
        project_id=project_id,
        name=resolved.name,
        state=PlanState.measuring,
        spec=resolved.model_dump(mode="json"),
        question=question.model_dump(mode="json") if question is not None else None,
        inputs={name: dict(files) for name, files in inputs.items()},
        device=resolved.resources.device,
        outline=outline.model_dump(mode="json"),
        attempt=0,
        losses=0,
        created_at=db.now(s),
    )
    s.add(plan)
    s.flush()
    return plan


def get(s: Session, project_id: str, plan_id: str) -> Plan:
    """Raises NotFound, for another project's plan too."""
    return owned(s, Plan, project_id, plan_id)


def waiting_reason(s: Reader, plan: Any, lease_s: float) -> str | None:
    """Why it is not being measured yet; None once it is. plan: the row, or its state, lease_owner and device."""
    if plan.state != PlanState.measuring or plan.lease_owner is not None:
        return None
    live = workers.live(s, lease_s)
    if not live:
        return "no worker is running; start one with `fgd worker` (`fgd serve` starts one by itself)"
    if plan.device == "cuda" and not any(map(workers.has_cuda, live)):
        return 'no worker has a GPU, and resources.device is "cuda"'
    return "a worker will take it when it has finished other plans"


def claim(s: Session, worker_id: str, devices: Collection[str], lease_s: float) -> PlanClaim | None:
    """Take the oldest plan whose resources.device is one of `devices`; None if there is none."""
    plan = leases.claim(s, Plan, worker_id, lease_s, Plan.device.in_(devices))
    if plan is None:
        return None
    return PlanClaim(
        id=plan.id,
        project_id=plan.project_id,
        attempt=plan.attempt,
        spec=stored_spec(plan.spec),
        inputs=plan.inputs,
        device=plan.device,
        question=FindStudent.model_validate(plan.question) if plan.question is not None else None,
    )


def tell(s: Session, plan_id: str, attempt: int, phase: str) -> None:
    """How far the search for a student is. Raises Fenced."""
    leases.held(s, Plan, plan_id, attempt).phase = phase
    s.flush()


def finish_search(s: Session, plan_id: str, attempt: int, found: BudgetTable, trainings_beside: int) -> None:
    """measuring -> measured, with the students that were found. Raises Fenced."""
    plan = leases.held(s, Plan, plan_id, attempt)
    plan.measured = found.model_dump(mode="json") | {"trainings_beside": trainings_beside}
    _end(s, plan, PlanState.measured)


def finish(s: Session, plan_id: str, attempt: int, measured: Measurement, trainings_beside: int) -> None:
    """measuring -> measured. trainings_beside: that ran on the host meanwhile, and made it slower. Raises Fenced."""
    plan = leases.held(s, Plan, plan_id, attempt)
    plan.measured = measured.model_dump(mode="json") | {"trainings_beside": trainings_beside}
    _end(s, plan, PlanState.measured)


def fail(s: Session, plan_id: str, attempt: int, code: str, message: str, pointer: str = "") -> None:
    """measuring -> failed: it would come out so again. Raises Fenced."""
    plan = leases.held(s, Plan, plan_id, attempt)
    plan.error = {"code": code, "message": message, "pointer": pointer}
    _end(s, plan, PlanState.failed)


def lose(s: Session, plan_id: str, attempt: int, reason: str) -> None:
    """The rehearsal died or its host failed: measuring again, or failed if that happened too often. Raises Fenced."""
    _lose(s, leases.held(s, Plan, plan_id, attempt), reason)


def sweep(s: Session, moment: Moment) -> SweepResult:
    """Free expired leases, forget old plans."""
    swept = leases.sweep(s, Plan, moment, lambda plan, reason: _lose(s, plan, reason))
    s.execute(delete(Plan).where(Plan.created_at < moment.at - KEEP, Plan.lease_owner.is_(None)))
    return swept


def _lose(s: Session, plan: Plan, reason: str) -> None:
    plan.phase = None
    if message := leases.lose(plan, reason, MAX_TRIES):
        plan.error = {"code": "worker_lost", "message": message, "pointer": ""}
        _end(s, plan, PlanState.failed)
    s.flush()


def _end(s: Session, plan: Plan, state: PlanState) -> None:
    plan.state, plan.finished_at, plan.phase = state, db.now(s), None
    leases.let_go(plan)
    s.flush()
