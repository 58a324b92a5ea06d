"""/v1/artifacts: the bytes of a result, resumable and verifiable."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Response
from starlette.responses import StreamingResponse

from api import etag, ranges
from api.core import history
from api.core.errors import Refused, ServiceError
from api.core.tables import Artifact
from api.deps import IfNoneMatch, ProjectDep, ServiceDep
from api.errors import Responses, documented

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])

_CHUNK = 1 << 18
_BYTES = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_RESPONSES: Responses = {
    200: {**_BYTES, "description": "All bytes; Repr-Digest is their SHA-256."},
    206: {**_BYTES, "description": "The range that was asked for; Repr-Digest is that of all bytes."},
    304: {"description": "Not changed"},
    **documented(404, 416),
}

RangeHeader = Annotated[str | None, Header(description="One range, as in bytes=1000-; several get the whole file.")]
IfRange = Annotated[str | None, Header(description="Serve the range only if this is still the ETag.")]


@router.get("/{artifact_id}/content", response_class=Response, responses=_RESPONSES)
def download(
    artifact_id: str,
    service: ServiceDep,
    project: ProjectDep,
    range: RangeHeader = None,
    if_range: IfRange = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The bytes. Go on with an interrupted download by Range and If-Range."""
    with service.reading() as s:
        row = history.artifact(s, project, artifact_id)
    headers = _headers(row)
    if etag.matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers={"ETag": headers["ETag"]})
    try:
        part = ranges.parse(range if if_range in (None, headers["ETag"]) else None, row.size)
    except ranges.Unsatisfiable:
        detail = f"the file has {row.size} bytes; nothing begins there"
        raise Refused("range_not_satisfiable", detail, 416, {"Content-Range": f"bytes */{row.size}"}) from None
    try:
        path = service.store.path(row.digest)
    except KeyError:
        raise ServiceError("blob_missing", f"the bytes of {artifact_id} are no longer in the store") from None
    if part is None:
        part, status = ranges.Range(0, row.size - 1), 200
    else:
        headers["Content-Range"], status = part.header(row.size), 206
    headers["Content-Length"] = str(part.length)
    return StreamingResponse(_read(path, part), status, headers, row.media_type)


@router.head("/{artifact_id}/content", response_class=Response, responses=_RESPONSES)
def describe(artifact_id: str, service: ServiceDep, project: ProjectDep, if_none_match: IfNoneMatch = None) -> Response:
    """Size and digest, without the bytes."""
    with service.reading() as s:
        row = history.artifact(s, project, artifact_id)
    headers = _headers(row)
    if etag.matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers={"ETag": headers["ETag"]})
    headers["Content-Length"] = str(row.size)
    return Response(headers=headers, media_type=row.media_type)


def _headers(row: Artifact) -> dict[str, str]:
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._- ") else "_" for c in row.name)
    return {
        "ETag": etag.of_digest(row.digest),
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(row.digest)).decode()}:",
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(row.name, safe='')}",
        "Cache-Control": "private, no-transform",  # a content coding would make other bytes than the digest names
    }


def _read(path: Path, part: ranges.Range) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(part.start)
        left = part.length
        while left > 0 and (chunk := file.read(min(left, _CHUNK))):
            left -= len(chunk)
            yield chunk
