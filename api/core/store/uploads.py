"""Uploads that are not complete yet: one file each, in a folder of the API's host. Its length is the offset.

Nothing about them is in memory or in the database, so a server that was killed goes on where the bytes end. Knows
files. Knows nothing of rows and HTTP.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from api.core.errors import Conflict
from api.core.rows.ids import is_id

SPARE = 1.2
"""Free space asked for, as a multiple of what is still to come."""


def offset(folder: Path, dataset_id: str) -> int:
    """How many bytes are there."""
    try:
        return part(folder, dataset_id).stat().st_size
    except FileNotFoundError:
        return 0


def part(folder: Path, dataset_id: str) -> Path:
    assert is_id("ds", dataset_id), "a data set that has a row"
    return folder / f"{dataset_id}.part"


def fits(folder: Path, more: int) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free >= more * SPARE


@contextmanager
def writing(folder: Path, dataset_id: str) -> Iterator[BinaryIO]:
    """The file, at its end. One request at a time: raises Conflict for a second."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(part(folder, dataset_id), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "r+b", buffering=0) as file:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            detail = f"another request is sending the content of {dataset_id}; wait for it, then ask for the offset"
            raise Conflict("upload_in_progress", detail, retryable=True) from None
        file.seek(0, os.SEEK_END)
        yield file


def write_all(file: BinaryIO, data: bytes | bytearray) -> None:
    """An unbuffered write may take less than it is given."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def drop(folder: Path, dataset_id: str) -> None:
    if is_id("ds", dataset_id):
        part(folder, dataset_id).unlink(missing_ok=True)


def parts(folder: Path) -> list[Path]:
    return list(folder.glob("*.part"))


def drop_others(parts: Iterable[Path], awaited: Set[str]) -> None:
    """Delete what belongs to no data set that waits for its zip. List the parts before the data sets."""
    for path in parts:
        if path.stem not in awaited:
            with suppress(OSError):
                path.unlink()
