"""What a reader of strangers' files may use of its host: time, memory, size of files, open files.

Each is the kernel's own limit, set by the reader itself before it looks at anything, and not to be raised again.
"""

from __future__ import annotations

import resource
import sys

from worker.memory import available, give_way, mapped

IMPORT_MINUTES = 60.0
"""Where the worker does not say: FGD_IMPORT_MINUTES."""
THREADS = 4
"""That work at once: so many times the minutes may be used of processors."""
MEMORY, LEAST_MEMORY = 16 * 2**30, 2**30
FILE = 64 * 2**30
OPEN_FILES = 1024
GIVES_WAY = 800
"""Of 1000. Should the host's memory end all the same, a reader is to be killed, and no training."""


def limit(minutes: float) -> int:
    """Limit this process for good. Returns the bytes of memory that it may use from now on.

    Memory: half of what the host, or its control group, has free now, at most 16 GiB and at least one. No core dumps:
    they hold users' files.
    """
    memory = max(LEAST_MEMORY, min(MEMORY, available() // 2))
    seconds = max(1, int(minutes * 60 * THREADS))
    _set(resource.RLIMIT_CPU, seconds, seconds + 5)  # SIGXCPU before SIGKILL, which could be anybody's
    if sys.platform == "linux":  # macOS refuses to bound it
        _set(resource.RLIMIT_AS, mapped() + memory)
    _set(resource.RLIMIT_FSIZE, FILE)
    _set(resource.RLIMIT_NOFILE, OPEN_FILES)
    _set(resource.RLIMIT_CORE, 0)
    return memory


def be_killed_first() -> None:
    """Of all processes, where the host's memory ends. Call it while this process may still write below /proc."""
    give_way(GIVES_WAY)


def memory_exceeded(memory: int) -> str:
    return (
        f"reading it needs more than {memory >> 20} MiB of memory, the limit for a reader on this host now (half of "
        "what is free, at most 16 GiB); split its largest files, or import it on a host with more free memory"
    )


def _set(what: int, soft: int, hard: int | None = None) -> None:
    _, most = resource.getrlimit(what)
    hard = soft if hard is None else hard
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(what, (soft, hard))
