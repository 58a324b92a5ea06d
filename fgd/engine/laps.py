"""Where the time from the start of the process to the first step goes."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from fgd.events import Note


class Laps:
    """Seconds by name, one lap after another from the start of the process on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic() - process_age_s()

    def end(self, name: str) -> None:
        """What was done since the last lap ended was this."""
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    def note(self) -> Note:
        total = sum(self.seconds.values())
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        data = {name: round(seconds, 3) for name, seconds in self.seconds.items()} | {"total": round(total, 3)}
        return Note(code="started_in", message=f"{total:.1f} s from process to first step: {parts}", data=data)


def process_age_s() -> float:
    """Since this process began; 0 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        began_ticks = float(Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began_ticks / os.sysconf("SC_CLK_TCK"))
    return 0.0
