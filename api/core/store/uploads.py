"""Uploads that are not complete yet: one file each, whatever it will be, in a folder of the API's host.

Its length is the offset. Nothing about it is in memory, so a server that was killed goes on where the bytes end. Knows
files. Knows nothing of rows and HTTP.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from api.core.errors import Conflict
from api.core.store.names import KEY_PART


def offset(folder: Path, id: str) -> int:
    """How many bytes are there."""
    try:
        return part(folder, id).stat().st_size
    except FileNotFoundError:
        return 0


def part(folder: Path, id: str) -> Path:
    assert KEY_PART.fullmatch(id), "the id of a row"
    return folder / f"{id}.part"


@contextmanager
def writing(folder: Path, id: str, *, more: bool = True, from_scratch: bool = False) -> Iterator[BinaryIO]:
    """The file, at its end, or empty where `from_scratch`. One request at a time: raises Conflict for a second.

    A file that the store has taken, and whose row was not written, is the blob itself: it may end the upload as it is.
    If there are `more` bytes, the upload begins again, in a new file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = part(folder, id)
    file = _locked(path, id)
    if from_scratch or (more and os.fstat(file.fileno()).st_nlink > 1):
        path.unlink()
        file.close()
        file = _locked(path, id)
    with file:
        file.seek(0, os.SEEK_END)
        yield file


def write_all(file: BinaryIO, data: bytes | bytearray) -> None:
    """An unbuffered write may take less than it is given."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def drop(folder: Path, id: str) -> None:
    part(folder, id).unlink(missing_ok=True)


def parts(folder: Path) -> list[Path]:
    return list(folder.glob("*.part"))


def drop_others(parts: Iterable[Path], awaited: Set[str]) -> None:
    """Delete what belongs to no row that waits for its upload. List the parts before the rows."""
    for path in parts:
        if path.stem not in awaited:
            with suppress(OSError):
                path.unlink()


def _locked(path: Path, id: str) -> BinaryIO:
    """The file of that name, locked until it is closed."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115  # the caller closes it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            detail = f"another request is uploading the content of {id}; wait until it ends, then ask for the offset"
            raise Conflict("upload_in_progress", detail, retryable=True) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return file
        file.close()  # the request that held it before us came to the end of the upload
