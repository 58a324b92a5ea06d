"""What a child process does for a row under a lease: an import, a rehearsal. From the claim to the last write.

A noun brings a LeasedChild: what is started, and what its end means. Beating, the work folder, handing back and trying
again are the same for all. Jobs have a supervisor of their own (supervisor.py). Imports no torch.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from sqlalchemy.orm import Session

from api.core.errors import Fenced
from api.core.rows import leases
from api.core.rows.columns import Leased
from fgd.events import Event
from worker.host import Host, Lost
from worker.launcher import Trainer
from worker.lease import Lease
from worker.outcome import HandedBack
from worker.slots import Slot
from worker.staging import InputGone, work_folder

logger = logging.getLogger(__name__)

WAIT_S = 0.2
MAX_MESSAGE = 2000
"""Characters of a child's last words."""
TAIL = "tail.txt"
"""In the work folder, once the child has ended: the last of its log."""


class Claim(Protocol):
    """What core gave out with the lease."""

    @property
    def id(self) -> str: ...
    @property
    def attempt(self) -> int: ...


@dataclass(frozen=True)
class ChildEnd:
    """The row's last write, and what the worker's log says of it."""

    said: str
    write: Callable[[Session], None]


@dataclass(frozen=True)
class ChildBroken:
    """Perhaps nobody's fault: it is tried again a few times."""

    reason: str


class LeasedChild(ABC):
    """One row that this worker has claimed. A noun's own is a frozen dataclass with its claim."""

    kind: ClassVar[type[Leased]]
    log_level: ClassVar[int] = logging.INFO
    """Of the child's lines in the worker's log."""
    claim: Claim

    def threads(self, host: Host) -> int:
        return host.threads

    def most_s(self, host: Host) -> float:  # noqa: ARG002
        """A child that takes longer is ended, and `late` says what that means."""
        return math.inf

    def late(self, most_s: float) -> ChildEnd | ChildBroken:
        return ChildBroken(f"it took longer than {most_s:.0f} s")

    @abstractmethod
    def command(self, host: Host, folder: Path) -> AbstractContextManager[list[str]]:
        """What to run; its files go into `folder`. What it reads is there as long as the context. Raises OSError,
        InputGone."""

    def hear(self, host: Host, events: Sequence[Event]) -> None:  # noqa: B027  # of most children nothing is kept
        """What it says while it works. Raises Fenced."""

    @abstractmethod
    def ended(self, host: Host, slot: Slot, folder: Path, code: int) -> ChildEnd | ChildBroken:
        """What became of it, with its files in the store. code: negative for a signal. Raises OSError."""

    @abstractmethod
    def inputs_gone(self, error: str) -> ChildEnd:
        """What it was to read is no longer in the store; no other try would find it."""

    @abstractmethod
    def lose(self, s: Session, reason: str) -> None:
        """The try was in vain: another, or the end of the row after too many of them. Raises Fenced."""


def run(host: Host, work: LeasedChild, slot: Slot, claimed_at: float) -> None:
    """From the claim to the last write. claimed_at: time.monotonic() before the claim."""
    id, attempt = work.claim.id, work.claim.attempt
    logger.info("%s: taken, on %s", id, slot.gpu or "the processor")

    def beat() -> None:
        host.beat(lambda s: leases.beat(s, work.kind, id, attempt, host.id, host.settings.lease_s))

    try:
        with Lease(beat, host.times(), claimed_at) as lease, work_folder(host.settings.home, id, attempt) as folder:
            end = done(host, lease, work, slot, folder)
            lease.closing()
            host.insist(lease, end.write)
            logger.info("%s: %s", id, end.said)
    except (Fenced, Lost):
        logger.warning("%s: no longer ours, nothing more is written", id)


def done(host: Host, lease: Lease, work: LeasedChild, slot: Slot, folder: Path) -> ChildEnd:
    """Do it, as far as it goes. Raises Lost."""
    try:
        code = run_child(host, lease, work, slot, folder)
        end = work.ended(host, slot, folder, code) if isinstance(code, int) else code
    except InputGone as error:
        end = work.inputs_gone(str(error))
    except OSError as error:
        end = ChildBroken(f"the worker's host failed: {error}")
    id, attempt = work.claim.id, work.claim.attempt
    match end:
        case ChildBroken(reason):
            return ChildEnd(f"failed: {reason}", lambda s: work.lose(s, reason))
        case HandedBack(reason):
            return ChildEnd(f"handed back: {reason}", lambda s: leases.hand_back(s, work.kind, id, attempt))
        case ChildEnd():
            return end


def run_child(
    host: Host, lease: Lease, work: LeasedChild, slot: Slot, folder: Path
) -> int | ChildEnd | ChildBroken | HandedBack:
    """Its exit status, if it came to its end. Raises Lost."""
    run_file = host.run_folder() / f"{work.claim.id}.a{work.claim.attempt}.json"
    most_s, threads, weights = work.most_s(host), work.threads(host), host.settings.weights_dir
    until = time.monotonic() + most_s
    with (
        work.command(host, folder) as argv,
        Trainer(argv, folder, run_file, threads=threads, gpu=slot.gpu, until=lease.ends_at(), weights=weights) as child,
    ):
        lease.guard(child)
        try:
            while not child.over():
                if host.stopping.is_set():
                    return HandedBack("the worker is shutting down")
                if time.monotonic() > until:
                    return work.late(most_s)
                events, log = child.read(WAIT_S)
                if events:
                    work.hear(host, events)
                if lines := log.decode(errors="replace").strip():
                    logger.log(work.log_level, "%s: %s", work.claim.id, lines[:MAX_MESSAGE])
        finally:
            lease.guard(None)
        if lease.lost.is_set():
            raise Lost
        child.close()  # until then its last words may be on their way
        (folder / TAIL).write_text(child.tail())
        code = child.returncode()
        assert code is not None, "it has ended"
        return code


def last_line(folder: Path) -> str:
    """Of the child's log."""
    return (folder / TAIL).read_text().strip().rpartition("\n")[2][:MAX_MESSAGE]
