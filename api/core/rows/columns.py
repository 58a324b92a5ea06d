"""What tables are made of: the columns that nouns share, and the rules that come with a lease.

    Noun                   what people name by an id: of one project, with a version (its ETag)
    +-- Leased             a worker takes it for a while (verbs: leases.py)
        +-- Imported       a file or folder that a worker reads (verbs: api/core/imports.py)
        +-- Task           something to be worked out: its answer and its files (verbs: api/core/tasks.py)

Knows no table and no verb.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, ClassVar

from sqlalchemy import JSON, BigInteger, CheckConstraint, ColumnElement, ForeignKey, Index, String, text
from sqlalchemy.orm import InstrumentedAttribute, Mapped, declared_attr, mapped_column
from sqlalchemy.schema import SchemaItem

from api.core.lifecycle import TaskState

ProjectId = Annotated[str, mapped_column(String(40))]


class BlobDigest(String):
    """SHA-256 of a blob. The collector keeps every blob that a column of this type names (api/core/blobs.py), so one
    over anything else, such as tensors or a request, is a plain String(64)."""

    def __init__(self, length: int = 64) -> None:
        super().__init__(length)


class BlobFiles(JSON):
    """Blobs of several things: {"dataset": {"archive": sha256, "index": sha256}, "teacher": {file: sha256}, ...}. The
    collector keeps them all."""

    def __init__(self, none_as_null: bool = True) -> None:
        super().__init__(none_as_null=none_as_null)


Digest = Annotated[str, mapped_column(BlobDigest())]
Inputs = Annotated[dict[str, dict[str, str]], mapped_column(BlobFiles())]


class Noun:
    id: Mapped[str] = mapped_column(String(40), primary_key=True, sort_order=-2)
    project_id: Mapped[ProjectId] = mapped_column(ForeignKey("projects.id"), sort_order=-1)
    version: Mapped[int] = mapped_column()
    """Raised by every write that people can see, of which a heartbeat alone is none; the ETag."""
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    """Since then it changes no more by itself; people may still rename it."""

    @declared_attr.directive
    def __mapper_args__(cls) -> dict[str, Any]:
        return {"version_id_col": cls.version}

    @classmethod
    def version_shown(cls) -> ColumnElement[int] | InstrumentedAttribute[int]:
        """What the ETag names. A noun that is made of others counts their versions too."""
        return cls.version

    @classmethod
    def end_shown(cls) -> ColumnElement[Any] | InstrumentedAttribute[Any]:
        """When it ended; of a noun that is made of others: when all of them had."""
        return cls.finished_at

    @classmethod
    def noun(cls) -> str:
        """Its name in errors and in stored keys: job, dataset, ..."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()


class Leased(Noun):
    """Spread `lease_rules` into `__table_args__` as well."""

    leased_in: ClassVar[str]
    """The one state in which a worker may hold it."""

    state: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int] = mapped_column(default=0)
    """Number of claims so far: the fencing token. Every write of a worker carries it."""
    losses: Mapped[int] = mapped_column(default=0)
    """Tries that did not come to their end."""
    lease_owner: Mapped[str | None]
    lease_expires: Mapped[datetime | None]

    @classmethod
    def state_shown(cls) -> ColumnElement[str] | InstrumentedAttribute[str]:
        """What lists are filtered by."""
        return cls.state


def one_of(column: str, words: Iterable[str]) -> str:
    quoted = ", ".join(f"'{word}'" for word in words)
    return f"{column} IN ({quoted})"


def lease_rules(table: str, leased_in: str) -> tuple[SchemaItem, ...]:
    """The constraints of a Leased table, and the index that finds what waits for a worker."""
    leased = text(f"state = '{leased_in}'")
    return (
        CheckConstraint("(lease_owner IS NULL) = (lease_expires IS NULL)", "lease_whole"),
        CheckConstraint(f"lease_owner IS NULL OR (state = '{leased_in}' AND attempt > 0)", f"lease_only_{leased_in}"),
        CheckConstraint("attempt >= 0 AND losses >= 0", "counts"),
        Index(f"ix_{table}_{leased_in}", "created_at", sqlite_where=leased, postgresql_where=leased),
    )


class Imported(Leased):
    """Spread `import_rules` into `__table_args__` as well."""

    leased_in = "verifying"

    report: Mapped[dict[str, Any] | None]
    """What the reader saw."""
    error: Mapped[str | None]
    upload_digest: Mapped[Digest | None]
    """The blob to read: from the end of the upload to the end of the import."""
    upload_length: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes of what is uploaded, as far as that has been said."""
    upload_sha256: Mapped[str | None] = mapped_column(String(64))
    """Of what was uploaded, for good."""


def import_rules(table: str) -> tuple[SchemaItem, ...]:
    return (
        *lease_rules(table, Imported.leased_in),
        CheckConstraint("(state = 'rejected') = (error IS NOT NULL)", "rejected_has_error"),
        CheckConstraint("(state IN ('ready', 'rejected')) = (finished_at IS NOT NULL)", "ended_has_finished_at"),
    )


class Task(Leased):
    """Spread `task_rules` into `__table_args__` as well."""

    leased_in = TaskState.pending

    request: Mapped[dict[str, Any]]
    """The body of its POST, with what was found out when it was submitted."""
    device: Mapped[str] = mapped_column(String(16))
    """Where it may be worked out: auto, cpu, cuda."""
    blobs: Mapped[Inputs]
    """What a worker reads; once it has ended, what it wrote: {"files": {name: sha256}}."""
    result: Mapped[dict[str, Any] | None]
    files: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    """What can be downloaded: [{"role", "name", "size", "sha256", "media_type"}, ...]"""
    error: Mapped[dict[str, Any] | None]
    """{"code", "message", "pointer"}"""


def task_rules(table: str) -> tuple[SchemaItem, ...]:
    return (
        *lease_rules(table, Task.leased_in),
        CheckConstraint(one_of("state", TaskState), "state"),
        CheckConstraint("(state = 'succeeded') = (result IS NOT NULL)", "succeeded_has_result"),
        CheckConstraint("(result IS NULL) = (files IS NULL)", "result_has_files"),
        CheckConstraint("(state = 'failed') = (error IS NOT NULL)", "failed_has_error"),
        CheckConstraint("(state <> 'pending') = (finished_at IS NOT NULL)", "ended_has_finished_at"),
        CheckConstraint("device IN ('auto', 'cpu', 'cuda')", "device"),
        Index(f"ix_{table}_page", "project_id", "created_at", "id"),
    )
