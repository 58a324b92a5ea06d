"""Runs inputs in a child, and counts what becomes of them: a crash ends the child, and the next goes on behind it.

A crash is any exception that is no refusal, and any signal. Time is that of the processor; a minute of anything else
counts as well.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil

from tests.fuzz.targets import Target

MAX_S, MAX_WAIT_S = 10.0, 60
MAX_BYTES = 2**30
"""More memory than the child had before."""
REFUSED, ACCEPTED, CRASH, LARGE = b"r", b"a", b"c", b"m"


@dataclass
class Counts:
    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    crashes: int = 0
    slow: int = 0
    large: int = 0
    seen: dict[str, int] = field(default_factory=dict)
    """Of the crashes: what was raised, and the number of an input that does it."""

    @property
    def faults(self) -> int:
        return self.crashes + self.slow + self.large


def input_of(target: Target, seed: int, number: int) -> Any:
    """The same for the same three."""
    rng = Random(f"{seed} {target.name} {number}")
    item = rng.choice(target.corpus)
    for _ in range(rng.choice((1, 1, 2, 4))):
        item = target.change(rng, item)
    return item


def run(target: Target, seed: int, first: int, count: int, counts: Counts) -> None:
    """Inputs number `first` to `first + count`."""
    number = first
    while number < first + count:
        pid, answers = _start(target, seed, range(number, first + count))
        for answer in answers:
            number += 1
            counts.inputs += 1
            _count(counts, answer, number - 1)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):  # in the middle of an input that gave no answer
            counts.inputs += 1
            if os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM):
                counts.slow += 1
                counts.seen[f"longer than {MAX_S:g} s"] = number
            else:
                counts.crashes += 1
                counts.seen[signal.Signals(os.WTERMSIG(status)).name] = number
            number += 1
        elif number < first + count and os.WEXITSTATUS(status):
            raise RuntimeError(f"{target.name}: input {number} of seed {seed} cannot be made")


def _count(counts: Counts, answer: bytes, number: int) -> None:
    counts.refused += answer[:1] == REFUSED
    counts.accepted += answer[:1] == ACCEPTED
    counts.crashes += answer[:1] == CRASH
    counts.large += answer[:1] == LARGE
    if answer[:1] in (CRASH, LARGE):
        counts.seen.setdefault(answer[1:].decode(errors="replace") or "more than 1 GB", number)


def _start(target: Target, seed: int, numbers: range) -> tuple[int, Iterator[bytes]]:
    """A child that answers each input with a line."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        code = 1
        try:
            with os.fdopen(write, "wb", buffering=0) as out:
                _answer_all(target, seed, numbers, out)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    return pid, _lines(read)


def _lines(read: int) -> Iterator[bytes]:
    with os.fdopen(read, "rb") as lines:
        for line in lines:
            yield line.rstrip(b"\n")


def _answer_all(target: Target, seed: int, numbers: range, out: Any) -> None:
    warnings.simplefilter("ignore")
    for clock in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(clock, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries complain of what they read
    before = psutil.Process().memory_info()
    resource.setrlimit(resource.RLIMIT_AS, (before.vms + 4 * MAX_BYTES,) * 2)
    for number in numbers:
        item = input_of(target, seed, number)
        folder = Path(tempfile.mkdtemp(prefix="fgd-fuzz-"))
        signal.setitimer(signal.ITIMER_PROF, MAX_S)
        signal.alarm(MAX_WAIT_S)
        answer = _answer(target, item, folder)
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        shutil.rmtree(folder, ignore_errors=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if peak - before.rss > MAX_BYTES:
            answer = LARGE
        out.write(answer + b"\n")
        if answer == LARGE:
            return  # its peak stays; the next child has none


def _answer(target: Target, item: Any, folder: Path) -> bytes:
    try:
        return ACCEPTED if target.run(item, folder) else REFUSED
    except MemoryError:
        return LARGE
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {error}"[:150]
        return CRASH + told.replace("\n", " ").encode(errors="replace")
