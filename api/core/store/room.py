"""How much of the disk is left for what people bring. The database, as a rule, lies on the same disk: an upload that
took the last byte would keep everybody from cancelling, deleting, and reporting results.

    free < keep_bytes           nothing begins any more; what ends work goes on, and the server is not ready
    free < 2 * keep_bytes       no upload goes on: workers need room for what they do with what was uploaded

Uploads of this process that are on their way count as if they were there. Knows disks. Knows no rows and no HTTP.
"""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class Room:
    def __init__(self, folders: Sequence[Path], keep_bytes: int) -> None:
        """folders: of everything that grows; they may lie on several disks."""
        self._folders = tuple(folders)
        self._keep_bytes = keep_bytes
        self._lock = threading.Lock()
        self._promised = 0

    def free(self) -> int:
        """Bytes, on the disk that has the least."""
        return min(shutil.disk_usage(_there(folder)).free for folder in self._folders)

    def complaint(self) -> str | None:
        """Why nothing new should begin; None: there is room."""
        free = self.free()
        if free >= self._keep_bytes:
            return None
        return f"{_mib(free)} free, but FGD_MIN_FREE_BYTES keeps {_mib(self._keep_bytes)}; delete data you do not need"

    @contextmanager
    def promised(self, more: int) -> Iterator[Callable[[int], None]]:
        """Room for an upload of `more` bytes. Gives the function to call before each piece of it is written. Both raise
        OSError (ENOSPC) where there is none."""
        left = more
        with self._lock:
            self._expect(self._promised + more)
            self._promised += more

        def take(size: int) -> None:
            nonlocal left
            self._expect(size)
            taken = min(size, left)
            left -= taken
            with self._lock:
                self._promised -= taken

        try:
            yield take
        finally:
            with self._lock:
                self._promised -= left

    def _expect(self, more: int) -> None:
        free = self.free()
        if more and free - more < 2 * self._keep_bytes:
            raise OSError(errno.ENOSPC, f"{_mib(free)} are free, but uploads must leave {_mib(2 * self._keep_bytes)}")


def _there(folder: Path) -> Path:
    return next(each for each in (folder, *folder.parents) if each.exists())


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
