"""Names of zips that do not say their encoding are read as the annotations and their letters say."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from fgd.data import zips
from fgd.data.index import Index
from fgd.data.report import Defects
from worker.importer import unpacked


def make(path: Path, names: list[bytes], texts: dict[str, bytes] | None = None, extra: bytes = b"") -> Path:
    """A zip with these bytes for names, and no flag that says what they are."""
    places = [f"{number:03d}".ljust(len(name), "_") for number, name in enumerate(names)]
    with zipfile.ZipFile(path, "w") as archive:
        for place in places:
            member = zipfile.ZipInfo(place)
            member.extra = extra
            archive.writestr(member, b"x")
        for name, content in (texts or {}).items():
            archive.writestr(name, content)
    data = path.read_bytes()
    for place, name in zip(places, names, strict=True):
        data = data.replace(place.encode(), name)
    path.write_bytes(data)
    return path


def read(path: Path) -> tuple[set[str], zips.UnpackedZip]:
    target = path.parent / "out"
    found = zips.unpack(path, target)
    return {file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file()}, found


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("图片", "gbk"),
        ("誠", "gbk"),  # its second byte is a backslash
        ("写真", "cp932"),
        ("表ソ", "cp932"),  # both end in a backslash
        ("圖片", "cp950"),
        ("한글", "cp949"),
        ("фото", "cp866"),
        ("фото", "cp1251"),
        ("фото", "koi8-r"),
        ("été", "cp437"),
        ("été", "cp1252"),
        ("zdjęcie", "cp1250"),
        ("εικόνα", "cp1253"),
        ("été", "utf-8"),
        ("e\u0301te\u0301", "utf-8"),
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_the_encoding_is_the_one_of_which_the_annotations_speak(
    name: str, encoding: str, ascii_only: bool, tmp_path: Path
) -> None:
    raw = [f"train/{name}{number}.jpg".encode(encoding) for number in range(3)]
    spoken = json.dumps({"images": [{"file_name": f"{name}{n}.jpg"} for n in range(3)]}, ensure_ascii=ascii_only)
    files, found = read(make(tmp_path / "a.zip", raw, {"a.json": spoken.encode()}))
    assert files == {"a.json", *(f"train/{name}{number}.jpg" for number in range(3))}
    assert found.names.backslashes == 0
    assert found.names.encoding is not None


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("图片", "gbk"), ("写真アルバム", "cp932"), ("фотография", "cp866"), ("фотография", "cp1251"), ("été", "utf-8")],
)
def test_without_a_word_of_them_it_is_the_likeliest(name: str, encoding: str, tmp_path: Path) -> None:
    files, found = read(make(tmp_path / "a.zip", [f"{name}.jpg".encode(encoding)], {"a.json": b"{}"}))
    assert f"{name}.jpg" in files
    assert found.names.encoding == encoding


def test_annotations_may_be_in_the_encoding_they_declare(tmp_path: Path) -> None:
    xml = '<?xml version="1.0" encoding="cp1251"?><annotation><filename>щука.jpg</filename></annotation>'
    files, _ = read(make(tmp_path / "a.zip", ["щука.jpg".encode("cp1251")], {"a.xml": xml.encode("cp1251")}))
    assert "щука.jpg" in files


def test_a_name_that_is_valid_by_chance_gives_way_to_what_the_annotations_say(tmp_path: Path) -> None:
    raw = "模.jpg".encode("gbk")
    assert raw.decode() != "模.jpg"
    files, _ = read(make(tmp_path / "a.zip", [raw], {"train.txt": "./模.jpg\n".encode()}))
    assert "模.jpg" in files


@pytest.mark.parametrize("right", [True, False])
def test_the_field_of_unicode_names_counts_if_its_checksum_fits(right: bool, tmp_path: Path) -> None:
    raw = "photoé.jpg".encode("cp1252")
    field = struct.pack("<BL", 1, zlib.crc32(raw) if right else 7) + "photo-\u03a9.jpg".encode()
    files, _ = read(make(tmp_path / "a.zip", [raw], {}, struct.pack("<HH", 0x7075, len(field)) + field))
    assert files == {"photo-\u03a9.jpg" if right else "photoé.jpg"}


def test_backslashes_are_folders_and_the_report_says_so(tmp_path: Path) -> None:
    made = make(tmp_path / "a.zip", [b"set\\train\\", b"set\\train\\a.jpg", b"set\\b.json"])
    with zipfile.ZipFile(made) as archive:
        assert "set\\b.json" in archive.namelist()
    made = make(tmp_path / "b.zip", [b"set\\train\\a.jpg", b"./set\\b.json"])
    defects = Defects()
    unpacked(made, tmp_path / "out", defects)
    assert (tmp_path / "out/set/train/a.jpg").is_file()
    assert (tmp_path / "out/set/b.json").is_file()
    assert defects.report("yolo", Index(classes=(), splits={})).defect_counts == {"zip_backslashes": 1}


def test_text_that_is_no_text_is_passed_over(tmp_path: Path) -> None:
    texts = {"a.xml": b'<?xml version="1.0" encoding="nonesuch"?>\xff', "b.json": b"\xff\xfe", "c.txt": b'\\ud800 "'}
    files, _ = read(make(tmp_path / "a.zip", ["é.jpg".encode("cp437")], texts))
    assert "é.jpg" in files
