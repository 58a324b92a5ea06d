"""What each noun's sweep is given and gives back. The sweeper (sweeper.py) lists them all and runs them.

A sweep puts right what the silent left behind in its rows, within the transaction it is given. It is idempotent: it may
run anywhere, and twice at once. Files and bells wait for the commit, so it only names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from api.core.rows.tables import WorkerRow


@dataclass(frozen=True)
class Moment:
    """One look at the service, the same for every noun."""

    at: datetime
    live: Sequence[WorkerRow]
    """Workers heard of lately."""


@dataclass(frozen=True)
class Swept:
    ring: Sequence[str] = ()
    """Ids for which a worker is free: ring for each after the commit."""
    lost: Sequence[str] = ()
    """Ids whose worker was lost, queued again or ended."""
    rubbish: Sequence[str] = ()
    """Keys of objects in the store that no row names any more: delete them after the commit."""
    stuck: Sequence[str] = ()
    """What could not be put right; the log says why."""
