"""The dashboard: one page at / and its files below /web, held in memory and compressed once. Knows no job.

The files lie below a name that changes with them, so that a browser may keep them for good and an old page never mixes
with new files. All addresses in them are relative: the page works below whatever prefix a proxy puts before it. They
hold nothing secret, so the border lets them pass without a key; what they show comes from the API, which does not.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response

from api.core.errors import NotFound
from api.core.settings import is_loopback
from api.http import etag
from api.http.conditional import unchanged
from api.http.negotiate import takes_gzip

FILES = Path(__file__).parents[1] / "web"
PAGE = "index.html"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FIRST = ("routes", "router", "api", "elements", "format", "session", "pages/jobs")
"""Modules that every first look needs: the page names them, so that a browser need not find one in another."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""No inline script or style, nothing of another origin, no frame around it; and no text becomes markup or code, for a
browser refuses to assign any (trusted types)."""
_PAGE_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",
}
_ALONE = {"Cross-Origin-Opener-Policy": "same-origin"}
_FILE_HEADERS = {"Referrer-Policy": "no-referrer", "Cache-Control": "public, max-age=31536000, immutable"}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Held:
    """A file as it goes out."""

    plain: bytes
    gzipped: bytes
    media_type: str
    tag: str


@dataclass(frozen=True)
class Files:
    version: str
    """A digest of them all."""
    page: Held
    by_name: dict[str, Held]
    """By the path below `FILES`, with "/" between folders."""


def install(app: FastAPI) -> None:
    files()  # a file that is missing is found at the start
    app.router.routes.extend(router.routes)


@cache
def files() -> Files:
    contents = {
        path.relative_to(FILES).as_posix(): path.read_bytes()
        for path in sorted(FILES.rglob("*"))
        if path.is_file() and path.suffix in TYPES
    }
    page = contents.pop(PAGE).decode()
    digest = hashlib.sha256(page.encode())
    for name, content in contents.items():
        digest.update(b"\0%s\0%d\0" % (name.encode(), len(content)))
        digest.update(content)
    version = digest.hexdigest()[:12]
    ahead = "\n".join(f'<link rel="modulepreload" href="web/{version}/{name}.js">' for name in FIRST)
    page = page.replace("{version}", version).replace("{ahead}", ahead)
    held = {name: _held(name, content) for name, content in contents.items()}
    return Files(version, _held(PAGE, page.encode()), held)


def _held(name: str, content: bytes) -> Held:
    tag = etag.of_digest(hashlib.sha256(content).hexdigest())
    return Held(content, gzip.compress(content, mtime=0), TYPES[Path(name).suffix], tag)


@router.get("/")
def page(request: Request) -> Response:
    headers = {**_PAGE_HEADERS, **_ALONE} if _is_trusted(request) else _PAGE_HEADERS
    return _sent(request, files().page, headers)


def _is_trusted(request: Request) -> bool:
    """Whether a browser takes this origin for a secure one: elsewhere it ignores the header, and complains of it."""
    scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
    return scheme == "https" or is_loopback(request.url.hostname or "")


@router.get("/web/{version}/{name:path}")
def file(request: Request, version: str, name: str) -> Response:
    found = files().by_name.get(name) if version == files().version else None
    if found is None:  # a page of an earlier version asks; it reloads itself
        raise NotFound("file", name)
    return _sent(request, found, _FILE_HEADERS)


def _sent(request: Request, held: Held, headers: dict[str, str]) -> Response:
    headers = {**headers, "Vary": "Accept-Encoding", "ETag": held.tag}
    if (same := unchanged(request.headers.get("if-none-match"), held.tag, headers)) is not None:
        return same
    if takes_gzip(request.headers.get("accept-encoding")):
        return Response(held.gzipped, 200, {**headers, "Content-Encoding": "gzip"}, held.media_type)
    return Response(held.plain, 200, headers, held.media_type)
