"""The worker's own clock: says that it lives, sweeps, and looks for work whether a bell rang or not.

A thread of its own, started before Celery connects to anything: without a broker jobs run all the same.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from sqlalchemy.orm import Session

from api.core import workers
from api.core.store.open import open_store
from api.core.sweeper import Sweeper
from worker import kept_results
from worker.host import DATABASE_AWAY, Host
from worker.launcher import kill_stale
from worker.staging import clear_stale_work
from worker.take import look, take

logger = logging.getLogger(__name__)

TICK_S = 0.1
SWEEP_PATIENCE_S = 2.0
"""A deletion asks a store that is away no longer: it may hold a lock meanwhile, and the next sweep does it as well."""


@dataclass
class Periodic:
    """Does `work` every `seconds`; while the database is away it complains once and tries on."""

    seconds: float
    work: Callable[[], object]
    due_at: float = 0.0
    away: bool = False

    def run(self, now: float) -> None:
        if now < self.due_at:
            return
        self.due_at = now + self.seconds
        try:
            self.work()
        except DATABASE_AWAY as error:
            if not self.away:
                logger.warning("the database does not answer: %s", str(error).partition("\n")[0])
            self.away = True
        except Exception:
            logger.exception("the poller failed; it tries again in %.0f s", self.seconds)
        else:
            if self.away:
                logger.info("the database answers again")
            self.away = False


@dataclass
class Poller:
    """start() when the worker starts, stop() when it is told to end, join() before the process may go.

    Whatever hangs then, the process ends: trainers have `drain_s` to save, and the supervisors a lease's time to hand
    their jobs back; who could not until then has hardly a job any more.
    """

    host: Host
    exit: Callable[[int], object] = os._exit  # not sys.exit, which waits for the very threads that hang
    _supervisors: list[threading.Thread] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)
    _gone: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        for pid in kill_stale(self.host.run_folder()):
            logger.warning("ended trainer %d, left behind by a worker that died", pid)
        clear_stale_work(self.host.settings.home)
        kept_results.forget_old(self.host.settings.home)
        for line in introduction(self.host):
            logger.info(line)
        self._thread = threading.Thread(target=self._run, name="poller")
        self._thread.start()
        threading.Thread(target=self._end_in_time, name="end", daemon=True).start()

    def stop(self) -> None:
        self.host.stop()

    def join(self) -> None:
        """Wait for stop() and for all that follows from it; says goodbye then."""
        while not self.host.stopping.wait(1.0):
            pass
        self._join_supervisors()
        self._done.set()
        self._thread.join()
        self._join_supervisors()  # one may have been started while we waited
        self._say_goodbye()
        if self.host.app is None:  # with a broker, its own threads may hang as well
            self._gone.set()

    def _end_in_time(self) -> None:
        """Leases expire, trainers die with us, and the next worker on this host clears up."""
        self.host.stopping.wait()
        left_s = self.host.stopped_at + self.host.drain_s + self.host.settings.lease_s - time.monotonic()
        if not self._gone.wait(max(0.0, left_s)):
            told_s = time.monotonic() - self.host.stopped_at
            hang = [thread.name for thread in threading.enumerate() if not thread.daemon]
            logger.error(
                "%.0f s after it was asked to stop these still hang, and it ends without them: %s", told_s, hang
            )
            self.exit(1)

    def _join_supervisors(self) -> None:
        for supervisor in list(self._supervisors):
            supervisor.join()

    def _run(self) -> None:
        host, settings = self.host, self.host.settings
        store = open_store(settings, SWEEP_PATIENCE_S)
        sweeper = Sweeper(host.engine, store, host.app, settings.lease_s)
        chores = [
            Periodic(settings.beat_s, self._beat),
            Periodic(settings.sweep_s, sweeper.sweep),
            Periodic(settings.poll_s, self._look),
        ]
        while not self._done.wait(TICK_S):
            for chore in chores[:1] if host.stopping.is_set() else chores:  # others sweep, and it takes nothing more
                chore.run(time.monotonic())

    def _beat(self) -> None:
        complaint = self.host.complaint()

        def beat(s: Session) -> None:
            if not workers.beat(s, self.host.id, complaint):
                register(s, self.host)

        self.host.write(beat)
        self.host.announced.set()

    def _look(self) -> None:
        """Everything that fits now, each in a thread of its own, which then looks for more."""
        self._supervisors[:] = [thread for thread in self._supervisors if thread.is_alive()]
        while work := take(self.host):
            thread = threading.Thread(target=self._work, args=(work,), name="supervisor")
            thread.start()  # first: who finds it in the list may join it
            self._supervisors.append(thread)

    def _work(self, work: Callable[[], None]) -> None:
        work()
        with contextlib.suppress(*DATABASE_AWAY):  # the next poll will say so
            look(self.host)

    def _say_goodbye(self) -> None:
        try:
            self.host.write(lambda s: workers.forget(s, self.host.id))
        except DATABASE_AWAY as error:
            logger.warning("could not report its end: %s", error)


def register(s: Session, host: Host) -> None:
    workers.register(
        s,
        host.id,
        host=host.name,
        pid=os.getpid(),
        slots=host.trainings,
        devices=[{"kind": "cuda", **asdict(gpu)} for gpu in host.found.gpus],
        facts={**host.found.facts(), "threads": host.threads, "found": found(host), "versions": versions()},
    )


def versions() -> dict[str, str]:
    """Read from the packages' own notes: a worker imports no torch."""
    told = {"python": platform.python_version()}
    for package in ("fgd-service", "torch", "torchvision", "onnx", "onnxruntime"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            told["fgd" if package == "fgd-service" else package] = importlib.metadata.version(package)
    return told


def found(host: Host) -> list[str]:
    """What this worker has, for a person: the log says it, and `fgd serve`."""
    jobs = f"{host.trainings} training{'s' * (host.trainings > 1)} at once"
    return [*host.found.lines(), f"threads: {host.threads} per training, {jobs}"]


def introduction(host: Host) -> list[str]:
    bell = "notified by the broker" if host.app is not None else "no broker"
    return [
        f"worker {host.id} on {host.name}; {bell}, looks for jobs every {host.settings.poll_s:g} s",
        *found(host),
    ]
