"""A task: a child works something out and writes files, this side stages what it reads and stores what it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ValidationError
from sqlalchemy.orm import Session

from api.core import tasks
from api.core.lifecycle import RETRYABLE
from api.core.rows.columns import Task
from worker.child_answer import Refused, answer_of
from worker.host import Host
from worker.leased_child import ChildBroken, ChildEnd, LeasedChild
from worker.slots import Slot

ANSWER = "answer.json"
"""What the child says: {"result": {...}}, or {"error": {...}}."""


@dataclass(frozen=True)
class ChildFile:
    role: str
    name: str
    media_type: str


@dataclass(frozen=True)
class TaskChild(LeasedChild):
    """A noun's own says what is started."""

    claim: tasks.TaskClaim
    kind: ClassVar[type[Task]]
    result: ClassVar[type[BaseModel]]
    """What the child's answer must be."""
    files: ClassVar[Sequence[ChildFile]] = ()
    """What the child leaves in its folder. It may leave out any of them."""

    def ended(self, host: Host, slot: Slot, folder: Path, code: int) -> ChildEnd | ChildBroken:  # noqa: ARG002
        match answer_of(code, folder / ANSWER):
            case ChildBroken() as broken:
                return broken
            case Refused(code=failure, message=message) if failure in RETRYABLE:
                return ChildBroken(message)
            case Refused() as refused:
                return self.refused(refused)
            case told:
                try:
                    result = self.result.model_validate(told.get("result")).model_dump(mode="json")
                except ValidationError:
                    return ChildBroken("its answer is not a known one")
                kept = [
                    tasks.TaskFile(file.role, file.name, host.store.take_file(folder / file.name), file.media_type)
                    for file in self.files
                    if (folder / file.name).is_file()
                ]
                id, attempt = self.claim.id, self.claim.attempt
                return ChildEnd("succeeded", lambda s: tasks.finish(s, self.kind, id, attempt, result, kept))

    def inputs_gone(self, error: str) -> ChildEnd:
        return self.refused(Refused("user_error", f"what it reads is no longer in the store: {error}"))

    def lose(self, s: Session, reason: str) -> None:
        tasks.lose(s, self.kind, self.claim.id, self.claim.attempt, reason)

    def refused(self, why: Refused) -> ChildEnd:
        id, attempt = self.claim.id, self.claim.attempt
        return ChildEnd(
            f"refused: {why.message}",
            lambda s: tasks.fail(s, self.kind, id, attempt, why.code, why.message, why.pointer),
        )
