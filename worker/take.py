"""What to do next: claim a job, or what WORK lists, that fits a free slot, and do it. All that bell and poller do."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from api.core.jobs import attempts, queue_order
from fgd.process.failpoints import reach
from worker import dataset_import, evaluation, export, inspection, leased_child, model_import, prediction, rehearsal
from worker.host import Host
from worker.leased_child import LeasedChild
from worker.slots import BESIDE, Kind, Slot
from worker.supervisor import supervise

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """One kind of work that is done by a child under a lease."""

    claim: Callable[[Session, str, float, Sequence[str]], LeasedChild | None]
    """Of (session, worker's id, lease_s, the devices that the lane offers): take the oldest that waits and fits."""
    lanes: Sequence[Kind] = ("import",)


WORK = (
    Work(rehearsal.claim, lanes=("cuda", "plan")),
    Work(dataset_import.claim),
    Work(model_import.claim),
    Work(prediction.claim, lanes=("quick",)),
    Work(export.claim, lanes=("quick",)),
    Work(export.claim_int8, lanes=("evaluation",)),
    Work(inspection.claim, lanes=("cuda", "evaluation")),
    Work(evaluation.claim, lanes=("cuda", "evaluation")),
)
"""Whatever comes first is taken first."""
DEVICES: dict[Kind, Sequence[str]] = {"cuda": ("cuda", "auto"), **dict.fromkeys(BESIDE, ("cpu", "auto"))}
"""What the lanes of WORK offer, best first: a GPU that is free, else the processor, unless it must be a GPU."""


def look(host: Host) -> None:
    """Take what fits and do it in this thread, one after another, until nothing is left."""
    while work := take(host):
        work()


def take(host: Host) -> Callable[[], None] | None:
    """Claim what fits a free slot. Call what it returns in a thread that has time."""
    with host.slots.asking("cpu", *DEVICES) as take_slot:
        if take_slot is None or not host.announced.is_set() or host.complaint() is not None:
            return None
        asked_at = time.monotonic()
        if (job := next_job(host)) is not None:
            reach("after_claim")
            on_gpu = job.spec.resources.device != "cpu" and host.slots.free("cuda") > 0
            slot = take_slot("cuda" if on_gpu else "cpu", job.spec.resources.devices)
            return lambda: _and_give(host, slot, lambda: supervise(host, job, slot, asked_at))
        if (leased := next_leased(host)) is None:
            return None
        work, lane = leased
        slot = take_slot(lane)
        return lambda: _and_give(host, slot, lambda: leased_child.run(host, work, slot, asked_at))


def next_job(host: Host) -> attempts.Claim | None:
    cpu, cuda = host.slots.free("cpu"), host.slots.free("cuda")
    gpus = len(host.found.gpus)
    all_of_them = queue_order.Free(host.settings.slots, gpus, gpu_host=gpus > 0)
    free = queue_order.Free(cpu, cuda, gpu_host=gpus > 0, cores=host.found.cores, of=all_of_them)
    return host.write(lambda s: claim_job(s, host, free)) if free.devices() else None


def claim_job(s: Session, host: Host, free: queue_order.Free) -> attempts.Claim | None:
    reach("before_claim")
    claim = attempts.claim(s, host.id, free, host.settings.lease_s)
    if claim is not None:
        reach("claim_uncommitted")
    return claim


def next_leased(host: Host) -> tuple[LeasedChild, Kind] | None:
    """The first of WORK that has something for a lane that is free; one transaction a lane."""
    for lane, devices in DEVICES.items():
        claim = functools.partial(claim_leased, host=host, lane=lane, devices=devices)
        if host.slots.free(lane) and (work := host.write(claim)) is not None:
            return work, lane
    return None


def claim_leased(s: Session, host: Host, lane: Kind, devices: Sequence[str]) -> LeasedChild | None:
    claims = (work.claim(s, host.id, host.settings.lease_s, devices) for work in WORK if lane in work.lanes)
    return next((claimed for claimed in claims if claimed is not None), None)


def _and_give(host: Host, slot: Slot, work: Callable[[], None]) -> None:
    try:
        work()
    except Exception:  # a worker outlives whatever one job does to it
        logger.exception("the supervisor failed; the sweep will retry its job")
    finally:
        host.slots.give(slot)
