"""What each noun's sweep is given and gives back. The sweeper (sweeper.py) lists them all and runs them.

A sweep puts right what the silent left behind in its rows, within the transaction it is given. It is idempotent: it may
run anywhere, and twice at once. Files and bells wait for the commit, so it only names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


class Live(Protocol):
    """A worker that was heard of lately."""

    @property
    def id(self) -> str: ...
    @property
    def slots(self) -> int: ...
    @property
    def complaint(self) -> str | None: ...


@dataclass(frozen=True)
class Moment:
    """One look at the service, the same for every noun."""

    at: datetime
    live: Sequence[Live]


@dataclass(frozen=True)
class SweepResult:
    ring: Sequence[str] = ()
    """Ids for which a worker is free: ring for each after the commit."""
    lost: Sequence[str] = ()
    """Ids whose worker was lost, queued again or ended."""
    rubbish: Sequence[str] = ()
    """Keys of objects in the store that no row names any more: delete them after the commit."""
    stuck: Sequence[str] = ()
    """What could not be put right; the log says why."""
