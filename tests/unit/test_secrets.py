"""A secret that was read is gone from where others of the same user could look."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fgd

ROOT = Path(fgd.__path__[0]).parent
KEY = "a-key-that-nobody-is-to-see-0123456789"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel shows environments in /proc")


def run(script: str, **more: str) -> str:
    told = {"PYTHONPATH": str(ROOT)} | more
    done = subprocess.run([sys.executable, "-c", script], env=told, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_secrets_are_overwritten_where_the_kernel_shows_them() -> None:
    script = """
import os
from pathlib import Path
from fgd.process import secrets
before = Path("/proc/self/environ").read_bytes()
for name in secrets.SECRETS:
    secrets._overwrite(name)
print(before.count(b"a-key"), Path("/proc/self/environ").read_bytes().count(b"a-key"))
print(Path("/proc/self/environ").read_bytes().count(b"kept"))
"""
    told = {
        "FGD_API_KEY": KEY,
        "FGD_STORE_SECRET": KEY,
        "FGD_DATABASE_URL": f"postgresql://u:{KEY}@h/d",
        "FGD_HOME": "kept",
    }
    assert run(script, **told).split() == ["3", "0", "1"]


def test_neither_the_process_nor_its_children_know_them_any_more() -> None:
    script = """
import ctypes, os, subprocess
from fgd.process.secrets import hide_secrets
hide_secrets()
hide_secrets()
print("FGD_API_KEY" in os.environ, ctypes.CDLL(None).prctl(3))  # PR_GET_DUMPABLE
print(subprocess.run(["env"], capture_output=True, text=True).stdout)
"""
    first, rest = run(script, FGD_API_KEY=KEY, PATH=os.environ["PATH"]).split("\n", 1)
    assert first == "False 0"
    assert KEY not in rest
    assert "PATH=" in rest
