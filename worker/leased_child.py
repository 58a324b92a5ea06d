"""Imports, in the processor lane: a child reads what a user brought, this side stores and tells.

`run_import` is the same for all kinds; what a kind's child is called with, and what becomes of its files, is an Import:
`DatasetImport` here, `ModelImport` in model_imports.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy.orm import Session

from api.core import imports
from api.core.errors import Fenced
from api.core.lifecycle import Requested
from api.core.rows import leases
from api.core.rows.tables import Dataset, Model
from worker.host import Host, Lost
from worker.launcher import Trainer
from worker.lease import Lease
from worker.outcome import HandedBack
from worker.staging import InputGone, work_folder

logger = logging.getLogger(__name__)

WAIT_S = 0.2
MAX_ERROR = 2000


@dataclass(frozen=True)
class Rejected:
    error: str
    report: Any = None
    """Of the kind's own type."""


@dataclass(frozen=True)
class Broken:
    """Perhaps not the fault of what was read: it is tried again a few times."""

    reason: str


class Import(Protocol):
    """One thing that this worker took for its import."""

    @property
    def kind(self) -> type[Dataset] | type[Model]: ...
    @property
    def id(self) -> str: ...
    @property
    def attempt(self) -> int: ...

    def command(self, host: Host, folder: Path) -> AbstractContextManager[list[str]]:
        """What reads it; its files go into `folder`. What it reads is there as long as the context. Raises OSError,
        InputGone."""

    def refusal(self, code: int, folder: Path) -> Rejected | Broken | None:
        """Why it is refused, or this try was in vain; None: it is good. `folder` also has tail.txt, the log's end."""

    def stored(self, host: Host, folder: Path) -> Callable[[Session], None]:
        """Files into the store; the write that makes it ready. Raises OSError."""

    def reject(self, s: Session, refused: Rejected) -> None: ...


def run_import(host: Host, work: Import, claimed_at: float) -> None:
    """One import, from claim to its last write. claimed_at: time.monotonic() before the claim."""
    logger.info("%s: importing", work.id)

    def beat() -> Requested | None:
        lease_s = host.settings.lease_s
        host.beat(lambda s: leases.beat(s, work.kind, work.id, work.attempt, host.id, lease_s))
        return None

    try:
        with (
            Lease(beat, host.times(), claimed_at) as lease,
            work_folder(host.settings.home, work.id, work.attempt) as folder,
        ):
            refused = read_and_store(host, lease, work, folder)
            if refused is not None:
                lease.closing()
                host.insist(lease, lambda s: tell(s, work, refused))
            logger.info("%s: %s", work.id, refused or "ready")
    except (Fenced, Lost):
        logger.warning("%s: the import is no longer ours, nothing more was written", work.id)


def read_and_store(host: Host, lease: Lease, work: Import, folder: Path) -> Rejected | Broken | HandedBack | None:
    """None: it is ready. Raises Lost, Fenced."""
    try:
        code = read_in_child(host, lease, work, folder)
        if code is None:
            return HandedBack("the worker is shutting down")
        if refused := work.refusal(code, folder):
            return refused
        write = work.stored(host, folder)
    except InputGone as error:  # no other try would find it
        return Rejected(f"the upload is no longer in the store, or changed there; upload it again: {error}")
    except OSError as error:
        return Broken(f"the worker's host failed: {error}")
    lease.closing()
    host.insist(lease, write)
    return None


def read_in_child(host: Host, lease: Lease, work: Import, folder: Path) -> int | None:
    """Exit status of the reader; None if the worker stops before its end. Raises Lost."""
    run_file = host.run_folder() / f"{work.id}.a{work.attempt}.json"
    with work.command(host, folder) as argv, Trainer(argv, folder, run_file, threads=host.threads) as child:
        lease.guard(child)
        try:
            while not child.over():
                if host.stopping.is_set():
                    return None
                _, log = child.read(WAIT_S)
                if log:
                    logger.info("%s: %s", work.id, log.decode(errors="replace").strip()[:MAX_ERROR])
        finally:
            lease.guard(None)
        if lease.lost.is_set():
            raise Lost
        (folder / "tail.txt").write_text(child.tail())
        return child.returncode()


def tell(s: Session, work: Import, refused: Rejected | Broken | HandedBack) -> None:
    match refused:
        case Rejected():
            work.reject(s, refused)
        case Broken(reason):
            imports.lose(s, work.kind, work.id, work.attempt, reason)
        case HandedBack():
            leases.hand_back(s, work.kind, work.id, work.attempt)
