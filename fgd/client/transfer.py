"""Files on their way to the service and from it, over as many connections as it takes, compared by their SHA-256.

Knows files and byte ranges. Knows neither jobs nor data sets: a file goes to a path of the service, or comes from one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from fgd.client.answers import File
from fgd.client.errors import ApiError, ClientError, DigestMismatch, Unreachable, WrongArgument, passing
from fgd.client.patience import Patience
from fgd.client.transport import Transport, problem_of

# --- to the service -------------------------------------------------------------------------------------------


def upload(
    service: Transport,
    url: str,
    file: Path,
    on_bytes: Callable[[int], None] | None = None,
    poll_s: float = 0.5,
    patience_s: float = 600.0,
) -> None:
    """Send a file; what is there already is not sent again.

    patience_s: while another request is at the upload, or the service puts it away, it is waited for this long.
    on_bytes hears how many bytes are there.
    """
    size, sha256 = file.stat().st_size, sha256_of(file)
    if size == 0:
        raise WrongArgument(f"{file} is empty")
    best = -1
    broken: ApiError | Unreachable | None = None
    trying, waiting = service.patience(), Patience(for_s=patience_s)
    while (there := _offset(service, url)) is not None:
        if there > best:
            best = there
            trying.progress()
            waiting.progress()
        elif broken is not None:
            time.sleep(trying.bear(broken))
        broken = _send(service, url, file, there, size, sha256, on_bytes)
        if broken is None:
            return
        if isinstance(broken, ApiError) and broken.code == "upload_in_progress":
            time.sleep(max(poll_s, waiting.bear(broken)))
            trying.progress()
            broken = None


def _offset(service: Transport, url: str) -> int | None:
    """How many bytes are there; None: all of them."""
    head = service.request("HEAD", url).headers
    return None if head.get("upload-complete") == "?1" else _number(head.get("upload-offset"))


def _send(
    service: Transport,
    url: str,
    file: Path,
    offset: int,
    size: int,
    sha256: str,
    on_bytes: Callable[[int], None] | None,
) -> ApiError | Unreachable | None:
    """One connection: all from `offset` on. None if that was the end; else why it broke off."""
    if offset > size:
        raise WrongArgument(f"the service has {offset} bytes of {file.name}, which has {size}; it is a different file")
    headers = {
        "Content-Type": "application/partial-upload",
        "Content-Length": str(size - offset),
        "Upload-Offset": str(offset),
        "Upload-Length": str(size),
        "Repr-Digest": digest_field(sha256),
    }
    try:
        response = service.http.patch(url, content=_read_from(file, offset, on_bytes), headers=headers)
    except httpx.TransportError as error:
        return service.unreachable(error)
    if response.is_success:
        return None
    problem = problem_of(response)
    if not passing(problem):
        raise problem
    return problem


def _number(header: str | None) -> int:
    if header is None or not header.isdecimal():
        raise ClientError(f"the service says Upload-Offset: {header}, which is not a number of bytes")
    return int(header)


def _read_from(path: Path, offset: int, on_bytes: Callable[[int], None] | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(1 << 18):
            yield chunk
            if on_bytes:
                on_bytes(file.tell())


# --- from the service -----------------------------------------------------------------------------------------


def download(
    service: Transport,
    url: str,
    artifact: File,
    folder: Path,
    on_bytes: Callable[[int], None] | None = None,
    name: str | None = None,
) -> Path:
    """Fetch an artifact into a folder, which is made if need be, under its own name or `name`. Returns the file.

    An interrupted download goes on where it stopped, in this process or a later one. The file appears under its
    name only when all of it is there and its SHA-256 is right; a file that already is, is not fetched again.
    on_bytes hears how many bytes are there.
    """
    if name is not None and not _is_plain(name):
        raise WrongArgument(f"{name!r} is not a plain file name; give the folder as a separate argument")
    target = folder / (_plain_name(artifact.name) if name is None else name)
    if folder.exists() and not folder.is_dir():
        raise WrongArgument(f"{folder} is a file; name the folder for {target.name}")
    if target.is_dir():
        raise WrongArgument(f"{target} is a folder; the file {target.name} cannot take its place")
    folder.mkdir(parents=True, exist_ok=True)
    if target.is_file() and sha256_of(target) == artifact.sha256:
        return target
    # The digest in the name: what lies there can only be the beginning of this very content.
    part = target.with_name(f".{target.name}.{artifact.sha256[:16]}.part")
    head = service.request("HEAD", url, follow_redirects=True)
    _check_promise(head, artifact, part)
    _fetch_all(service, url, artifact, part, head.headers.get("etag"), on_bytes)
    if (got := sha256_of(part)) != artifact.sha256:
        part.unlink()
        raise DigestMismatch(artifact.name, artifact.sha256, got)
    os.replace(part, target)
    _sync_folder(target.parent)
    return target


def fetch_event_file(service: Transport, url: str, folder: Path) -> Path:
    """Fetch a file that is made for the answer into a folder, which is made if need be, under the name that the answer
    gives it. It appears when all of it is there. Returns the file."""
    if folder.exists() and not folder.is_dir():
        raise WrongArgument(f"{folder} is a file; name the folder for the event file")
    patience = service.patience()
    while True:
        try:
            with service.http.stream("GET", url) as response:
                if response.is_success:
                    return _write_named(response, folder)
                response.read()
                broken: ApiError | Unreachable = problem_of(response)
        except httpx.TransportError as error:
            broken = service.unreachable(error)
        time.sleep(patience.bear(broken))


def _write_named(response: httpx.Response, folder: Path) -> Path:
    _, _, name = response.headers.get("content-disposition", "").partition('filename="')
    target = folder / _plain_name(name.removesuffix('"'))
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            for chunk in response.iter_bytes():
                file.write(chunk)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _fetch_all(
    service: Transport,
    url: str,
    artifact: File,
    part: Path,
    etag: str | None,
    on_bytes: Callable[[int], None] | None,
) -> None:
    """Bring `part` to its full length, over as many connections as it takes while each brings something."""
    patience = service.patience()
    while (before := _size(part)) != artifact.size:
        offset = before if 0 < before < artifact.size else 0
        broken: ApiError | Unreachable = Unreachable(service.url, "the body ended early")
        try:
            _fetch(service, url, artifact, part, offset, etag, on_bytes)
        except httpx.TransportError as error:
            broken = service.unreachable(error)
        except ApiError as error:
            broken = error
        if _size(part) > before:
            patience.progress()
        else:
            time.sleep(patience.bear(broken))


def _size(part: Path) -> int:
    """Bytes; -1: it is not there."""
    return part.stat().st_size if part.exists() else -1


def _fetch(
    service: Transport,
    url: str,
    artifact: File,
    part: Path,
    offset: int,
    etag: str | None,
    on_bytes: Callable[[int], None] | None,
) -> None:
    """One connection: append from `offset` if the service still has the same content, else start over."""
    headers = {"Accept-Encoding": "identity"}
    if offset and etag and not etag.startswith("W/"):
        headers |= {"Range": f"bytes={offset}-", "If-Range": etag}
    with service.http.stream("GET", url, headers=headers, follow_redirects=True) as response:
        if not response.is_success:
            response.read()
            raise problem_of(response)
        _check_promise(response, artifact, part)
        goes_on = response.status_code == httpx.codes.PARTIAL_CONTENT
        if goes_on and not response.headers.get("content-range", "").startswith(f"bytes {offset}-"):
            raise ClientError(f"{artifact.name}: asked for bytes from {offset} on, got a different range")
        there = offset if goes_on else 0
        with part.open("ab" if goes_on else "wb") as file:
            try:
                for chunk in response.iter_raw():
                    file.write(chunk)
                    there += len(chunk)
                    if there > artifact.size:
                        raise DigestMismatch(artifact.name, artifact.sha256, f"of more than {artifact.size} bytes")
                    if on_bytes:
                        on_bytes(there)
            except DigestMismatch:
                part.unlink()
                raise
            file.flush()
            os.fsync(file.fileno())


def _plain_name(name: str) -> str:
    """A name from elsewhere must not choose a folder here."""
    if not _is_plain(name):
        raise ClientError(f"the service names an artifact {name!r}, which is not a plain file name")
    return name


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and not any(mark in name for mark in "/\\\0")


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- digests --------------------------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_field(sha256: str) -> str:
    """As Content-Digest and Repr-Digest have it (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def _check_promise(response: httpx.Response, artifact: File, part: Path) -> None:
    """The digest of the whole content (RFC 9530), which every answer about it carries, must be the artifact's."""
    promised = _repr_digest(response.headers.get("repr-digest", ""))
    if promised is not None and promised != artifact.sha256:
        part.unlink(missing_ok=True)
        raise DigestMismatch(artifact.name, artifact.sha256, promised)


def _repr_digest(header: str) -> str | None:
    """sha-256=:<base64>: as hex; None if the header has none that can be read."""
    for field in header.split(","):
        name, _, value = field.strip().partition("=")
        if name.lower() == "sha-256" and len(value) > 2 and value[0] == value[-1] == ":":
            try:
                return base64.b64decode(value[1:-1], validate=True).hex()
            except binascii.Error:
                return None
    return None
