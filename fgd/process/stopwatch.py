"""How long something takes, without the time that other processes took the processor away.

On a machine with other work a clock on the wall shows mostly how much work that is. The kernel counts for each thread
how long it was ready and waited for a core; that is taken out. Where the kernel does not say so (it is Linux's),
nothing is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

TASKS = Path("/proc/self/task")


@dataclass(frozen=True)
class Timing:
    ms: float
    """Without the waiting."""
    waited_ms: float = 0.0
    """For a core, of the thread that waited longest."""


def timed(run: Callable[[], object]) -> Timing:
    before = waited_ns()
    began = perf_counter()
    run()
    wall_ms = 1000 * (perf_counter() - began)
    waited_ms = longest_ms(before, waited_ns())
    return Timing(max(wall_ms - waited_ms, wall_ms / 100), waited_ms)


def longest_ms(before: dict[str, int], after: dict[str, int]) -> float:
    """Of the threads that are in both."""
    return max((after[each] - before[each] for each in before.keys() & after.keys()), default=0) / 1e6


def waited_ns() -> dict[str, int]:
    """Of each thread of this process, since it began: how long it was ready to run and did not."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for task in os.listdir(TASKS):
            with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended, or the kernel does not count
                found[task] = int((TASKS / task / "schedstat").read_text().split()[1])
    return found
