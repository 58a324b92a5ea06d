"""What every request passes first: an id, the Host header, where it comes from, the key or a ticket in its place, the
log. Knows no routes.

A server on loopback answers only to loopback's names, else a web page could rebind its own name to this address and
read what it likes. There is no CORS: no page of another origin may read anything, change anything or embed anything,
one of another port of this host no more than any other. A browser says where a request comes from (Sec-Fetch-Site,
Origin); programs say neither, and pass.

A server without a key answers only where it was reached by loopback, whatever its settings say it binds.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import time
import uuid
from urllib.parse import quote

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.core import tickets
from api.core.settings import Settings, is_loopback
from api.errors import EVERYWHERE, problem

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/healthz", "/"})
"""And what is below OPEN_FOLDER: the page that asks for the key, and its files."""
OPEN_FOLDER = "/web/"
NAVIGATION = ("navigate", "document")
TICKET = "ticket"
"""The query parameter of a download that needs no key."""
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="fgd"'}
KEY_PARAMETERS = frozenset({"api_key", "apikey", "key", "access_token", "token"})


Refusal = tuple[int, str, str, dict[str, str]]
"""Status, code, words and headers."""


class Border:
    """Pure ASGI, so that a streamed answer is not buffered."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.hosts = _hosts(settings)
        self.prefix = settings.root_path
        self.key_hash = _hash(settings.api_key.get_secret_value()) if settings.api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there is none here, and its handshake knows none of what follows
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = _below(self.prefix, scope)
        scope["fgd.request_id"] = f"req_{uuid.uuid4().hex}"
        began = time.monotonic()

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = scope["fgd.request_id"]
                headers.update(EVERYWHERE)
                _note(scope, message["status"], time.monotonic() - began)
            await send(message)

        if self.prefix and scope["path"] == self.prefix:  # below it the page's relative addresses hold
            await RedirectResponse(f"{self.prefix}/", 308)(scope, receive, send_marked)
            return
        request = Request(scope)
        ticket, query = _ticket_of(scope)
        refusal = self._refuse(request)
        if refusal is None and ticket is not None:
            scope = {**scope, "query_string": query}
            refusal = await run_in_threadpool(_redeem, scope, ticket)
        elif refusal is None:
            refusal = self._refuse_without_key(request)
        if refusal is None:
            await self.app(scope, receive, send_marked)
            return
        status, code, detail, headers = refusal
        answer = problem(request, status, code, detail, headers=headers)
        await answer(scope, receive, send_marked)

    def _refuse(self, request: Request) -> Refusal | None:
        """What no key would change."""
        if self.key_hash is None and not _came_by_loopback(request):
            return 403, "unsafe_bind", "this server can be reached from other hosts but has no FGD_API_KEY", {}
        if self.hosts is not None and _host_name(request.headers.get("host", "")) not in self.hosts:
            return 400, "bad_host", f"this server only answers to {', '.join(sorted(self.hosts))}", {}
        if _is_of_another_origin(request):
            return 403, "cross_site", "a page of another origin may not use this server", {}
        return None

    def _refuse_without_key(self, request: Request) -> Refusal | None:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if self.key_hash is None or path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return None
        if KEY_PARAMETERS & request.query_params.keys():
            detail = (
                "a key in the URL ends up in logs; replace that key, and send it in the header Authorization: Bearer"
            )
            return 401, "key_in_query", detail, CHALLENGE
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(_hash(key.strip()), self.key_hash):
            return 401, "unauthorized", "send the server's FGD_API_KEY in the header Authorization: Bearer", CHALLENGE
        return None


class Heads:
    """HEAD of whatever has a GET and no HEAD of its own: the same headers without the bytes (RFC 9110, 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        no_such_method = False

        async def send_if_there(message: Message) -> None:
            nonlocal no_such_method
            no_such_method = no_such_method or message.get("status") == 405
            if not no_such_method:
                await send(message)

        async def send_without_bytes(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return
            await send({"type": "http.response.body", "body": b""})
            raise _Answered  # a stream of events would go on for hours, and nobody reads it

        await self.app(dict(scope), receive, send_if_there)
        if no_such_method:
            with contextlib.suppress(_Answered, ClientDisconnect):
                await self.app({**scope, "method": "GET"}, receive, send_without_bytes)


class _Answered(OSError):
    """Nothing more is to be sent: to a response the same as a connection that was closed."""


def _below(prefix: str, scope: Scope) -> Scope:
    """As if the proxy had taken its prefix off. The address without the last "/" stays as it is, for a redirect."""
    if not prefix or not scope["path"].startswith(f"{prefix}/"):
        return scope
    raw_path = scope.get("raw_path") or b""
    path = {"path": scope["path"].removeprefix(prefix), "raw_path": raw_path.removeprefix(prefix.encode())}
    return {**scope, **path}


def _ticket_of(scope: Scope) -> tuple[str | None, bytes]:
    """The ticket of a download, and the query without it."""
    query = scope["query_string"]
    if scope["method"] != "GET" or TICKET.encode() not in query:
        return None, query
    parts = query.split(b"&")
    mine = [part for part in parts if part.startswith(TICKET.encode() + b"=")]
    rest = b"&".join(part for part in parts if part not in mine)
    return (mine[0].partition(b"=")[2].decode("latin-1"), rest) if len(mine) == 1 else (None, query)


def _redeem(scope: Scope, ticket: str) -> Refusal | None:
    service = scope["app"].state.service
    path, query = scope["path"].removeprefix(scope.get("root_path", "")), scope["query_string"].decode("latin-1")
    try:
        with service.transaction() as s:
            if tickets.redeem(s, ticket, f"{path}?{query}" if query else path):
                return None
    except SQLAlchemyError:
        return 503, "database_busy", "the database did not answer in time; try again", {"Retry-After": "5"}
    detail = "this address worked once, for 60 seconds; ask for another (POST /v1/tickets)"
    return 401, "ticket_spent", detail, CHALLENGE


def _note(scope: Scope, status: int, seconds: float) -> None:
    """One line for what changes something or goes wrong: successful reads are polls, and would fill the disk.

    The path is quoted, so that it cannot forge a line; the query, which may hold a key, is left out.
    """
    if status >= 400 or scope["method"] not in ("GET", "HEAD"):
        path = quote(scope["path"])[:500]
        log.info("%s %s %d, %.0f ms, %s", scope["method"], path, status, seconds * 1000, scope["fgd.request_id"])


def _came_by_loopback(request: Request) -> bool:
    """By the address on which the connection was accepted. A Unix socket has none: its folder says who may use it."""
    host, port = request.scope.get("server") or (None, None)
    return port is None or is_loopback(str(host))


def _is_of_another_origin(request: Request) -> bool:
    """Whether a browser asks for a page that this server did not send. Following a link to here is no such thing."""
    site = request.headers.get("sec-fetch-site", "none")
    if site == "same-origin":
        return False
    if request.method in ("GET", "HEAD", "OPTIONS"):
        opened = (request.headers.get("sec-fetch-mode"), request.headers.get("sec-fetch-dest")) == NAVIGATION
        return site != "none" and not opened
    origin = request.headers.get("origin")
    return site != "none" or (origin is not None and _origin_host(origin) != request.headers.get("host", "").lower())


def _origin_host(origin: str) -> str:
    """Host and port, as the Host header of a request to that origin has them; "" for "null" and nonsense."""
    scheme, _, host = origin.lower().partition("://")
    return host.removesuffix({"http": ":80", "https": ":443"}.get(scheme, "")) if host else ""


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _hosts(settings: Settings) -> frozenset[str] | None:
    """Names this server answers to; None: any, for a key protects it."""
    if not is_loopback(settings.host):
        return None
    return frozenset({"localhost", "127.0.0.1", "::1", settings.host.lower().strip("[]")})


def _host_name(header: str) -> str:
    """The name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()
