"""Whether the kernel killed for want of memory: the count of our control group, version 2 or 1."""

from __future__ import annotations

from pathlib import Path

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
