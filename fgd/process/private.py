"""What the service writes is for its own user alone: database, blobs, logs and results. Knows no names."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def keep_private() -> None:
    """From now on others can neither read nor enter what this process and its children make. First thing in main."""
    os.umask(0o077)


def private_folder(folder: Path) -> Path:
    """Make it, or close one that an earlier version left open. What belongs to somebody else, or to everybody (/tmp),
    stays as it is."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid == os.getuid() and not found.st_mode & stat.S_ISVTX and found.st_mode & 0o077:
        with suppress(OSError):  # a file system without modes
            folder.chmod(0o700)
    return folder
