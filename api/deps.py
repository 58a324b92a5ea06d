"""The only place that knows Depends: what a route can ask for, as Annotated aliases."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Annotated, Any

from celery import Celery
from fastapi import Depends, Header, Path, Request
from pydantic import AfterValidator
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from api.core import queue
from api.core.errors import NotFound, Refused
from api.core.resampling import Resampler
from api.core.rows import db
from api.core.rows.ids import ID_PATTERN, is_id
from api.core.rows.tables import DEFAULT_PROJECT
from api.core.settings import Settings
from api.core.store.names import BlobStore
from api.core.store.room import Room
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
    room: Room
    streams: Places
    waiters: Places
    resampler: Resampler
    cursor_keys: dict[str, bytes] = field(default_factory=dict)
    """Of the projects whose lists were asked for."""

    def transaction(self) -> AbstractContextManager[Session]:
        return db.transaction(self.engine)

    def reading(self) -> AbstractContextManager[Session]:
        return db.reading(self.engine)

    def looking(self) -> Connection:
        """For reads without objects; close it."""
        return db.looking(self.engine)

    def expect_room(self) -> None:
        """Before anything new begins. Raises Refused where the disk keeps its last bytes for what ends work."""
        if (complaint := self.room.complaint()) is not None:
            raise Refused("no_space", f"the server's disk is full: {complaint}", 507)

    def ring(self, id: str) -> None:
        """After the commit, and after the answer: a slow broker delays nobody."""
        queue.ring(self.bell, id)


def service_of(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def client_of(request: Request) -> str:
    """Who asks, as far as the server knows: an address, which several behind one proxy share."""
    return request.client.host if request.client is not None else ""


def project_of(request: Request) -> str:  # noqa: ARG001
    return DEFAULT_PROJECT


# These two are coroutines: FastAPI would send a plain function to a thread, which takes longer than a job's read.
async def _service(request: Request) -> Service:
    return service_of(request)


async def _project(request: Request) -> str:
    return project_of(request)


ServiceDep = Annotated[Service, Depends(_service)]
ProjectDep = Annotated[str, Depends(_project)]
"""The caller's project; every query is filtered by it."""


# --- ids in a path: what is none names nothing, so it is a 404 before any route sees it --------------------------


def named(noun: str, prefix: str, *words: str) -> AfterValidator:
    """Lets ids with this prefix pass, and `words`, which a route takes in place of one. Raises NotFound."""

    def check(text: str) -> str:
        if text not in words and not is_id(prefix, text):
            raise NotFound(noun, text)
        return text

    return AfterValidator(check)


def in_path(prefix: str, *words: str) -> Any:
    """Its form, for the document."""
    return Path(json_schema_extra={"pattern": f"^({'|'.join([*words, prefix + ID_PATTERN])})$"})


JobInPath = Annotated[str, named("job", "job"), in_path("job")]
DatasetInPath = Annotated[str, named("dataset", "ds"), in_path("ds")]
ModelInPath = Annotated[str, named("model", "mdl"), in_path("mdl")]
PlanInPath = Annotated[str, named("plan", "plan"), in_path("plan")]
StudyInPath = Annotated[str, named("study", "std"), in_path("std")]
EvaluationInPath = Annotated[str, named("evaluation", "evl"), in_path("evl")]
ExportInPath = Annotated[str, named("export", "exp"), in_path("exp")]
PredictionInPath = Annotated[str, named("prediction", "pred"), in_path("pred")]
ArtifactInPath = Annotated[str, named("artifact", "art"), in_path("art")]
CheckpointInPath = Annotated[str, named("checkpoint", "ckpt"), in_path("ckpt")]
WeightsInPath = Annotated[str, named("checkpoint", "ckpt", "last", "best"), in_path("ckpt", "last", "best")]
"""A checkpoint, or the weights of a result by their name."""

IF_NONE_MATCH = "Answer 304 if this is still the ETag."
PREFER = (
    "wait=30: answer at the first change since If-None-Match (without it: since now), or for something new when "
    "it has ended; at the latest after this many seconds, at most 60 (RFC 7240)."
)

IfMatch = Annotated[str | None, Header(description="Answer 412 unless this is still the ETag.")]
IfNoneMatch = Annotated[str | None, Header(description=IF_NONE_MATCH)]
Accept = Annotated[str | None, Header(include_in_schema=False)]
Prefer = Annotated[str | None, Header(description=PREFER)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Any text of your own, new for each new request. The request can then be sent twice and is carried "
        "out once. Kept for 24 hours.",
    ),
]
