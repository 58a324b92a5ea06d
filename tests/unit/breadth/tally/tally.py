"""A tally: a child counts, this side stores what it counted."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from api.core import tallies
from api.core.rows.tables import Tally
from worker.child_answer import Refused, answer_of
from worker.host import Host
from worker.leased_child import ChildBroken, ChildEnd, LeasedChild
from worker.slots import Slot
from worker.staging import fetched

ANSWER, LISTING = "answer.json", "listing.txt"


@dataclass(frozen=True)
class Counting(LeasedChild):
    claim: tallies.TallyClaim
    kind = Tally

    @contextmanager
    def command(self, host: Host, folder: Path) -> Iterator[list[str]]:
        with fetched(host.store, self.claim.inputs["dataset"]["index"], folder) as index:
            yield [sys.executable, "-m", "worker.tally_child", str(index), str(folder / ANSWER), str(folder / LISTING)]

    def ended(self, host: Host, slot: Slot, folder: Path, code: int) -> ChildEnd | ChildBroken:
        match answer_of(code, folder / ANSWER):
            case ChildBroken() as broken:
                return broken
            case Refused() as refused:
                return self._failed(refused.message)
            case answer:
                id, attempt, listing = self.claim.id, self.claim.attempt, host.store.take_file(folder / LISTING)
                return ChildEnd("counted", lambda s: tallies.finish(s, id, attempt, answer["counts"], listing))

    def inputs_gone(self, error: str) -> ChildEnd:
        return self._failed(f"the data set can no longer be read: {error}")

    def lose(self, s: Session, reason: str) -> None:
        tallies.lose(s, self.claim.id, self.claim.attempt, reason)

    def _failed(self, error: str) -> ChildEnd:
        return ChildEnd(f"failed: {error}", lambda s: tallies.fail(s, self.claim.id, self.claim.attempt, error))


def claim(s: Session, worker_id: str, lease_s: float, _: Sequence[str]) -> Counting | None:
    claimed = tallies.claim(s, worker_id, lease_s)
    return Counting(claimed) if claimed is not None else None
