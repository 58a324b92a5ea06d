"""`fgd serve`, `backup`, `restore` and `doctor` as a person types them: each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from api.core.rows import db
from api.core.settings import Settings
from fgd.process import children


def typed(*arguments: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fgd.cli", *arguments]
    return subprocess.run(command, env=variables(home, more), capture_output=True, text=True, timeout=120, check=False)


def variables(home: Path, more: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FGD_")}
    return kept | {"FGD_HOME": str(home), "PYTHONPATH": children.python_path(), "NO_COLOR": "1"} | more


def test_a_wrong_setting_is_named_by_its_variable(tmp_path: Path) -> None:
    done = typed("serve", home=tmp_path, FGD_PORT="99999999")
    assert done.returncode == 2
    assert done.stderr.startswith("error: a setting is wrong\nFGD_PORT: ")
    assert len(done.stderr.splitlines()) == 2, "what follows from it is not named as well"
    assert done.stdout == ""


def test_a_wrong_setting_of_a_worker_is_named_without_a_traceback(tmp_path: Path) -> None:
    done = typed("worker", home=tmp_path, FGD_SLOTS="many")
    assert done.returncode == 2
    assert done.stderr.startswith("fgd worker: a setting is wrong\nFGD_SLOTS: ")
    assert "Traceback" not in done.stderr


def test_an_open_door_is_refused(tmp_path: Path) -> None:
    done = typed("serve", "--host", "0.0.0.0", home=tmp_path)
    assert done.returncode == 2
    assert "FGD_API_KEY" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_service_is_backed_up_compared_and_restored(tmp_path: Path) -> None:
    here, there, folder = tmp_path / "here", tmp_path / "there", tmp_path / "backup"
    here.mkdir()
    there.mkdir()
    db.upgrade(Settings(home=here).database_url)

    made = typed("backup", str(folder), home=here)
    assert (made.returncode, made.stderr) == (0, "copying 0 blobs\n")
    assert made.stdout.startswith(f"{folder}  ")
    assert {path.stat().st_mode & 0o077 for path in (folder, *folder.rglob("*"))} == {0}
    restored = typed("restore", str(folder), "--home", str(there), home=here)
    assert restored.returncode == 0, restored.stderr
    assert "putting 0 blobs" in restored.stderr
    agrees = typed("doctor", home=there)
    assert (agrees.returncode, agrees.stdout, agrees.stderr) == (0, "database and store agree\n", "")


def test_what_cannot_be_done_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    done = typed("backup", str(tmp_path), home=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path} is not empty; name a new folder\n"


@pytest.mark.parametrize("hours", ["0.5", "nan", "soon"])
def test_the_doctor_leaves_young_files_alone_whoever_calls_it(tmp_path: Path, hours: str) -> None:
    command = children.command("deploy", "doctor", "--delete", f"--older-than-h={hours}")
    done = subprocess.run(command, env=variables(tmp_path, {}), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--older-than-h" in done.stderr
