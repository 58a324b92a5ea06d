"""Why a job does not run yet, in plain words, and its place in the queue. Computed when asked, never stored.

For many jobs at once: a page of them takes as many statements as one. Reads rows, writes none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, literal_column, select

from api.core import workers
from api.core.jobs.queue_order import DEVICES
from api.core.lifecycle import State
from api.core.rows import db
from api.core.rows.tables import Job
from api.core.workers import LiveWorker

IS_QUEUED = Job.state == literal_column("'queued'")
IS_RUNNING = Job.state == literal_column("'running'")
"""The words themselves: with parameters in their place SQLite would read all jobs instead of its index of these."""


THREADS = func.coalesce(Job.spec[("resources", "threads")].as_integer(), 0)
"""Of one device; 0: what the worker gives."""


@dataclass(frozen=True)
class Wait:
    reason: str
    position: int | None
    """1: the next that a worker takes, of those that want the same slots. None for a paused job."""


@dataclass(frozen=True)
class _Queue:
    """What queued jobs wait for, at one look."""

    at: datetime
    live: Sequence[LiveWorker]
    taken: Mapping[tuple[str, str], int]
    """Slots that running jobs hold, of each worker and lane."""
    before: Mapping[str, Mapping[str, int]]
    """Job -> resources.device -> jobs that a worker would take before it."""


def waits(s: db.Reader, job_ids: Sequence[str], lease_s: float) -> dict[str, Wait]:
    """Of those among the jobs that are queued or paused."""
    jobs = s.execute(_WAITING, {"ids": list(job_ids)}).all()
    queued = [job.id for job in jobs if job.state == State.queued]
    if not queued:
        return {job.id: Wait(_paused(job), None) for job in jobs}
    at = db.now(s)
    live = workers.live(s, lease_s, at)
    queue = _Queue(at, live, _taken(s, live), _before(s, queued, at))
    return {
        job.id: Wait(_reason(job, queue), _ahead(job, live, queue) + 1)
        if job.state == State.queued
        else Wait(_paused(job), None)
        for job in jobs
    }


_WAITING = select(
    Job.id,
    Job.state,
    Job.device,
    Job.not_before,
    Job.retries,
    Job.limits["max_retries"].as_integer().label("max_retries"),
    Job.progress[("step",)].as_integer().label("step"),
    DEVICES.label("devices"),
    THREADS.label("threads"),
).where(Job.id.in_(bindparam("ids", expanding=True)), Job.state.in_((State.queued, State.paused)))


def _paused(job: Any) -> str:
    return f"paused after step {job.step or 0}; `fgd job resume {job.id}` continues it from its last checkpoint"


def _reason(job: Any, queue: _Queue) -> str:
    live = queue.live
    if not live:
        return "no worker is running; start one with `fgd worker` (`fgd serve` starts one by itself)"
    if not (willing := [worker for worker in live if worker.complaint is None]):
        return f"{_count(live)} but {'takes' if len(live) == 1 else 'take'} no jobs: {live[0].complaint}"
    live = willing
    asked, threads = job.devices, job.devices * job.threads
    if (why := unable(job.device, asked, threads, live)) is not None:
        return why
    able = [w for w in live if workers.slots_for(w, job.device) >= asked and w.cores >= threads]
    wait_s = (job.not_before - queue.at).total_seconds()
    if wait_s > 0:
        until = job.not_before.strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"waits {math.ceil(wait_s)} s, until {until}, before retry {job.retries} of {job.max_retries}"
    ahead = _ahead(job, live, queue)
    slots = sum(workers.slots_for(worker, job.device) for worker in able)
    taken = {worker.id: queue.taken.get((worker.id, workers.lane(worker, job.device)), 0) for worker in able}
    running = sum(taken.values())
    if asked > max(workers.slots_for(worker, job.device) - taken[worker.id] for worker in able):
        scattered = f", no host has {asked} free at once" if running + asked <= slots else ""
        too_small = sum(workers.slots_for(worker, job.device) > 0 for worker in live) - len(able)
        small = f", {_count_of(too_small, 'host')} too small for it" if too_small else ""
        in_use = f"{running} of {slots} {_kind(job.device, able)}slots in use{scattered}{small}"
        return f"{_count(live)} and busy ({in_use}); {_place(ahead)}"
    return f"{_place(ahead)}; a worker is about to take it" if ahead == 0 else f"behind others: {_place(ahead)}"


def unable(device: str, devices: int, threads: int, live: Sequence[LiveWorker]) -> str | None:
    """Why none of these workers, of which there is at least one, could ever take a job that asks for this, and what
    would help; None: one could. threads: of all the devices together."""
    if device == "cuda" and not any(workers.has_cuda(worker) for worker in live):
        return f'{_count(live)}, none with a GPU, and resources.device is "cuda"; "auto" or "cpu" would run now'
    kind, largest = _kind(device, live), max(workers.slots_for(worker, device) for worker in live)
    if devices > largest:
        return (
            f"{_count(live)}, none with the {devices} {kind}slots that resources.devices asks for; "
            f"the largest has {largest} (FGD_SLOTS sets those on the processor)"
        )
    most = max(worker.cores for worker in live)
    if threads > most:
        return (
            f"{_count(live)}, none with the {threads} processor cores that resources.threads asks for; the largest has "
            f"{most}"
        )
    able = [w for w in live if workers.slots_for(w, device) >= devices and w.cores >= threads]
    if not able:  # some have the slots, others the cores
        wanted = f"{_count_of(devices, kind + 'slot')} and {_count_of(threads, 'processor core')}"
        cores = max(w.cores for w in live if workers.slots_for(w, device) >= devices)
        return (
            f"{_count(live)}, none with {wanted} on one host, as resources.devices and resources.threads ask for; of "
            f"those with enough slots the largest has {_count_of(cores, 'core')}"
        )
    return None


def _taken(s: db.Reader, live: Sequence[LiveWorker]) -> Counter[tuple[str, str]]:
    owners = {worker.id: worker for worker in live}
    taken: Counter[tuple[str, str]] = Counter()
    for owner, device, devices in s.execute(_RUNNING, {"owners": list(owners)}):
        taken[owner, workers.lane(owners[owner], device)] += devices
    return taken


_RUNNING = select(Job.lease_owner, Job.device, DEVICES).where(
    IS_RUNNING, Job.lease_owner.in_(bindparam("owners", expanding=True))
)


def _before(s: db.Reader, job_ids: Sequence[str], at: datetime) -> dict[str, Mapping[str, int]]:
    """One pass over the queue, in the order of `attempts.claim`, up to the last of these jobs. The database would count
    with a window for each column, which takes ten times as long."""
    wanted, seen = set(job_ids), Counter[str]()
    found: dict[str, Mapping[str, int]] = {}
    with s.execute(_IN_ORDER, {"at": at}) as rows:
        for id, device, due in rows:
            if id in wanted:
                found[id] = dict(seen)
                if len(found) == len(wanted):
                    break
            seen[device] += due
    return found


_IN_ORDER = (
    select(Job.id, Job.device, Job.not_before <= bindparam("at"))
    .where(IS_QUEUED)
    .order_by(Job.priority.desc(), Job.created_at, Job.id)
)
"""The queue, and whether each job can be claimed now."""


def _ahead(job: Any, live: Sequence[LiveWorker], queue: _Queue) -> int:
    """Queued jobs that a worker would take before this one, into a slot that this one fits; all of them while no
    worker lives."""
    return sum(
        count
        for device, count in queue.before.get(job.id, {}).items()
        if count
        and (not live or any(workers.lane(worker, device) == workers.lane(worker, job.device) for worker in live))
    )


def _count_of(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _count(live: Sequence[LiveWorker]) -> str:
    return "1 worker is running" if len(live) == 1 else f"{len(live)} workers are running"


def _kind(device: str, live: Sequence[LiveWorker]) -> str:
    """Said only where there is more than one kind."""
    if not any(workers.has_cuda(worker) for worker in live):
        return ""
    return "processor " if all(workers.lane(worker, device) == "cpu" for worker in live) else "GPU "


def _place(ahead: int) -> str:
    return "next in line" if ahead == 0 else f"{ahead} queued before it"
