"""Blobs that rows name, and those that none names any more. A column says by its type that it names blobs
(rows/columns.py: Digest, Inputs).

Blobs are shared, so deleting a row leaves them; the sweep deletes a blob in two steps: it notes since when nothing has
referred to it, and after a grace period looks again, in the transaction that deletes the row. Only what has a row is
ever deleted: files without one may be newer than a restored database.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Column, ColumnElement, Text, cast, exists, func, literal, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from api.core.rows import db
from api.core.rows.columns import BlobDigest, BlobFiles
from api.core.rows.tables import Base, BlobRow
from api.core.rows.upsert import insert_for
from api.core.store.names import Blob, BlobStore

UNUSED_S = 3600.0
"""A blob goes when nothing has referred to it for so long: far longer than a request that will."""


def unused(s: Session) -> set[tuple[str, str]]:
    """(project, digest) of the blobs to which nothing refers just now."""
    named = {
        digest
        for column in columns_of(BlobFiles)
        for files in s.scalars(select(column).where(column.is_not(None)).execution_options(yield_per=500))
        for by_name in files.values()
        for digest in by_name.values()
    }
    query = select(BlobRow.project_id, BlobRow.digest).where(~_in_a_column(BlobRow.digest))
    return {(project, digest) for project, digest in s.execute(query) if digest not in named}


def note_unused(s: Session, at: datetime, unused: set[tuple[str, str]]) -> None:
    """Remember since when each blob has been without a reference; forget it of those that have one again."""
    noted = {(project, digest) for project, digest in s.execute(
        select(BlobRow.project_id, BlobRow.digest).where(BlobRow.unused_since.is_not(None)))}  # fmt: skip
    for rows, since in ((unused - noted, at), (noted - unused, None)):
        for project, digest in rows:
            this = update(BlobRow).where(BlobRow.project_id == project, BlobRow.digest == digest)
            s.execute(this.values(unused_since=since).execution_options(synchronize_session=False))


def long_unused(s: Session, at: datetime) -> Sequence[tuple[str, str]]:
    """(project, digest) of blobs whose grace is over."""
    query = select(BlobRow.project_id, BlobRow.digest).where(BlobRow.unused_since <= at - timedelta(seconds=UNUSED_S))
    return [(project, digest) for project, digest in s.execute(query.order_by(BlobRow.unused_since).limit(1000))]


def keep(s: Session, project_id: str, digests: Collection[str]) -> bool:
    """Whoever put these contents is about to name them in a row: none goes for another UNUSED_S. False: one has gone,
    or may have, since it was put; then none is kept, and who wants them brings them along again."""
    wanted = select(BlobRow).where(BlobRow.project_id == project_id, BlobRow.digest.in_(digests))
    rows = s.scalars(wanted.order_by(BlobRow.digest).with_for_update().execution_options(populate_existing=True)).all()
    latest = db.now(s) - timedelta(seconds=UNUSED_S)  # of those noted before, a collector that died may have the file
    if {row.digest for row in rows if row.unused_since is None or row.unused_since > latest} != set(digests):
        return False
    for row in rows:
        row.unused_since = None
    s.flush()
    return True


def collect_blob(s: Session, store: BlobStore, project_id: str, digest: str) -> bool:
    """Delete a blob that is still unused: the row, and the file unless another project has it too. False if it stays.

    The file goes before the commit: a crash leaves a row whose file is gone, and the next sweep deletes that row;
    who wants the content meanwhile brings it along.
    """
    locked = select(BlobRow).where(BlobRow.project_id == project_id, BlobRow.digest == digest).with_for_update()
    row = s.scalar(locked)
    if row is None or row.unused_since is None or row.unused_since > db.now(s) - timedelta(seconds=UNUSED_S):
        return False
    among = [exists().where(cast(column, Text).contains(digest)) for column in columns_of(BlobFiles)]
    if s.scalar(select(or_(*among, _in_a_column(literal(digest))))):
        return False
    elsewhere = select(func.count()).select_from(BlobRow)
    shared = s.scalar(elsewhere.where(BlobRow.digest == digest, BlobRow.project_id != project_id))
    if not shared and not store.delete_unless_fresh(digest, UNUSED_S):
        return False  # somebody has just put the same content again, and will name it soon
    s.delete(row)
    s.flush()
    return True


def columns_of(kind: type[BlobDigest] | type[BlobFiles]) -> list[Column[Any]]:
    """Where rows name blobs, whatever the table: a new one needs no word here."""
    tables = (table for table in Base.metadata.sorted_tables if table is not BlobRow.__table__)
    return [column for table in tables for column in table.columns if isinstance(column.type, kind)]


def _in_a_column(digest: ColumnElement[str] | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """True where a row of any project names the digest as its one blob."""
    return or_(*(exists().where(column == digest) for column in columns_of(BlobDigest)))


def remember_blobs(s: Session, project_id: str, at: datetime, *blobs: Blob) -> None:
    """Make files of the store part of the service; the same content twice is one row."""
    rows = [{"project_id": project_id, "digest": b.digest, "size": b.size, "created_at": at} for b in blobs]
    if rows:
        again = {"unused_since": None}
        insert = insert_for(s, BlobRow).on_conflict_do_update(index_elements=["project_id", "digest"], set_=again)
        s.execute(insert, rows)
