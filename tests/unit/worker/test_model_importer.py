"""The child that opens strangers' weights, as the process that it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fgd
from worker.importer import NOTHING_THERE

ROOT = Path(fgd.__path__[0]).parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")


def python(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_confined_process_opens_no_socket_and_runs_no_program_but_works(tmp_path: Path) -> None:
    script = """
import os, socket, subprocess, sys, threading
from worker.confinement import confine_process
assert confine_process()
for deed in (socket.socket, socket.socketpair, lambda: subprocess.run(["/bin/sh", "-c", f"touch {sys.argv[1]}"])):
    try:
        deed()
    except PermissionError:
        print("refused")
os.system(f"touch {sys.argv[1]}")
thread = threading.Thread(target=lambda: print("works"))
thread.start(); thread.join()
"""
    canary = tmp_path / "canary"
    assert python(script, str(canary)).split() == ["refused", "refused", "refused", "works"]
    assert not canary.exists()


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def test_a_bomb_is_refused_in_words_and_a_good_file_is_converted(tmp_path: Path) -> None:
    import torch

    from fgd.detector_specs import FCOS
    from fgd.detectors import build
    from fgd.recipe import Recipe

    recipe = Recipe(
        detector=FCOS(backbone="mobilenet_v3_small", fpn_channels=64), classes=("a",), min_size=64, max_size=64
    )
    (tmp_path / "wanted.json").write_text(recipe.model_dump_json())
    canary = tmp_path / "canary"
    torch.save({"model": Bomb(canary)}, tmp_path / "bomb.pth")
    torch.save(build(recipe).module.state_dict(), tmp_path / "good.pth")
    codes = []
    for name in ("bomb", "good"):
        out = tmp_path / name
        out.mkdir()
        command = [
            sys.executable,
            "-m",
            "worker.model_importer",
            f"{out}.pth",
            str(tmp_path / "wanted.json"),
            str(out),
        ]
        done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
        codes.append(done.returncode)

    assert codes == [NOTHING_THERE, 0], done.stderr
    assert "could run code" in (tmp_path / "bomb" / "error.txt").read_text()
    assert not canary.exists()
    assert sorted(path.name for path in (tmp_path / "good").iterdir() if path.is_file()) == [
        "recipe.json", "report.json", "student.safetensors",
    ]  # fmt: skip
