"""Receiving a file: a raw body, streamed to a temporary file and hashed on the way. Knows HTTP, no rows.

411 no Content-Length   413 too large   415 wrapped (multipart, a content coding), or not what was expected
400 a header that cannot be read, a body that ended early   422 the bytes are not those of Content-Digest   507 no room
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from api.core.errors import Fault, Invalid, Refused

BATCH = 1 << 20
"""Bytes written at once, in a thread: a slow disk must not stop the server's loop."""
STALE_S = 86_400.0
"""What an upload left that its server did not survive is removed after so long."""
_CLOSE = {"Connection": "close"}
"""What is still on its way will not be read, so the connection cannot be used again."""


@dataclass(frozen=True)
class Received:
    """A whole upload, as long as `receiving` is open."""

    path: Path
    sha256: str
    size: int


@asynccontextmanager
async def receiving(
    request: Request, folder: Path, max_bytes: int, sniff: Callable[[bytes], object], sniff_bytes: int = 512
) -> AsyncIterator[Received]:
    """The body as a file in `folder`, gone afterwards. `sniff` sees its first bytes and raises for a wrong kind.

    Raises Refused or Invalid; then nothing is kept.
    """
    expected = content_digest(request)
    length = _declared(request, max_bytes)
    path = await run_in_threadpool(_prepare, folder, length)
    try:
        sha, size, head = hashlib.sha256(), 0, b""
        with path.open("xb") as file:
            async for chunk in _batches(request, length):
                if size < sniff_bytes:
                    head = (head + chunk)[:sniff_bytes]
                    if len(head) == min(sniff_bytes, length):
                        sniff(head)
                size += len(chunk)
                await run_in_threadpool(_write, file, chunk, sha.update)
            if size != length:
                raise _interrupted(size, length)
            await run_in_threadpool(_sync, file)
        if expected is not None and sha.digest() != expected:
            detail = f"the {size} bytes that came have sha256 {sha.hexdigest()}, Content-Digest says {expected.hex()}"
            raise Invalid(Fault("", "digest_mismatch", detail, parameter="Content-Digest"))
        yield Received(path, sha.hexdigest(), size)
    finally:
        path.unlink(missing_ok=True)


def content_digest(request: Request) -> bytes | None:
    """The SHA-256 of Content-Digest (RFC 9530); None without the header. Raises Refused for one that helps nobody."""
    header = request.headers.get("content-digest")
    if header is None:
        return None
    for field in header.split(","):
        name, _, value = field.strip().partition("=")
        if name.lower() == "sha-256":
            try:
                if len(value) < 2 or value[0] + value[-1] != "::":
                    raise ValueError(value)
                digest = base64.b64decode(value[1:-1], validate=True)
            except (ValueError, binascii.Error):
                digest = b""
            if len(digest) != 32:
                break
            return digest
    detail = "give Content-Digest as sha-256=:<base64 of the 32 bytes>:, or leave it out"
    raise Refused("bad_content_digest", detail, 400, _CLOSE)


def _declared(request: Request, max_bytes: int) -> int:
    headers = request.headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        detail = "send the bytes of the file alone, without multipart: curl -T FILE, not curl -F"
        raise Refused("not_raw", detail, 415, {**_CLOSE, "Accept": "application/octet-stream"})
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refused("not_raw", "send the file without Content-Encoding", 415, {**_CLOSE, "Accept-Encoding": ""})
    declared = headers.get("content-length")
    if declared is None:
        raise Refused("length_required", "say how long the file is: the header Content-Length", 411, _CLOSE)
    if not declared.isdecimal() or int(declared[:20]) > max_bytes:
        raise Refused("body_too_large", f"an upload may have {max_bytes} bytes at most", 413, _CLOSE)
    if int(declared) == 0:
        raise Invalid(Fault("", "empty_upload", "the body is empty; send the file as the body"))
    return int(declared)


def _prepare(folder: Path, length: int) -> Path:
    """A fresh name in `folder`, where there is room. Raises Refused."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.part"):
        if time.time() - stale.stat().st_mtime > STALE_S:
            stale.unlink(missing_ok=True)
    if shutil.disk_usage(folder).free < 2 * length:  # the file, and its copy in the store
        raise Refused("no_space", f"the server's disk has no room for {length} bytes", 507, _CLOSE)
    return folder / f"{uuid.uuid4().hex}.part"


async def _batches(request: Request, length: int) -> AsyncIterator[bytes]:
    """The body in larger pieces. Raises Refused as soon as it is longer than it said, or has ended early."""
    waiting, seen = bytearray(), 0
    try:
        async for chunk in request.stream():
            seen += len(chunk)
            if seen > length:
                raise Refused("bad_length", f"the body is longer than its Content-Length of {length}", 400, _CLOSE)
            waiting += chunk
            if len(waiting) >= BATCH:
                yield bytes(waiting)
                waiting.clear()
    except ClientDisconnect:
        raise _interrupted(seen, length) from None
    if waiting:
        yield bytes(waiting)


def _interrupted(seen: int, length: int) -> Refused:
    return Refused("upload_interrupted", f"{seen} of {length} bytes came; send the file again", 400, _CLOSE)


def _write(file: BinaryIO, chunk: bytes, update: Callable[[bytes], object]) -> None:
    update(chunk)
    file.write(chunk)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
