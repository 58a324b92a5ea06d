"""Tasks: what a worker works out for somebody who asked, once. The verbs that evaluations share with their like.

pending --finish--> succeeded   the answer stands in the row, its files in the store
        --fail----> failed      it cannot be done; no other try would help
        --lose----> pending     tried again, MAX_TRIES times in all

A task has its own copy of the digests that it reads, and needs nobody's row. Knows rows; knows no files and no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import ColumnElement
from sqlalchemy import delete as delete_from
from sqlalchemy.orm import Session

from api.core import workers
from api.core.blobs import remember_blobs
from api.core.errors import Conflict
from api.core.lifecycle import TaskState
from api.core.rows import db, leases
from api.core.rows.columns import Task
from api.core.rows.db import Query, Reader
from api.core.rows.ids import new_id
from api.core.rows.lookup import delete_row, owned
from api.core.rows.swept import Moment, SweepResult
from api.core.store.names import Blob

MAX_TRIES = 3
"""A task whose worker or process was lost so many times will not be tried again."""
FILES = "files"
"""The place in `blobs` of what a worker wrote."""

Kind = TypeVar("Kind", bound=Task)


@dataclass(frozen=True)
class TaskClaim:
    id: str
    project_id: str
    attempt: int
    """Fencing token."""
    request: Mapping[str, Any]
    blobs: Mapping[str, Mapping[str, str]]
    """To stage, as a job's inputs."""


@dataclass(frozen=True)
class TaskFile:
    """A file that a worker wrote, in the store already."""

    role: str
    """The end of its address: detections, ..."""
    name: str
    blob: Blob
    media_type: str


@dataclass(frozen=True)
class StoredFile:
    """What can be downloaded."""

    name: str
    size: int
    digest: str
    media_type: str


@dataclass(frozen=True)
class Selection:
    """What a list lets through: one of the states, and each value in its field of the request."""

    table: type[Task]
    states: frozenset[str]
    fields: Mapping[str, str | None]
    """None: whatever it is."""

    def of(self, query: Query) -> Query:
        if self.states:
            query = query.where(self.table.state.in_(sorted(self.states)))
        for name, value in self._asked().items():
            query = query.where(self.table.request[name].as_string() == value)
        return query

    @property
    def bounded(self) -> bool:
        """No more rows are read than are shown."""
        return not self.states and not self._asked()

    def digest(self) -> str:
        """Equal for equal selections, "" for no filter at all; goes into the cursor."""
        if self.bounded:
            return ""
        told = [sorted(self.states), sorted(self._asked().items())]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def _asked(self) -> dict[str, str]:
        return {name: value for name, value in self.fields.items() if value is not None}


def insert(
    s: Session,
    kind: type[Kind],
    prefix: str,
    project_id: str,
    request: Mapping[str, Any],
    blobs: Mapping[str, Mapping[str, str]],
    device: str = "cpu",
    **columns: str,
) -> Kind:
    """A new one, `pending` until a worker has done it. Ring for it. columns: those of this kind alone."""
    task = kind(**columns)
    task.id, task.project_id, task.created_at = new_id(prefix), project_id, db.now(s)
    task.state, task.attempt, task.losses = TaskState.pending, 0, 0
    task.request, task.device = dict(request), device
    task.blobs = {name: dict(files) for name, files in blobs.items()}
    s.add(task)
    s.flush()
    return task


def delete(s: Session, kind: type[Task], project_id: str, id: str) -> None:
    """In whatever state: a worker that is at it stops. Raises NotFound."""
    delete_row(s, owned(s, kind, project_id, id, locked=True))


def file_of(s: Session, kind: type[Task], project_id: str, id: str, role: str) -> StoredFile:
    """Raises NotFound, and Conflict for a task that has no such file, or not yet."""
    task = owned(s, kind, project_id, id)
    for each in task.files or ():
        if each["role"] == role:
            return StoredFile(each["name"], each["size"], each["sha256"], each["media_type"])
    if task.state == TaskState.succeeded:
        there = ", ".join(each["role"] for each in task.files or ()) or "nothing"
        raise Conflict("no_file", f"{id} was made without {role}; it has {there}")
    pending = task.state == TaskState.pending
    raise Conflict("no_file", f"{id} is {task.state}; it has {role} once it has succeeded", retryable=pending)


def waiting_reason(s: Reader, task: Any, lease_s: float) -> str | None:
    """Why nobody works on it yet; None once somebody does. task: the row, or its state, lease_owner and device."""
    if task.state != TaskState.pending or task.lease_owner is not None:
        return None
    live = workers.live(s, lease_s)
    if not live:
        return "no worker is running; start one with `fgd worker` (`fgd serve` starts one by itself)"
    if task.device == "cuda" and not any(map(workers.has_cuda, live)):
        return 'no worker has a GPU, and device is "cuda"'
    return "a worker will take it when it has finished others"


# --- workers --------------------------------------------------------------------------------------------------


def claim(
    s: Session,
    kind: type[Task],
    worker_id: str,
    devices: Collection[str],
    lease_s: float,
    *which: ColumnElement[bool],
) -> TaskClaim | None:
    """Take the oldest of those that fit `which` whose device is one of `devices`; None if there is none."""
    task = leases.claim(s, kind, worker_id, lease_s, kind.device.in_(devices), *which)
    if task is None:
        return None
    return TaskClaim(task.id, task.project_id, task.attempt, task.request, task.blobs)


def finish(
    s: Session, kind: type[Task], id: str, attempt: int, result: Mapping[str, Any], files: Sequence[TaskFile]
) -> None:
    """pending -> succeeded. The files are in the store already. Raises Fenced."""
    task = leases.held(s, kind, id, attempt)
    remember_blobs(s, task.project_id, db.now(s), *(file.blob for file in files))
    task.result = dict(result)
    task.files = [
        {
            "role": file.role,
            "name": file.name,
            "size": file.blob.size,
            "sha256": file.blob.digest,
            "media_type": file.media_type,
        }
        for file in files
    ]
    _end(s, task, TaskState.succeeded, {file.name: file.blob.digest for file in files})


def fail(s: Session, kind: type[Task], id: str, attempt: int, code: str, message: str, pointer: str = "") -> None:
    """pending -> failed: it would come out so again. Raises Fenced."""
    task = leases.held(s, kind, id, attempt)
    task.error = {"code": code, "message": message, "pointer": pointer}
    _end(s, task, TaskState.failed, {})


def lose(s: Session, kind: type[Task], id: str, attempt: int, reason: str) -> None:
    """The process died or its host failed: pending again, or failed if that happened too often. Raises Fenced."""
    _lose(s, leases.held(s, kind, id, attempt), reason)


def sweep(s: Session, kind: type[Task], moment: Moment, keep: timedelta | None = None) -> SweepResult:
    """Free expired leases. keep: forget those that are older and that nobody works on."""
    swept = leases.sweep(s, kind, moment, lambda task, reason: _lose(s, task, reason))
    if keep is not None:
        s.execute(delete_from(kind).where(kind.created_at < moment.at - keep, kind.lease_owner.is_(None)))
    return swept


def _lose(s: Session, task: Task, reason: str) -> None:
    if message := leases.lose(task, reason, MAX_TRIES):
        task.error = {"code": "worker_lost", "message": message, "pointer": ""}
        _end(s, task, TaskState.failed, {})
    s.flush()


def _end(s: Session, task: Task, state: TaskState, written: Mapping[str, str]) -> None:
    task.state, task.finished_at = state, db.now(s)
    task.blobs = {FILES: dict(written)} if written else {}
    leases.let_go(task)
    s.flush()
