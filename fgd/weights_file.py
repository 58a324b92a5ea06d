"""A file of weights from elsewhere, looked at before anyone opens it. Executes nothing, trusts no number. No torch.

safetensors   8 bytes: the length of the header; the header, JSON; the bytes of the tensors without gap or overlap
pth           what torch.save writes: a zip of stored entries around a pickle, which only
              torch.load(weights_only=True) in a confined process may read

WeightsError            the file is damaged, or made to deceive
+-- NotWeights          it is something else altogether
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from fgd.errors import WeightsError

Kind = Literal["safetensors", "pth"]

HEAD_BYTES = 16
"""Enough to tell the kinds apart."""
MAX_HEADER = 16 * 2**20
MAX_DIRECTORY = 16 * 2**20
MAX_DIMENSIONS = 8
DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1), "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}  # fmt: skip
"""Name in the file -> torch's name, bytes of one number. A detector's weights have no others."""
_ZIP, _OLD_PICKLE = b"PK\x03\x04", (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_WANTED = "a safetensors file, or a state dict as torch.save writes it"


class NotWeights(WeightsError):
    pass


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file; its bytes are [start, end) of the part behind the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def kind_of(head: bytes) -> Kind:
    """By the first bytes. Raises NotWeights, saying what to send instead."""
    if head.startswith(_ZIP):
        return "pth"
    if head.startswith(_OLD_PICKLE):
        raise NotWeights(
            "this is a bare pickle, torch's format before 1.6 or something else; load it where you trust it and save "
            "the state dict again with torch.save, or better with safetensors"
        )
    if len(head) >= 9 and head[8:9] == b"{":
        return "safetensors"
    if not head:
        raise NotWeights("the file is empty")
    raise NotWeights(f"this is no file of weights; send {_WANTED}")


def check(path: Path) -> Kind:
    """The kind of the file, whose frame is sound. Raises WeightsError, NotWeights for what is no weights at all."""
    with path.open("rb") as file:
        kind = kind_of(file.read(HEAD_BYTES))
        if kind == "safetensors":
            read_header(file)
        else:
            _check_zip(file)
    return kind


# --- safetensors ----------------------------------------------------------------------------------------------


def read_header(file: BinaryIO) -> tuple[list[Entry], int]:
    """The tensors in the order of their bytes, and where the first byte lies. Raises WeightsError."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(MAX_HEADER, size - 8):
        raise WeightsError(
            f"the safetensors header claims {length} bytes; the file has {size}, and a header {MAX_HEADER} at most"
        )
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"the safetensors header cannot be read: {str(error)[:200]}") from error
    header.pop("__metadata__", None)
    entries = sorted((_entry(name, found) for name, found in header.items()), key=lambda each: (each.start, each.end))
    at = 0
    for entry in entries:
        if entry.start != at:
            what = "overlaps the one before it" if entry.start < at else "leaves a gap before it"
            raise WeightsError(f"the safetensors header lies: tensor {entry.name[:100]!r} {what}")
        at = entry.end
    if at != size - 8 - length:
        raise WeightsError(
            f"the safetensors file is cut off or has a tail: its header describes {at} bytes of tensors, it has "
            f"{size - 8 - length}"
        )
    return entries, 8 + length


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in it")
    return found


def _entry(name: str, found: Any) -> Entry:
    def wrong(what: str) -> WeightsError:
        return WeightsError(f"the safetensors header lies: tensor {name[:100]!r} {what}")

    if not isinstance(found, dict) or found.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong("is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = found["dtype"], found["shape"], found["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise wrong(f"has dtype {str(dtype)[:20]!r}; weights of a detector have one of {', '.join(DTYPES)}")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS or not _counts(offsets) or len(offsets) != 2:
        raise wrong("has a shape or offsets that are none")
    start, end = offsets
    if end - start != math.prod(shape) * DTYPES[dtype][1]:
        raise wrong(f"has {end - start} bytes, which do not make {dtype} of shape {tuple(shape)}")
    return Entry(name, dtype, tuple(shape), start, end)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**48 for n in value)


def digest_of_tensors(path: Path) -> str:
    """What `fgd.engine.checkpoint.digest_of_tensors` gives for the tensors of this safetensors file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        entries, at = read_header(file)
        for entry in sorted(entries, key=lambda each: each.name):
            total.update(f"{entry.name} torch.{DTYPES[entry.dtype][0]} {entry.shape}\n".encode())
            file.seek(at + entry.start)
            left = entry.end - entry.start
            while left and (chunk := file.read(min(left, 1 << 20))):
                total.update(chunk)
                left -= len(chunk)
    return total.hexdigest()


# --- torch.save's zip -----------------------------------------------------------------------------------------


def _check_zip(file: BinaryIO) -> None:
    """A state dict of torch.save, as far as its directory tells; TorchScript and exported programs are told apart."""
    size = file.seek(0, os.SEEK_END)
    directory = _directory_bytes(file, size)
    if directory > MAX_DIRECTORY:
        raise WeightsError(f"the zip's directory claims {directory} bytes; that of a state dict has {MAX_DIRECTORY}")
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise WeightsError(f"the file is a damaged zip, perhaps cut off: {str(error)[:200]}") from error
    names = [info.filename.partition("/")[2] for info in infos]
    if any(name.startswith("code/") or name == "constants.pkl" for name in names):
        raise NotWeights("this is TorchScript, a program; save model.state_dict() with torch.save instead")
    if any(name == "archive_format" or name.startswith("models/") for name in names):
        raise NotWeights("this is an exported program (PT2); save model.state_dict() with torch.save instead")
    if names.count("data.pkl") != 1:
        raise NotWeights(f"this zip was not written by torch.save; send {_WANTED}")
    if len(set(names)) != len(names):
        raise WeightsError("the zip has two entries of one name")
    if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in infos):
        raise WeightsError("the zip's entries are compressed or encrypted, as torch.save never writes them")
    if any(info.file_size != info.compress_size for info in infos) or sum(i.file_size for i in infos) > size:
        raise WeightsError("the zip's directory lies about the sizes of its entries")


def _directory_bytes(file: BinaryIO, size: int) -> int:
    """Length of the zip's central directory, read before anything that would hold all of it in memory."""
    tail_at = max(0, size - 66_000)  # the end record and the longest comment
    file.seek(tail_at)
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < 22:
        raise WeightsError("the file is a zip without its end, perhaps cut off")
    (length,) = struct.unpack_from("<L", tail, end + 12)
    if end >= 20 and tail[end - 20 : end - 16] == b"PK\x06\x07":  # zip64, which torch.save always writes
        (record_at,) = struct.unpack_from("<Q", tail, end - 12)
        file.seek(min(record_at, size))
        record = file.read(56)
        if len(record) < 56 or not record.startswith(b"PK\x06\x06"):
            raise WeightsError("the zip's end record leads nowhere")
        (length,) = struct.unpack_from("<Q", record, 40)
    return int(length)
