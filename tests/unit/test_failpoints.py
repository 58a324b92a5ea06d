"""Failpoints: off unless a test says twice that it is one; then they kill the process that reaches them, once."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fgd
from fgd.process.failpoints import PLACES, POINTS, TEST

ROOT = Path(fgd.__path__[0]).parent
PROGRAM = "from fgd.process.failpoints import reach; print('a'); reach('after_claim'); reach('after_claim'); print('b')"


def run(**told: str) -> subprocess.CompletedProcess[str]:
    env = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | told
    return subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=False)


def test_nothing_happens_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert run(**{TEST: str(tmp_path)}).stdout == "a\nb\n"
    assert not list(tmp_path.iterdir())


def test_it_is_refused_outside_a_test() -> None:
    done = run(**{PLACES: "after_claim=kill"})
    assert done.returncode == 1
    assert done.stdout == ""
    assert "is only for tests" in done.stderr


@pytest.mark.parametrize("places", ["nowhere=kill", "after_claim=explode", "after_claim=kill@x"])
def test_a_place_that_does_not_exist_is_refused(places: str, tmp_path: Path) -> None:
    assert "is not PLACE=kill" in run(**{PLACES: places, TEST: str(tmp_path)}).stderr


@pytest.mark.parametrize("places", ["after_claim=kill", "after_claim=kill@2"])
def test_it_kills_once(places: str, tmp_path: Path) -> None:
    told = {PLACES: places, TEST: str(tmp_path)}
    assert run(**told).returncode == -signal.SIGKILL
    assert run(**told).stdout == "a\nb\n"


def test_every_place_is_in_the_code_and_no_other() -> None:
    files = [file for folder in ("api", "worker", "fgd") for file in (ROOT / folder).rglob("*.py")]
    named = {
        name
        for file in files
        for call in re.findall(r"\breach\((\".*)\)", file.read_text())
        for name in re.findall(r'"(\w+)"', call)
        if name not in ("queued",)
    }
    assert named == POINTS
