"""What memory the host has left, and whether the kernel killed because it ran out: by our control group, version 2 or
1."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

PROC, SYS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def oom_kills(proc: Path = PROC, sys: Path = SYS) -> int:
    """Processes of our control group, and of those around it, that the kernel killed so far; 0 where it counts none."""
    return max((_count(file) for file in _counters(proc, sys)), default=0)


def _counters(proc: Path, sys: Path) -> list[Path]:
    """Our own group's file; within a container its path is cut off, and the file lies at the root."""
    found = [sys / "memory.events", sys / "memory" / "memory.oom_control"]
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            found.append(sys / path.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            found.append(sys / "memory" / path.lstrip("/") / "memory.oom_control")
    return found


def _count(file: Path) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def available(proc: Path = PROC, sys: Path = SYS) -> int:
    """Bytes that are free, or easily freed: of the machine, or of our control group where that has fewer."""
    return max(0, min([psutil.virtual_memory().available, *_left_of_groups(proc, sys)]))


def _left_of_groups(proc: Path, sys: Path) -> Iterator[int]:
    for counter in _counters(proc, sys):
        new = counter.name == "memory.events"
        most, used = ("memory.max", "memory.current") if new else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no bound
            bound = int((counter.parent / most).read_text())
            taken = int((counter.parent / used).read_text())
            yield bound - taken + _cached(counter.parent / "memory.stat")


def _cached(stat: Path) -> int:
    """Bytes of files that were read and can be forgotten."""
    for line in stat.read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


def mapped() -> int:
    """Bytes of this process's address space."""
    return int(psutil.Process().memory_info().vms)


def give_way(score: int, pid: int | str = "self") -> None:
    """The kernel, out of memory, is to kill this process before others of score 0."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(score))
