"""What of a folder is sent is what a data set needs; of the rest each kind is named, with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fgd.data.zip_choice import choose


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    files = ["images/a.jpg", "images/b.JFIF", "data.yaml", "README.md", "at 4\u202fPM.png"]
    files += ["images/c.heic", "images/d.HEIC", "inner.zip", "more.tar.gz", "LICENSE", "run.py", "film.mp4"]
    for name in (*files, ".git/x.json", ".hidden.jpg", "__MACOSX/a.jpg", "bad\nname.jpg", "deep/e.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/z.jpg").write_bytes(b"x")
    (root / "images/link.jpg").symlink_to(tmp_path / "outside/z.jpg")
    (root / "linked").symlink_to(tmp_path / "outside")
    (root / "dangling.jpg").symlink_to(tmp_path / "none.jpg")
    os.mkfifo(root / "pipe.jpg")
    return root


def test_what_is_sent(folder: Path) -> None:
    assert choose(folder).files == [
        "README.md",
        "at 4\u202fPM.png",
        "data.yaml",
        "deep/e.jpg",
        "images/a.jpg",
        "images/b.JFIF",
    ]


@pytest.mark.parametrize(
    "told",
    [
        "not sent: 2 pictures of an iPhone in HEIC, which is not read; convert them to JPEG (heif-convert, sips): "
        "images/c.heic, ...",
        "not sent: 1 videos, which are not read; write their frames as JPEG: film.mp4",
        "not sent: 2 archives, which are not unpacked; unpack them into the folder: inner.zip, ...",
        "not sent: 3 links, which are not followed; copy the files they lead to (cp -rL): dangling.jpg, ...",
        "not sent: 2 files of kinds that no data set needs: LICENSE, ...",
        "not sent: 3 hidden files and folders: .git, ...",
        "not sent: 1 pipes, devices and the like: pipe.jpg",
        "not sent: 1 files or folders whose names are not text, have control characters or are too long; rename them: "
        "bad\nname.jpg",
    ],
)
def test_what_is_not_sent_and_why(folder: Path, told: str) -> None:
    assert told in map(str, choose(folder).left_out)


def test_links_into_the_cache_are_sent(folder: Path, tmp_path: Path) -> None:
    chosen = choose(folder, tmp_path / "outside")
    assert "images/link.jpg" in chosen.files
    assert not [name for name in chosen.files if name.startswith("linked")]
    assert [each.count for each in chosen.left_out if "links" in each.why] == [2]
