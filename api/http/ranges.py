"""Byte ranges (RFC 9110, 14): one range is served, anything odd gets the whole."""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII | re.IGNORECASE)


class Unsatisfiable(ValueError):
    """The range begins beyond the end."""


@dataclass(frozen=True)
class Range:
    start: int
    end: int
    """Last byte, included."""

    @property
    def length(self) -> int:
        return self.end - self.start + 1

    def header(self, size: int) -> str:
        return f"bytes {self.start}-{self.end}/{size}"


def parse(header: str | None, size: int) -> Range | None:
    """The range a header asks for of `size` bytes; None: answer the whole (no, several, or malformed ranges).

    Raises Unsatisfiable where 416 is due.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        if length == 0:
            raise Unsatisfiable
        return Range(size - length, size - 1)
    start, end = int(first), int(last) if last else size - 1
    if last and end < start:
        return None
    if start >= size:
        raise Unsatisfiable
    return Range(start, min(end, size - 1))
