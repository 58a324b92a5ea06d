"""What the service writes is its own user's."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from fgd.process.private import keep_private, private_folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_folder_and_an_open_one_are_closed(tmp_path: Path) -> None:
    assert mode(private_folder(tmp_path / "a" / "home")) == 0o700
    (tmp_path / "old").mkdir()
    (tmp_path / "old").chmod(0o755)
    assert mode(private_folder(tmp_path / "old")) == 0o700


def test_a_folder_of_everybody_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    assert mode(private_folder(tmp_path / "tmp")) == 0o1777


def test_what_is_written_afterwards_is_private(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        keep_private()
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").touch()
        subprocess.run([sys.executable, "-c", "open('of a child', 'w')"], cwd=tmp_path, check=True)
    finally:
        os.umask(before)
    assert (mode(tmp_path / "folder"), mode(tmp_path / "file"), mode(tmp_path / "of a child")) == (0o700, 0o600, 0o600)
