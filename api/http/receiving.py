"""Receiving the content of a row: in one stream, or in as many pieces as the network makes of it. For every noun.

    PUT     all of it                     the row, whose import begins
    HEAD    how much is there             204, Upload-Offset, Upload-Complete
    PATCH   what follows Upload-Offset    204 with the new offset; 409 with the right one

The upload is complete when Upload-Length bytes are there, or with a PATCH that says Upload-Complete: ?1, as in
draft-ietf-httpbis-resumable-upload. What a broken connection brought before it broke is kept.

Knows HTTP, and files as they grow. What becomes of them, and what differs between nouns, knows the `Upload`.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from api.core.errors import Fault, Invalid, Refused
from api.core.store import uploads
from api.core.store.names import DigestMismatch
from api.core.uploading import AWAITING, Row, Upload
from api.errors import Responses, documented
from api.http import digests

_CHUNK = 1 << 20
"""Bytes written at once, in a thread: a slow disk must not stop the server's loop."""
_CLOSE = {"Connection": "close"}
"""What is still on its way will not be read, so the connection cannot be used again."""
_RAW = (
    "application/octet-stream",
    "application/zip",
    "application/x-zip-compressed",
    "application/partial-upload",
    "application/offset+octet-stream",
)
"""Types of a body that is the file itself; one without a type is taken for it."""

_BINARY = {"schema": {"type": "string", "format": "binary"}}
WHOLE_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/octet-stream": _BINARY}}}
PIECE_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/partial-upload": _BINARY}}}
REFUSALS: Responses = documented(400, 404, 409, 411, 413, 415, 422, 507)
OFFSET: Responses = {
    204: {
        "description": "How much has been received.",
        "headers": {
            "Upload-Offset": {"description": "Bytes received.", "schema": {"type": "integer"}},
            "Upload-Complete": {"description": "?1: all of it has been received.", "schema": {"type": "string"}},
        },
    }
}


class WholeHeaders(BaseModel):
    """Of a PUT."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    content_digest: str | None = None
    """sha-256=:<base64>: of the bytes in this request (RFC 9530); they are compared."""
    repr_digest: str | None = None
    """sha-256=:<base64>: of the whole file; it is compared at the end."""


class PieceHeaders(WholeHeaders):
    """Of a PATCH."""

    upload_offset: Annotated[int, Field(ge=0, lt=2**63)]
    """Where these bytes begin: as many as are there."""
    upload_length: Annotated[int | None, Field(ge=1, lt=2**63)] = None
    """Bytes of the whole file; the upload is complete when they are there."""
    upload_complete: Annotated[str | None, Field(pattern=r"^\?[01]$")] = None
    """?1: these are the last bytes. ?0: more follow."""


@dataclass(frozen=True)
class Progress:
    """How much of an upload is there, or how much there was of one that has come."""

    offset: int
    complete: bool
    length: int | None = None
    """Of the whole, as far as it is known."""
    max_bytes: int | None = None

    def headers(self) -> dict[str, str]:
        told = {"Upload-Offset": str(self.offset), "Upload-Complete": "?1" if self.complete else "?0"}
        told |= {} if self.length is None else {"Upload-Length": str(self.length)}
        told |= {} if self.max_bytes is None else {"Upload-Limit": f"max-size={self.max_bytes}"}
        return {**told, "Cache-Control": "no-store"}

    def answer(self) -> Response:
        return Response(status_code=204, headers=self.headers())


def progress(upload: Upload[Row]) -> Progress:
    """HEAD."""
    row = upload.row()
    complete = row.state != AWAITING
    there = row.upload_length or 0 if complete else uploads.offset(upload.folder, upload.id)
    return Progress(there, complete, row.upload_length, upload.max_bytes)


async def whole(request: Request, headers: WholeHeaders, upload: Upload[Row]) -> Row:
    """PUT. What was there before is dropped; one that breaks can be gone on with by PATCH. The content that has come
    already may be sent again, with its digest: then it is not read."""
    of_body, of_file = _promised(headers)
    if of_body and of_file and of_body != of_file:
        raise _promise_broken("Repr-Digest", "Content-Digest and Repr-Digest differ, but both are of the whole file")
    row = await run_in_threadpool(upload.row)
    if row.upload_sha256 is not None and row.upload_sha256 == (of_body or of_file):
        return row
    await run_in_threadpool(upload.expect)
    length = _announced(upload, request.headers, 0)
    if length == 0:
        raise Invalid(Fault("", "upload_empty", "the body is empty; send the bytes of the file"))
    dropped = uploads.offset(upload.folder, upload.id)
    with (
        _room(upload, length, max(0, length - dropped)) as take,
        uploads.writing(upload.folder, upload.id, from_scratch=True) as file,
    ):
        await run_in_threadpool(upload.expect, length)
        await _receive(request, upload, file, take, length)
        header = "Content-Digest" if of_body else "Repr-Digest"
        return await run_in_threadpool(_complete, upload, of_body or of_file, header)


async def piece(request: Request, headers: PieceHeaders, upload: Upload[Row]) -> Progress:
    """PATCH."""
    row = await run_in_threadpool(upload.expect)
    length = _announced(upload, request.headers, headers.upload_offset)
    of_piece, of_file = _promised(headers)
    total = _total(headers, headers.upload_offset + length, row.upload_length)
    if total is not None and total > upload.max_bytes:
        raise _too_large(upload)
    with (
        _room(upload, length, length) as take,
        uploads.writing(upload.folder, upload.id, more=length > 0) as file,
    ):
        if (there := file.tell()) != headers.upload_offset:
            raise _elsewhere(there)
        await run_in_threadpool(upload.expect, total)
        sha256 = await _receive(request, upload, file, take, length, hashing=of_piece is not None)
        if of_piece is not None and of_piece != sha256:
            file.truncate(there)
            detail = f"expected sha256 {of_piece}, but the bytes have {sha256}; they were discarded"
            raise _promise_broken("Content-Digest", detail)
        if complete := there + length == total:
            await run_in_threadpool(_complete, upload, of_file, "Repr-Digest")
    return Progress(there + length, complete)


def _promised(headers: WholeHeaders) -> tuple[str | None, str | None]:
    """SHA-256 of the bytes in this request, and of the whole file. Raises Invalid."""
    of_body = digests.parse(headers.content_digest, "Content-Digest")
    return of_body, digests.parse(headers.repr_digest, "Repr-Digest")


def _announced(upload: Upload[Row], headers: Headers, offset: int) -> int:
    """The number of bytes that the request announces. Raises Refused before any of them is read."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind not in _RAW:
        detail = f"send only the bytes of the file, with the header Content-Type: {_RAW[0]} (curl -T FILE, not curl -F)"
        raise Refused("not_raw", detail, 415, {"Accept": ", ".join(_RAW), **_CLOSE})
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refused("not_raw", "send the file without Content-Encoding", 415, {"Accept-Encoding": "", **_CLOSE})
    declared = headers.get("content-length")
    if declared is None or not declared.isdecimal():
        raise Refused("length_required", "send the number of bytes in the header Content-Length", 411, _CLOSE)
    length = int(declared[:20])
    if offset + length > upload.max_bytes:
        raise _too_large(upload)
    return length


def _total(headers: PieceHeaders, end: int, known: int | None) -> int | None:
    """Bytes of the whole file, as far as it is known now. Raises Invalid where two statements differ."""
    said, last = headers.upload_length, headers.upload_complete == "?1"
    if last and said is not None and said != end:
        detail = f"with Upload-Complete: ?1 the file has {end} bytes, but Upload-Length says {said}"
        raise Invalid(Fault("", "upload_length_differs", detail, parameter="Upload-Length"))
    total = end if last else known if said is None else said
    if total is not None and end > total:
        detail = f"these bytes would end at {end}, after the {total} of Upload-Length"
        raise Invalid(Fault("", "upload_length_exceeded", detail, parameter="Upload-Length"))
    return total


async def _receive(
    request: Request,
    upload: Upload[Row],
    file: BinaryIO,
    take: Callable[[int], None],
    length: int,
    hashing: bool = False,
) -> str:
    """Write the body to the file, off the event loop. All that came is written, whatever happens then, as long as there
    is room for it, which `take` is asked before each piece.

    Returns the SHA-256 of the body if it is asked for.
    """
    buffer, came, sha256 = bytearray(), 0, hashlib.sha256()

    def write() -> None:
        nonlocal buffer
        before, data, buffer = file.tell(), buffer, bytearray()  # what a full disk did not take is not written twice
        take(len(data))
        uploads.write_all(file, data)
        if hashing:
            sha256.update(data)
        if before < upload.head_bytes <= file.tell():
            upload.look_at(os.pread(file.fileno(), upload.head_bytes, 0))

    with _disk_full_told(length):
        try:
            async for chunk in request.stream():
                came += len(chunk)
                if came > length:
                    raise Refused(
                        "length_differs", f"received more than the {length} bytes of Content-Length", 400, _CLOSE
                    )
                buffer += chunk
                if len(buffer) >= _CHUNK:
                    await run_in_threadpool(write)
        except ClientDisconnect:
            raise _cut(came, length) from None
        finally:
            write()
    if came < length:
        raise _cut(came, length)
    return sha256.hexdigest()


def _complete(upload: Upload[Row], expected: str | None, header: str) -> Row:
    """Raises Invalid if the file is not what `header` promised."""
    try:
        with _disk_full_told(uploads.offset(upload.folder, upload.id)):
            return upload.complete(expected)
    except DigestMismatch as error:
        raise _promise_broken(header, f"{error}; nothing was kept, send it again") from error
    except FileNotFoundError as error:
        upload.expect()  # the file went with its row, as a rule
        raise _elsewhere(0) from error


@contextmanager
def _room(upload: Upload[Row], length: int, more: int) -> Iterator[Callable[[int], None]]:
    """For a body of `length` bytes, which take `more` than there are. Raises Refused before any of them is read."""
    with ExitStack() as held:
        with _disk_full_told(length):
            take = held.enter_context(upload.room.promised(more))
        yield take


@contextmanager
def _disk_full_told(length: int) -> Iterator[None]:
    """What was written stays: there may be room for the rest later."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _no_space(length, error) from error


def _no_space(length: int, error: OSError) -> Refused:
    detail = f"the server's disk has no room for {length} bytes: {error.strerror}"
    return Refused("no_space", detail, 507, _CLOSE)


def _too_large(upload: Upload[Row]) -> Refused:
    detail = f"an upload may have at most {upload.max_bytes} bytes ({upload.setting})"
    return Refused("upload_too_large", detail, 413, _CLOSE)


def _cut(came: int, length: int) -> Refused:
    detail = f"received {came} of {length} bytes; ask for the offset and continue from there"
    return Refused("upload_cut", detail, 400, _CLOSE)


def _elsewhere(there: int) -> Refused:
    detail = f"{there} bytes have been received; continue from byte {there}"
    return Refused("upload_offset_mismatch", detail, 409, Progress(there, complete=False).headers() | _CLOSE)


def _promise_broken(header: str, detail: str) -> Invalid:
    return Invalid(Fault("", "digest_mismatch", detail, parameter=header))
