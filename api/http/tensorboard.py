"""Metric points as a TensorBoard event file, written while they are read. Knows no rows and no TensorBoard.

The file is a row of records (TFRecord): length of the data, 8 bytes little-endian; its masked CRC-32C, 4 bytes; the
data; its masked CRC-32C. The data is an `Event` of tensorflow/core/util/event.proto, of which we write few fields:

    Event    1 double wall_time (seconds since 1970), 2 int64 step, 3 string file_version or 5 Summary summary
    Summary  1 Value value:  Value  1 string tag, 2 float simple_value

The fields of a point come in the order 5, 2, 1: what all points of a curve share is at the beginning, and its checksum
is computed once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache

from api.core.jobs.history import LatestPoint

TYPE = "application/octet-stream"
_VERSION = b"brain.Event:2"
_POLYNOMIAL = 0x82F63B78
_MASK = 0xA282EAD8


def file_name(job_id: str, since: datetime) -> str:
    """One that TensorBoard finds, the same for a job each time: a second download takes the place of the first."""
    return f"events.out.tfevents.{int(since.timestamp())}.{job_id}"


def as_events(pieces: Iterable[Sequence[LatestPoint]], since: datetime) -> Iterator[bytes]:
    """The bytes of a file. since: when the job was made. Values that are not finite are left out.

    The tag is the name of the series; of an evaluation the split stands before it: "val/ap".
    """
    version = b"\x09" + struct.pack("<d", since.timestamp()) + b"\x1a" + _sized(_VERSION)
    yield _record(version, crc32c(version))
    series, begin, checksum = ("", ""), b"", 0
    for piece in pieces:
        records: list[bytes] = []
        for point in piece:
            if point.value is None:
                continue
            if not records or series != (point.name, point.split):
                series = point.name, point.split
                begin = _begin(tag(point.name, point.split))
                checksum = crc32c(begin)
            step = b"\x10" + _varint(point.step)
            end = struct.pack("<f", _single(point.value)) + step + b"\x09" + struct.pack("<d", point.at.timestamp())
            records.append(_record(begin + end, crc32c(end, checksum)))
        yield b"".join(records)


def tag(name: str, split: str) -> str:
    return name if split == "train" else f"{split}/{name}"


def crc32c(data: bytes, before: int = 0) -> int:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4) of what came before, if anything, and `data`."""
    value = before ^ 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _begin(name: str) -> bytes:
    """Of the event of a point, all before the four bytes of its value."""
    value = b"\x0a" + _sized(name.encode(errors="replace")) + b"\x15"
    summary = b"\x0a" + _varint(len(value) + 4) + value
    return b"\x2a" + _varint(len(summary) + 4) + summary


def _record(data: bytes, checksum: int) -> bytes:
    return _head(len(data)) + data + _masked(checksum)


@lru_cache(1024)
def _head(length: int) -> bytes:
    packed = struct.pack("<Q", length)
    return packed + _masked(crc32c(packed))


def _masked(checksum: int) -> bytes:
    """A checksum of data that hold checksums is turned and shifted, as TFRecord does."""
    turned = (checksum >> 15) | (checksum << 17)
    return struct.pack("<I", (turned + _MASK) & 0xFFFFFFFF)


def _sized(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    found = bytearray()
    while number > 0x7F:
        found.append((number & 0x7F) | 0x80)
        number >>= 7
    return bytes([*found, number])


def _single(value: float) -> float:
    """The nearest that 32 bits hold: a larger one would not be written at all."""
    return max(-_LARGEST, min(_LARGEST, value))


_LARGEST: float = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]


def _table() -> tuple[int, ...]:
    found = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        found.append(value)
    return tuple(found)


_TABLE = _table()
