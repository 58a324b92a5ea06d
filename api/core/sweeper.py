"""The periodic sweep: what the silent left behind is put right, bells ring again, rubbish is deleted.

SWEEPS lists what each noun does of it. Every worker sweeps and so does every API process: a job whose last worker died
must end too. Idempotent; may run anywhere, and twice at once. Holds no session between two sweeps.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from celery import Celery
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from api.core import (
    datasets,
    evaluations,
    exports,
    inspections,
    inventory,
    models,
    plans,
    predictions,
    tickets,
    uploading,
    workers,
)
from api.core.blobs import collect_blob, long_unused, note_unused
from api.core.blobs import unused as unused_blobs
from api.core.jobs import sweep as jobs
from api.core.queue import ring_all
from api.core.rows import db, idempotency
from api.core.rows.swept import Moment, SweepResult
from api.core.rows.tables import BlobRow, Checkpoint
from api.core.store import uploads
from api.core.store.names import BlobStore, StoreAway, delete_objects
from fgd.process.failpoints import reach

logger = logging.getLogger(__name__)

COLLECT_S = 3600.0
"""Between two searches of the store for objects that no row names."""
ORPHAN_S = 3600.0
"""An object may wait for its row for so long: far longer than a lease, after which the row would be fenced."""
PARTIAL_S = 86_400.0
"""A half-written file may grow for so long."""
GOODBYE_S = 2.0


@dataclass(frozen=True)
class Sweep:
    """One noun's part."""

    noun: str
    sweep: Callable[[Session, Moment], SweepResult]
    lane: str | None = None
    """What waits rings one bell for each live worker, together with the nouns of the same lane: a worker takes one of
    them at a time. None: the noun counts its bells itself."""


SWEEPS = (
    Sweep("jobs", jobs.sweep),
    Sweep("datasets", datasets.sweep, lane="imports"),
    Sweep("models", models.sweep, lane="imports"),
    Sweep("plans", plans.sweep, lane="plans"),
    Sweep("predictions", predictions.sweep, lane="quick"),
    Sweep("exports", exports.sweep, lane="quick"),
    Sweep("inspections", inspections.sweep, lane="evaluations"),
    Sweep("evaluations", evaluations.sweep, lane="evaluations"),
    Sweep("keys", idempotency.sweep),
    Sweep("tickets", tickets.sweep),
    Sweep("workers", workers.sweep),
)
"""In the order in which their bells ring."""


def sweep_rows(s: Session, lease_s: float) -> SweepResult:
    """Every noun's part, in one transaction. One that fails is named in `stuck`, and keeps no other from it."""
    moment = Moment(db.now(s), workers.live(s, lease_s))
    room = {sweep.lane: len(moment.live) for sweep in SWEEPS if sweep.lane is not None}
    ring, lost, rubbish, stuck = list[str](), list[str](), list[str](), list[str]()
    for sweep in SWEEPS:
        try:
            with s.begin_nested():
                swept = sweep.sweep(s, moment)
        except OperationalError:  # the database, not the noun
            raise
        except Exception:
            logger.exception("the sweep of %s failed", sweep.noun)
            stuck.append(sweep.noun)
            continue
        bells = list(swept.ring)
        if sweep.lane is not None:
            bells = bells[: room[sweep.lane]]
            room[sweep.lane] -= len(bells)
        ring += bells
        lost += swept.lost
        rubbish += swept.rubbish
        stuck += swept.stuck
    return SweepResult(ring, lost, rubbish, stuck)


@dataclass
class Sweeper:
    engine: Engine
    store: BlobStore
    bell: Celery | None
    lease_s: float
    uploads: Path | None = None
    """Folder of unfinished uploads of this process's host."""
    _collect_at: float = 0.0
    _told: bool = False

    def sweep(self) -> Sequence[str]:
        """What could not be put right, by name; the rest is."""
        with db.transaction(self.engine) as s:
            swept = sweep_rows(s, self.lease_s)
            if swept.lost:
                reach("before_sweep_requeue")
        if swept.lost:
            reach("after_sweep_requeue")
        for job in swept.lost:
            logger.warning("%s: its worker was lost", job)
        delete_objects(self.store, swept.rubbish)
        ring_all(self.bell, swept.ring)
        if time.monotonic() >= self._collect_at:
            self._collect_at = time.monotonic() + COLLECT_S
            self.collect()
        return swept.stuck

    def collect(self) -> None:
        """Delete objects that no row names: put by an attempt that died before its commit, or left by a crash here.
        And the blobs that have a row, to which nothing has referred for a while.

        Blobs without a row are left alone, and so are objects that may be newer than the database: after the restore of
        an older one they are all that is left of newer results. The log tells how many.
        """
        old = list(self.store.objects(older_than_s=ORPHAN_S))  # before the rows: a row that comes later names none
        blobs = [] if self._told else list(self.store.blobs(older_than_s=ORPHAN_S))
        with db.reading(self.engine) as s:
            restored_s = inventory.since_restore_s(s)
        before = set(self.store.objects(max(0.0, restored_s - inventory.MARGIN_S))) if restored_s is not None else set()
        with db.reading(self.engine) as s:
            named = set(s.scalars(select(Checkpoint.key)))
            rubbish, stays = inventory.rubbish(s, (key for key in old if key not in named), before)
            strays = len(set(blobs) - set(s.scalars(select(BlobRow.digest)))) if blobs else 0
        delete_objects(self.store, rubbish)
        self._tell(strays, len(stays))
        self.store.drop_partial(older_than_s=PARTIAL_S)
        self._collect_blobs()
        if self.uploads is not None:
            parts = uploads.parts(self.uploads)
            with db.reading(self.engine) as s:
                awaited = uploading.awaiting(s)
            uploads.drop_others(parts, awaited)

    def _tell(self, blobs: int, objects: int) -> None:
        """Once in the life of a process."""
        if (blobs or objects) and not self._told:
            logger.warning(
                "the store has %d blobs and %d checkpoints that no row names; they may be newer than the database and "
                "are kept: `fgd doctor` lists them",
                blobs,
                objects,
            )
        self._told = True

    def _collect_blobs(self) -> None:
        with db.reading(self.engine) as s:
            unused = unused_blobs(s)
        with db.transaction(self.engine) as s:
            at = db.now(s)
            note_unused(s, at, unused)
            rubbish = long_unused(s, at)
        for project, digest in rubbish:
            try:
                with db.transaction(self.engine) as s:  # one each: nobody waits for the deletion of many files
                    collect_blob(s, self.store, project, digest)
            except (IntegrityError, OSError) as error:
                logger.warning("could not delete blob %s: %s", digest, error)
                if isinstance(error, StoreAway):  # each would wait as long, and on SQLite everybody for it
                    return


@dataclass
class Health:
    """What /readyz says of the sweeps."""

    complaint: str | None = None
    """Why the last sweep failed; None: it did not."""


@contextmanager
def sweeping(sweep: Callable[[], Sequence[str]], every_s: float) -> Iterator[Health]:
    """Calls `sweep` every `every_s` seconds in a daemon thread; what it raises is logged and told, never fatal."""
    left, health = threading.Event(), Health()

    def run() -> None:
        while not left.wait(every_s):
            try:
                stuck = sweep()
                health.complaint = f"cannot repair {', '.join(stuck[:3])}; see the log" if stuck else None
            except (SQLAlchemyError, OSError) as error:
                health.complaint = f"failed: {type(error).__name__}"  # its text may hold the database's URL
                logger.warning("the sweep failed, trying again in %g s: %s", every_s, str(error).partition("\n")[0])
            except Exception as error:
                health.complaint = f"failed: {type(error).__name__}; see the log"
                logger.exception("the sweep failed, trying again in %g s", every_s)

    thread = threading.Thread(target=run, name="sweeper", daemon=True)
    thread.start()
    try:
        yield health
    finally:
        left.set()
        thread.join(GOODBYE_S)
