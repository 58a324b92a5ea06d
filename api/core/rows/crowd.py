"""How many rows may wait at once: each holds a place that others wait behind. Knows no verb."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.core.errors import Busy
from api.core.lifecycle import DatasetState, ModelState, PlanState, State, TaskState
from api.core.rows.columns import Noun
from api.core.rows.tables import Dataset, Evaluation, Export, Inspection, Job, Model, Plan, Prediction

WAITING: dict[type[Noun], Collection[str]] = {
    Job: (State.queued,),
    Dataset: (DatasetState.awaiting_upload, DatasetState.verifying),
    Model: (ModelState.awaiting_upload, ModelState.verifying),
    Plan: (PlanState.measuring,),
    Evaluation: (TaskState.pending,),
    Export: (TaskState.pending,),
    Prediction: (TaskState.pending,),
    Inspection: (TaskState.pending,),
}


def expect_place(
    s: Session,
    kind: type[Job | Dataset | Model | Plan | Evaluation | Export | Prediction | Inspection],
    project_id: str,
    most: int,
    setting: str,
    more: int = 1,
) -> None:
    """Before `more` are inserted. setting: the variable that sets `most`. Raises Busy."""
    waiting = select(kind.id).where(kind.project_id == project_id, kind.state.in_(WAITING[kind])).limit(most)
    there = s.scalar(select(func.count()).select_from(waiting.subquery())) or 0
    if there + more > most:
        words = {"dataset": "data sets"}.get(kind.noun(), f"{kind.noun()}s")
        already = f"{there} {words} are waiting already, and {most} may ({setting})"
        room = already if more == 1 else f"{already}; these are {more} more"
        detail = f"{room}; try again later, or delete or cancel some"
        raise Busy("too_many_waiting", detail)
