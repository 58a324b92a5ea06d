"""Which job is the control of which: the same student, trained without a teacher. Knows rows.

A control has the same student, data, schedule and seed as the distilled job, so nobody needs to name it: both have the
same `twin`. Where several fit, the one that has succeeded counts, else the newest.

The gain is student minus control after the same step. While one of the two has not come as far as the other, both are
compared where the slower one was last evaluated: a student in its third epoch is not worse than a control in its tenth.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, and_, case, select
from sqlalchemy.orm import aliased

from api.core.lifecycle import State
from api.core.rows.tables import Job, MetricPoint, Series

TAUGHT_BY = ("student", "dataset", "schedule", "seed")
"""What control and distilled job have in common. Where it ran makes no other control."""
BOOKKEEPING = ("checkpoint_s", "checkpoint_steps", "on_non_finite")
"""Of the schedule; it changes no weight."""


def twin(spec: Mapping[str, Any]) -> str:
    """Of a resolved spec, as JSON. Fields that are null count as left out: a later version may have more of them."""
    common = {name: spec.get(name) for name in TAUGHT_BY}
    schedule = dict(spec.get("schedule") or {})
    for name in BOOKKEEPING:
        schedule.pop(name, None)
    text = json.dumps(_without_nulls({**common, "schedule": schedule}), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list | tuple) else value


def control_of_job() -> ScalarSelect[Any]:
    """For a query over jobs: the id of the control, null where there is none that was evaluated."""
    other = aliased(Job)
    return (
        select(other.id)
        .where(
            Job.taught.is_(True),
            other.project_id == Job.project_id,
            other.twin == Job.twin,
            other.taught.is_(False),
            other.ap_step.is_not(None),
            Job.twin != "",
        )
        .order_by(case((other.state == State.succeeded, 0), else_=1), other.created_at.desc(), other.id.desc())
        .limit(1)
        .correlate(Job)
        .scalar_subquery()
    )


def gain(job: Any, control: Any) -> ColumnElement[Any]:
    """Of a query that joins both: AP of the job minus that of its control, after the same step."""
    return case(
        (job.ap_step.is_(None), None),
        (job.ap_step == control.ap_step, job.ap - control.ap),
        (job.ap_step < control.ap_step, job.ap - _ap_until(control.id, job.ap_step)),
        else_=_ap_until(job.id, control.ap_step) - control.ap,
    )


def _ap_until(job_id: Any, step: Any) -> ScalarSelect[Any]:
    """AP of the last evaluation up to a step."""
    series, point = aliased(Series), aliased(MetricPoint)
    return (
        select(point.value)
        .join(series, and_(series.job_id == point.job_id, series.id == point.series_id))
        .where(series.job_id == job_id, series.name == "ap", series.split == "val", point.step <= step)
        .order_by(point.step.desc())
        .limit(1)
        .correlate_except(series, point)
        .scalar_subquery()
    )
