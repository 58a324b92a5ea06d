"""Unpacks a zip that a stranger made, by our own loop: bounded, and only what a data set consists of. Knows no torch.

The whole directory is looked through before a byte is written. Refused are names that lead out or that two systems
would read differently, links and devices, encryption, other methods than store and deflate, sizes and ratios beyond
the bounds, and members that overlap (one small piece of data read a million times). What members claim is not
trusted: their bytes are counted, and their checksum compared, as they are written.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fgd.data.archive import MAX_TOTAL_BYTES
from fgd.data.format_list import is_wanted
from fgd.data.tree import IMAGE_SUFFIXES, folder_of, short
from fgd.data.zip_choice import choose
from fgd.data.zip_names import MemberNames, read_names
from fgd.errors import DatasetError

# What a zip may claim before any of it is unpacked: far more than an honest data set, far less than a disk.
MAX_MEMBERS = 200_000
"""Files, and the folders that their names make: each takes an inode, however little it holds."""
MAX_PARTS = 64
"""Of one name: far deeper than any data set."""
MAX_FILE_BYTES = 512 * 2**20
MAX_PARQUET_BYTES = 8 * 2**30
"""Of a Parquet file, which is never read whole, and holds many images."""
MAX_RATIO = 200
"""Of a member that unpacks to more than `_RATIO_FROM`: deflate reaches 1000, photographs and annotations do not."""
_RATIO_FROM = 2**20
_TOTAL_RATIO_FROM = 16 * 2**20
"""The same of all members together: many small ones unpack to as much as a few large ones."""
MAX_DIRECTORY_BYTES = 128 * 2**20
_SPARE = 1.2
"""Free space asked for, as a multiple of what is to be written."""
_CHUNK = 2**20
_PACKED = IMAGE_SUFFIXES - {".bmp", ".ppm", ".tif", ".tiff"} | {".parquet"}
"""Compressed already."""
_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 1024
_DRIVE = re.compile(r"[A-Za-z]:")
_KINDS = {
    b"\x1f\x8b": "packed by gzip",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"7z\xbc\xaf": "an archive of 7-Zip",
    b"Rar!": "a RAR archive",
}
"""First bytes of other archives."""
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 0x1 | 0x40 | 0x2000


@dataclass(frozen=True)
class UnpackedZip:
    files: int
    skipped: tuple[str, ...]
    """Names of members that are no part of a data set, by their suffix."""
    names: MemberNames


def unpack(zip_path: Path, folder: Path) -> UnpackedZip:
    """Write the members to `folder`, which must be new. Raises DatasetError, and then leaves nothing there."""
    try:
        with zip_path.open("rb") as file:
            _check_end(file)
            with zipfile.ZipFile(file) as archive:
                names = _names(archive, file)
                members, skipped = _plan(archive, names)
                _check_room(members.values(), folder)
                folder.mkdir()
                for name, member in members.items():
                    _write(archive, member, folder / name)
    except DatasetError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        NotImplementedError,
        ValueError,
        RuntimeError,
    ) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DatasetError(f"the zip is damaged: {error}") from error
    return UnpackedZip(len(members), tuple(skipped), names)


def pack(folder: Path, zip_path: Path, links_into: Path | None = None) -> int:
    """Make the zip of a folder: what `unpack` would write, nothing else. The same files give the same bytes.

    Which files, and which not, says `fgd.data.zip_choice`. Returns their number; raises DatasetError if there is none.
    """
    names = choose(folder, links_into).files
    if not names:
        raise DatasetError(f"{folder} contains no image and no annotation; nothing to upload")
    with zipfile.ZipFile(zip_path, "w") as archive:
        for name in names:
            member = zipfile.ZipInfo(name)  # of 1980, like every other
            packed = PurePosixPath(name).suffix.lower() in _PACKED
            member.compress_type = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
            with (folder / name).open("rb") as source, archive.open(member, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, _CHUNK)
    return len(names)


# --- the directory --------------------------------------------------------------------------------------------


def _check_end(file: BinaryIO) -> None:
    """Bound the directory before the library reads it whole, one object a member."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size - 65_535))
    tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or place + _END.size > len(tail):
        raise DatasetError(f"the upload is not a zip, or its end is missing{_instead(file)}")
    _, disk, _, _, count, length, _, _ = _END.unpack_from(tail, place)
    if disk not in (0, 0xFFFF):
        raise DatasetError("the zip is one part of several; send a complete one")
    start = size - len(tail) + place
    if 0xFFFF in (count, disk) or length == 0xFFFFFFFF:
        start, count, length = _read_end64(file, start, count, length)
    if count > MAX_MEMBERS:
        raise DatasetError(f"the zip has {count} members, more than {MAX_MEMBERS}")
    if length > min(MAX_DIRECTORY_BYTES, start):
        raise DatasetError(f"the zip's directory claims {length} bytes")
    file.seek(start - length)
    if (found := _count(file, length)) > MAX_MEMBERS:
        raise DatasetError(f"the zip has {found} members, more than {MAX_MEMBERS}, though it claims {count}")


def _instead(file: BinaryIO) -> str:
    """What the upload is, as far as its first bytes tell."""
    file.seek(0)
    head = file.read(512)
    if not head:
        return ": it is empty"
    if head[257:262] == b"ustar":
        return ": it is a tar; send a zip of its files"
    kind = next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), None)
    return f": it is {kind}; send a zip of its files" if kind else ""


def _read_end64(file: BinaryIO, end: int, count: int, length: int) -> tuple[int, int, int]:
    """Where the directory ends, its members and its bytes, of a zip64; as given if it is none after all."""
    locator = end - _END64_LOCATOR.size
    if locator < 0:
        return end, count, length
    file.seek(locator)
    signature, _, place, disks = _END64_LOCATOR.unpack(file.read(_END64_LOCATOR.size))
    if signature != b"PK\x06\x07":
        return end, count, length
    if disks > 1 or place + _END64.size > locator:
        raise DatasetError("the zip is damaged: its zip64 record is missing")
    file.seek(place)
    signature, _, _, _, _, _, _, members, size, _ = _END64.unpack(file.read(_END64.size))
    if signature != b"PK\x06\x06":
        raise DatasetError("the zip is damaged: its zip64 record is missing")
    return place, members, size


def _count(file: BinaryIO, length: int) -> int:
    """Members of the directory, whatever it claims; a name that holds the signature counts too."""
    found, before, left = 0, b"", length
    while left and (chunk := file.read(min(left, _CHUNK))):
        left -= len(chunk)
        found += (before + chunk).count(b"PK\x01\x02")
        before = chunk[-3:]
    return found


def _names(archive: zipfile.ZipFile, file: BinaryIO) -> MemberNames:
    """What the members are called. Raises DatasetError for a member that no honest data set has, by any name."""
    for member in archive.infolist():
        if fault := _fault_of_kind(member):
            raise DatasetError(f"the zip's member {short(member.orig_filename)} {fault}")
    _refuse_overlaps(archive, file)
    return read_names(archive)


def _plan(archive: zipfile.ZipFile, names: MemberNames) -> tuple[dict[str, zipfile.ZipInfo], list[str]]:
    """Members to write, by their names, and the names of those to leave. Raises DatasetError."""
    members: dict[str, zipfile.ZipInfo] = {}
    skipped: list[str] = []
    seen: dict[str, str] = {}
    folders: set[str] = set()
    total = packed = 0
    for count, (member, name) in enumerate(zip(archive.infolist(), names.names, strict=True), start=1):
        if fault := _fault_of_name(name, member):
            raise DatasetError(f"the zip's member {short(name)} {fault}")
        if name.endswith("/"):
            continue
        _refuse_twins(name, seen, folders)
        if count + len(folders) > MAX_MEMBERS:
            raise DatasetError(
                f"the zip's names make {len(folders)} folders, which with its members are more than {MAX_MEMBERS}"
            )
        total += member.file_size
        packed += member.compress_size
        if total > MAX_TOTAL_BYTES:
            raise DatasetError(f"the zip unpacks to more than {MAX_TOTAL_BYTES} bytes")
        if is_wanted(name):
            members[name] = member
        else:
            skipped.append(name)
    if total > _TOTAL_RATIO_FROM and total > MAX_RATIO * packed:
        raise DatasetError(f"the zip unpacks to {total} bytes, more than {MAX_RATIO} times its size")
    return members, skipped


def _fault_of_name(name: str, member: zipfile.ZipInfo) -> str | None:
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or _DRIVE.match(name):
        return "has an absolute name"
    if ".." in parts:
        return "has .. in its name, which leads out of the folder"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "has a control character in its name"
    if any(part in ("", ".") for part in parts):
        return "has an empty part in its name"
    if any(part.endswith((".", " ")) for part in parts):
        return "has a part that ends in a dot or a space in its name"
    if len(name.encode()) > _MAX_PATH_BYTES or any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        return f"has a part longer than {_MAX_NAME_BYTES} bytes in its name, or {_MAX_PATH_BYTES} in all"
    if name.endswith("/") and member.file_size:
        return "is a folder, but has content"
    if len(parts) > MAX_PARTS:
        return f"is {len(parts) - 1} folders deep; at most {MAX_PARTS - 1} are unpacked"
    return None


def _fault_of_kind(member: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device; put the file itself there"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed by another method than deflate"
    most = MAX_PARQUET_BYTES if member.orig_filename.lower().endswith(".parquet") else MAX_FILE_BYTES
    if member.file_size > most:
        return f"unpacks to {member.file_size} bytes, more than {most}"
    if member.file_size > _RATIO_FROM and member.file_size > MAX_RATIO * member.compress_size:
        return f"unpacks to more than {MAX_RATIO} times its size"
    return None


def _refuse_twins(name: str, seen: dict[str, str], folders: set[str]) -> None:
    """Two names that are one on some systems, or a file where another needs a folder.

    seen: folded names of files, and of folders with a slash behind; folders: those looked at, as they are written.
    Each folder is looked at once, however many names lead through it.
    """
    key = _folded(name)
    if key in seen:
        raise DatasetError(f"the zip's members {short(seen[key])} and {short(name)} have the same name on some systems")
    seen[key] = name
    folder = folder_of(name)
    while folder and folder not in folders:
        folders.add(folder)
        folded = _folded(folder)
        if (other := seen.setdefault(f"{folded}/", folder)) != folder:
            both = f"{short(other)} and {short(folder)}"
            raise DatasetError(f"the zip's folders {both} have the same name on some systems")
        if folded in seen:
            raise DatasetError(f"the zip's member {short(name)} is a file and a folder at once")
        folder = folder_of(folder)
    if f"{key}/" in seen:
        raise DatasetError(f"the zip's member {short(name)} is a file and a folder at once")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _refuse_overlaps(archive: zipfile.ZipFile, file: BinaryIO) -> None:
    """Every member's header and data must be its own (Python 3.11.7 does not look: CVE-2024-0450)."""
    before, last = 0, ""
    for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
        file.seek(max(0, member.header_offset))
        header = file.read(_LOCAL.size)
        if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
            raise DatasetError(f"the zip is damaged: {short(member.orig_filename)} has no header where it should be")
        name_length, extra_length = _LOCAL.unpack(header)[-2:]
        end = member.header_offset + _LOCAL.size + name_length + extra_length + member.compress_size
        if member.header_offset < before or end > archive.start_dir:
            raise DatasetError(
                f"the zip's member {short(member.orig_filename)} overlaps {short(last) if last else 'others'}"
            )
        before, last = end, member.orig_filename


# --- writing --------------------------------------------------------------------------------------------------


def _check_room(members: Iterable[zipfile.ZipInfo], folder: Path) -> None:
    needed = sum(member.file_size for member in members)
    free = shutil.disk_usage(folder.parent).free
    if needed * _SPARE > free:
        raise OSError(f"no room to unpack {needed} bytes: {free} are free")  # the host's fault, not the zip's


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """One member. Its folders are ours: nothing that we write is a link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    left = member.file_size
    with archive.open(member) as source:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            while chunk := source.read(min(left + 1, _CHUNK)):
                left -= len(chunk)
                if left < 0:
                    raise DatasetError(f"the zip's member {short(member.filename)} is larger than it claims")
                file.write(chunk)
    if left:
        raise DatasetError(f"the zip's member {short(member.filename)} is smaller than it claims")
