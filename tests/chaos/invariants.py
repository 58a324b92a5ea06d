"""What must be true when everything has settled: read from database, blob store and /proc alone.

`violations` returns what is not, by invariant. Knows nothing of what was done to the service before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from api.core import blobs
from api.core.lifecycle import TERMINAL, State
from api.core.rows import db
from api.core.rows.tables import Artifact, Attempt, Base, BlobRow, Checkpoint, Job, JobEvent
from api.core.store.local import LocalStore
from api.core.store.names import sha256_file
from api.core.sweeper import Sweeper
from tests.chaos.parts import no_patience
from tests.e2e.parts import processes_of

INVARIANTS = (
    "every job ended once",
    "the weights of an undisturbed run",
    "events gapless",
    "attempts closed",
    "no leaked lease",
    "no leaked checkpoint",
    "no leaked blob",
    "no leaked file",
    "artifacts whole",
    "no orphan process",
)


def collect(engine: Engine, store: LocalStore) -> None:
    """Sweeper and collector, as if the grace periods were over."""
    sweeper = Sweeper(engine, store, None, lease_s=20.0)
    with no_patience():
        for _ in range(2):  # a blob is noted first, and goes the next time
            sweeper.sweep()
            sweeper.collect()


def violations(engine: Engine, home: Path, digests: Mapping[str, str | None]) -> dict[str, list[str]]:
    """digests: job -> the weights digest it must have if it succeeded; None: whatever it is.

    Call it when every process of ours has ended.
    """
    store = LocalStore(home / "blobs")
    collect(engine, store)
    found: dict[str, list[str]] = {name: [] for name in INVARIANTS}
    with db.reading(engine) as s:
        _jobs(s, digests, found)
        _leases(s, found["no leaked lease"])
        _checkpoints(s, store, found["no leaked checkpoint"])
        _blobs(s, store, found)
    _files(home, found["no leaked file"])
    found["no orphan process"] += [f"{pid} {command[:120]}" for pid, command in processes_of(home).items()]
    return found


def holds(engine: Engine, home: Path, digests: Mapping[str, str | None]) -> None:
    broken = {name: faults for name, faults in violations(engine, home, digests).items() if faults}
    assert not broken, broken


def _jobs(s: Session, digests: Mapping[str, str | None], found: dict[str, list[str]]) -> None:
    known = {job.id: job for job in s.scalars(select(Job))}
    found["every job ended once"] += [f"{id} is gone" for id in digests.keys() - known.keys()]
    for id, digest in digests.items():
        job = known.get(id)
        if job is None:
            continue
        events = list(s.scalars(select(JobEvent).where(JobEvent.job_id == id).order_by(JobEvent.seq)))
        ends = [event.type for event in events if event.type in TERMINAL]
        if ends != [job.state]:
            found["every job ended once"].append(f"{id} is {job.state}, its events say {ends}")
        if job.state == State.succeeded and digest is not None and job.weights_digest != digest:
            found["the weights of an undisturbed run"].append(f"{id}: {job.weights_digest}, not {digest}")
        if [event.seq for event in events] != list(range(1, job.event_seq + 1)):
            found["events gapless"].append(f"{id}: {[event.seq for event in events]}, {job.event_seq}")
        attempts = list(s.scalars(select(Attempt).where(Attempt.job_id == id).order_by(Attempt.attempt)))
        open_ = [row.attempt for row in attempts if row.finished_at is None]
        if open_ or [row.attempt for row in attempts] != list(range(1, job.attempt + 1)):
            found["attempts closed"].append(f"{id}: attempts {[row.attempt for row in attempts]}, open {open_}")
        if (succeeded := [row.outcome for row in attempts].count("succeeded")) != (job.state == State.succeeded):
            found["every job ended once"].append(f"{id} is {job.state} with {succeeded} attempts that succeeded")


def _leases(s: Session, found: list[str]) -> None:
    for table in Base.metadata.sorted_tables:
        if "lease_owner" in table.columns:
            held = select(table.c.id, table.c.state).where(table.c.lease_owner.is_not(None))
            found += [f"{id} is {state}" for id, state in s.execute(held)]


def _checkpoints(s: Session, store: LocalStore, found: list[str]) -> None:
    rows, objects = set(s.scalars(select(Checkpoint.key))), set(store.objects(older_than_s=0))
    found += [f"row without object: {key}" for key in rows - objects]
    found += [f"object without row: {key}" for key in objects - rows]


def _blobs(s: Session, store: LocalStore, found: dict[str, list[str]]) -> None:
    rows = {row.digest: row.size for row in s.scalars(select(BlobRow))}
    files = {path.name: path.stat().st_size for path in (store.root / "sha256").rglob("*") if path.is_file()}
    leaked = found["no leaked blob"]
    leaked += [f"row without file: {digest}" for digest in rows.keys() - files.keys()]
    leaked += [f"file without row: {digest}" for digest in files.keys() - rows.keys()]
    leaked += [f"named by nobody: {digest}" for _, digest in blobs.unused(s)]
    for file in s.scalars(select(Artifact)):
        if not store.exists(file.digest) or sha256_file(store.path(file.digest)) != file.digest:
            found["artifacts whole"].append(f"{file.job_id} {file.name}")


def _files(home: Path, found: list[str]) -> None:
    """Temporary files of whatever died. `cache` keeps data sets on purpose; half of one begins with a dot."""
    for pattern in ("work/**/*", "run/*", "blobs/incoming/*", "uploads/*", "cache/.*"):
        found += [str(path.relative_to(home)) for path in home.glob(pattern)]
