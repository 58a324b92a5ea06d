"""Uploads, from the row that waits for its content to the file in the store: of whatever is imported, alike.

awaiting_upload --arrived--> verifying    a worker imports it next
                --give_up--> rejected     nothing came to its end within UPLOAD_S

Knows rows, the store, and the folder of what is not complete yet. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Generic, TypeVar

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from api.core import imports
from api.core.blobs import remember_blobs
from api.core.errors import Conflict, ServiceError
from api.core.rows import db
from api.core.rows.columns import Imported
from api.core.rows.lookup import owned
from api.core.rows.tables import Base
from api.core.store import uploads
from api.core.store.names import Blob, BlobStore, DigestMismatch, sha256_file
from api.core.store.room import Room

AWAITING = "awaiting_upload"
"""The same word in DatasetState and ModelState."""
UPLOAD_S = 7 * 86_400.0
"""A row waits this long for its upload."""

Row = TypeVar("Row", bound=Imported)


def expect(s: Session, kind: type[Row], project_id: str, id: str) -> Row:
    """The row that waits for its content. Raises NotFound, Conflict."""
    return _waiting(owned(s, kind, project_id, id))


def note_length(s: Session, kind: type[Row], project_id: str, id: str, length: int) -> Row:
    """Write down how many bytes the whole content has. Raises NotFound, Conflict."""
    row = _waiting(owned(s, kind, project_id, id, locked=True))
    row.upload_length = length
    s.flush()
    return row


def arrived(s: Session, kind: type[Row], project_id: str, id: str, upload: Blob) -> Row:
    """awaiting_upload -> verifying. The content is in the store already. Raises NotFound, Conflict."""
    row = note_length(s, kind, project_id, id, upload.size)
    remember_blobs(s, project_id, db.now(s), upload)
    row.upload_digest = row.upload_sha256 = upload.digest
    row.state = kind.leased_in
    s.flush()
    return row


def awaiting(s: Session) -> set[str]:
    """Ids, of every kind and project, whose content is still to come."""
    kinds = [mapper.class_ for mapper in Base.registry.mappers if issubclass(mapper.class_, Imported)]
    return {id for kind in kinds for id in s.scalars(select(kind.id).where(kind.state == AWAITING))}


def give_up(s: Session, kind: type[Imported], at: datetime) -> None:
    """Reject what was registered and never uploaded."""
    old = select(kind).where(kind.state == AWAITING, kind.created_at <= at - timedelta(seconds=UPLOAD_S))
    for row in s.scalars(old.with_for_update(skip_locked=True)):
        row.error = f"no upload was completed within {UPLOAD_S / 86400:g} days"
        imports.end(row, imports.REJECTED, at, None)


def drop_part(engine: Engine, folder: Path, kind: type[Row], project_id: str, id: str) -> None:
    """What is there of the upload that a row waits for; the row itself is deleted next. Before that is written, for on
    a full disk this is what makes room for it. Raises NotFound."""
    with db.reading(engine) as s:
        row = owned(s, kind, project_id, id)
    if row.state == AWAITING:
        uploads.drop(folder, id)


def _waiting(row: Row) -> Row:
    if row.state != AWAITING:
        raise Conflict("upload_not_expected", f"{row.id} is {row.state}; it accepts no more content")
    return row


def _anything(_: object) -> None:
    """Is fine."""


@dataclass(frozen=True)
class Upload(Generic[Row]):
    """One upload: the row that it is for, where it lies until it is complete, and what its noun takes."""

    kind: type[Row]
    project_id: str
    id: str
    engine: Engine
    store: BlobStore
    folder: Path
    room: Room
    max_bytes: int
    setting: str
    """The variable that sets max_bytes."""
    head_bytes: int = 0
    sniff: Callable[[bytes], object] = _anything
    """Is shown the first `head_bytes` as soon as they are there; raises ServiceError for a file of a wrong kind."""
    check: Callable[[Path], object] = _anything
    """Is shown the whole file; raises ServiceError for one that is not taken."""

    def row(self) -> Row:
        """In whatever state it is. Raises NotFound."""
        with db.reading(self.engine) as s:
            return owned(s, self.kind, self.project_id, self.id)

    def expect(self, length: int | None = None) -> Row:
        """The row that waits for this; its length is written down if it is news. Raises NotFound, Conflict."""
        with db.reading(self.engine) as s:
            row = expect(s, self.kind, self.project_id, self.id)
        if length is None or length == row.upload_length:
            return row
        with db.transaction(self.engine) as s:
            return note_length(s, self.kind, self.project_id, self.id, length)

    def look_at(self, head: bytes) -> None:
        """Raises ServiceError for what is no content of this noun; then nothing is kept."""
        try:
            self.sniff(head)
        except ServiceError:
            self.drop()
            raise

    def complete(self, expected: str | None) -> Row:
        """The whole file goes to the store, and its row to a worker.

        Raises ServiceError, DigestMismatch for a file that is not taken: then nothing is kept. Raises NotFound or
        Conflict if the row went meanwhile, FileNotFoundError if the file did.
        """
        path = uploads.part(self.folder, self.id)
        try:
            self._check(path, expected)
            blob = self.store.take_file(path, expected)
        except (ServiceError, DigestMismatch):
            self.drop()
            raise
        with db.transaction(self.engine) as s:
            row = arrived(s, self.kind, self.project_id, self.id, blob)
        self.drop()
        return row

    def _check(self, path: Path, expected: str | None) -> None:
        try:
            self.check(path)
        except ServiceError:
            if expected is not None and (found := sha256_file(path)) != expected:  # that is why
                raise DigestMismatch(f"expected sha256 {expected}, but the bytes have {found}") from None
            raise

    def drop(self) -> None:
        uploads.drop(self.folder, self.id)
