"""A process that must not outlive the one that started it. Knows no torch and no job.

Two independent ties, because each has a hole: PR_SET_PDEATHSIG (Linux) fires when the *thread* that started us ends,
kills us even in the middle of a kernel call, but reaches one process only; a pipe whose other end only the parent
holds works everywhere and takes the whole process group along, but needs a thread that gets to run.

    die_with_parent(fd)                       for our own programs, first thing in main
    python -m fgd.lifeline FD program ...     for programs that are not ours
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


def die_with_parent(fd: int | None) -> None:
    """SIGKILL for this process, and its group if it leads one, as soon as the parent is gone. Call it first thing.

    fd: read end of a pipe whose write end only the parent holds; None: rely on the kernel's signal alone.
    """
    _ask_kernel()
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
