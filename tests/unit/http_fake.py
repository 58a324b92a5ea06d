"""A real HTTP server on this machine that answers what a test tells it to, and can break off like a real one.

It is a fake of the service's outside only: sockets, headers and cut connections are the real thing.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """Lower case names."""
    body: bytes


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes | Any = b""
    """Bytes as they are; anything else as JSON."""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Bytes of the body after which the connection breaks."""

    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


HANG_UP = Answer(status=0)
"""Close the connection without a word."""

Responder = Callable[[Asked], Answer]


class Server:
    """`routes`: what answers a method and path: one Answer, several in turn (the last stays), or a function."""

    def __init__(self, port: int = 0, *, prepare: Callable[[Server], None] = lambda _: None) -> None:
        """prepare: gives it its routes before it answers."""
        self.routes: dict[tuple[str, str], Answer | list[Answer] | Responder] = {}
        prepare(self)
        self.asked: list[Asked] = []
        self._server = _Quiet(("127.0.0.1", port), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked_for(self, method: str, path: str) -> list[Asked]:
        return [asked for asked in self.asked if (asked.method, asked.path) == (method, path)]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        route = self.routes.get((asked.method, asked.path))
        if route is None:
            return problem(404, "not_found", f"no {asked.path} here")
        if isinstance(route, list):
            return route.pop(0) if len(route) > 1 else route[0]
        return route if isinstance(route, Answer) else route(asked)

    def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                parts = urlsplit(self.path)
                answer = server.answer(
                    Asked(
                        self.command,
                        parts.path,
                        {name: values[0] for name, values in parse_qs(parts.query).items()},
                        {name.lower(): value for name, value in self.headers.items()},
                        self.rfile.read(int(self.headers.get("content-length", 0))),
                    )
                )
                if answer is HANG_UP:
                    self.close_connection = True
                    return
                content = answer.content()
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(content)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content if answer.cut_after is None else content[: answer.cut_after])
                if answer.cut_after is not None:
                    self.close_connection = True

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = answer

            def log_message(self, *_: object) -> None:
                pass

        return Handler


class _Quiet(ThreadingHTTPServer):
    """Ends as a killed process does: connections that are kept alive break too, and no thread stays behind."""

    daemon_threads = False

    def __init__(self, *how: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*how)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up first is part of the tests."""


def problem(status: int, code: str, detail: str, **more: Any) -> Answer:
    return Answer(
        status,
        {"type": f"about:{code}", "title": code, "status": status, "detail": detail, "code": code, **more},
        {"Content-Type": "application/problem+json"},
    )


@contextmanager
def serving(port: int = 0, *, prepare: Callable[[Server], None] = lambda _: None) -> Iterator[Server]:
    server = Server(port, prepare=prepare)
    try:
        yield server
    finally:
        server.close()


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def job_json(state: str = "running", **more: Any) -> dict[str, Any]:
    """A JobView as the service sends it, with a field that this client does not know."""
    return {
        "id": "job_" + "0" * 32,
        "name": "cells",
        "state": state,
        "phase": None,
        "requested": None,
        "spec": {"methods": []},
        "metadata": {},
        "priority": 0,
        "limits": {"max_retries": 3},
        "attempt": 1,
        "progress": None,
        "waiting_reason": None,
        "failure": None,
        "weights_digest": None,
        "created_at": "2026-11-22T10:00:00Z",
        "started_at": None,
        "finished_at": None,
        "version": 3,
        "from_the_future": True,
        **more,
    }
