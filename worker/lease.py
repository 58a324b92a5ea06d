"""Keeps an attempt ours: beats in one thread, and guards the trainer with a monotonic clock in another.

At most one trainer of a job is ever alive, even if the database cannot be reached: a worker that waits for our lease to
expire counts `lease_s` by the database's clock; we stop the trainer after `freeze_s` without a successful beat and kill
it after `kill_s`, both shorter, by a clock that nobody sets. Two threads, because a beat may hang in the network.
If this whole process is stopped, the trainer ends by itself: each beat tells it how long it may live (`allow`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from api.core.errors import Fenced
from api.core.lifecycle import Requested

logger = logging.getLogger(__name__)

GUARD_S = 0.1
"""Between two looks at the clock."""
AGAIN_S = 0.5
"""After a heartbeat that failed: a connection that was cut must cost no more than itself."""


class Freezable(Protocol):
    """What the guard needs of a trainer."""

    def allow(self, until: float) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def kill(self) -> None: ...


@dataclass(frozen=True)
class Times:
    """Seconds; beat < freeze < kill < lease."""

    beat_s: float
    freeze_s: float
    kill_s: float


class Lease:
    """A context manager around an attempt. After it was `lost` nothing may be written for the attempt."""

    def __init__(
        self,
        beat: Callable[[], Requested | None],
        times: Times,
        taken_at: float,
        requested: Requested | None = None,
    ) -> None:
        """beat: one heartbeat in a transaction of its own. taken_at: time.monotonic() before the lease was taken.

        requested: what was asked before.
        """
        self._beat = beat
        self._times = times
        self._good_at = taken_at
        self._trainer: Freezable | None = None
        self._frozen = False
        self._lock = threading.Lock()
        self._left = threading.Event()
        self._closing = False
        self.lost = threading.Event()
        self.requested = requested
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._beats, self._guards)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._left.set()
        self._threads[1].join()  # the beat may hang; left alone it does no harm

    def guard(self, trainer: Freezable | None) -> None:
        """From now on freeze and kill this one. None: there is none any more."""
        with self._lock:
            self._trainer, self._frozen = trainer, False
            if trainer is None:
                return
            trainer.allow(self.ends_at())
            if self.lost.is_set():
                trainer.kill()

    def ends_at(self) -> float:
        """When, by time.monotonic(), nothing of the attempt may live any more, unless a beat comes before."""
        return self._good_at + self._times.kill_s

    def closing(self) -> None:
        """The last write comes now: after it a heartbeat finds no lease, and that is as it should be."""
        self._closing = True

    def _beats(self) -> None:
        while not self._left.is_set() and not self.lost.is_set():
            asked_at, pause_s = time.monotonic(), self._times.beat_s
            try:
                self.requested = self._beat() or self.requested
            except Fenced as fenced:
                if not self._closing:
                    logger.warning("%s; its trainer is killed", fenced)
                    self._lose()
                return
            except Exception as error:  # any trouble with the database: the guard counts the time
                logger.warning("no heartbeat for %.0f s: %s", time.monotonic() - self._good_at, error)
                pause_s = min(AGAIN_S, pause_s)
            else:
                with self._lock:  # the trainer hears of it before it is let go on
                    self._good_at = asked_at
                    if self._trainer is not None:
                        self._trainer.allow(self.ends_at())
            self._left.wait(pause_s)

    def _guards(self) -> None:
        while not self._left.wait(GUARD_S) and not self.lost.is_set():
            silent_s = time.monotonic() - self._good_at
            if silent_s > self._times.kill_s:
                logger.error(
                    "no heartbeat for %.0f s: the trainer is killed, another worker may take the job", silent_s
                )
                self._lose()
            elif silent_s > self._times.freeze_s:
                self._hold(True)
            else:
                self._hold(False)

    def _hold(self, hold: bool) -> None:
        with self._lock:
            if hold == self._frozen or self._trainer is None:
                return
            self._frozen = hold
            logger.warning("the trainer is %s", "stopped until the database answers" if hold else "continued")
            self._trainer.freeze() if hold else self._trainer.thaw()

    def _lose(self) -> None:
        with self._lock:
            self.lost.set()
            if self._trainer is not None:
                self._trainer.kill()
