"""An attempt at work on this host: what it was claimed with, under its lease.

It waits for a store that is away: an outage must not cost what was trained for a week. Knows no files of its own.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.orm import Session

from api.core.jobs import attempts, record
from api.core.lifecycle import Requested
from api.core.store.names import StoreAway
from fgd.events import Note
from worker.host import DATABASE_AWAY, Host, Lost
from worker.lease import Lease

logger = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_S = 2.0
SHARE_AWAY = (
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
    errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO,
)  # fmt: skip
"""What a shared folder says whose server is away."""


class Interrupted(Exception):
    """Whoever waited for the store was asked to end: by a person, or because the worker goes down."""


@dataclass(frozen=True)
class RunningAttempt:
    host: Host
    lease: Lease
    claim: attempts.Claim

    @property
    def cancelled(self) -> bool:
        return self.lease.requested in (Requested.cancel, Requested.cancel_now)

    def insist(self, verb: Callable[[Session], T]) -> T:
        """One transaction, retried while the database is away. Raises Lost when the lease is."""
        return self.host.insist(self.lease, verb)

    def with_store(
        self, what: str, call: Callable[[], T], *, at_first: Callable[[], None] = lambda: None, drains: bool = False
    ) -> T:
        """`call`, retried while the store is away; the job's events say so. at_first: done once it is away.

        Raises Lost when the lease is, Interrupted when a cancel is asked for or the worker is told to stop; where it
        `drains`, when the time to do so is over.
        """
        host, lease, job = self.host, self.lease, self.claim.job_id
        away_at: float | None = None
        while not lease.lost.is_set():
            try:
                result = call()
            except OSError as error:
                if not is_away(error):
                    raise
                if away_at is None:
                    away_at = time.monotonic()
                    at_first()
                    self.report("store_away", f"{what}: the store does not answer; retrying: {error}")
                logger.warning("%s: %s: the store does not answer: %s", job, what, error)
            else:
                if away_at is not None:
                    away_s = time.monotonic() - away_at
                    self.report("store_back", f"{what}: the store answers again, after {away_s:.0f} s")
                return result
            if self.cancelled or (host.stopping.is_set() and not (drains and host.drains())):
                raise Interrupted
            lease.lost.wait(RETRY_S)
        raise Lost

    def report(self, code: str, message: str) -> None:
        """A warning among the job's events. Best effort: the database may be away as well."""
        job, note = self.claim.job_id, Note(code=code, message=message[:1000], level="warning")
        try:
            self.host.write(lambda s: record.record(s, job, self.claim.attempt, [note]))
        except DATABASE_AWAY as error:
            logger.warning("%s: %s: %s", job, message, error)


def is_away(error: OSError) -> bool:
    """True for what may pass by itself: no answer, a share that is gone. Not for a full disk or a forbidden folder."""
    return isinstance(error, StoreAway) or error.errno in SHARE_AWAY
