"""Processes that must not outlive the one that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fgd
from fgd.process.lifeline import DEADLINE, Deadline

ROOT = Path(fgd.__path__[0]).parent
WAIT = "import sys, time; print('up', flush=True); time.sleep(3600)"
OURS = f"import sys; from fgd.process.lifeline import die_with_parent; die_with_parent(int(sys.argv[1])); {WAIT}"
TIED = "import sys; from fgd.process.lifeline import run_tied; sys.exit(run_tied(int(sys.argv[1]), sys.argv[2:]))"


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    try:
        yield read, write
    finally:
        os.close(read)


def start(argv: list[str], fd: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        argv, pass_fds=[fd], stdout=subprocess.PIPE, start_new_session=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def end(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(timeout=5)
    finally:
        process.kill()
        assert process.stdout is not None
        process.stdout.close()


def test_program_of_ours_dies_when_the_pipe_closes() -> None:
    with pipe() as (read, write):
        process = start([sys.executable, "-c", OURS, str(read)], read)
        time.sleep(0.1)
        assert process.poll() is None
        os.close(write)
        assert end(process) == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent")
def test_foreign_program_dies_with_its_parent() -> None:
    middle = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-m', 'fgd.process.lifeline', sys.argv[1], 'sleep', '3600'], "
        "pass_fds=[int(sys.argv[1])])\n"
        "print('up', flush=True); print(p.pid, flush=True); time.sleep(3600)"
    )
    with pipe() as (read, write):
        process = start([sys.executable, "-c", middle, str(read)], read)
        assert process.stdout is not None
        child = int(process.stdout.readline())
        time.sleep(0.3)
        os.kill(child, 0)
        process.kill()
        until = time.monotonic() + 3
        while Path(f"/proc/{child}/stat").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
            assert time.monotonic() < until
            time.sleep(0.02)
        os.close(write)
        end(process)


def test_foreign_program_does_not_start_for_a_parent_that_is_gone() -> None:
    with pipe() as (read, write):
        os.close(write)
        done = subprocess.run(
            [sys.executable, "-m", "fgd.process.lifeline", str(read), "echo", "up"],
            pass_fds=[read], capture_output=True, start_new_session=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.stdout == b""
        assert done.returncode == -signal.SIGKILL


def test_tied_program_dies_when_the_pipe_closes() -> None:
    with pipe() as (read, write):
        process = start([sys.executable, "-c", TIED, str(read), sys.executable, "-c", WAIT], read)
        os.close(write)
        assert end(process) == -signal.SIGKILL


def test_tied_program_hears_what_its_keeper_is_told() -> None:
    with pipe() as (read, write):
        process = start([sys.executable, "-c", TIED, str(read), sys.executable, "-c", WAIT], read)
        process.terminate()
        assert end(process) == -signal.SIGTERM % 256
        os.close(write)


def late(file: Path) -> subprocess.Popen[bytes]:
    program = f"from fgd.process.lifeline import die_with_parent; die_with_parent(None); {WAIT}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), DEADLINE: str(file)}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True, env=env)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def test_child_of_a_parent_that_is_stopped_ends_at_its_deadline_and_not_before(tmp_path: Path) -> None:
    deadline = Deadline(tmp_path / "deadline", time.monotonic() + 60)
    process = late(tmp_path / "deadline")
    try:
        deadline.put_off(time.monotonic() + 1.0)
        (tmp_path / "deadline").unlink()
        time.sleep(0.5)
        assert process.poll() is None
        deadline.put_off(until := time.monotonic() + 1.0)
        assert end(process) == -signal.SIGKILL
        assert time.monotonic() >= until
    finally:
        deadline.close()
        process.kill()
