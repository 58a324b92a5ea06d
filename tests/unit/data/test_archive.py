"""A data set survives packing, and a bad archive leaves nothing behind."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from fgd.data import archive, coco
from fgd.data.formats import open_index
from fgd.errors import DatasetError

NAME = f"images/ab/{'ab' * 32}.png"


@pytest.fixture
def packed(coco_folder: Path, tmp_path: Path) -> Path:
    index, _, sources = coco.read(coco_folder)
    archive.pack(index, sources, tmp_path / "set.tar")
    return tmp_path / "set.tar"


@pytest.fixture
def coco_folder(coco: Any) -> Path:
    coco.add_image("val", "same-as-c.png")
    shutil.copy(coco.image_path("val", "c.png"), coco.image_path("val", "same-as-c.png"))
    folder: Path = coco.write()
    return folder


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def refuses(tar: Path, folder: Path, message: str) -> None:
    before = set(folder.parent.rglob("*"))
    with pytest.raises(DatasetError, match=message):
        archive.unpack(tar, folder)
    assert set(folder.parent.rglob("*")) == before, "nothing is left behind"


def test_round_trip_gives_the_same_index_and_bytes(packed: Path, coco_folder: Path, tmp_path: Path) -> None:
    index, _, sources = coco.read(coco_folder)
    unpacked, root = open_index(archive.unpack(packed, tmp_path / "out"))
    assert unpacked == index
    for file, source in sources.items():
        assert (root / file).read_bytes() == source.read_bytes()
    assert len(list((root / "images").rglob("*.png"))) == 3, "equal images are stored once"


def test_archive_does_not_depend_on_where_and_when_the_images_lie(packed: Path, coco_folder: Path) -> None:
    elsewhere = coco_folder.parent / "elsewhere"
    shutil.copytree(coco_folder, elsewhere)
    for file in elsewhere.rglob("*.png"):
        os.utime(file, (1, 1))
        file.chmod(0o600)
    index, _, sources = coco.read(elsewhere)
    archive.pack(index, sources, coco_folder.parent / "again.tar")
    assert (coco_folder.parent / "again.tar").read_bytes() == packed.read_bytes()


def test_packing_a_file_that_changed_since_it_was_read_is_refused(coco_folder: Path, tmp_path: Path) -> None:
    index, _, sources = coco.read(coco_folder)
    (coco_folder / "train2017/a.png").write_bytes(b"other")
    with pytest.raises(DatasetError, match="changed"):
        archive.pack(index, sources, tmp_path / "set.tar")
    (coco_folder / "train2017/a.png").unlink()
    with pytest.raises(DatasetError, match="can no longer be read"):
        archive.pack(index, sources, tmp_path / "set.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["coco"]


def test_unpacking_again_changes_nothing(packed: Path, tmp_path: Path) -> None:
    folder = archive.unpack(packed, tmp_path / "out")
    (folder / "mark").touch()
    assert archive.unpack(packed, folder) == folder
    assert (folder / "mark").exists()


def test_two_may_unpack_at_once(packed: Path, tmp_path: Path) -> None:
    threads = [threading.Thread(target=archive.unpack, args=(packed, tmp_path / "out")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    open_index(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "out", "set.tar"]


@pytest.mark.parametrize(
    "bad",
    [
        member("../evil"),
        member("/etc/evil"),
        member("evil.sh"),
        member("images/ab/../../evil.png"),
        member(f"images/cd/{'ab' * 32}.png"),
        member(f"images/ab/{'ab' * 32}.py"),
        member(f"{NAME}\n"),
        member(NAME, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member(NAME, type=tarfile.LNKTYPE, linkname="index.json"),
        member(NAME, type=tarfile.DIRTYPE),
        member(NAME, type=tarfile.CHRTYPE),
        member(NAME, type=tarfile.FIFOTYPE),
        member(NAME, pax_headers={"comment": "hello"}),
        member("index.json", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    ],
)
def test_member_that_pack_would_not_write_is_refused(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    tar = tar_of(tmp_path / "bad.tar", (member("index.json"), b"{}"), (bad, b""))
    refuses(tar, tmp_path / "out", "not part of a data set")


def test_content_that_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "bad.tar", (member("index.json"), b"{}"), (member(NAME), b"other"))
    refuses(tar, tmp_path / "out", "does not match its name")


def test_member_twice_is_refused(tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "bad.tar", (member("index.json"), b"{}"), (member("index.json"), b"{}"))
    refuses(tar, tmp_path / "out", "twice")


def test_archive_without_an_index_is_refused(tmp_path: Path) -> None:
    refuses(tar_of(tmp_path / "bad.tar"), tmp_path / "out", "contains no index.json")


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x1f\x8b\x08"])
def test_nonsense_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.tar").write_bytes(content)
    refuses(tmp_path / "bad.tar", tmp_path / "out", "not an archive of a data set")


def test_absent_archive_is_refused(tmp_path: Path) -> None:
    refuses(tmp_path / "absent.tar", tmp_path / "out", "cannot be unpacked")


def test_truncated_archive_is_refused(packed: Path, tmp_path: Path) -> None:
    packed.write_bytes(packed.read_bytes()[:4000])
    refuses(packed, tmp_path / "out", r"bad\.tar|set\.tar")


def test_member_larger_than_allowed_is_refused(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILE_BYTES", 10)
    refuses(packed, tmp_path / "out", "claims")


def test_archive_that_does_not_fit_on_the_disk_is_refused(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _: usage(100, 0, 100))
    refuses(packed, tmp_path / "out", "do not fit")


def test_folder_with_something_else_in_it_is_left_alone(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    refuses(packed, tmp_path / "out", "cannot be unpacked")
