"""A job's events as a stream of server-sent events: what happened, then what happens, then "end".

    id: 7                                    the event's seq; Last-Event-ID goes on after it
    data: {"seq": 7, "type": ..., ...}       an EventView, JSON on one line
    event: progress                          what the job shows now (for those who want it): a ProgressUpdate, no id
    event: end                               the job has ended and all was sent: do not reconnect
    : ping                                   nothing happened for a while

Holds no session between two looks, and no thread. A database that does not answer is waited for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, ServerSentEvent, format_sse_event
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from api.core.errors import NotFound
from api.core.jobs import history, requests
from api.core.lifecycle import Requested, State
from api.core.rows.lookup import Seen
from api.core.rows.tables import Job, JobEvent
from api.deps import Service
from api.schemas import EventView, ProgressUpdate, ProgressView

logger = logging.getLogger(__name__)

BATCH = 200
"""Events read at once."""
RETRY_MS = 1000
"""What a browser is told to wait before it connects again."""
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Vary": "Accept"}


@dataclass(frozen=True)
class Piece:
    """A look at what came after some event."""

    events: Sequence[JobEvent]
    ended: str | None
    """The last state, or "deleted", if nothing comes after these events."""
    shown: ProgressUpdate | None = None
    """None: the job was deleted."""


class EventStream(EventSourceResponse):
    """Gives its place back however it ends: read to the end, broken off, or never begun."""

    def __init__(self, content: AsyncIterator[bytes], give_back: Callable[[], None]) -> None:
        super().__init__(content, headers=HEADERS)
        self._give_back = give_back

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._give_back()


def look(service: Service, project: str, job_id: str, after: int) -> Piece:
    """The events after `after`. Raises NotFound."""
    with service.reading() as s:
        job = requests.get(s, project, job_id)  # before the events: then those of an ended job are all there
        events = history.events(s, job, after, BATCH)
        shown = ProgressUpdate(
            version=job.version,
            state=State(job.state),
            phase=job.phase,
            requested=Requested(job.requested) if job.requested else None,
            progress=ProgressView(**job.progress) if job.progress else None,
        )
    last = events[-1].seq if events else after
    ended = State(job.state).terminal and last >= job.event_seq
    return Piece(events, job.state if ended else None, shown)


async def told(
    service: Service, project: str, job_id: str, after: int, with_progress: bool = False
) -> AsyncIterator[bytes]:
    """What goes over the wire, until the job has ended or the server goes down."""
    yield format_sse_event(retry=RETRY_MS)
    version = 0
    while not service.changes.ending:
        try:
            piece = await run_in_threadpool(look, service, project, job_id, after)
        except NotFound:
            piece = Piece((), "deleted")
        except SQLAlchemyError as error:
            logger.warning("events of %s: the database does not answer: %s", job_id, str(error).partition("\n")[0])
            yield KEEPALIVE_COMMENT
            await asyncio.sleep(service.settings.changes_s)
            continue
        for event in piece.events:
            yield _wire(event)
            after = event.seq
        if with_progress and piece.shown is not None and piece.shown.version != version:
            yield format_sse_event(event="progress", data_str=piece.shown.model_dump_json())
            version = piece.shown.version
        if piece.ended is not None:
            yield format_sse_event(event="end", data_str=f'{{"state":"{piece.ended}"}}')
            return
        known = version if with_progress else None
        if not piece.events and not await _more(service, job_id, after, known) and not service.changes.ending:
            yield KEEPALIVE_COMMENT


async def _more(service: Service, job_id: str, after: int, version: int | None) -> bool:
    """Wait for an event after `after`, another version than `version`, or the job's end; False if nothing happened
    until the next ping is due."""

    def changed(seen: Seen | None) -> bool:
        moved = version is not None and seen is not None and seen.version != version
        return seen is None or seen.ended or seen.event_seq > after or moved

    return await service.changes.wait(Job, job_id, changed, service.settings.ping_s)


def _wire(event: JobEvent) -> bytes:
    # JSON on one line: no text of a trainer can begin a field of the stream. The model checks the id's line too.
    checked = ServerSentEvent(raw_data=EventView.of(event).model_dump_json(), id=str(event.seq))
    return format_sse_event(data_str=checked.raw_data, id=checked.id)
