"""A table of jobs: a line for each, sorted by whatever column, with the AP so far and the gain over the control.

Reads rows; knows nothing of HTTP. A table is read by its place (`offset`), not by a cursor: its order changes while
jobs train, and people go back and forth in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, Text, bindparam, cast, func, or_, select
from sqlalchemy.orm import aliased

from api.core.jobs import controls, waiting
from api.core.lifecycle import State
from api.core.rows.db import Reader
from api.core.rows.tables import Dataset, Job

Order = Literal["created", "name", "state", "ap", "gain"]


@dataclass(frozen=True)
class Wanted:
    """Everything given must hold; of several states one."""

    states: frozenset[State] = frozenset()
    """Empty: any."""
    search: str = ""
    """In name, id or labels; letter case does not count."""
    ids: Sequence[str] = ()
    """Empty: any."""
    worse: bool = False
    """Only jobs that are worse than their control."""
    order: Order = "created"
    falling: bool = True
    offset: int = 0
    limit: int = 100


@dataclass(frozen=True)
class Summary:
    id: str
    name: str
    state: str
    phase: str | None
    requested: str | None
    labels: Mapping[str, str]
    priority: int
    attempt: int
    version: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    step: int
    total_steps: int | None
    epoch: int
    epochs: int | None
    left_s: float | None
    ap: float | None
    ap_step: int | None
    control: str | None
    control_ap: float | None
    gain: float | None
    student: str
    methods: Sequence[str]
    teachers: Sequence[str]
    dataset: str
    dataset_name: str
    why: str | None


@dataclass(frozen=True)
class Table:
    items: Sequence[Summary]
    total: int
    states: Mapping[str, int]
    """How many of each state the filters other than that on states let through."""


def table(s: Reader, project_id: str, wanted: Wanted, lease_s: float) -> Table:
    others = _filtered(select(Job.state, func.count().label("many")), project_id, wanted)
    counts: dict[str, int] = {row.state: row.many for row in s.execute(others.group_by(Job.state))}
    total = sum(count for state, count in counts.items() if not wanted.states or state in wanted.states)
    ids = _ids(s, project_id, wanted) if total else []
    return Table(_summaries(s, ids, lease_s), total, counts)


_Control = aliased(Job, name="control")
_GAIN = controls.gain(Job, _Control)


def _with_control(query: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    return query.outerjoin(_Control, _Control.id == controls.control_of_job())


def _filtered(query: Select[*tuple[Any, ...]], project_id: str, wanted: Wanted) -> Select[*tuple[Any, ...]]:
    """All filters but that on states."""
    query = query.select_from(Job).where(Job.project_id == project_id)
    if wanted.worse:
        query = _with_control(query).where(Job.taught.is_(True), _GAIN < 0)
    if wanted.search:
        quoted = json.dumps(wanted.search)[1:-1]  # labels are stored as JSON, with its escapes
        labels = cast(Job.labels, Text).icontains(quoted, autoescape=True)
        text = wanted.search
        query = query.where(or_(Job.name.icontains(text, autoescape=True), Job.id == text, labels))
    if wanted.ids:
        query = query.where(Job.id.in_(list(wanted.ids)))
    return query


def _ids(s: Reader, project_id: str, wanted: Wanted) -> list[str]:
    query = _filtered(select(Job.id), project_id, wanted)
    if wanted.states:
        query = query.where(Job.state.in_(sorted(wanted.states)))
    if wanted.order == "gain" and not wanted.worse:
        query = _with_control(query)
    by: Mapping[str, Any] = {
        "created": Job.created_at, "name": Job.name, "state": Job.state, "ap": Job.ap, "gain": _GAIN,
    }  # fmt: skip
    column: ColumnElement[Any] = by[wanted.order]
    way = column.desc() if wanted.falling else column.asc()
    if wanted.order in ("ap", "gain"):
        way = way.nulls_last()
    then = (Job.created_at.desc(), Job.id.desc())
    if wanted.order == "created" and not wanted.falling:
        then = (Job.created_at.asc(), Job.id.asc())
    return list(s.execute(query.order_by(way, *then).offset(wanted.offset).limit(wanted.limit)).scalars())


_LINES = (
    _with_control(
        select(
            Job.id, Job.name, Job.state, Job.phase, Job.requested, Job.labels.label("labels"), Job.priority,
            Job.attempt, Job.version,
            Job.created_at, Job.started_at, Job.finished_at, Job.progress, Job.ap, Job.ap_step,
            Job.spec, Job.failure_message, Job.dataset_id, Dataset.name.label("dataset_name"),
            _Control.id.label("control"), _Control.ap.label("control_ap"), _GAIN.label("gain"),
        ).select_from(Job)
    )
    .outerjoin(Dataset, Dataset.id == Job.dataset_id)
    .where(Job.id.in_(bindparam("ids", expanding=True)))
)  # fmt: skip


def _summaries(s: Reader, ids: Sequence[str], lease_s: float) -> list[Summary]:
    if not ids:
        return []
    rows = {row.id: row for row in s.execute(_LINES, {"ids": list(ids)})}
    wait_for = [id for id, row in rows.items() if row.state in (State.queued, State.paused)]
    waits = waiting.waits(s, wait_for, lease_s) if wait_for else {}
    return [_summary(rows[id], waits[id].reason if id in waits else None) for id in ids if id in rows]


def _summary(row: Any, why: str | None) -> Summary:
    progress, spec = row.progress or {}, row.spec
    teachers = [each for each in (spec.get("teacher"), *spec.get("teachers", {}).values()) if each]
    student = spec["student"]
    return Summary(
        id=row.id, name=row.name, state=row.state, phase=row.phase, requested=row.requested, labels=row.labels,
        priority=row.priority, attempt=row.attempt, version=row.version, created_at=row.created_at,
        started_at=row.started_at, finished_at=row.finished_at, step=int(progress.get("step") or 0),
        total_steps=progress.get("total_steps"), epoch=int(progress.get("epoch") or 0),
        epochs=progress.get("epochs"), left_s=left_s(row.state, progress, spec["schedule"]), ap=row.ap,
        ap_step=row.ap_step, control=row.control, control_ap=row.control_ap, gain=row.gain,
        student=f"{student.get('kind', 'fcos')} {student.get('backbone', '')}".strip(),
        methods=tuple("@".join(filter(None, (each["kind"], each.get("teacher")))) for each in spec["methods"]),
        teachers=[each.get("job") or each["model"] for each in teachers if "job" in each or "model" in each],
        dataset=row.dataset_id, dataset_name=row.dataset_name or row.dataset_id, why=why or row.failure_message,
    )  # fmt: skip


def left_s(state: str, progress: Mapping[str, Any], schedule: Mapping[str, Any]) -> float | None:
    """Seconds until the last step at the present speed, evaluations and checkpoints included; None if it is unknown."""
    values = progress.get("values") or {}
    speed, total = values.get("images_per_s"), progress.get("total_steps")
    if state != State.running or not speed or not total:
        return None
    images = int(schedule["batch_size"]) * int(schedule.get("accumulate") or 1)
    idle = sum(values.get(name) or 0.0 for name in ("evaluate/share", "checkpoint/share"))
    left = (total - int(progress.get("step") or 0)) * images / float(speed)
    return float(max(0.0, left / max(0.1, 1.0 - idle)))
