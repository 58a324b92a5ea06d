"""The only place that knows Depends: what a route can ask for, as Annotated aliases."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Annotated

from celery import Celery
from fastapi import Depends, Header, Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.core import queue
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT
from api.core.settings import Settings
from api.core.store.names import BlobStore
from api.core.sweeper import Health
from api.live import Changes, Places


@dataclass(frozen=True)
class Service:
    """What the server holds open, from start to end."""

    settings: Settings
    engine: Engine
    store: BlobStore
    bell: Celery | None
    sweeps: Health
    changes: Changes
    streams: Places
    waiters: Places
    closing: threading.Event = field(default_factory=threading.Event)
    """Set when the server ends: whoever waits for something gives up."""

    def transaction(self) -> AbstractContextManager[Session]:
        return db.transaction(self.engine)

    def reading(self) -> AbstractContextManager[Session]:
        return db.reading(self.engine)

    def ring(self, id: str) -> None:
        """After the commit, and after the answer: a slow broker delays nobody."""
        queue.ring(self.bell, id)


def _service(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def _project() -> str:
    return DEFAULT_PROJECT


ServiceDep = Annotated[Service, Depends(_service)]
ProjectDep = Annotated[str, Depends(_project)]
"""The project of whoever asks; every query is filtered by it."""

IfNoneMatch = Annotated[str | None, Header(description="Answer 304 if this is still the ETag.")]
Accept = Annotated[str | None, Header(include_in_schema=False)]
Prefer = Annotated[
    str | None,
    Header(
        description="wait=30: answer at the first change after If-None-Match (without it: after now), or after so many "
        "seconds, at most 60 (RFC 7240)."
    ),
]
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
