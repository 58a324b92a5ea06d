"""What encoding text is in that does not say so: one for all files of a set, found by what decodes them all.

Files by chance decode in several: two Chinese characters of GBK are one letter of UTF-8. So a set is looked at as a
whole, UTF-8 first; then the code pages that people's machines have. Knows no format and no torch.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SUPERSETS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "iso8859-1": "cp1252",
    "ascii": "utf-8",
}
"""Python's name -> what files that claim it are really in."""
_KNOWN = frozenset(
    {"utf-8", "utf-16", "utf-16-le", "utf-16-be", "gb18030", "big5", "big5hkscs", "cp932", "euc_jp", "cp949", "koi8-r"}
    | {f"cp125{n}" for n in range(9)}
    | {f"iso8859-{n}" for n in range(2, 17)}
)
"""Others that Python has are no plain text, or cost more than they are worth."""
_HIGH = re.compile(rb"[\x80-\xff]+")
_HIGH_WORD = re.compile(rb"[A-Za-z]{0,8}[\x80-\xff]+(?:[A-Za-z]{1,8}[\x80-\xff]+)*[A-Za-z]{0,8}")
_CONTROL = re.compile("[\x80-\x9f]")
_HALF_WIDTH = re.compile("[\uff61-\uff9f]")
_KOREAN_PAIRS = 8


@dataclass(frozen=True)
class Decoded:
    text: str
    encoding: str
    """As Python calls it; "utf-8" needs no word."""


def decode(content: bytes) -> Decoded:
    """Text by itself. Raises UnicodeDecodeError where nothing fits."""
    encoding = marked(content) or guess([content])
    if encoding is None:
        return Decoded(content.decode("utf-8"), "utf-8")  # which says where it is not
    return Decoded(content.decode(encoding), "utf-8" if encoding == "utf-8-sig" else encoding)


def marked(content: bytes) -> str | None:
    """By a byte order mark, or by the zeros that UTF-16 has between Latin letters."""
    for bom, encoding in _BOMS:
        if content.startswith(bom):
            return encoding
    head = content[:2000]
    if len(head) // 4 < head.count(0) <= len(head) * 3 // 4:
        for encoding, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
            if zeros.count(0) > len(zeros) // 2:
                return encoding
    return None


def known(name: str) -> str | None:
    """The encoding that a file claims to be in; None for one that we do not read."""
    try:
        found = codecs.lookup(name).name
    except (LookupError, ValueError):
        return None
    found = _SUPERSETS.get(found, found)
    return found if found in _KNOWN else None


def guess(contents: Sequence[bytes]) -> str | None:
    """The one encoding that all of these are in; None if there is none."""
    if all(decodes(content, "utf-8") for content in contents):
        return "utf-8"
    runs = [run for content in contents for run in _HIGH.findall(content)]
    if _looks_latin(contents, runs):
        encoding = _first(contents, ("cp1252", "iso8859-15"))
        if encoding and not any(_CONTROL.search(content.decode(encoding)) for content in contents):
            return encoding
    if decodes_all(contents, "gb2312"):
        return "cp949" if _looks_korean(runs) else "gb18030"
    if _looks_japanese(contents):
        return "cp932"
    return _first(contents, ("big5", "gb18030", "cp949", "euc_jp", "cp1251", "cp1252"))


def decodes(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def surely_utf8(content: bytes) -> bool:
    """Not by chance: letters with accents are two bytes, as characters elsewhere are; others take three or four."""
    try:
        return all(character.isascii() or character > "\u07ff" for character in content.decode())
    except UnicodeDecodeError:
        return False


def decodes_all(contents: Iterable[bytes], encoding: str) -> bool:
    return all(decodes(content, encoding) for content in contents)


def _first(contents: Sequence[bytes], encodings: Sequence[str]) -> str | None:
    return next((encoding for encoding in encodings if decodes_all(contents, encoding)), None)


def _looks_latin(contents: Iterable[bytes], runs: Sequence[bytes]) -> bool:
    """Most stand alone, as letters with accents do; the second byte of a Chinese or Japanese pair may be ASCII, too.

    But then every other byte at least is above ASCII, and most are where Latin code pages have no letters.
    """
    alone = [run for run in runs if len(run) == 1]
    if 2 * len(alone) < len(runs):
        return False
    if 2 * len(alone) > len(runs) and 2 * sum(run >= b"\xc0" for run in alone) > len(alone):
        return True
    words = b"".join(word for content in contents for word in _HIGH_WORD.findall(content))
    return 2 * sum(byte >= 0x80 for byte in words) < len(words)


def _looks_korean(runs: Iterable[bytes]) -> bool:
    """Hangul lies in the first rows of the table that Chinese fills twice as far: seldom by chance."""
    pairs = {run[place : place + 2] for run in runs for place in range(0, len(run), 2)}
    return len(pairs) >= _KOREAN_PAIRS and all(0xB0 <= pair[0] <= 0xC8 for pair in pairs)


def _looks_japanese(contents: Sequence[bytes]) -> bool:
    """Nearly every byte is a letter there; of other texts it makes half-width syllables that nobody writes."""
    if not decodes_all(contents, "cp932"):
        return False
    text = "".join(content.decode("cp932") for content in contents)
    foreign = sum(not character.isascii() for character in text)
    return len(_HALF_WIDTH.findall(text)) < foreign / 5
