"""How much a reader may use, by what its host has left; and what it says when that was too little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from PIL import Image

import fgd
from worker import limits
from worker.memory import available
from worker.reader_codes import NOTHING_THERE

ROOT = Path(fgd.__path__[0]).parent
GIB = 2**30


def group(root: Path, version: int, most: str, used: int, cached: int = 0) -> tuple[Path, Path]:
    """/proc/self/cgroup and /sys/fs/cgroup of a process in a group of its own."""
    folder = root / "sys" / ("jobs" if version == 2 else "memory/jobs")
    folder.mkdir(parents=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (most, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 7\ninactive_file {cached}\nactive_file 9\n")
    (root / "cgroup").write_text("0::/jobs\n" if version == 2 else "9:cpu:/jobs\n8:memory:/jobs\n")
    return root / "cgroup", root / "sys"


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_left_is_that_of_the_control_group_where_it_has_less(tmp_path: Path, version: int) -> None:
    assert available(*group(tmp_path, version, "400000", 300_000, cached=50_000)) == 150_000


@pytest.mark.parametrize(("version", "most"), [(2, "max"), (1, str(2**63 - 4096))])
def test_a_group_without_a_bound_has_what_the_machine_has(tmp_path: Path, version: int, most: str) -> None:
    assert available(*group(tmp_path, version, most, 300_000)) > psutil.virtual_memory().available // 2


@pytest.mark.parametrize(
    ("free", "memory"), [(64 * GIB, 16 * GIB), (8 * GIB, 4 * GIB), (GIB, GIB), (0, GIB)], ids=["64", "8", "1", "0"]
)
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's bound on an address space")
def test_a_reader_gets_half_of_what_is_free(free: int, memory: int) -> None:
    script = (
        f"from worker import limits; import resource; limits.available = lambda: {free}; before = limits.mapped(); "
        "print(limits.limit(1.0), resource.getrlimit(resource.RLIMIT_AS)[0] - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    given, bound = map(int, done.stdout.split())
    assert given == memory
    assert memory <= bound < memory + 2**28


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's bound on an address space")
def test_a_data_set_that_needs_more_memory_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"annotations/instances_{split}.json").write_text(
            '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"id": 1, "image_id": 1, "category_id": 1, '
            '"bbox": [1, 1, 9, 9]}], "categories": [{"id": 1, "name": "thing"}]}'
        )
        (tmp_path / split).mkdir()
        Image.new("1", (5000, 5000)).save(tmp_path / split / "a.png")  # 125 MB where it is decoded
    script = (
        "from worker import importer, limits; limits.MEMORY = limits.LEAST_MEMORY = 60 << 20; code = importer.main(); "
        "print(open('/proc/self/oom_score_adj').read()); exit(code)"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == NOTHING_THERE, done.stderr
    assert "more than 60 MiB of memory" in (tmp_path / "out/error.txt").read_text()
    assert int(done.stdout) == limits.GIVES_WAY
