"""A zip of a stranger is unpacked whole and bounded, or not at all (attack A4)."""

from __future__ import annotations

import io
import os
import random
import stat
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fgd.data import zips
from fgd.errors import DatasetError


def refused(path: Path, words: str) -> None:
    """It says why, leaves nothing, and takes no time."""
    target = path.parent / "out"
    before = sorted(path.parent.iterdir())
    began = time.process_time()
    with pytest.raises(DatasetError, match=words):
        zips.unpack(path, target)
    assert time.process_time() - began < 10
    assert sorted(path.parent.iterdir()) == before


def make(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def info(name: str, **attributes: Any) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "set.zip"


def test_folders_and_files_come_out_as_they_were(path: Path) -> None:
    content = random.Random(0).randbytes(3 << 20)
    make(path, ("set/", b""), ("set/images/a.JPG", content), ("set/data.yaml", b"names: [a]"), ("b.txt", b""))
    assert zips.unpack(path, path.parent / "out").files == 3
    assert (path.parent / "out/set/images/a.JPG").read_bytes() == content
    assert (path.parent / "out/b.txt").read_bytes() == b""


def test_many_small_bombs_are_one_bomb(path: Path) -> None:
    refused(make(path, *((f"{n}.txt", bytes(2**20)) for n in range(17))), "more than 200 times its size")


def test_a_few_images_of_one_colour_are_none(path: Path) -> None:
    make(path, *((f"{n}.bmp", bytes(2**20)) for n in range(15)))
    assert zips.unpack(path, path.parent / "out").files == 15


def test_members_that_are_no_data_are_left_and_told(path: Path) -> None:
    names = [
        "LICENSE",
        "run.sh",
        "inner.zip",
        ".hidden.json",
        "__MACOSX/._a.jpg",
        "a/.git/config.json",
        "x.svg",
        "y.py",
    ]
    make(path, ("a.json", b"{}"), *((name, b"x") for name in names))
    unpacked = zips.unpack(path, path.parent / "out")
    assert set(unpacked.skipped) == set(names)
    assert os.listdir(path.parent / "out") == ["a.json"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../evil.txt", r"\.\."),
        ("a/../../evil.txt", r"\.\."),
        ("/etc/evil.txt", "absolute"),
        ("C:/evil.txt", "absolute"),
        ("c:evil.txt", "absolute"),
        ("a\\..\\evil.txt", r"\.\."),
        ("..\\evil.txt", r"\.\."),
        ("\\evil.txt", "absolute"),
        ("C:\\evil.txt", "absolute"),
        ("\\\\host\\share\\evil.txt", "absolute"),
        (".//evil.txt", "absolute"),
        ("a\nb.txt", "control"),
        ("a\x7f.txt", "control"),
        ("a/./b.txt", "empty part"),
        ("a//b.txt", "empty part"),
        ("a./b.txt", "dot or a space"),
        ("b.txt ", "dot or a space"),
        ("x" * 252 + ".txt", "longer"),
        ("é" * 127 + ".txt", "longer"),
        ("/".join(["abcdefgh"] * 130) + ".txt", "longer"),
    ],
)
def test_names_that_lead_out_or_are_read_differently_elsewhere(path: Path, name: str, words: str) -> None:
    make(path, ("good.json", b"{}"), (name, b"x"))
    refused(path, words)
    assert not (path.parent.parent / "evil.txt").exists()


def test_name_with_a_nul_that_hides_its_end(path: Path) -> None:
    make(path, ("aXb.txt", b"x"))
    path.write_bytes(path.read_bytes().replace(b"aXb.txt", b"a\0b.txt"))
    refused(path, "control")


@pytest.mark.parametrize(
    "names",
    [
        ("a/b.txt", "a/b.txt"),
        ("A.txt", "a.txt"),
        ("stra\u00dfe.txt", "STRASSE.txt"),
        ("\u00e9.txt", "e\u0301.txt"),
        ("a/b.txt", "A/c.txt"),
        ("a.txt", "a.txt/b.txt"),
        ("a.txt/b.txt", "A.TXT"),
        ("a\\b.txt", "a/b.txt"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_names_that_are_one_somewhere(path: Path, names: tuple[str, str]) -> None:
    make(path, *((name, b"x") for name in names))
    refused(path, "same name|file and a folder")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices(path: Path, kind: int) -> None:
    make(path, ("good.json", b"{}"), (info("a.txt", external_attr=(kind | 0o777) << 16), b"/etc/passwd"))
    refused(path, "link or a device")


def patched(path: Path, at: Callable[[bytes], int], form: str, value: int) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, at(bytes(data)), value)
    path.write_bytes(data)


def central(offset: int) -> Callable[[bytes], int]:
    return lambda data: data.index(b"PK\x01\x02") + offset


def test_encrypted_members(path: Path) -> None:
    make(path, ("a.txt", b"x"))
    patched(path, central(8), "<H", 1)
    refused(path, "encrypted")


def test_other_methods_of_compression(path: Path) -> None:
    refused(make(path, ("a.txt", b"x" * 999), method=zipfile.ZIP_BZIP2), "another method")


def test_a_bomb_that_unpacks_to_more_than_it_could_honestly(path: Path) -> None:
    refused(make(path, ("a.txt", bytes(2 << 20))), "200 times")


def test_a_large_member_and_a_large_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = random.Random(0).randbytes(1000)
    make(path, *((f"{n}.txt", noise) for n in range(5)))
    monkeypatch.setattr(zips, "MAX_TOTAL_BYTES", 4999)
    refused(path, "more than 4999")
    monkeypatch.setattr(zips, "MAX_FILE_BYTES", 999)
    refused(path, "more than 999")


@pytest.mark.parametrize("size", [1, 999])
def test_a_size_that_lies(path: Path, size: int) -> None:
    make(path, ("a.txt", b"x" * 100), method=zipfile.ZIP_STORED)
    patched(path, central(24), "<L", size)
    refused(path, "damaged|claims")


def test_a_member_whose_bytes_are_not_those_of_its_checksum(path: Path) -> None:
    make(path, ("a.txt", b"x" * 100), method=zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"x" * 100, b"y" * 100))
    refused(path, "damaged")


def test_members_that_share_their_bytes(path: Path) -> None:
    """As 42.zip's younger relatives do: many directory entries, one kernel."""
    make(path, ("a.txt", random.Random(0).randbytes(5000)))
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entries = b"".join(data[start:end].replace(b"a.txt", b"%c.txt" % letter) for letter in range(97, 123))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 26, 26, len(entries), start, 0)
    path.write_bytes(data[:start] + entries + tail)
    refused(path, "overlaps")


def test_more_members_than_it_may_have_even_if_it_says_otherwise(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "MAX_MEMBERS", 9)
    make(path, *((f"{n}.txt", b"x") for n in range(10)))
    refused(path, "10 members, more than 9")
    patched(path, lambda data: data.index(b"PK\x05\x06") + 10, "<H", 1)
    refused(path, "though it claims 1")


@pytest.mark.parametrize("deep", [False, True])
def test_folders_in_names_count_as_members(path: Path, monkeypatch: pytest.MonkeyPatch, deep: bool) -> None:
    monkeypatch.setattr(zips, "MAX_MEMBERS", 60)
    folder = "{n}/" + "a/" * 20 if deep else "{n}/" + "x" * 100 + "/"
    make(path, *((folder.format(n=n) + "b.txt", b"") for n in range(10)))
    if deep:
        refused(path, "folders, which with its members are more than 60")
    else:  # 10 files, 20 folders
        assert zips.unpack(path, path.parent / "out").files == 10


def test_folders_that_names_share_are_counted_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "MAX_MEMBERS", 60)
    make(path, *((f"{'a/' * 20}{n}.txt", b"") for n in range(40)))
    assert zips.unpack(path, path.parent / "out").files == 40


def test_a_name_of_a_hundred_folders(path: Path) -> None:
    refused(make(path, ("a/" * 100 + "b.txt", b"")), "is 100 folders deep")


def test_ten_million_members_are_not_even_looked_at(path: Path) -> None:
    make(path, ("a.txt", b"x"))
    data = path.read_bytes()
    end = len(data) - 22
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**7, 10**7, 46 * 10**7, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(data[:end] + end64 + locator + tail)
    refused(path, "10000000 members")


@pytest.mark.parametrize("place", [0, 10**6, 2**63])
def test_zip64_that_points_nowhere(path: Path, place: int) -> None:
    make(path, ("a.txt", b"x"))
    data = path.read_bytes()
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, place, 1)
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(data[: len(data) - 22] + locator + tail)
    refused(path, "damaged")


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip at all" * 99, b"PK\x05\x06" + bytes(18)[:10]])
def test_what_is_no_zip(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(path, "not a zip")


def test_a_torn_zip(path: Path) -> None:
    make(path, *((f"{n}.txt", random.Random(n).randbytes(500)) for n in range(9)))
    path.write_bytes(path.read_bytes()[:-700])
    refused(path, "not a zip")


def test_random_damage_never_raises_anything_else(path: Path) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(4):
            archive.writestr(f"f/{n}.txt", b"some text " * 30)
    good, dice = made.getvalue(), random.Random(1)
    outcomes = set()
    for n in range(400):
        data = bytearray(good)
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(data)
        try:
            zips.unpack(path, path.parent / f"out{n}")
            outcomes.add("unpacked")
        except DatasetError:
            outcomes.add("refused")
            assert not (path.parent / f"out{n}").exists()
    assert outcomes == {"unpacked", "refused"}


def test_a_packed_folder_unpacks_to_what_a_data_set_needs_and_is_the_same_each_time(tmp_path: Path) -> None:
    root, outside = tmp_path / "set", tmp_path / "outside"
    for folder in (root / "images", root / ".git", outside):
        folder.mkdir(parents=True)
    for name in ("images/a.jpg", "data.yaml", "LICENSE", ".git/x.json", "../outside/secret.jpg"):
        (root / name).write_bytes(name.encode() * 9)
    (root / "linked").symlink_to(outside)
    (root / "secret.jpg").symlink_to(outside / "secret.jpg")
    assert zips.pack(root, tmp_path / "a.zip") == zips.pack(root, tmp_path / "b.zip") == 2
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert zips.unpack(tmp_path / "a.zip", tmp_path / "out").files == 2
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")) == [
        "data.yaml",
        "images/a.jpg",
    ]
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="nothing to upload"):
        zips.pack(empty, tmp_path / "c.zip")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"\x1f\x8b\x08" + bytes(99), "packed by gzip; send a zip of its files"),
        (b"Rar!\x1a\x07" + bytes(99), "a RAR archive"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(99), "an archive of 7-Zip"),
        (bytes(257) + b"ustar" + bytes(250), "it is a tar"),
        (b"<html>", "its end is missing"),
    ],
)
def test_another_archive_is_called_what_it_is(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(DatasetError, match="the upload is not a zip") as refused:
        zips.unpack(tmp_path / "set.zip", tmp_path / "out")
    assert words in str(refused.value)
