"""What a reader that was taken over could do: next to nothing. Each deed is tried by a process that is confined."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fgd
from fgd.errors import DatasetError
from fgd.process import landlock
from tests.unit.worker.test_importer import coco
from worker.open_below import open_below
from worker.reader_codes import NOTHING_THERE

ROOT = Path(fgd.__path__[0]).parent
linux = pytest.mark.skipif(sys.platform != "linux", reason="seccomp and Landlock are Linux's")
landlocked = pytest.mark.skipif(landlock._version() < 2, reason="this kernel has no Landlock")

DEEDS = """
import ctypes, json, os, resource, signal, socket, sys
from pathlib import Path
from worker.confinement import confine_files, confine_process

inside, outside, own = (Path(name) for name in sys.argv[1:])
files, filter = confine_files(own, [inside]), confine_process()
parent = os.getppid()
libc = ctypes.CDLL(None, use_errno=True)
# The first of each pair differs between machines; both know these calls by their names.
libc.process_vm_readv.argtypes = [ctypes.c_int, *[ctypes.c_void_p, ctypes.c_ulong] * 2, ctypes.c_ulong]


def call(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def tried(deed):
    try:
        deed()
    except OSError as error:
        return type(error).__name__
    return "done"


OF_FILES = {
    "write outside": lambda: (outside / "new").write_text("x"),
    "append to what it reads": lambda: (inside / "a.txt").open("a"),
    "cut what it reads": lambda: os.truncate(inside / "a.txt", 0),
    "remove what it reads": lambda: (inside / "a.txt").unlink(),
    "link into its own": lambda: os.link(outside / "b.txt", own / "b.txt"),
    "read outside": lambda: (outside / "b.txt").read_text(),
    "list outside": lambda: os.listdir(outside),
    "follow a link out": lambda: (inside / "link").read_text(),
    "read the parent's environment": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
    "open the parent's memory": lambda: open(f"/proc/{parent}/mem", "r+b"),
    "take the parent's files": lambda: open(f"/proc/{parent}/fd/1", "rb"),
}
OF_CALLS = {
    "open a socket": lambda: socket.socket(),
    "open a pair": lambda: socket.socketpair(),
    "run a program": lambda: os.execv(sys.executable, ["python"]),
    "signal the parent": lambda: os.kill(parent, 0),
    "signal everybody": lambda: os.kill(-1, 0),
    "hold the parent": lambda: os.pidfd_open(parent),
    "read the parent's memory": lambda: call(libc.process_vm_readv(parent, None, 0, None, 0, 0)),
    "trace the parent": lambda: call(libc.ptrace(16, parent, 0, 0)),
    "bound the parent": lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE),
    "leave for a namespace": lambda: call(libc.unshare(0x10000000)),
}
USUAL = {
    "write its own": lambda: (own / "x").write_text("x"),
    "rename its own": lambda: (own / "x").rename(own / "y"),
    "make a folder": lambda: (own / "deep").mkdir(),
    "move into it": lambda: (own / "y").rename(own / "deep/y"),
    "read what it reads": lambda: (inside / "a.txt").read_text(),
    "load a module": lambda: __import__("wave"),
    "signal itself": lambda: os.kill(os.getpid(), 0),
    "signal its group": lambda: os.kill(0, 0),
    "raise": lambda: signal.raise_signal(signal.SIGCONT),
    "know its bounds": lambda: resource.getrlimit(resource.RLIMIT_AS),
    "throw away": lambda: open(os.devnull, "w").write("x"),
}
told = {kind: {name: tried(deed) for name, deed in deeds.items()} for kind, deeds in
        (("files", OF_FILES), ("calls", OF_CALLS), ("usual", USUAL))}
print(json.dumps(told | {"stand": [files, filter]}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folders = [tmp_path_factory.mktemp(name) for name in ("inside", "outside", "own")]
    (folders[0] / "a.txt").write_text("a")
    (folders[1] / "b.txt").write_text("b")
    (folders[0] / "link").symlink_to(folders[1] / "b.txt")
    command = [sys.executable, "-c", DEEDS, *map(str, folders)]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, start_new_session=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


@linux
@landlocked
def test_it_reaches_no_file_but_its_own_and_no_memory_of_others(told: dict[str, dict[str, str]]) -> None:
    assert {name for name, end in told["files"].items() if end not in ("PermissionError", "OSError")} == set()


@linux
def test_it_calls_neither_network_nor_programs_nor_other_processes(told: dict[str, dict[str, str]]) -> None:
    assert {name for name, end in told["calls"].items() if end != "PermissionError"} == set()


@linux
def test_what_a_reader_needs_goes_on(told: dict[str, dict[str, str]]) -> None:
    assert set(told["usual"].values()) == {"done"}, told["usual"]


@landlocked
def test_a_trainer_reads_no_environment_but_its_own_and_writes_where_it_likes(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from fgd.process.landlock import keep_apart
assert keep_apart()
for name in ("environ", "mem"):
    try:
        open(f"/proc/{os.getppid()}/{name}", "rb").read(1)
        print("read")
    except PermissionError:
        print("refused")
(Path(sys.argv[1]) / "a").write_text("x")
(Path(sys.argv[1]) / "deep").mkdir()
os.rename(f"{sys.argv[1]}/a", f"{sys.argv[1]}/deep/a")
print(os.waitpid(os.posix_spawn(sys.executable, ["python", "-c", "pass"], {}), 0)[1])
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["refused", "refused", "0"], done.stderr


# --- what was checked, and what is there --------------------------------------------------------------------------


def imported(source: Path, out: Path, root: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "worker.importer", str(source), str(out), "--below", str(root)]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60)
    error = out / "error.txt"
    return done.returncode, error.read_text() if error.exists() else ""


def test_a_folder_that_became_a_link_is_refused(tmp_path: Path) -> None:
    root = tmp_path.resolve() / "root"
    coco(root / "set", [[1, 1, 20, 20]])
    assert imported(root / "set", tmp_path / "before", root) == (0, "")
    (root / "set").rename(tmp_path / "elsewhere")
    (root / "set").symlink_to(tmp_path / "elsewhere")
    code, error = imported(root / "set", tmp_path / "after", root)
    assert code == NOTHING_THERE
    assert "exchanged after it was checked (set is a link now)" in error
    assert not (tmp_path / "after/archive.tar").exists()


@pytest.mark.parametrize("middle", ["a", "a/b"])
def test_a_link_anywhere_on_the_way_is_refused(tmp_path: Path, middle: str) -> None:
    root = tmp_path.resolve()
    (root / "a/b/set").mkdir(parents=True)
    (root / middle).rename(root / "moved")
    (root / middle).symlink_to(root / "moved")
    with pytest.raises(DatasetError, match="is a link now"):
        open_below(root / "a/b/set", [root])


def test_a_folder_outside_the_roots_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "set", tmp_path / "root/../set"):
        with pytest.raises(DatasetError, match="not below a folder that this worker's FGD_DATA_ROOTS"):
            open_below(path, [tmp_path / "root"])


def test_a_folder_that_is_another_one_at_the_end_is_refused(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    (root / "set").mkdir()
    opened = open_below(root / "set", [root])
    opened.check()
    (root / "set").rename(root / "old")
    (root / "set").mkdir()
    with pytest.raises(DatasetError, match="it is another one now"):
        opened.check()
    os.close(opened.descriptor)


@landlocked
def test_a_link_made_while_it_is_read_leads_nowhere(tmp_path: Path) -> None:
    """Between the look at a name and its opening; here it is a link from the beginning, to see what opening does."""
    root = tmp_path.resolve() / "root"
    coco(root / "set", [[1, 1, 20, 20]])
    (tmp_path / "secret.png").write_bytes((root / "set/train/a.png").read_bytes())
    (root / "set/train/a.png").unlink()
    (root / "set/train/a.png").symlink_to(tmp_path / "secret.png")
    script = (
        "from fgd.data.tree import Tree; Tree.path = lambda tree, file: tree.root / file; "
        "from worker import importer; exit(importer.main())"
    )
    command = [sys.executable, "-c", script, str(root / "set"), str(tmp_path / "out"), "--below", str(root)]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60)
    assert "secret" not in done.stdout
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert not report["ok"]
    assert any("a.png" in defect["file"] for defect in report["defects"])
