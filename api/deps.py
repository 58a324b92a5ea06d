"""The only place that knows Depends: what a route can ask for, as Annotated aliases."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Annotated

from celery import Celery
from fastapi import Depends, Header, Request
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from api.core import queue
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT
from api.core.settings import Settings
from api.core.store.names import BlobStore
from api.core.sweeper import Health
from api.live import Changes, Places
from api.looks import Looks


@dataclass(frozen=True)
class Service:
    """What the server holds open, from start to end."""

    settings: Settings
    engine: Engine
    store: BlobStore
    bell: Celery | None
    sweeps: Health
    looks: Looks
    changes: Changes
    streams: Places
    waiters: Places
    cursor_keys: dict[str, bytes] = field(default_factory=dict)
    """Of the projects whose lists were asked for."""

    def transaction(self) -> AbstractContextManager[Session]:
        return db.transaction(self.engine)

    def reading(self) -> AbstractContextManager[Session]:
        return db.reading(self.engine)

    def looking(self) -> Connection:
        """For reads without objects; close it."""
        return db.looking(self.engine)

    def ring(self, id: str) -> None:
        """After the commit, and after the answer: a slow broker delays nobody."""
        queue.ring(self.bell, id)


def service_of(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def project_of(request: Request) -> str:  # noqa: ARG001
    return DEFAULT_PROJECT


# These two are coroutines: FastAPI would send a plain function to a thread, which takes longer than a job's read.
async def _service(request: Request) -> Service:
    return service_of(request)


async def _project(request: Request) -> str:
    return project_of(request)


ServiceDep = Annotated[Service, Depends(_service)]
ProjectDep = Annotated[str, Depends(_project)]
"""The project of whoever asks; every query is filtered by it."""

IF_NONE_MATCH = "Answer 304 if this is still the ETag."
PREFER = (
    "wait=30: answer at the first change after If-None-Match (without it: after now), a new plan when it is measured; "
    "or after this many seconds, at most 60 (RFC 7240)."
)

IfNoneMatch = Annotated[str | None, Header(description=IF_NONE_MATCH)]
Accept = Annotated[str | None, Header(include_in_schema=False)]
Prefer = Annotated[str | None, Header(description=PREFER)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Any text of your own, new for each new request, which may then be sent twice and is done once. "
        "Kept for 24 hours.",
    ),
]
