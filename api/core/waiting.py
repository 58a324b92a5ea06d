"""Why a queued job does not run yet, in plain words. Computed when asked, never stored."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from api.core import db, workers
from api.core.lifecycle import State
from api.core.tables import Job, WorkerRow


def waiting_reason(s: Session, job: Job, lease_s: float = 20.0, live: Sequence[WorkerRow] | None = None) -> str | None:
    """None unless the job is queued. `live`: the live workers, if the caller has them already."""
    if job.state != State.queued:
        return None
    live = workers.live(s, lease_s) if live is None else live
    if not live:
        return "no worker is running; start one with `fgd worker` (`fgd serve` starts one by itself)"
    if job.device == "cuda" and not any(workers.has_cuda(worker) for worker in live):
        return f'{_count(live)}, none with a GPU, and resources.device is "cuda"; "auto" or "cpu" would run now'
    wait_s = (job.not_before - db.now(s)).total_seconds()
    if wait_s > 0:
        until = job.not_before.strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"waits {math.ceil(wait_s)} s, until {until}, before retry {job.retries} of {job.limits['max_retries']}"
    ahead = _ahead(s, job)
    running = s.scalar(select(func.count()).select_from(Job).where(Job.state == State.running)) or 0
    slots = sum(worker.slots for worker in live)
    if running >= slots:
        return f"{_count(live)} and busy ({running} of {slots} slots in use); {_place(ahead)}"
    return f"{_place(ahead)}; a worker is about to take it" if ahead == 0 else f"behind others: {_place(ahead)}"


def _ahead(s: Session, job: Job) -> int:
    """Queued jobs that a worker would take before this one."""
    before = or_(
        Job.priority > job.priority,
        (Job.priority == job.priority) & (Job.created_at < job.created_at),
        (Job.priority == job.priority) & (Job.created_at == job.created_at) & (Job.id < job.id),
    )
    query = select(func.count()).select_from(Job).where(Job.state == State.queued, Job.not_before <= db.now(s), before)
    return s.scalar(query) or 0


def _count(live: Sequence[WorkerRow]) -> str:
    return "1 worker is running" if len(live) == 1 else f"{len(live)} workers are running"


def _place(ahead: int) -> str:
    return "next in line" if ahead == 0 else f"{ahead} queued before it"
