"""Plans: a child builds the job's networks and tries a few steps; this side stages the inputs and tells."""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy.orm import Session

from api.core import plans
from api.core.errors import Fenced
from api.core.lifecycle import Requested
from api.core.rows import leases
from api.core.rows.tables import Plan
from api.core.store.names import DigestMismatch
from fgd.outline import Measured
from worker.host import Host, Lost
from worker.launcher import Trainer
from worker.lease import Lease
from worker.outcome import HandedBack
from worker.slots import Slot
from worker.staging import InputGone, staged, work_folder

logger = logging.getLogger(__name__)

WAIT_S = 0.2
MAX_S = 900.0
"""A rehearsal times itself; one that takes so long hangs."""
MAX_MESSAGE = 2000
MAX_ANSWER = 1 << 20


@dataclass(frozen=True)
class Refused:
    """It can not be trained so."""

    code: str
    message: str
    pointer: str = ""


@dataclass(frozen=True)
class Broken:
    """Perhaps not the job's fault: it is tried again."""

    reason: str


End = Measured | Refused | Broken | HandedBack


def run_plan(host: Host, claim: plans.PlanClaim, slot: Slot, claimed_at: float) -> None:
    """One rehearsal, from claim to its last write. claimed_at: time.monotonic() before the claim."""
    logger.info("%s: rehearsing %s on %s", claim.plan_id, claim.spec.name, slot.gpu or "the processor")

    def beat() -> Requested | None:
        host.beat(lambda s: leases.beat(s, Plan, claim.plan_id, claim.attempt, host.id, host.settings.lease_s))
        return None

    try:
        with (
            Lease(beat, host.times(), claimed_at) as lease,
            work_folder(host.settings.home, claim.plan_id, claim.attempt) as folder,
        ):
            try:
                with staged(claim.spec, claim.inputs, folder, host.cache) as spec_file:
                    end = rehearse(host, lease, claim, slot, spec_file)
            except (InputGone, DigestMismatch, KeyError) as error:
                end = Refused("user_error", f"its data set or teacher can not be read any more: {error}")
            except OSError as error:
                end = Broken(f"the worker's host failed: {error}")
            beside = host.running() - (slot.kind == "cuda")  # that one is ours
            lease.closing()
            host.insist(lease, lambda s: tell(s, claim, end, beside))
            logger.info("%s: %s", claim.plan_id, "measured" if isinstance(end, Measured) else end)
    except (Fenced, Lost):
        logger.warning("%s: the plan is no longer ours, nothing more was written", claim.plan_id)


def rehearse(host: Host, lease: Lease, claim: plans.PlanClaim, slot: Slot, spec_file: Path) -> End:
    """Raises Lost."""
    answer = spec_file.with_name("plan.json")
    argv = [sys.executable, "-m", "fgd.plan", str(spec_file), "--out", str(answer)]
    run_file = host.run_folder() / f"{claim.plan_id}.a{claim.attempt}.json"
    threads = claim.spec.resources.threads or host.threads
    until = time.monotonic() + MAX_S
    lives_until = lease.ends_at()
    with Trainer(argv, spec_file.parent, run_file, threads=threads, gpu=slot.gpu, until=lives_until) as child:
        lease.guard(child)
        try:
            while not child.over():
                if host.stopping.is_set():
                    return HandedBack("the worker is shutting down")
                if time.monotonic() > until:
                    return Broken(f"it took longer than {MAX_S:.0f} s")
                child.read(WAIT_S)
        finally:
            lease.guard(None)
        if lease.lost.is_set():
            raise Lost
        return ending(child.returncode(), answer, child.tail())


def ending(code: int | None, answer: Path, tail: str) -> End:
    last = tail.strip().rpartition("\n")[2][:MAX_MESSAGE]
    if code is None or code < 0:  # for want of memory, by a person, or a crash
        return Broken(f"the rehearsal was ended by signal {-(code or 0)}; perhaps memory was too small. {last}".strip())
    try:
        if answer.stat().st_size > MAX_ANSWER:
            raise ValueError("too long")
        told = json.loads(answer.read_bytes())
        if code == 0:
            return Measured.model_validate(told["measured"])
        error = told["error"]
        return Refused(str(error["code"]), str(error["message"])[:MAX_MESSAGE], str(error.get("pointer", "")))
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return Broken(f"the rehearsal failed with exit code {code}. {last}".strip())


def tell(s: Session, claim: plans.PlanClaim, end: End, trainings_beside: int) -> None:
    id, attempt = claim.plan_id, claim.attempt
    match end:
        case Measured():
            plans.finish(s, id, attempt, end, trainings_beside)
        case Refused(code, message, pointer):
            plans.fail(s, id, attempt, code, message, pointer)
        case Broken(reason):
            plans.lose(s, id, attempt, reason)
        case HandedBack():
            leases.hand_back(s, Plan, id, attempt)
