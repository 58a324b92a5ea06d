"""The process that starts one trainer a device, through torchrun's agent, and speaks for them all.

To its parent it looks like a trainer of one process: the same events, signals and exit codes. The first rank
speaks through a named pipe, for torchrun hands no open files down. A rank that dies takes the others along; nothing
is restarted here: that is the service's to decide, from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import BinaryIO

import psutil
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fgd.events import EXIT_STOPPED, RANK_EVENTS, RANK_EXIT, Emit, Failed, from_line

SHUTDOWN_S = 3600
"""Ranks that were asked to end get this long to save: longer than anybody waits, because who asked us counts the time,
and kills us, with whom they die. Those whose neighbour died get torchrun's own 30 s."""


def launch(argv: Sequence[str], devices: int, emit: Emit, stop: Callable[[], bool]) -> int:
    """Run `python -m fgd.train argv` once a device; the exit code of the whole. stop: whether an end was asked for."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end_at_once)  # until torchrun listens, which it does before it starts a rank
    if stop():
        return EXIT_STOPPED
    with tempfile.TemporaryDirectory(prefix="fgd-ranks-") as folder:
        pipe, exit_file = Path(folder) / "events", Path(folder) / "exit"
        os.mkfifo(pipe)
        os.environ |= {RANK_EVENTS: str(pipe), RANK_EXIT: str(exit_file)}
        # Both ends, so that opening does not wait and the stream ends when we say so, not when a rank does.
        ours = os.open(pipe, os.O_RDWR)
        failed: list[Failed] = []
        reader = threading.Thread(target=pass_events, args=(os.fdopen(os.dup(ours), "rb"), emit, failed), daemon=True)
        reader.start()
        signal.signal(signal.SIGUSR1, pass_on)  # the stacks that are asked for are theirs
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            run_id=f"fgd-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            shutdown_timeout=SHUTDOWN_S,
        )
        killed_by = None
        try:
            elastic_launch(config, sys.executable)("-P", "-m", "fgd.train", *argv)
        except ChildFailedError as error:
            killed_by = signal_of([failure.exitcode for failure in error.failures.values()])
        except SignalException:
            pass  # passed on to the ranks; what they made of it is in their exit file
        os.write(ours, b"\n")  # an empty line: the end
        reader.join()
        os.close(ours)
        code = int(exit_file.read_text()) if exit_file.exists() else 1
    if code in (0, EXIT_STOPPED):
        return code
    if killed_by is not None:  # the others only say that they lost it
        end_by(killed_by)
    if failed:
        emit(failed[0])  # the first one; those after it only say that they lost their neighbour
    return code


def signal_of(codes: Sequence[int]) -> int | None:
    """What killed a rank, if one was killed. SIGTERM is what torchrun sends to the neighbours of one that failed by
    itself, and a rank that has just begun dies of it."""
    by_themselves = [code for code in codes if code != -signal.SIGTERM] or codes
    return next((-code for code in by_themselves if code < 0), None)


def pass_events(pipe: BinaryIO, emit: Emit, failed: list[Failed]) -> None:
    """Every event of the ranks, but how they failed: that is reported at the end, once."""
    with pipe:
        while (line := pipe.readline()) not in (b"", b"\n"):
            try:
                event = from_line(line)
            except ValueError as error:
                print(f"[launch] not an event line: {line[:200]!r}: {str(error)[:200]}", file=sys.stderr)
                continue
            if isinstance(event, Failed):
                failed.append(event)
            else:
                emit(event)


def pass_on(number: int, _frame: FrameType | None) -> None:
    """To the trainers."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "fgd.train" in child.cmdline():
                child.send_signal(number)


def end_at_once(_number: int, _frame: FrameType | None) -> None:
    """Nothing has begun, so there is nothing to save."""
    sys.exit(EXIT_STOPPED)


def end_by(number: int) -> None:
    """End as the rank ended, so that our parent sees what happened."""
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
