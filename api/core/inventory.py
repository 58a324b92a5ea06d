"""Whether rows and files agree: what the store holds that no row names, and what rows name that is not there.

A database that was restored is older than its store: its lost future left files that no row knows. They are reported
and kept; only `delete`, which a person calls, takes them away. Knows rows and the store. Knows no HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, Text, cast, func, select
from sqlalchemy.orm import Session

from api.core import workers
from api.core.blobs import columns_of
from api.core.errors import Conflict
from api.core.rows import db
from api.core.rows.columns import BlobDigest, BlobFiles
from api.core.rows.tables import BlobRow, Checkpoint, Job, Restore
from api.core.store.names import BlobStore

GRACE_S = 86_400.0
"""What is younger may still get its row."""
MARGIN_S = 60.0
"""By which the clocks of database and store may disagree."""
_OF_AN_ATTEMPT = re.compile(r"jobs/([^/]+)/a([0-9]{1,9})/[^/]+")


@dataclass(frozen=True)
class Missing:
    """A file that rows need and the store has not."""

    what: str
    """A blob's digest, or a checkpoint's key."""
    needed_by: tuple[str, ...]
    """Such as "artifacts art_..." ."""


@dataclass(frozen=True)
class Inventory:
    stray_blobs: tuple[str, ...]
    """Digests of blobs that no row names."""
    stray_objects: tuple[str, ...]
    """Keys of checkpoints that no row names."""
    missing: tuple[Missing, ...]

    @property
    def whole(self) -> bool:
        return not (self.stray_blobs or self.stray_objects or self.missing)

    def lines(self, most: int = 1000) -> list[str]:
        """For a person."""
        told = [f"missing: {each.what}, needed by {', '.join(each.needed_by)}" for each in self.missing]
        told += [f"no row names the blob {digest}" for digest in self.stray_blobs]
        told += [f"no row names the checkpoint {key}" for key in self.stray_objects]
        return told[:most] + ([f"... and {len(told) - most} more"] if len(told) > most else [])


def take(engine: Engine, store: BlobStore, older_than_s: float = GRACE_S) -> Inventory:
    """Compare. Files younger than that are not called stray: their rows may come."""
    blobs, objects = set(store.blobs(older_than_s)), list(store.objects(older_than_s))  # before the rows, see sweeper
    with db.reading(engine) as s:
        named = set(s.scalars(select(BlobRow.digest)))
        checkpoints = set(s.scalars(select(Checkpoint.key)))
    gone = [digest for digest in sorted(named - blobs) if not store.exists(digest)]
    lost = [key for key in sorted(checkpoints - set(objects)) if not _has_object(store, key)]
    with db.reading(engine) as s:  # again: what was deleted meanwhile is not missing
        missing = [Missing(digest, users) for digest in gone if (users := _users(s, digest))]
        missing += [Missing(key, users) for key in lost if (users := _users_of_object(s, key))]
    strays = sorted(set(objects) - checkpoints)
    return Inventory(tuple(sorted(blobs - named)), tuple(strays), tuple(missing))


def delete(engine: Engine, store: BlobStore, older_than_s: float = GRACE_S) -> Inventory:
    """Delete what no row names and is that old. Returns what it was.

    Raises Conflict while a worker lives: it may be about to name what it found in the store.
    """
    with db.reading(engine) as s:
        alive = [row.host for row in workers.live(s, MARGIN_S)]
    if alive:
        raise Conflict("workers_alive", f"workers are running on {', '.join(sorted(set(alive)))}; stop them first")
    found = take(engine, store, older_than_s)
    for digest in found.stray_blobs:
        store.delete_unless_fresh(digest, older_than_s)
    for key in found.stray_objects:
        store.delete_object(key)
    return found


def rubbish(s: Session, keys: Iterable[str], restored_before: set[str]) -> tuple[list[str], list[str]]:
    """(what may go, what stays) of the checkpoints that no row names.

    One goes if an attempt that this database knows put it after the last restore and died before its commit. Anything
    else may be newer than the database. restored_before: those put before the last restore.
    """
    attempts = {row.id: row.attempt for row in s.execute(select(Job.id, Job.attempt))}
    goes: list[str] = []
    stays: list[str] = []
    for key in keys:
        of = _OF_AN_ATTEMPT.fullmatch(key)
        known = of is not None and int(of[2]) <= attempts.get(of[1], 0)
        (goes if known and key not in restored_before else stays).append(key)
    return goes, stays


def since_restore_s(s: Session) -> float | None:
    """Seconds since this database was restored; None: it never was."""
    at: datetime | None = s.scalar(select(func.max(Restore.at)))
    return None if at is None else max(0.0, (db.now(s) - at).total_seconds())


def _has_object(store: BlobStore, key: str) -> bool:
    try:
        with store.local_object(key):
            return True
    except KeyError:
        return False


def _users(s: Session, digest: str) -> tuple[str, ...]:
    """Rows that need a blob; its own row, where nothing else does."""
    found: list[str] = []
    names = [(column, column == digest) for column in columns_of(BlobDigest)]
    names += [(column, cast(column, Text).contains(digest)) for column in columns_of(BlobFiles)]
    for column, is_named in names:
        first = next(iter(column.table.primary_key.columns))
        found += [f"{column.table.name} {id}" for id in s.scalars(select(first).where(is_named))]
    if not found and s.scalar(select(BlobRow.digest).where(BlobRow.digest == digest).limit(1)):
        found = ["its own row only"]
    return tuple(dict.fromkeys(found))


def _users_of_object(s: Session, key: str) -> tuple[str, ...]:
    rows = s.execute(select(Checkpoint.job_id, Checkpoint.step).where(Checkpoint.key == key))
    return tuple(f"the checkpoint of step {step} of {job}" for job, step in rows)
