"""A file of the store as an answer: resumable and verifiable. For artifacts, and for what tasks leave behind."""

from __future__ import annotations

from typing import Annotated, Protocol
from urllib.parse import quote

from fastapi import Header, Response
from starlette.responses import StreamingResponse

from api.core.errors import Refused, ServiceError
from api.core.store.names import BlobStore
from api.deps import Service
from api.errors import Responses, documented
from api.http import digests, etag, ranges
from api.http.conditional import unchanged

SIGNED_S = 900
"""How long a signed URL is valid."""
_BYTES = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
FILE: Responses = {
    200: {**_BYTES, "description": "The whole file; Repr-Digest is its SHA-256."},
    206: {**_BYTES, "description": "The requested range; Repr-Digest is that of the whole file."},
    304: {"description": "Not changed"},
    307: {"description": "Download it from the store, at a signed URL (with FGD_STORE_PROXY=false)."},
    **documented(404),
}
"""What `described` answers; `sent` also answers 416."""
FILE_OR_RANGE: Responses = {**FILE, **documented(416)}

RangeHeader = Annotated[
    str | None, Header(description="One range, as in bytes=1000-. Several ranges get the whole file.")
]
IfRange = Annotated[str | None, Header(description="Serve the range only if this is still the ETag.")]


class Stored(Protocol):
    """A file of the store under its name."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def media_type(self) -> str: ...


def sent(
    service: Service, file: Stored, range: str | None, if_range: str | None, if_none_match: str | None
) -> Response:
    """GET."""
    headers = _headers(file)
    if (same := unchanged(if_none_match, headers["ETag"])) is not None:
        return same
    try:
        part = ranges.parse(range if if_range in (None, headers["ETag"]) else None, file.size)
    except ranges.Unsatisfiable:
        detail = f"the file has {file.size} bytes; there is nothing at that offset"
        raise Refused("range_not_satisfiable", detail, 416, {"Content-Range": f"bytes */{file.size}"}) from None
    whole = part is None
    part = part or ranges.Range(0, file.size - 1)
    try:
        if not service.settings.store_proxy and if_range is None:  # the store does not know our ETag
            return _elsewhere(service.store, file, headers["Content-Disposition"])
        data = service.store.read(file.digest, part.start, part.length)
    except KeyError:
        raise ServiceError("blob_missing", f"the bytes of {file.name} are no longer in the store") from None
    if not whole:
        headers["Content-Range"] = part.header(file.size)
    headers["Content-Length"] = str(part.length)
    return StreamingResponse(data, 200 if whole else 206, headers, file.media_type)


def described(file: Stored, if_none_match: str | None) -> Response:
    """HEAD."""
    headers = _headers(file)
    if (same := unchanged(if_none_match, headers["ETag"])) is not None:
        return same
    headers["Content-Length"] = str(file.size)
    return Response(headers=headers, media_type=file.media_type)


def _headers(file: Stored) -> dict[str, str]:
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._- ") else "_" for c in file.name)
    return {
        "ETag": etag.of_digest(file.digest),
        "Repr-Digest": digests.field(file.digest),
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(file.name, safe='')}",
        "Cache-Control": "private, no-transform",  # a content coding would make other bytes than the digest names
    }


def _elsewhere(store: BlobStore, file: Stored, disposition: str) -> Response:
    """Send the caller to the store itself. Raises KeyError where the bytes are gone."""
    store.size(file.digest)
    url = store.url(file.digest, SIGNED_S, disposition, file.media_type)
    assert url is not None, "the settings allow this for stores that sign only"
    return Response(status_code=307, headers={"Location": url, "Cache-Control": "no-store"})
