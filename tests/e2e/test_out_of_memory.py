"""The kernel kills a trainer for want of memory, for real: in a memory control group of this test's own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.parts import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.chaos]

SUPERVISOR = """
import os, sys, time
from pathlib import Path
Path(sys.argv[2], "cgroup.procs").write_text(str(os.getpid()))
from worker.launcher import Trainer
from worker.memory import oom_kills
from worker.outcome import End, verdict
before, folder = oom_kills(), Path(sys.argv[1])
eater = "held = []\\nwhile True: held.append(bytearray(2**24))"
with Trainer([sys.executable, "-c", eater], folder, folder / "run.json") as trainer:
    while not trainer.over():
        trainer.read(0.2)
    came = verdict(End(trainer.returncode(), oom_kills=oom_kills() - before, tail=trainer.tail()))
print(came.code, came.message, came.data)
"""
LIMIT = 400 * 2**20


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with little memory, below our own; version 1 or 2."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    version_1 = [path for _, controllers, path in lines if "memory" in controllers.split(",")]
    root = Path("/sys/fs/cgroup/memory" if version_1 else "/sys/fs/cgroup")
    own = root / (version_1[0] if version_1 else lines[-1][2]).lstrip("/")
    folder = own / f"fgd-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(LIMIT))
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"no control group of one's own here: {error}")
    yield folder
    for _ in range(50):
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.1)  # until the kernel has forgotten its last process


def test_a_trainer_that_the_kernel_kills_for_memory_is_told_as_such(tmp_path: Path, group: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path), str(group)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "host_out_of_memory the kernel killed the trainer because memory ran out {'signal': 9}\n", (
        done
    )
