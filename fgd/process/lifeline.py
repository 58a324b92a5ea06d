"""A process that must not outlive the one that started it. Knows no torch and no job.

Two independent ties, because each has a hole: PR_SET_PDEATHSIG (Linux) fires when the *thread* that started us ends,
kills us even in the middle of a kernel call, but reaches one process only; a pipe whose other end only the parent
holds works everywhere and takes the whole process group along, but needs a thread that gets to run.

A third is for a parent that lives but is stopped, as by a frozen machine: a file holds the moment until which the
parent is known to be in its right; a child that finds it past ends itself and its group (`Deadline`).

    die_with_parent(fd)                       for our own programs, first thing in main
    python -m fgd.process.lifeline FD program ...     for programs that are not ours
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""
DEADLINE = "FGD_DEADLINE"
"""Environment variable with the path of the deadline's file; data loaders and ranks inherit it."""
LOOK_S = 0.1
"""Between two looks at the deadline."""
_MOMENT = struct.Struct("=d")


class Deadline:
    """The parent's end: how long the children may live without hearing more. By the monotonic clock, which all
    processes of a machine share and nobody sets."""

    def __init__(self, file: Path, until: float) -> None:
        self._handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self.put_off(until)

    def put_off(self, until: float) -> None:
        os.pwrite(self._handle, _MOMENT.pack(until), 0)

    def close(self) -> None:
        os.close(self._handle)


def die_with_parent(fd: int | None) -> None:
    """SIGKILL for this process, and its group if it leads one, as soon as the parent is gone. Call it first thing.

    fd: read end of a pipe whose write end only the parent holds; None: rely on the kernel's signal alone.
    """
    _ask_kernel()
    if file := os.environ.get(DEADLINE):
        _call_when_late(Path(file), kill_own_group)
    if fd is None:
        return
    os.set_inheritable(fd, False)
    _call_at_eof(fd, kill_own_group)


def kill_own_group() -> None:
    """End this process, and its group if it leads one (a shell's group is the shell's)."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _ask_kernel() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _call_at_eof(fd: int, then: Callable[[], None]) -> None:
    def watch() -> None:
        while os.read(fd, 1):  # bytes carry no meaning; only the end does
            pass
        then()

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def _call_when_late(file: Path, then: Callable[[], None]) -> None:
    handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)  # kept open: the file may be removed before our end

    def watch() -> None:
        while True:
            with contextlib.suppress(struct.error):
                if time.monotonic() > _MOMENT.unpack(os.pread(handle, _MOMENT.size, 0))[0]:
                    then()
            time.sleep(LOOK_S)

    threading.Thread(target=watch, name="deadline", daemon=True).start()


def run_tied(fd: int, argv: Sequence[str]) -> int:
    """Run a foreign program that dies with our parent, where the kernel has no signal for it: stay and watch."""
    program = subprocess.Popen(argv)

    def end() -> None:
        program.kill()
        kill_own_group()

    def pass_on(number: int, _frame: FrameType | None) -> None:
        program.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    _call_at_eof(fd, end)
    return program.wait()


def main() -> None:
    fd, argv = int(sys.argv[1]), sys.argv[2:]
    if sys.platform != "linux":
        sys.exit(run_tied(fd, argv))
    _ask_kernel()  # survives the exec
    if select.select([fd], [], [], 0)[0] and not os.read(fd, 1):  # the parent died before we had asked
        kill_own_group()
    os.close(fd)
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main()
