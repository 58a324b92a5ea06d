"""The verbs of a worker's own row: who is alive, and what it has. Knows nothing of jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import bindparam, delete, select
from sqlalchemy.orm import Session

from api.core.rows import db
from api.core.rows.swept import Moment, SweepResult
from api.core.rows.tables import DEFAULT_PROJECT, WorkerRow

FORGET_AFTER = timedelta(days=1)


@dataclass(frozen=True)
class LiveWorker:
    """A worker that was heard of lately."""

    id: str
    host: str
    slots: int
    devices: Sequence[Mapping[str, Any]]
    """GPUs; none where the processor is all there is."""
    cores: int
    complaint: str | None
    """Why it takes nothing just now; None: it does."""
    found: Sequence[str] = ()
    """What it found on its host, in lines for people."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the packages that decide what it can do; one that is not installed is missing."""


def register(
    s: Session,
    worker_id: str,
    *,
    host: str,
    pid: int,
    slots: int,
    devices: Sequence[Mapping[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Announce a worker (id: new_id("wrk")), or announce it again with other facts.

    devices: one entry a GPU, {"kind": "cuda", "name": ..., ...}; empty where the processor is all there is.
    """
    now = db.now(s)
    row = s.get(WorkerRow, worker_id)
    if row is None:
        row = WorkerRow(id=worker_id, project_id=DEFAULT_PROJECT, started_at=now)
        s.add(row)
    row.host, row.pid, row.slots, row.last_beat = host, pid, slots, now
    row.devices, row.facts = [dict(device) for device in devices], dict(facts or {})
    s.flush()


def beat(s: Session, worker_id: str, complaint: str | None = None) -> bool:
    """False: the service has forgotten this worker; register again. complaint: why it takes nothing just now."""
    row = s.get(WorkerRow, worker_id)
    if row is None:
        return False
    row.last_beat, row.complaint = db.now(s), complaint
    s.flush()
    return True


def live(s: db.Reader, lease_s: float, at: datetime | None = None) -> list[LiveWorker]:
    """Workers heard of within `lease_s` seconds before `at`: now, if the caller has not asked the database for it."""
    rows = s.execute(_LIVE, {"since": (at or db.now(s)) - timedelta(seconds=lease_s)})
    return [
        LiveWorker(
            row.id,
            row.host,
            row.slots,
            row.devices,
            int(row.facts.get("cores", 0)),
            row.complaint,
            row.facts.get("found", ()),
            row.facts.get("versions", {}),
        )
        for row in rows
    ]


_LIVE = (
    select(WorkerRow.id, WorkerRow.host, WorkerRow.slots, WorkerRow.devices, WorkerRow.facts, WorkerRow.complaint)
    .where(WorkerRow.last_beat > bindparam("since"))
    .order_by(WorkerRow.id)
)


def everyone(s: Session) -> list[WorkerRow]:
    """Also those not heard of lately, until they are forgotten."""
    return list(s.scalars(select(WorkerRow).order_by(WorkerRow.host, WorkerRow.started_at, WorkerRow.id)))


def forget(s: Session, worker_id: str) -> None:
    """A worker says goodbye; its jobs were handed back before."""
    s.execute(delete(WorkerRow).where(WorkerRow.id == worker_id))


def sweep(s: Session, moment: Moment) -> SweepResult:
    """Forget workers not heard of for a day."""
    s.execute(delete(WorkerRow).where(WorkerRow.last_beat < moment.at - FORGET_AFTER))
    return SweepResult()


def has_cuda(worker: LiveWorker) -> bool:
    return any(device.get("kind") == "cuda" for device in worker.devices)


def lane(worker: LiveWorker, device: str) -> Literal["cpu", "cuda"]:
    """Which of the worker's slots a job takes: "auto" waits for a GPU where there is one."""
    return "cuda" if device == "cuda" or (device == "auto" and has_cuda(worker)) else "cpu"


def slots_for(worker: LiveWorker, device: str) -> int:
    """How many jobs with that resources.device it runs at once: one a GPU, the rest on the processor."""
    gpus: int = sum(entry.get("kind") == "cuda" for entry in worker.devices)
    return gpus if lane(worker, device) == "cuda" else worker.slots - gpus
