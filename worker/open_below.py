"""Opens a folder or file that an earlier check allowed, and finds out whether it is still that one. Follows no link."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fgd.errors import DatasetError

_OPEN = getattr(os, "O_PATH", os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Opened:
    path: Path
    root: Path
    descriptor: int

    def check(self) -> None:
        """Raises DatasetError if the path leads elsewhere by now."""
        now = _walk(self.path, self.root)
        try:
            if not os.path.samestat(os.fstat(now), os.fstat(self.descriptor)):
                raise _exchanged(self.path, "it is another one now")
        finally:
            os.close(now)


def open_below(path: Path, roots: Sequence[Path]) -> Opened:
    """roots: real folders; `path` must lie below one, with no link on the way. Raises DatasetError."""
    root = next((root for root in roots if path.is_relative_to(root)), None)
    if root is None or ".." in path.parts:
        told = ", ".join(map(str, roots))
        raise DatasetError(f"{path} is not below a folder that this worker's FGD_DATA_ROOTS names ({told})")
    return Opened(path, root, _walk(path, root))


def _walk(path: Path, root: Path) -> int:
    """One folder after the other, each below the descriptor of the last."""
    opened = os.open(root, _OPEN)
    for part in path.relative_to(root).parts:
        try:
            inner = os.open(part, _OPEN, dir_fd=opened)
        except OSError as error:
            raise _exchanged(path, f"{part}: {error.strerror}") from error
        finally:
            os.close(opened)
        opened = inner
        if stat.S_ISLNK(os.fstat(opened).st_mode):  # O_PATH opens the link itself
            os.close(opened)
            raise _exchanged(path, f"{part} is a link now")
    return opened


def _exchanged(path: Path, how: str) -> DatasetError:
    return DatasetError(f"{path} was exchanged after it was checked ({how}); register the data set again")
