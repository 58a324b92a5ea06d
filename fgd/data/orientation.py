"""Sets the EXIF orientation of a picture's file to upright and changes nothing else: viewers show its stored pixels.

Boxes are in stored pixels, and browsers turn pictures by EXIF. The pixels are neither decoded nor written again. A file
that is not as its format has it is left alone. Knows no torch.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_EXIF = b"Exif\0\0"
_ORIENTATION, _SHORT = 0x0112, 3
_MAX_PARTS = 10_000


def unturned(content: bytes) -> bytes:
    """The same file, to be shown as it is stored."""
    if content.startswith(b"\xff\xd8"):
        places = list(_in_jpeg(content))
    elif content.startswith(b"\x89PNG\r\n\x1a\n"):
        places = list(_in_png(content))
    elif content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        places = list(_in_webp(content))
    else:
        return content
    changed = bytearray(content)
    for start, end in places:
        place = _orientation_value(content, start, end)
        if place is not None:
            little = content[start : start + 2] == b"II"
            changed[place : place + 2] = struct.pack("<H" if little else ">H", 1)
            if content.startswith(b"\x89PNG"):
                changed[end : end + 4] = struct.pack(">I", zlib.crc32(changed[start - 4 : end]))
    return bytes(changed)


def _in_jpeg(content: bytes) -> Iterator[tuple[int, int]]:
    """Where blocks of EXIF begin and end."""
    at = 2
    for _ in range(_MAX_PARTS):
        if at + 4 > len(content) or content[at] != 0xFF:
            return
        marker = content[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        if marker in (0xDA, 0xD9):  # pixels begin
            return
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == 0xE1 and content[at + 4 : at + 10] == _EXIF and end <= len(content):
            yield at + 10, end
        at = end


def _in_png(content: bytes) -> Iterator[tuple[int, int]]:
    at = 8
    for _ in range(_MAX_PARTS):
        if at + 12 > len(content):
            return
        size, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        if kind == b"eXIf" and at + 12 + size <= len(content):
            yield at + 8, at + 8 + size
        at += 12 + size


def _in_webp(content: bytes) -> Iterator[tuple[int, int]]:
    at = 12
    for _ in range(_MAX_PARTS):
        if at + 8 > len(content):
            return
        kind, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        if kind == b"EXIF" and at + 8 + size <= len(content):
            start = at + 8 + (6 if content[at + 8 : at + 14] == _EXIF else 0)
            yield start, at + 8 + size
        at += 8 + size + size % 2


def _orientation_value(content: bytes, start: int, end: int) -> int | None:
    """Where the orientation of a block of EXIF stands; None if it has none."""
    mark = content[start : start + 2]
    if mark not in (b"II", b"MM"):
        return None

    def number(at: int, size: int) -> int:
        return int.from_bytes(content[at : at + size], "little" if mark == b"II" else "big")

    table = start + number(start + 4, 4)
    if table + 2 > end:
        return None
    for entry in range(table + 2, min(table + 2 + 12 * number(table, 2), end - 11), 12):
        if number(entry, 2) == _ORIENTATION and number(entry + 2, 2) == _SHORT:
            return entry + 8
    return None
