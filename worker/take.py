"""What to do next: claim a job, a plan or an import that fits a free slot, and do it. All that bell and poller do."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence

from sqlalchemy.orm import Session

from api.core import datasets, models, plans
from api.core.jobs import attempts, queue_order
from fgd.process.failpoints import reach
from worker.dataset_import import DatasetImport
from worker.host import Host
from worker.leased_child import Import, run_import
from worker.model_import import ModelImport
from worker.rehearsal import run_plan
from worker.slots import Kind, Slot
from worker.supervisor import supervise

logger = logging.getLogger(__name__)


def look(host: Host) -> None:
    """Take what fits and do it in this thread, one after another, until nothing is left."""
    while work := take(host):
        work()


def take(host: Host) -> Callable[[], None] | None:
    """Claim a job or an import that fits a free slot. Call what it returns in a thread that has time."""
    with host.slots.asking("cuda", "cpu", "import") as take_slot:
        if take_slot is None or not host.announced.is_set() or host.complaint() is not None:
            return None
        asked_at = time.monotonic()
        cpu, cuda = host.slots.free("cpu"), host.slots.free("cuda")
        gpus = len(host.found.gpus)
        all_of_them = queue_order.Free(host.settings.slots, gpus, gpu_host=gpus > 0)
        free = queue_order.Free(cpu, cuda, gpu_host=gpus > 0, cores=host.found.cores, of=all_of_them)
        job = host.write(lambda s: claim_job(s, host, free)) if free.devices() else None
        if job is not None:
            reach("after_claim")
            on_gpu = job.spec.resources.device != "cpu" and host.slots.free("cuda") > 0
            slot = take_slot("cuda" if on_gpu else "cpu", job.spec.resources.devices)
            return lambda: _and_give(host, slot, lambda: supervise(host, job, slot, asked_at))
        if rehearsal := claim_plan(host):
            claimed, lane = rehearsal
            slot = take_slot(lane)
            return lambda: _and_give(host, slot, lambda: run_plan(host, claimed, slot, asked_at))
        if not host.slots.free("import"):
            return None
        work = host.write(lambda s: claim_import(s, host))
        if work is None:
            return None
        slot = take_slot("import")
        return lambda: _and_give(host, slot, lambda: run_import(host, work, asked_at))


def claim_job(s: Session, host: Host, free: queue_order.Free) -> attempts.Claim | None:
    reach("before_claim")
    claim = attempts.claim(s, host.id, free, host.settings.lease_s)
    if claim is not None:
        reach("claim_uncommitted")
    return claim


def claim_import(s: Session, host: Host) -> Import | None:
    if dataset := datasets.claim_import(s, host.id, host.settings.lease_s):
        return DatasetImport(dataset)
    if model := models.claim_import(s, host.id, host.settings.lease_s):
        return ModelImport(model)
    return None


def claim_plan(host: Host) -> tuple[plans.PlanClaim, Kind] | None:
    """A plan is measured on a GPU that is free, else in the processor's lane, unless it must be a GPU."""
    lanes: dict[Kind, Sequence[str]] = {"cuda": ("cuda", "auto"), "import": ("cpu", "auto")}
    for lane, devices in lanes.items():
        claim = functools.partial(plans.claim, worker_id=host.id, devices=devices, lease_s=host.settings.lease_s)
        if host.slots.free(lane) and (claimed := host.write(claim)) is not None:
            return claimed, lane
    return None


def _and_give(host: Host, slot: Slot, work: Callable[[], None]) -> None:
    try:
        work()
    except Exception:  # a worker outlives whatever one job does to it
        logger.exception("the supervisor failed; the sweep will find its job")
    finally:
        host.slots.give(slot)
