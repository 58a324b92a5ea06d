"""The search for a student that fits a latency: a child builds and times candidates; this side stages the inputs."""

from __future__ import annotations

import contextlib
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
from fgd.budget import BudgetTable, FindStudent
from fgd.events import Event, Phase
from worker.child_answer import Refused, answer_of
from worker.host import DATABASE_AWAY, Host
from worker.leased_child import ChildBroken, ChildEnd, LeasedChild, last_line
from worker.slots import Slot
from worker.staging import InputGone, staged_question

ANSWER = "students.json"
GRACE_S = 600.0
"""What a search may take beyond its time: it ends what it has begun, on a host that may be busy."""


@dataclass(frozen=True)
class StudentSearch(LeasedChild):
    claim: plans.PlanClaim
    question: FindStudent
    kind = Plan
    log_level = logging.DEBUG

    def most_s(self, host: Host) -> float:  # noqa: ARG002
        return self.question.seconds + GRACE_S

    def threads(self, host: Host) -> int:
        return self.question.threads or host.threads

    @contextmanager
    def command(self, host: Host, folder: Path) -> Iterator[list[str]]:
        with ExitStack() as held:
            try:
                staged = staged_question(self.question, self.claim.inputs, folder, host.cache)
                file = held.enter_context(staged)
            except (DigestMismatch, KeyError) as error:
                raise InputGone(str(error)) from error
            yield [sys.executable, "-m", "fgd.plan", str(file), "--out", str(folder / ANSWER)]

    def hear(self, host: Host, events: Sequence[Event]) -> None:
        phases = [each.phase for each in events if isinstance(each, Phase)]
        if phases:
            with contextlib.suppress(*DATABASE_AWAY):  # the next one is written
                host.write(lambda s: plans.tell(s, self.claim.id, self.claim.attempt, phases[-1]))

    def ended(self, host: Host, slot: Slot, folder: Path, code: int) -> ChildEnd | ChildBroken:  # noqa: ARG002
        id, attempt, beside = self.claim.id, self.claim.attempt, host.running()
        match ending(code, folder):
            case ChildBroken() as broken:
                return broken
            case Refused() as refused:
                return self._refused(refused)
            case found:
                table = found.asked_by(self.question)
                return ChildEnd(table.message, lambda s: plans.finish_search(s, id, attempt, table, beside))

    def inputs_gone(self, error: str) -> ChildEnd:
        return self._refused(Refused("user_error", f"its data set or teacher can no longer be read: {error}"))

    def lose(self, s: Session, reason: str) -> None:
        plans.lose(s, self.claim.id, self.claim.attempt, reason)

    def _refused(self, why: Refused) -> ChildEnd:
        id, attempt = self.claim.id, self.claim.attempt
        return ChildEnd(
            f"refused: {why.message}", lambda s: plans.fail(s, id, attempt, why.code, why.message, why.pointer)
        )


def ending(code: int, folder: Path) -> BudgetTable | Refused | ChildBroken:
    told = answer_of(code, folder / ANSWER)
    if not isinstance(told, dict):
        return told
    try:
        return BudgetTable.model_validate(told)
    except ValidationError:
        return ChildBroken(f"its answer is not a known one. {last_line(folder)}".strip())
