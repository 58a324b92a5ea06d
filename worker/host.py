"""One worker process: what it was told, what it holds, what it found. Everything else gets it as its first argument."""

from __future__ import annotations

import errno
import logging
import shutil
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from celery import Celery
from sqlalchemy import Engine
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from api.core.rows import db
from api.core.rows.ids import new_id
from api.core.settings import Settings
from api.core.store.names import BlobStore
from api.core.store.open import open_store
from fgd.process.private import private_folder
from worker import devices
from worker.launcher import is_marked
from worker.lease import Lease, Times
from worker.slots import Slots
from worker.staging import Cache

logger = logging.getLogger(__name__)
T = TypeVar("T")

DATABASE_AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeout, OSError)
"""Worth asking again (InternalError: PostgreSQL that became a standby). Anything else is a mistake of ours."""
RETRY_S = 0.5
BEAT_ANSWER_S = db.BUSY_MS / 1000 + 1
"""A heartbeat waits no shorter for its answer: the row may be locked for a moment."""
STORE_PATIENCE_S = 30.0
"""One call tries again for so long while an S3 server is away."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Lost(Exception):
    """The attempt is not ours any more: its trainer is dead, and nothing more may be written."""


@dataclass
class Host:
    settings: Settings
    engine: Engine
    store: BlobStore
    app: Celery | None
    """Rings the bell for others; None without a broker."""
    found: devices.Hardware
    slots: Slots
    cache: Cache
    drain_s: float
    """Seconds that trainers have to save once the worker is told to stop."""
    pulse: Engine | None = None
    """For heartbeats: it gives up on a connection long before a lease is lost. None: the same as for all else."""
    id: str = field(default_factory=lambda: new_id("wrk"))
    name: str = field(default_factory=socket.gethostname)
    stopping: threading.Event = field(default_factory=threading.Event)
    stopped_at: float = 0.0
    """time.monotonic() when it was told to stop."""
    announced: threading.Event = field(default_factory=threading.Event)
    """Its row exists: before that it takes nothing, for a job's events name the host."""
    full_until: float = 0.0
    """time.monotonic() until which the disk counts as full, for a job found it so."""
    undead: set[str] = field(default_factory=set)
    """Marks of trainers that survived SIGKILL: they may hold a device or memory still."""

    @classmethod
    def create(cls, settings: Settings, app: Celery | None, drain_s: float | None = None) -> Host:
        private_folder(settings.home)
        store = open_store(settings, STORE_PATIENCE_S)
        found = devices.look(settings.home)
        silence_s = min(db.SILENCE_S, settings.freeze_s / 2)
        return cls(
            settings=settings,
            engine=db.make_engine(settings.database_url, silence_s=silence_s),
            pulse=db.make_engine(settings.database_url, silence_s, max(BEAT_ANSWER_S, settings.freeze_s / 2)),
            store=store,
            app=app,
            found=found,
            slots=Slots.on_host(settings.slots, [gpu.uuid for gpu in found.gpus]),
            cache=Cache(settings.home / "cache", settings.cache_bytes, store),
            drain_s=next(s for s in (drain_s, settings.drain_s, settings.grace_s) if s is not None),
        )

    @property
    def threads(self) -> int:
        """Processor threads of one training."""
        return self.settings.threads or max(1, self.found.cores // self.trainings)

    @property
    def trainings(self) -> int:
        """How many run at once."""
        return self.settings.slots + len(self.found.gpus)

    def running(self) -> int:
        """Trainings that run now."""
        return self.trainings - self.slots.free("cpu") - self.slots.free("cuda")

    def complaint(self) -> str | None:
        """Why nothing is taken just now; None: something is, if it fits."""
        if self.stopping.is_set():
            return "it is shutting down"
        self.undead = {mark for mark in self.undead if is_marked(mark)}
        if self.undead:
            return "a trainer survives SIGKILL; check the host"
        free = shutil.disk_usage(self.settings.home).free
        if free < self.settings.min_free_bytes:
            return f"its disk is full: {devices.gib(free)} free below {self.settings.home}"
        if time.monotonic() < self.full_until:
            return f"a job found its disk full; it takes jobs again within {self.settings.full_s:g} s"
        return None

    def stop(self) -> None:
        """Nothing new is taken, trainers are asked to save, their jobs are handed back. Returns at once."""
        if not self.stopping.is_set():
            self.stopped_at = time.monotonic()
            self.stopping.set()

    def drains(self) -> bool:
        """It was told to stop, and there is still time to bring home what there is."""
        return self.stopping.is_set() and time.monotonic() < self.stopped_at + self.drain_s

    def found_full(self) -> None:
        self.full_until = time.monotonic() + self.settings.full_s

    def run_folder(self) -> Path:
        return self.settings.home / "run"

    def times(self) -> Times:
        return Times(self.settings.beat_s, self.settings.freeze_s, self.settings.kill_s)

    def write(self, verb: Callable[[Session], T]) -> T:
        """One transaction."""
        with db.transaction(self.engine) as session:
            return verb(session)

    def beat(self, verb: Callable[[Session], T]) -> T:
        """One transaction of a heartbeat."""
        with db.transaction(self.pulse or self.engine) as session:
            return verb(session)

    def insist(self, lease: Lease, verb: Callable[[Session], T]) -> T:
        """One transaction, again and again while the database is away. Raises Lost when the lease is."""
        while True:
            if lease.lost.is_set():
                raise Lost
            try:
                return self.write(verb)
            except DATABASE_AWAY as error:
                logger.warning("the database does not answer, trying again: %s", error)
                time.sleep(RETRY_S)


def os_error_behind(error: BaseException | None) -> OSError | None:
    """The operating system's refusal that `error` is, or was raised from; None: there was none."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error
