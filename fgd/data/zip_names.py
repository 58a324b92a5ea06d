"""What the members of a zip are called, where the zip does not say in which encoding. Knows no torch.

A name is UTF-8 if its flag says so, or if a field beside it repeats it in UTF-8 (0x7075, of Info-ZIP and 7-Zip). All
others were written by one tool in one encoding, which the zip does not name:

- The one of which the annotations in the zip, and names that are known to be UTF-8, speak most often.
- If they speak of none, UTF-8 where every name is valid UTF-8 and that is hardly by chance.
- Else the one whose letters are most likely to be a name; of equals the first of `_ENCODINGS`.

A backslash is a separator (old .NET and PowerShell write them), but not where it is half of a character. A leading
"./" is dropped. Nothing here makes a name safe: `fgd.data.zips` refuses the names that lead out.
"""

from __future__ import annotations

import json
import re
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote

_ENCODINGS = (
    *("utf-8", "gbk", "cp932", "cp949", "cp950", "cp437", "cp850", "cp1252", "cp866", "cp1251", "koi8-r", "cp852"),
    *("cp1250", "cp737", "cp1253", "cp857", "cp1254", "cp862", "cp1255", "cp720", "cp1256", "cp874", "gb18030"),
)
_COMMON = {"gbk": ("gb2312", 0xB0, 0xD7), "cp932": ("shift_jis", 0x88, 0x97), "cp950": ("big5", 0xA4, 0xC6)}
"""Encoding -> a smaller one, and the first bytes of its characters of everyday use."""
_UTF8_FLAG = 0x800
_UNICODE_PATH = 0x7075
_TEXTS = (".json", ".jsonl", ".csv", ".yaml", ".yml", ".xml", ".txt")
"""Suffixes of members that may speak of others, those first that tell most in few bytes."""
_MAX_TEXT_BYTES = 64 * 2**20
_MAX_TEXTS = 2000
_MAX_RUNS = 200_000
_SAMPLES = 2000
"""Names whose letters are looked at, or a few more."""
_PAIRS = 4
_SURE = 0.75
_FOREIGN = re.compile(r"[^\x00-\x7f]+")
_ESCAPED = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")
_QUOTED = re.compile(r"(?:%[89a-fA-F][0-9a-fA-F])+")
_DECLARED = re.compile(rb"encoding=[\"']([\w.-]{1,30})[\"']")


@dataclass(frozen=True)
class MemberNames:
    names: tuple[str, ...]
    """In the order of the directory; folders end in /."""
    encoding: str | None
    """What was taken for the names that do not say; None if all are ASCII or say it."""
    backslashes: int
    """How many names had them for separators."""


def read_names(archive: zipfile.ZipFile) -> MemberNames:
    members = archive.infolist()
    known = [_known_name(member) for member in members]
    raw = [
        member.orig_filename.encode("cp437") if name is None else b""
        for member, name in zip(members, known, strict=True)
    ]
    unknown = [name for name in raw if name]
    encoding = _choose(unknown, [name for name in known if name], archive) if unknown else None
    decoded = [
        bytes_.decode(encoding or "ascii") if name is None else name for name, bytes_ in zip(known, raw, strict=True)
    ]
    names = tuple(_with_slashes(name) for name in decoded)
    return MemberNames(names, encoding, sum("\\" in name for name in decoded))


def _with_slashes(name: str) -> str:
    name = name.replace("\\", "/")
    while name.startswith("./") and len(name) > 2:
        name = name[2:]
    return name


def _known_name(member: zipfile.ZipInfo) -> str | None:
    """None for one of which the encoding is not known."""
    if member.flag_bits & _UTF8_FLAG or member.orig_filename.isascii():
        return member.orig_filename
    extra = member.extra
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == _UNICODE_PATH and len(field) > 5 and field[0] == 1:
            crc = struct.unpack_from("<L", field, 1)[0]
            if crc == zlib.crc32(member.orig_filename.encode("cp437")):
                try:
                    return field[5:].decode()
                except UnicodeDecodeError:
                    return None
    return None


# --- the encoding ---------------------------------------------------------------------------------------------


def _choose(unknown: Sequence[bytes], known: Sequence[str], archive: zipfile.ZipFile) -> str:
    """One in which every name is text; cp437 always is."""
    usable = {encoding: names for encoding in _ENCODINGS if (names := _decoded(unknown, encoding)) is not None}
    spoken, declared = _spoken(archive, known)
    hits = {encoding: len(_runs(names) & spoken) for encoding, names in usable.items()}
    if any(hits.values()):
        return max(usable, key=lambda encoding: (hits[encoding], _likelihood(usable[encoding], encoding)))
    if "utf-8" in usable and _is_utf8(usable["utf-8"]):
        return "utf-8"
    return max(usable, key=lambda encoding: (encoding in declared, _likelihood(usable[encoding], encoding)))


def _is_utf8(names: Sequence[str]) -> bool:
    """Not by chance: two bytes of another encoding are valid UTF-8 now and then, three or many pairs hardly ever."""
    foreign = {sign for name in names for sign in name if sign > "\x7f"}
    return max(foreign) > "\u07ff" or len(foreign) > _PAIRS or _likelihood(names, "utf-8") > _SURE


def _decoded(names: Sequence[bytes], encoding: str) -> list[str] | None:
    """Some of the names, evenly spaced; None if not all of them are text in this encoding."""
    sample: list[str] = []
    step = max(1, len(names) // _SAMPLES)
    try:
        for place, name in enumerate(names):
            decoded = name.decode(encoding)
            if place % step == 0:
                sample.append(decoded)
    except UnicodeDecodeError:
        return None
    controls = any(unicodedata.category(sign) == "Cc" for name in sample for sign in name if sign > "\x7f")
    return None if controls else sample


def _runs(names: Sequence[str]) -> set[str]:
    return {run for name in names for run in _FOREIGN.findall(unicodedata.normalize("NFC", name))}


def _spoken(archive: zipfile.ZipFile, known: Sequence[str]) -> tuple[set[str], set[str]]:
    """Runs of letters beyond ASCII that the annotations have, and the encodings that they declare."""
    runs, declared = _runs(known), set[str]()
    for content in _texts(archive):
        found = _DECLARED.search(content[:200])
        encoding = found[1].decode().lower() if found else "utf-8"
        if encoding not in ("utf-8", "utf8"):
            declared.add(
                {"gb2312": "gbk", "shift_jis": "cp932", "euc-kr": "cp949", "big5": "cp950"}.get(encoding, encoding)
            )
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as error:
            if error.end < len(content) - 3 or encoding != "utf-8":
                continue
            text = content.decode(errors="ignore")  # the end was cut
        except LookupError:
            continue
        if "\\u" in text:
            text = _ESCAPED.sub(lambda escaped: json.loads(f'"{escaped[0]}"'), text)
        if "%" in text:
            text = _QUOTED.sub(lambda quoted: unquote(quoted[0]), text)
        runs.update(_FOREIGN.findall(unicodedata.normalize("NFC", text)))
        if len(runs) > _MAX_RUNS:
            break
    return runs, declared


def _texts(archive: zipfile.ZipFile) -> Iterator[bytes]:
    """Of the members that may be annotations, up to `_MAX_TEXT_BYTES` in all."""

    def order(member: zipfile.ZipInfo) -> tuple[int, int]:
        place = next(place for place, suffix in enumerate(_TEXTS) if member.orig_filename.lower().endswith(suffix))
        return place, -member.file_size

    texts = [member for member in archive.infolist() if member.orig_filename.lower().endswith(_TEXTS)]
    left = _MAX_TEXT_BYTES
    for member in sorted(texts, key=order)[:_MAX_TEXTS]:
        if left <= 0:
            return
        with archive.open(member) as source:
            content = source.read(left)
        left -= len(content)
        yield content


# --- letters --------------------------------------------------------------------------------------------------


def _likelihood(names: Sequence[str], encoding: str) -> float:
    """How much the letters beyond ASCII look like a name's, from -1 to 1."""
    total = count = 0.0
    for name in dict.fromkeys(names):
        before = ""
        for sign in name:
            if sign > "\x7f":
                count += 1
                total += _worth(sign, encoding) - _clash(before, sign)
            elif before > "\x7f":
                total -= _clash(before, sign)
            before = sign
    return total / count if count else 0.0


@lru_cache(1 << 16)
def _worth(sign: str, encoding: str) -> float:
    kind = unicodedata.category(sign)
    if "\uff61" <= sign <= "\uff9f":  # half-width katakana: what Shift JIS makes of nearly any byte
        return 0.0
    if not kind.startswith(("L", "M")):
        return 1.0 if encoding == "utf-8" and sign < "\u0100" else -1.0
    if encoding not in _COMMON or not "\u4e00" <= sign <= "\u9fff":
        return 0.3 if "\u4e00" <= sign <= "\u9fff" and encoding == "cp949" else 1.0
    smaller, first, last = _COMMON[encoding]
    try:
        return 1.0 if first <= sign.encode(smaller)[0] <= last else 0.3
    except UnicodeEncodeError:
        return 0.3


@lru_cache(1 << 16)
def _clash(before: str, sign: str) -> float:
    """Two neighbours that seldom stand in one word: of two scripts, a capital behind a small letter, two accents."""
    if not (before.isalpha() and sign.isalpha()):
        return 0.0
    scripts = {_script(before), _script(sign)}
    if len(scripts) > 1 and not scripts & {"CJK", "HIRAGANA", "KATAKANA", "HANGUL"}:
        return 1.0
    if before.islower() and sign.isupper():
        return 0.5
    return 0.3 if scripts == {"LATIN"} and before > "\x7f" < sign else 0.0


def _script(sign: str) -> str:
    return "LATIN" if sign < "\x80" else unicodedata.name(sign, "").split(" ")[0]
