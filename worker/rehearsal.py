"""The rehearsal of a plan: a child builds the job's networks and tries a few steps; this side stages the inputs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy.orm import Session

from api.core import plans
from api.core.rows.tables import Plan
from api.core.store.names import DigestMismatch
from fgd.outline import Measurement
from worker.child_answer import Refused, answer_of
from worker.host import Host
from worker.leased_child import ChildBroken, ChildEnd, LeasedChild, last_line
from worker.slots import Slot
from worker.staging import InputGone, staged
from worker.student_search import StudentSearch

ANSWER = "plan.json"


@dataclass(frozen=True)
class Rehearsal(LeasedChild):
    claim: plans.PlanClaim
    kind = Plan
    log_level = logging.DEBUG

    def most_s(self, host: Host) -> float:  # noqa: ARG002
        return 900.0  # it times itself

    def threads(self, host: Host) -> int:
        return self.claim.spec.resources.threads or host.threads

    @contextmanager
    def command(self, host: Host, folder: Path) -> Iterator[list[str]]:
        with ExitStack() as held:
            try:
                spec_file = held.enter_context(staged(self.claim.spec, self.claim.inputs, folder, host.cache))
            except (DigestMismatch, KeyError) as error:
                raise InputGone(str(error)) from error
            yield [sys.executable, "-m", "fgd.plan", str(spec_file), "--out", str(folder / ANSWER)]

    def ended(self, host: Host, slot: Slot, folder: Path, code: int) -> ChildEnd | ChildBroken:
        id, attempt = self.claim.id, self.claim.attempt
        beside = host.running() - (slot.kind == "cuda")  # that one is ours
        match ending(code, folder):
            case ChildBroken() as broken:
                return broken
            case Refused() as refused:
                return self._refused(refused)
            case measured:
                return ChildEnd("measured", lambda s: plans.finish(s, id, attempt, measured, beside))

    def inputs_gone(self, error: str) -> ChildEnd:
        return self._refused(Refused("user_error", f"its data set or teacher can no longer be read: {error}"))

    def lose(self, s: Session, reason: str) -> None:
        plans.lose(s, self.claim.id, self.claim.attempt, reason)

    def _refused(self, why: Refused) -> ChildEnd:
        id, attempt = self.claim.id, self.claim.attempt
        return ChildEnd(
            f"refused: {why.message}", lambda s: plans.fail(s, id, attempt, why.code, why.message, why.pointer)
        )


def claim(s: Session, worker_id: str, lease_s: float, devices: Sequence[str]) -> Rehearsal | StudentSearch | None:
    claimed = plans.claim(s, worker_id, devices, lease_s)
    if claimed is None:
        return None
    return Rehearsal(claimed) if claimed.question is None else StudentSearch(claimed, claimed.question)


def ending(code: int, folder: Path) -> Measurement | Refused | ChildBroken:
    told = answer_of(code, folder / ANSWER)
    if not isinstance(told, dict):
        return told
    try:
        return Measurement.model_validate(told["measured"])
    except (KeyError, ValidationError):
        return ChildBroken(f"its answer is not a known one. {last_line(folder)}".strip())
