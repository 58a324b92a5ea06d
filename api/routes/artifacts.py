"""/v1/artifacts: the bytes of a result, resumable and verifiable."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Response
from starlette.responses import StreamingResponse

from api.core.errors import Refused, ServiceError
from api.core.jobs import history
from api.core.rows.tables import Artifact
from api.core.store.names import BlobStore
from api.deps import ArtifactInPath, IfNoneMatch, ProjectDep, ServiceDep
from api.errors import Responses, documented
from api.http import digests, etag, ranges
from api.http.conditional import unchanged

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])

SIGNED_S = 900
"""How long a signed URL is valid."""
_BYTES = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_RESPONSES: Responses = {
    200: {**_BYTES, "description": "The whole file; Repr-Digest is its SHA-256."},
    206: {**_BYTES, "description": "The requested range; Repr-Digest is that of the whole file."},
    304: {"description": "Not changed"},
    307: {"description": "Download it from the store, at a signed URL (with FGD_STORE_PROXY=false)."},
    **documented(404),
}

RangeHeader = Annotated[
    str | None, Header(description="One range, as in bytes=1000-. Several ranges get the whole file.")
]
IfRange = Annotated[str | None, Header(description="Serve the range only if this is still the ETag.")]


@router.get("/{artifact_id}/content", response_class=Response, responses={**_RESPONSES, **documented(416)})
def download(
    artifact_id: ArtifactInPath,
    service: ServiceDep,
    project: ProjectDep,
    range: RangeHeader = None,
    if_range: IfRange = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The file's bytes. Resume an interrupted download with Range and If-Range."""
    with service.reading() as s:
        row = history.artifact(s, project, artifact_id)
    headers = _headers(row)
    if (same := unchanged(if_none_match, headers["ETag"])) is not None:
        return same
    try:
        part = ranges.parse(range if if_range in (None, headers["ETag"]) else None, row.size)
    except ranges.Unsatisfiable:
        detail = f"the file has {row.size} bytes; there is nothing at that offset"
        raise Refused("range_not_satisfiable", detail, 416, {"Content-Range": f"bytes */{row.size}"}) from None
    whole = part is None
    part = part or ranges.Range(0, row.size - 1)
    try:
        if not service.settings.store_proxy and if_range is None:  # the store does not know our ETag
            return _elsewhere(service.store, row, headers["Content-Disposition"])
        data = service.store.read(row.digest, part.start, part.length)
    except KeyError:
        raise ServiceError("blob_missing", f"the bytes of {artifact_id} are no longer in the store") from None
    if not whole:
        headers["Content-Range"] = part.header(row.size)
    headers["Content-Length"] = str(part.length)
    return StreamingResponse(data, 200 if whole else 206, headers, row.media_type)


@router.head("/{artifact_id}/content", response_class=Response, responses=_RESPONSES)
def describe(
    artifact_id: ArtifactInPath, service: ServiceDep, project: ProjectDep, if_none_match: IfNoneMatch = None
) -> Response:
    """Size and digest, without the bytes."""
    with service.reading() as s:
        row = history.artifact(s, project, artifact_id)
    headers = _headers(row)
    if (same := unchanged(if_none_match, headers["ETag"])) is not None:
        return same
    headers["Content-Length"] = str(row.size)
    return Response(headers=headers, media_type=row.media_type)


def _headers(row: Artifact) -> dict[str, str]:
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._- ") else "_" for c in row.name)
    return {
        "ETag": etag.of_digest(row.digest),
        "Repr-Digest": digests.field(row.digest),
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(row.name, safe='')}",
        "Cache-Control": "private, no-transform",  # a content coding would make other bytes than the digest names
    }


def _elsewhere(store: BlobStore, row: Artifact, disposition: str) -> Response:
    """Send the caller to the store itself. Raises KeyError where the bytes are gone."""
    store.size(row.digest)
    url = store.url(row.digest, SIGNED_S, disposition, row.media_type)
    assert url is not None, "the settings allow this for stores that sign only"
    return Response(status_code=307, headers={"Location": url, "Cache-Control": "no-store"})
