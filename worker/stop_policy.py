"""Ends a trainer that should end: asks it first, and kills it when its time is over. Knows no rows."""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from api.core.lifecycle import Requested
from fgd.events import Event, Stepped
from worker.outcome import EndCause

logger = logging.getLogger(__name__)

SLOW_FACTOR = 10.0
"""A trainer is stalled when it is silent for so many of its usual intervals, but not before `stall_s`."""
DUMP_S = 1.0
"""A stalled trainer gets so long to write the stacks of its threads into its log."""


class Endable(Protocol):
    def finish_early(self) -> bool:
        """False: it could not be told; try again."""

    def dump_stacks(self) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class StopPolicy:
    """grace_s: a person asked. drain_s: the worker goes down. stall_s: silence that counts as a stall.

    run_s: how long it may run; None: as long as it takes.
    """

    def __init__(
        self,
        trainer: Endable,
        *,
        grace_s: float,
        drain_s: float,
        stall_s: float,
        run_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trainer = trainer
        self._grace_s = grace_s
        self._drain_s = drain_s
        self._stall_s = stall_s
        self._clock = clock
        self._heard_at = clock()
        self._over_at = None if run_s is None else self._heard_at + run_s
        self._stepped_at: float | None = None
        self._intervals: deque[float] = deque(maxlen=100)
        self._dumped_at: float | None = None
        self._kill_at: float | None = None
        self._finishing = False
        self.ended = EndCause.by_itself

    def heard(self, events: Sequence[Event]) -> None:
        if not events:
            return
        self._heard_at = self._clock()
        if any(isinstance(event, Stepped) for event in events):
            if self._stepped_at is not None:
                self._intervals.append(self._heard_at - self._stepped_at)
            self._stepped_at = self._heard_at

    def silence_s(self) -> float:
        """How long the trainer may be silent."""
        usual = statistics.median(self._intervals) if self._intervals else 0.0
        return max(SLOW_FACTOR * usual, self._stall_s)

    def check(self, requested: Requested | None, worker_stops: bool) -> None:
        """Call it often."""
        now = self._clock()
        if requested == Requested.cancel_now:
            self._end(EndCause.cancelled, now)
        elif requested == Requested.cancel:
            self._end(EndCause.cancelled, now + self._grace_s)
        elif requested == Requested.pause:
            self._end(EndCause.paused, now + self._grace_s)
        elif requested == Requested.stop and not self._finishing:
            logger.info("the trainer is asked to finish early")
            self._finishing = self._trainer.finish_early()
        if worker_stops:
            self._end(EndCause.worker_stops, now + self._drain_s)
        if self._over_at is not None and now >= self._over_at:
            self._end(EndCause.out_of_time, self._over_at + self._grace_s)
        if now - self._heard_at > self.silence_s():
            if self._dumped_at is None:
                self._dumped_at = now
                self._trainer.dump_stacks()
            self._end(EndCause.stalled, self._dumped_at + DUMP_S)
        if self._kill_at is not None and now >= self._kill_at:
            self._trainer.kill()

    def _end(self, why: EndCause, kill_at: float) -> None:
        """The first reason stands; the earliest deadline counts."""
        if self._kill_at is None:
            self.ended = why
            logger.info("the trainer is asked to end (%s)", why.name)
            self._trainer.terminate()
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
