"""`fgd backup` and `fgd restore`: database and store as one folder, of any kind into any kind.

    FOLDER/database/<table>.jsonl.gz     rows of one moment
    FOLDER/store/                        blobs and checkpoints, laid out as `api.core.store.local.LocalStore`
    FOLDER/manifest.json                 written last: every file with its SHA-256; without it there is no backup

A logical dump through the tables of this version: it needs no program of the database's, and a backup of SQLite can be
restored into PostgreSQL. The service may run meanwhile. Blobs are copied before the database, so that what came later
is little, and again after it, so that no row of the moment lacks its file. Knows rows and files. Knows no HTTP.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    Table,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy import delete as delete_rows
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from api.core import inventory, workers
from api.core.errors import DriverMissing, Unfit
from api.core.rows import db
from api.core.rows.ids import new_id
from api.core.rows.tables import DEFAULT_PROJECT, Base, BlobRow, Checkpoint, Job, Project, Restore, WorkerRow
from api.core.settings import Settings
from api.core.store.local import LocalStore
from api.core.store.names import BlobStore, DigestMismatch, sha256_file
from api.core.store.open import open_store
from fgd import version
from fgd.errors import ArgumentError, FGDError

logger = logging.getLogger(__name__)

FORMAT = 1
ROUNDS = 5
"""A job that trains may delete a checkpoint while we copy it; then the moment is taken again."""
BATCH = 500
PATIENCE_S = 60.0
ALIVE_S = 60.0
"""A worker heard of within so long still uses the database."""
NOT_KEPT = (WorkerRow.__table__, Restore.__table__)
"""Rows about processes and about this database, not about work."""

Say = Callable[[str], None]


class BackupError(FGDError):
    """In one line, for a person: what is wrong, and what to do."""


class WrongFolder(BackupError, ArgumentError):
    """It cannot be what it was named for."""


@dataclass(frozen=True)
class Manifest:
    version: str
    revision: str
    taken_at: str
    tables: Mapping[str, Mapping[str, Any]]
    """{"jobs": {"rows": 3, "sha256": ...}}"""
    blobs: Mapping[str, int]
    """Digest: bytes."""
    objects: Mapping[str, str]
    """Key: SHA-256."""
    missing: tuple[str, ...]
    """What rows named and the store had not, when the backup was made."""


@dataclass(frozen=True)
class Moment:
    """What the database said at one moment, and what of it is copied already."""

    taken_at: str
    tables: Mapping[str, Mapping[str, Any]]
    blobs: Mapping[str, int]
    objects: Mapping[str, str]
    gone: Collection[str]
    """Checkpoints that rows name, and that were not in the store any more."""


# --- backup ---------------------------------------------------------------------------------------------------


def backup(settings: Settings, folder: Path, say: Say = logger.info) -> Manifest:
    """Write a backup of everything the service knows into an empty or new folder. Raises BackupError."""
    if folder.exists() and any(folder.iterdir()):
        raise WrongFolder(f"{folder} is not empty; name a new folder")
    with opened(settings) as (engine, store):
        db.check_schema(engine)
        folder.mkdir(parents=True, exist_ok=True)
        kept, scratch = LocalStore(folder / "store"), folder / "incoming"
        scratch.mkdir()
        with db.reading(engine) as s:
            known = list(s.scalars(select(BlobRow.digest).distinct()))
        say(f"copying {len(known)} blobs")
        copy_blobs(store, kept, known, scratch)
        for _ in range(ROUNDS):
            moment = copy_moment(engine, store, kept, folder / "database", scratch)
            if not moment.gone:
                break
            say(f"{len(moment.gone)} checkpoints are gone, or were replaced while they were copied; trying again")
        _check_each_job_has_one(moment)
        missing = copy_blobs(store, kept, moment.blobs, scratch)
        for key in set(kept.objects(0.0)) - moment.objects.keys():
            kept.delete_object(key)  # of an earlier round
        for digest in set(kept.blobs(0.0)) - moment.blobs.keys():
            kept.delete(digest)  # its row went meanwhile
        shutil.rmtree(scratch)
        manifest = Manifest(
            version.ours(),
            db.head(),
            moment.taken_at,
            moment.tables,
            {digest: size for digest, size in moment.blobs.items() if digest not in missing},
            moment.objects,
            tuple(sorted([*missing, *moment.gone])),
        )
        _write_manifest(folder, manifest)
    return manifest


def copy_blobs(store: BlobStore, kept: BlobStore, digests: Iterable[str], scratch: Path) -> list[str]:
    """Copy what is not there yet. Returns the digests of those that are not in the store, or have other bytes."""
    missing = []
    for digest in digests:
        if kept.exists(digest):
            continue
        try:
            with store.local(digest, scratch) as file:
                kept.put_file(file, expected=digest)
        except (KeyError, DigestMismatch):
            missing.append(digest)
    return missing


def copy_objects(store: BlobStore, kept: BlobStore, named: Mapping[str, str], scratch: Path) -> list[str]:
    """Copy what is not there yet: {key: SHA-256}. Returns the keys of those that are gone, or torn."""
    have, gone = set(kept.objects(0.0)), []
    for key, digest in named.items():
        if key in have:
            continue
        copy = scratch / "checkpoint"
        try:
            with store.local_object(key, scratch) as file:
                shutil.copyfile(file, copy)  # not a link: a backup is another copy
        except (KeyError, FileNotFoundError):
            gone.append(key)
            continue
        if sha256_file(copy) == digest:
            kept.put_object(key, copy)
        else:
            gone.append(key)
        copy.unlink()
    return gone


def copy_moment(engine: Engine, store: BlobStore, kept: BlobStore, folder: Path, scratch: Path) -> Moment:
    """All rows of one moment, and at once, before they are replaced, the checkpoints that they name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with db.reading(engine) as s:
        if engine.dialect.name == "postgresql":
            for limit in ("statement_timeout", "idle_in_transaction_session_timeout"):
                s.execute(text(f"SET LOCAL {limit} = 0"))
        newest_first = select(Checkpoint.key, Checkpoint.sha256).order_by(Checkpoint.created_at.desc())
        named = {row.key: row.sha256 for row in s.execute(newest_first)}
        gone = copy_objects(store, kept, named, scratch)
        tables = {table.name: _write_table(s, table, folder) for table in _tables()}
        blobs = {row.digest: row.size for row in s.execute(select(BlobRow.digest, BlobRow.size))}
        there = {key: digest for key, digest in named.items() if key not in gone}
        return Moment(db.now(s).isoformat(), tables, blobs, there, gone)


def _write_table(s: Session, table: Table, folder: Path) -> dict[str, Any]:
    path, rows = folder / f"{table.name}.jsonl.gz", 0
    order = [table.c.created_at, table.c.id] if table is Job.__table__ else list(table.primary_key.columns)
    query = select(table).order_by(*order).execution_options(yield_per=BATCH)  # a job refers to older ones
    with path.open("xb") as file:
        with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0, compresslevel=6) as lines:
            for row in s.execute(query):
                told = {column.name: _out(value) for column, value in zip(table.columns, row, strict=True)}
                lines.write(json.dumps(told, separators=(",", ":")).encode() + b"\n")
                rows += 1
        file.flush()
        os.fsync(file.fileno())
    return {"rows": rows, "sha256": sha256_file(path)}


def _check_each_job_has_one(moment: Moment) -> None:
    """A job that would begin again from nothing after the restore is no backup of it."""
    jobs, bare = ({key.split("/")[1] for key in keys} for keys in (moment.objects, moment.gone))  # jobs/<job>/a1/...
    if bare - jobs:
        told = ", ".join(sorted(bare - jobs)[:5])
        raise BackupError(f"the checkpoints of {told} are gone, or are replaced faster than they can be copied")


# --- restore --------------------------------------------------------------------------------------------------


def restore(settings: Settings, folder: Path, keep_store: bool = False, say: Say = logger.info) -> inventory.Inventory:
    """Bring a backup back into an empty database and an empty store, all checked before anything is written.

    keep_store: the store still has files, which all stay; what is missing is added. Returns what does not fit then.
    Raises BackupError, and has written nothing unless the store or the database failed meanwhile.
    """
    manifest = read_manifest(folder)
    say(f"checking the backup of {manifest.taken_at}")
    verify(folder, manifest)
    with opened(settings) as (engine, store):
        _check_empty(engine)
        if not keep_store and (next(store.blobs(0.0), None) or next(store.objects(0.0), None)):
            raise BackupError("the store is not empty; restore into an empty one, or keep its files with --keep-store")
        db.upgrade(settings.database_url)
        kept = LocalStore(folder / "store")
        say(f"putting {len(manifest.blobs)} blobs and {len(manifest.objects)} checkpoints")
        for digest in manifest.blobs:  # before the rows: breaking this off leaves an empty database
            store.put_file(kept.path(digest), expected=digest)
        scratch = settings.home / "restoring"
        put_objects(store, kept, manifest.objects, scratch)
        say(f"writing {sum(int(each['rows']) for each in manifest.tables.values())} rows")
        with db.transaction(engine) as s:
            load(s, folder / "database", manifest)
        return inventory.take(engine, store, older_than_s=0.0)


def put_objects(store: BlobStore, kept: LocalStore, objects: Iterable[str], scratch: Path) -> None:
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        for key in objects:
            copy = scratch / "checkpoint"
            shutil.copyfile(kept.object_path(key), copy)  # a link would make the backup part of the service
            store.put_object(key, copy)
            copy.unlink()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load(s: Session, folder: Path, manifest: Manifest) -> None:
    """All rows, and a row that says so."""
    connection = s.connection()
    connection.execute(delete_rows(WorkerRow))
    connection.execute(delete_rows(Project))  # the one that the tables came with; its key signs nothing yet
    for table in _tables():
        rows = read_rows(table, folder)
        while some := list(islice(rows, BATCH)):
            connection.execute(table.insert(), some)
        _go_on_counting(connection, table)
    # Another hour's grace: what nothing referred to then may be what the lost future had come to need.
    connection.execute(BlobRow.__table__.update().values(unused_since=None))  # type: ignore[attr-defined]
    at = datetime.fromisoformat(manifest.taken_at)
    s.add(Restore(id=new_id("rst"), project_id=DEFAULT_PROJECT, at=db.now(s), taken_at=at))


def read_rows(table: Table, folder: Path) -> Iterator[dict[str, Any]]:
    columns = {column.name: column for column in table.columns}
    with gzip.open(folder / f"{table.name}.jsonl.gz") as lines:
        for line in lines:
            yield {name: _in(columns[name], value) for name, value in json.loads(line).items()}


def verify(folder: Path, manifest: Manifest) -> None:
    """Read every byte. Raises BackupError that names the first file that is not as it was written."""
    head = db.head()
    if manifest.revision != head:
        raise BackupError(
            f"the backup is of revision {manifest.revision}, made by version {manifest.version}; this version "
            f"({version.ours()}) has {head}. Restore it with that version, then upgrade the database"
        )
    wanted = {table.name for table in _tables()}
    if set(manifest.tables) != wanted:
        raise BackupError(f"the backup has other tables than this version: {sorted(wanted ^ set(manifest.tables))}")
    kept = LocalStore(folder / "store")
    files = {folder / "database" / f"{name}.jsonl.gz": str(table["sha256"]) for name, table in manifest.tables.items()}
    files |= {kept.root / "sha256" / digest[:2] / digest[2:4] / digest: digest for digest in manifest.blobs}
    files |= {kept.root / "objects" / key: digest for key, digest in manifest.objects.items()}
    for file, digest in files.items():
        if not file.is_file():
            raise BackupError(f"the backup is damaged: {file} is missing")
        if sha256_file(file) != digest:
            raise BackupError(f"the backup is damaged: {file} has changed since it was written")


def _check_empty(engine: Engine) -> None:
    """Raises BackupError for a database in which somebody has worked, or works."""
    there = set(inspect(engine).get_table_names())
    with db.reading(engine) as s:
        if WorkerRow.__tablename__ in there and workers.live(s, ALIVE_S):
            raise BackupError("a worker is running on this database; stop it first")
        for table in _tables():
            if table is Project.__table__ or table.name not in there:
                continue
            if s.execute(select(table.primary_key.columns[0]).limit(1)).first() is not None:
                raise BackupError(f"the database is not empty: it has {table.name}; restore into an empty one")


def _go_on_counting(connection: Connection, table: Table) -> None:
    """PostgreSQL's own counter of a key knows nothing of the numbers we wrote."""
    column = table.autoincrement_column
    if connection.dialect.name != "postgresql" or column is None or not isinstance(column.type, Integer | BigInteger):
        return
    highest = connection.scalar(select(func.max(column)))
    if highest is not None:
        counter = func.pg_get_serial_sequence(table.name, column.name)
        connection.execute(select(func.setval(counter, highest)))


# --- the manifest and values ----------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """Raises BackupError: there is none, it is torn, or another version wrote it."""
    path = folder / "manifest.json"
    try:
        told = json.loads(path.read_bytes())
        content = told["content"]
        if told["format"] != FORMAT:
            raise BackupError(f"{path} has format {told['format']}; this version reads format {FORMAT}")
        if told["sha256"] != _digest_of(content):
            raise BackupError(f"the backup is damaged: {path} has changed since it was written")
        return Manifest(**content | {"missing": tuple(content["missing"])})
    except FileNotFoundError:
        raise WrongFolder(
            f"{folder} contains no complete backup: manifest.json, which is written last, is missing"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise BackupError(f"the backup is damaged: {path} cannot be read: {error}") from None


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    content = vars(manifest) | {"missing": list(manifest.missing)}
    told = {"format": FORMAT, "sha256": _digest_of(content), "content": content}
    temporary = folder / ".manifest.json"
    with temporary.open("x") as file:
        json.dump(told, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / "manifest.json")


def _digest_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _out(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _in(column: Column[Any], value: Any) -> Any:
    if value is None or isinstance(column.type, JSON):
        return value
    if isinstance(column.type, db.UtcDateTime):
        return datetime.fromisoformat(value)
    return base64.b64decode(value) if isinstance(column.type, LargeBinary) else value


def _tables() -> list[Table]:
    return [table for table in Base.metadata.sorted_tables if table not in NOT_KEPT]


@contextmanager
def opened(settings: Settings) -> Iterator[tuple[Engine, BlobStore]]:
    """Database and store; what they say of themselves becomes a BackupError."""
    try:
        engine = db.make_engine(settings.database_url, answer_s=db.UPGRADE_S)
        try:
            yield engine, open_store(settings, PATIENCE_S)
        finally:
            engine.dispose()
    except (Unfit, DriverMissing) as error:
        raise BackupError(str(error)) from None
    except OperationalError as error:
        raise BackupError(f"the database does not answer: {error.orig}") from None
