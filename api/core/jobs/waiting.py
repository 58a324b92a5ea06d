"""Why a queued job does not run yet, in plain words. Computed when asked, never stored."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from api.core import workers
from api.core.lifecycle import State
from api.core.rows import db
from api.core.rows.tables import Job, WorkerRow


def waiting_reason(s: Session, job: Job, live: Sequence[WorkerRow]) -> str | None:
    """None unless the job is queued or paused. `live`: the live workers."""
    if job.state == State.paused:
        step = (job.progress or {}).get("step", 0)
        return f"paused after step {step}; `fgd job resume {job.id}` lets it go on, from its last checkpoint"
    if job.state != State.queued:
        return None
    if not live:
        return "no worker is running; start one with `fgd worker` (`fgd serve` starts one by itself)"
    if not (willing := [worker for worker in live if worker.complaint is None]):
        return f"{_count(live)} and {'takes' if len(live) == 1 else 'take'} nothing: {live[0].complaint}"
    live = willing
    if job.device == "cuda" and not any(workers.has_cuda(worker) for worker in live):
        return f'{_count(live)}, none with a GPU, and resources.device is "cuda"; "auto" or "cpu" would run now'
    asked, largest = _devices(job.spec), max(workers.slots_for(worker, job.device) for worker in live)
    if asked > largest:
        return (
            f"{_count(live)}, none with {asked} {_kind(job, live)}slots, as resources.devices asks; "
            f"the largest has {largest} (FGD_SLOTS sets those on the processor)"
        )
    threads = asked * (job.spec["resources"]["threads"] or 0)
    most = max(_cores(worker) for worker in live)
    if threads > most:
        return f"{_count(live)}, none with {threads} processor cores, as resources.threads asks; the largest has {most}"
    able = [w for w in live if workers.slots_for(w, job.device) >= asked and _cores(w) >= threads]
    if not able:  # some have the slots, others the cores
        wanted = f"{_count_of(asked, _kind(job, live) + 'slot')} and {_count_of(threads, 'processor core')}"
        cores = max(_cores(w) for w in live if workers.slots_for(w, job.device) >= asked)
        return (
            f"{_count(live)}, none with {wanted} on one host, as resources.devices and resources.threads ask; of those "
            f"with the slots the largest has {_count_of(cores, 'core')}"
        )
    wait_s = (job.not_before - db.now(s)).total_seconds()
    if wait_s > 0:
        until = job.not_before.strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"waits {math.ceil(wait_s)} s, until {until}, before retry {job.retries} of {job.limits['max_retries']}"
    ahead = _ahead(s, job, live)
    slots = sum(workers.slots_for(worker, job.device) for worker in able)
    taken = _running_where_it_could(s, job, able)
    running = sum(taken.values())
    if asked > max(workers.slots_for(worker, job.device) - taken[worker.id] for worker in able):
        scattered = f", no host has {asked} free at once" if running + asked <= slots else ""
        too_small = sum(workers.slots_for(worker, job.device) > 0 for worker in live) - len(able)
        small = f", {_count_of(too_small, 'host')} too small for it" if too_small else ""
        in_use = f"{running} of {slots} {_kind(job, able)}slots in use{scattered}{small}"
        return f"{_count(live)} and busy ({in_use}); {_place(ahead)}"
    return f"{_place(ahead)}; a worker is about to take it" if ahead == 0 else f"behind others: {_place(ahead)}"


def queue_position(s: Session, job: Job, live: Sequence[WorkerRow]) -> int | None:
    """1: the next that a worker takes, of those that want the same slots. None unless the job is queued."""
    return _ahead(s, job, live) + 1 if job.state == State.queued else None


def _running_where_it_could(s: Session, job: Job, live: Sequence[WorkerRow]) -> Counter[str]:
    """Slots this job fits that running jobs hold, of each worker."""
    owners = {worker.id: worker for worker in live}
    query = select(Job.lease_owner, Job.device, Job.spec).where(Job.state == State.running, Job.lease_owner.in_(owners))
    taken: Counter[str] = Counter()
    for owner, device, spec in s.execute(query):
        if owner is not None and workers.lane(owners[owner], device) == workers.lane(owners[owner], job.device):
            taken[owner] += _devices(spec)
    return taken


def _count_of(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _cores(worker: WorkerRow) -> int:
    return int(worker.facts.get("cores", 0))


def _devices(spec: Mapping[str, Any]) -> int:
    return int(spec["resources"].get("devices", 1))


def _ahead(s: Session, job: Job, live: Sequence[WorkerRow]) -> int:
    """Queued jobs that a worker would take before this one, into a slot that this one fits; all of them while no
    worker lives."""
    before = or_(
        Job.priority > job.priority,
        (Job.priority == job.priority) & (Job.created_at < job.created_at),
        (Job.priority == job.priority) & (Job.created_at == job.created_at) & (Job.id < job.id),
    )
    rivals = [
        device
        for device in ("auto", "cpu", "cuda")
        if not live or any(workers.lane(worker, device) == workers.lane(worker, job.device) for worker in live)
    ]
    query = select(func.count()).select_from(Job).where(Job.state == State.queued, Job.not_before <= db.now(s))
    return s.scalar(query.where(before, Job.device.in_(rivals))) or 0


def _count(live: Sequence[WorkerRow]) -> str:
    return "1 worker is running" if len(live) == 1 else f"{len(live)} workers are running"


def _kind(job: Job, live: Sequence[WorkerRow]) -> str:
    """Said only where there is more than one kind."""
    if not any(workers.has_cuda(worker) for worker in live):
        return ""
    return "processor " if all(workers.lane(worker, job.device) == "cpu" for worker in live) else "GPU "


def _place(ahead: int) -> str:
    return "next in line" if ahead == 0 else f"{ahead} queued before it"
