"""What a trainer says, on its way to the database: in batches, in order, kept while the database is away."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.orm import Session

from api.core import jobs
from api.core.errors import Fenced
from fgd.events import Event, Failed, Finished, Saved
from fgd.failpoint import reach
from worker.host import DATABASE_AWAY, Host

logger = logging.getLogger(__name__)

MAX_KEPT = 20_000
"""Events waiting for the database; then the trainer's pipe fills, and it waits."""


class Diary:
    def __init__(self, host: Host, claim: jobs.Claim, out: Path) -> None:
        self._host = host
        self._claim = claim
        self._out = out.resolve()
        self._events: list[Event] = []
        self._log = b""
        self._saved: list[tuple[str, Saved]] = []
        self.last: Finished | Failed | None = None
        """How the trainer says that it ended."""

    @property
    def full(self) -> bool:
        return len(self._events) >= MAX_KEPT

    def add(self, events: Sequence[Event], log: bytes = b"") -> None:
        for event in events:
            if isinstance(event, Saved):
                self._keep(event)
            elif isinstance(event, Finished | Failed):
                self.last = event
            else:
                self._events.append(event)
        self._log += log

    def write(self) -> bool:
        """One transaction for all that waits. False: the database is away, nothing was lost. Raises Fenced."""
        if not (self._events or self._log or self._saved):
            return True
        try:
            superseded = self._host.write(self._store)
        except DATABASE_AWAY as error:
            logger.warning("%d events wait for the database: %s", len(self._events), error)
            return False
        except Fenced:
            self._drop([key for key, _ in self._saved])  # no row will ever name them
            raise
        if self._saved:
            reach("after_checkpoint_row")
        self._events, self._log, self._saved = [], b"", []
        self._drop(superseded)
        return True

    def _store(self, s: Session) -> list[str]:
        job, attempt = self._claim.job_id, self._claim.attempt
        jobs.record(s, job, attempt, self._events, self._log)
        if self._saved:
            reach("before_checkpoint_row")
        superseded = [
            old
            for key, saved in self._saved
            for old in jobs.checkpoint(s, job, attempt, saved.step, key, saved.sha256, saved.size)
        ]
        if self._saved:
            reach("checkpoint_row_uncommitted")
        return superseded

    def _keep(self, saved: Saved) -> None:
        """Put the file into the store before the trainer deletes it; a row will name it later."""
        key = f"jobs/{self._claim.job_id}/a{self._claim.attempt}/ckpt-{saved.step}.pt"
        path = Path(saved.path).resolve()
        try:
            if not path.is_relative_to(self._out):
                raise ValueError(f"{path} is not below {self._out}")
            reach("before_checkpoint_blob")
            self._host.store.put_object(key, path)
            reach("after_checkpoint_blob")
        except (OSError, ValueError) as error:  # a full disk, or the trainer was faster: the one before still stands
            self._log += f"[worker] checkpoint of step {saved.step} was not kept: {error}\n".encode()
            return
        self._saved.append((key, saved))

    def _drop(self, keys: Sequence[str]) -> None:
        for key in keys:
            try:
                self._host.store.delete_object(key)
            except OSError as error:
                logger.warning("could not delete %s: %s", key, error)
