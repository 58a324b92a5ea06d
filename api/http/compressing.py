"""Answers that may be long, as gzip for clients that take it. Knows no resource.

Files are never compressed: their digests are of the bytes that a client keeps.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator

from fastapi import Request, Response
from starlette.responses import StreamingResponse

from api.http import etag
from api.http.conditional import unchanged
from api.http.negotiate import takes_gzip

LEVEL = 5
"""Little is won beyond."""
WORTH_BYTES = 1000
JSON_TYPE = "application/json"


def compressed(request: Request, body: bytes) -> Response:
    """JSON with an ETag of its content, or 304 for a caller who has it."""
    tag = etag.of_digest(hashlib.sha256(body).hexdigest())
    headers = {"ETag": tag, "Vary": "Accept-Encoding", "Cache-Control": "private, no-cache"}
    if (same := unchanged(request.headers.get("if-none-match"), tag, headers)) is not None:
        return same
    if len(body) > WORTH_BYTES and takes_gzip(request.headers.get("accept-encoding")):
        headers["Content-Encoding"] = "gzip"
        body = gzip.compress(body, LEVEL, mtime=0)
    return Response(body, 200, headers, JSON_TYPE)


def compressed_pieces(request: Request, pieces: Iterable[bytes]) -> Response:
    """JSON that is written while it is read."""
    headers = {"Vary": "Accept, Accept-Encoding"}
    if takes_gzip(request.headers.get("accept-encoding")):
        headers["Content-Encoding"] = "gzip"
        pieces = _gzipped(pieces)
    return StreamingResponse(pieces, headers=headers, media_type=JSON_TYPE)


def _gzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    squeeze = zlib.compressobj(LEVEL, wbits=31)
    for piece in pieces:
        if some := squeeze.compress(piece):
            yield some
    yield squeeze.flush()
