"""The HTTP server in front of the application: uvicorn with h11, and bounds on what a connection may cost.

    a head above MAX_HEAD_BYTES                       431
    a head that does not come to its end              closed after HEAD_S
    a body that stops                                 closed after BODY_SILENT_S
    a body that drips                                 closed when a window of BODY_WINDOW_S brought too little
    an answer of which nothing is read                closed after ANSWER_SILENT_S

Long uploads and event streams live: only their silence is counted, and only while it is the client that is waited for.
Knows no route and no setting.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from api.errors import EVERYWHERE

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers together."""
HEAD_S = 20.0
"""From the connection, or the first byte of the next head, to the end of the head."""
BODY_SILENT_S = 30.0
"""Between two pieces of a body."""
BODY_WINDOW_S = 30.0
MIN_BODY_RATE = 256
"""Bytes a second, on average over each window in which the client was waited for."""
ANSWER_SILENT_S = 60.0
"""Between two pieces that the client takes of an answer."""
STALL_S = 5.0
"""A server that did not look for this long was held up."""
GOODBYE_S = 2.0
"""What still comes after a refusal is dropped for this long: closed at once, the client would see no answer."""


class BoundedConnection(h11.Connection):
    """h11 bounds a head only while it is incomplete: one that comes at once may be as large as what is read at once."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self.refused_with = 400
        """The status of the last RemoteProtocolError."""

    def next_event(self) -> Any:
        try:
            event = super().next_event()
            if isinstance(event, h11.Request) and _size(event) > MAX_HEAD_BYTES:
                raise h11.RemoteProtocolError("the head is too large", error_status_hint=431)
        except h11.RemoteProtocolError as error:
            self.refused_with = error.error_status_hint
            raise
        return event


def _size(head: h11.Request) -> int:
    return len(head.target) + sum(len(name) + len(value) + 4 for name, value in head.headers.raw_items())


class BoundedProtocol(H11Protocol):
    """One connection. It notes when something came; `close_slow` looks at all of them once a second."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn: BoundedConnection = BoundedConnection()
        self._head_since: float | None = self.loop.time()
        """A head is waited for since then; None: not just now, or keep-alive counts."""
        self._waits_since: float | None = None
        """The next piece of a body is waited for without a break since then."""
        self._came_at = self.loop.time()
        self._came = 0
        """Bytes in this window."""
        self._window_at = self.loop.time()
        self._unread = 0
        self._unread_since: float | None = None
        self._refused = False

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._came_at = self.loop.time()
        self._came += len(data)
        if self._head_since is None and self.conn.their_state is h11.IDLE:
            self._head_since = self._came_at
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head_since = None

    def send_400_response(self, msg: str) -> None:
        """Or 431, as a problem. Where an answer has begun already, there is nothing to say any more."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        status = HTTPStatus(self.conn.refused_with)
        problem: dict[str, Any] = {
            "type": f"urn:fgd:problem:{status.name.lower()}",
            "title": status.phrase,
            "status": status.value,
            "code": status.name.lower(),
            "detail": f"request line and headers may have {MAX_HEAD_BYTES} bytes at most" if status == 431 else msg,
            "errors": [],
            "retryable": False,
        }
        body = json.dumps(problem).encode()
        headers = [
            ("Content-Type", "application/problem+json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *EVERYWHERE.items(),
        ]
        for event in (
            h11.Response(status_code=status.value, headers=headers, reason=status.phrase.encode()),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self._refused, self._head_since = True, None
        self.transport.write_eof()
        self.loop.call_later(GOODBYE_S, self.transport.close)

    def complaint(self, now: float) -> str | None:
        """Why this connection is to be closed; None: it is not. Call it about once a second."""
        if self._head_since is not None and now - self._head_since > HEAD_S:
            return "no request came"
        return self._complaint_about_body(now) or self._complaint_about_reader(now)

    def _complaint_about_body(self, now: float) -> str | None:
        if not self._waits_for_body():
            self._waits_since = None
            return None
        if self._waits_since is None:
            self._waits_since = self._window_at = now
            self._came = 0
        if now - max(self._waits_since, self._came_at) > BODY_SILENT_S:
            return "no more of the body came"
        if now - self._window_at > BODY_WINDOW_S:
            if self._came < MIN_BODY_RATE * BODY_WINDOW_S:
                return "the body came too slowly"
            self._window_at, self._came = now, 0
        return None

    def _waits_for_body(self) -> bool:
        """For the client. While the application has bytes that it did not take yet, the client is not to blame."""
        if self.conn.their_state is not h11.SEND_BODY or self.flow.read_paused:
            return False
        if self.cycle.waiting_for_100_continue and not self.cycle.response_complete:
            return False  # it was not asked for the body yet
        return self.cycle.response_complete or not self.cycle.body

    def _complaint_about_reader(self, now: float) -> str | None:
        unread = self.transport.get_write_buffer_size() if self.flow.write_paused else 0
        if not unread or unread != self._unread:
            self._unread, self._unread_since = unread, now if unread else None
        if self._unread_since is not None and now - self._unread_since > ANSWER_SILENT_S:
            return "nothing of the answer was read"
        return None


def close_slow(connections: Iterable[Any], now: float) -> None:
    """Those that have a complaint. What an upload has brought until then is kept, and its lock is released."""
    for connection in list(connections):
        if isinstance(connection, BoundedProtocol) and connection.complaint(now) is not None:
            connection.transport.abort()


class Server(uvicorn.Server):
    """Looks at its connections once a second. Not right after it was held up itself: what clients have sent meanwhile
    is still to be read."""

    _looked_at = -STALL_S

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            if now - self._looked_at < STALL_S:
                close_slow(self.server_state.connections, now)
            self._looked_at = now
        return await super().on_tick(counter)


def config(app: Any, **options: Any) -> Config:
    """Of a Server. No websockets: a handshake would pass the application's border, its query would be logged. No log of
    each request: clients poll, and api.http.middleware logs what changes something or goes wrong."""
    return Config(
        app, http=BoundedProtocol, ws="none", access_log=False, server_header=False, log_level="info", **options
    )
