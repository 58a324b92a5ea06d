"""/v1/datasets/{id}/content: the zip of a data set, in one stream or in as many pieces as the network makes of it.

    PUT     all of it                                        202, the import begins
    HEAD    how much is there                                204, Upload-Offset, Upload-Complete
    PATCH   what follows Upload-Offset                       204 with the new offset; 409 with the right one

The upload is complete when Upload-Length bytes are there, or with a PATCH that says Upload-Complete: ?1, as in
draft-ietf-httpbis-resumable-upload. What a broken connection brought before it broke is kept.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, BackgroundTasks, Header, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from api.core import datasets
from api.core.errors import Fault, Invalid, Refused
from api.core.lifecycle import DatasetState
from api.core.rows.tables import Dataset
from api.core.store import uploads
from api.core.store.names import DigestMismatch
from api.deps import ProjectDep, Service, ServiceDep
from api.errors import Responses, documented
from api.http import digests, etag
from api.schemas import DatasetView

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

_CHUNK = 1 << 20
_CLOSE = {"Connection": "close"}
"""What is still on its way will not be read, so the connection cannot be used again."""
_WHOLE = ("application/zip", "application/octet-stream", "application/x-zip-compressed")
_PIECE = ("application/partial-upload", "application/offset+octet-stream", *_WHOLE)

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/zip": _BINARY}}}
_PIECE_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/partial-upload": _BINARY}}}
_OFFSET: Responses = {
    204: {
        "description": "How much is there.",
        "headers": {
            "Upload-Offset": {"description": "Bytes that are there.", "schema": {"type": "integer"}},
            "Upload-Complete": {"description": "?1: all of it.", "schema": {"type": "string"}},
        },
    }
}

ContentType = Annotated[str | None, Header()]
ContentLength = Annotated[str | None, Header(include_in_schema=False)]
ContentDigest = Annotated[
    str | None, Header(description="sha-256=:<base64>: of the bytes in this request (RFC 9530); they are compared.")
]
ReprDigest = Annotated[
    str | None, Header(description="sha-256=:<base64>: of the whole zip; it is compared at the end.")
]
UploadOffset = Annotated[int, Header(ge=0, lt=2**63, description="Where these bytes begin: as many as are there.")]
UploadLength = Annotated[
    int | None,
    Header(ge=1, lt=2**63, description="Bytes of the whole zip; the upload is complete when they are there."),
]
UploadComplete = Annotated[
    str | None, Header(pattern=r"^\?[01]$", description="?1: these are the last bytes. ?0: more follow.")
]


@router.put(
    "/{dataset_id}/content",
    status_code=202,
    responses=documented(400, 404, 409, 411, 413, 415, 422, 507),
    openapi_extra=_BODY,
)
async def put_content(
    dataset_id: str,
    request: Request,
    response: Response,
    service: ServiceDep,
    project: ProjectDep,
    after: BackgroundTasks,
    content_type: ContentType = None,
    content_length: ContentLength = None,
    content_digest: ContentDigest = None,
    repr_digest: ReprDigest = None,
) -> DatasetView:
    """All of the zip in one stream; what was there before is dropped. One that breaks can be gone on with by PATCH."""
    await run_in_threadpool(_expect, service, project, dataset_id, None)
    length = _acceptable(service, content_type, _WHOLE, content_length, 0)
    promised = {digests.parse(content_digest, "Content-Digest"), digests.parse(repr_digest, "Repr-Digest")} - {None}
    if length == 0:
        raise Invalid(Fault("", "upload_empty", "the body is empty; send the bytes of a zip"))
    await run_in_threadpool(_expect, service, project, dataset_id, length)
    with uploads.writing(service.settings.uploads, dataset_id) as file:
        file.truncate(0)
        file.seek(0)
        await _receive(request, file, length, hashlib.sha256())
        dataset = await run_in_threadpool(_complete, service, project, dataset_id, file, promised)
    after.add_task(service.ring, dataset.id)
    response.headers["Location"] = f"/v1/datasets/{dataset.id}"
    response.headers["ETag"] = etag.of_version(dataset.version)
    return DatasetView.of(dataset)


@router.head("/{dataset_id}/content", status_code=204, responses={**_OFFSET, **documented(404)})
def head_content(dataset_id: str, service: ServiceDep, project: ProjectDep) -> Response:
    """How much of the zip is there."""
    with service.reading() as s:
        dataset = datasets.get(s, project, dataset_id)
    complete = dataset.state != DatasetState.awaiting_upload
    there = dataset.upload_length or 0 if complete else uploads.offset(service.settings.uploads, dataset_id)
    headers = _headers(there, complete) | {"Upload-Limit": f"max-size={service.settings.upload_bytes}"}
    if dataset.upload_length is not None:
        headers["Upload-Length"] = str(dataset.upload_length)
    return Response(status_code=204, headers=headers)


@router.patch(
    "/{dataset_id}/content",
    status_code=204,
    responses={**_OFFSET, **documented(400, 404, 409, 411, 413, 415, 422, 507)},
    openapi_extra=_PIECE_BODY,
)
async def patch_content(
    dataset_id: str,
    request: Request,
    service: ServiceDep,
    project: ProjectDep,
    upload_offset: UploadOffset,
    content_type: ContentType = None,
    content_length: ContentLength = None,
    content_digest: ContentDigest = None,
    repr_digest: ReprDigest = None,
    upload_length: UploadLength = None,
    upload_complete: UploadComplete = None,
) -> Response:
    """The next bytes of the zip."""
    dataset = await run_in_threadpool(_expect, service, project, dataset_id, None)
    length = _acceptable(service, content_type, _PIECE, content_length, upload_offset)
    of_piece, of_whole = digests.parse(content_digest, "Content-Digest"), digests.parse(repr_digest, "Repr-Digest")
    total = _total(dataset, upload_length, upload_offset + length, upload_complete == "?1")
    if total is not None and total > service.settings.upload_bytes:
        raise _too_large(service)
    with uploads.writing(service.settings.uploads, dataset_id) as file:
        there = file.tell()
        if there != upload_offset:
            detail = f"{there} bytes are there, not {upload_offset}; go on from byte {there}"
            raise Refused("upload_offset_mismatch", detail, 409, _headers(there, False) | _CLOSE)
        await run_in_threadpool(_expect, service, project, dataset_id, total)
        sha = hashlib.sha256()
        there = upload_offset + await _receive(request, file, length, sha)
        if of_piece is not None and sha.hexdigest() != of_piece:
            file.truncate(upload_offset)
            raise _digest_mismatch("Content-Digest", of_piece, sha.hexdigest(), "these bytes were dropped")
        complete = there == total
        if complete:
            promised: set[str | None] = {of_whole} if of_whole else set()
            await run_in_threadpool(_complete, service, project, dataset_id, file, promised)
    if complete:
        await run_in_threadpool(service.ring, dataset_id)
    return Response(status_code=204, headers=_headers(there, complete))


def _headers(offset: int, complete: bool) -> dict[str, str]:
    return {
        "Upload-Offset": str(offset),
        "Upload-Complete": "?1" if complete else "?0",
        "Cache-Control": "no-store",
    }


def _expect(service: Service, project: str, dataset_id: str, length: int | None) -> Dataset:
    with service.transaction() as s:
        return datasets.expect_upload(s, project, dataset_id, length)


def _acceptable(
    service: Service, content_type: str | None, types: tuple[str, ...], content_length: str | None, offset: int
) -> int:
    """The number of bytes that the request announces. Raises Refused before any of them is read."""
    if (content_type or "").partition(";")[0].strip().lower() not in types:
        detail = f"send the bytes of a zip, with the header Content-Type: {types[0]}"
        raise Refused("not_a_zip_type", detail, 415, {"Accept": ", ".join(types), **_CLOSE})
    if content_length is None or not content_length.isdecimal():
        raise Refused("length_required", "say how many bytes will come, in the header Content-Length", 411, _CLOSE)
    length = int(content_length[:20])
    if offset + length > service.settings.upload_bytes:
        raise _too_large(service)
    if not uploads.fits(service.settings.uploads, length):
        raise Refused("no_space", f"the server's disk has no room for {length} bytes", 507, _CLOSE)
    return length


def _too_large(service: Service) -> Refused:
    most = service.settings.upload_bytes
    return Refused("upload_too_large", f"a zip may have {most} bytes at most (FGD_UPLOAD_BYTES)", 413, _CLOSE)


def _total(dataset: Dataset, said: int | None, end: int, last: bool) -> int | None:
    """Bytes of the whole zip, as far as it is known now. Raises Invalid where two statements differ."""
    known = dataset.upload_length if dataset.upload_length is not None and said is None and not last else None
    if last and said is not None and said != end:
        detail = f"Upload-Complete: ?1 makes it {end} bytes, Upload-Length says {said}"
        raise Invalid(Fault("", "upload_length_differs", detail, parameter="Upload-Length"))
    total = end if last else said if said is not None else known
    if total is not None and end > total:
        detail = f"these bytes would end at {end}, after the {total} of Upload-Length"
        raise Invalid(Fault("", "upload_length_exceeded", detail, parameter="Upload-Length"))
    return total


async def _receive(request: Request, file: BinaryIO, length: int, sha: Any) -> int:
    """Write the body to the file, off the event loop; the number of its bytes. All that came is written, whatever
    happens then."""
    buffer, came = bytearray(), 0

    def write() -> None:
        uploads.write_all(file, buffer)
        sha.update(buffer)
        buffer.clear()

    try:
        async for chunk in request.stream():
            came += len(chunk)
            if came > length:
                raise Refused("length_differs", f"more than the {length} bytes of Content-Length came", 400, _CLOSE)
            buffer += chunk
            if len(buffer) >= _CHUNK:
                await run_in_threadpool(write)
    except ClientDisconnect:
        raise Refused("upload_cut", "the connection broke; ask for the offset and go on from there", 400) from None
    finally:
        write()
    return came


def _complete(service: Service, project: str, dataset_id: str, file: BinaryIO, promised: set[str | None]) -> Dataset:
    """Put the zip into the store and make its import due. Raises Invalid if it is not what was promised."""
    path = uploads.part(service.settings.uploads, dataset_id)
    expected = promised.pop() if promised else None
    try:
        if promised:
            raise DigestMismatch(f"two digests were promised, {expected} and {promised.pop()}")
        blob = service.store.put_file(path, expected)
    except DigestMismatch as error:
        file.truncate(0)
        raise _mismatch(f"{error}; nothing was kept, send it again") from error
    with service.transaction() as s:
        dataset = datasets.uploaded(s, project, dataset_id, blob)
    uploads.drop(service.settings.uploads, dataset_id)
    return dataset


def _digest_mismatch(name: str, promised: str, got: str, what: str) -> Invalid:
    return _mismatch(f"{name} promises sha256 {promised}, the bytes have {got}; {what}", name)


def _mismatch(detail: str, parameter: str = "Content-Digest") -> Invalid:
    return Invalid(Fault("", "digest_mismatch", detail, parameter=parameter))
