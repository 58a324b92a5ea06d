"""Server-sent events, read as the HTML standard says (9.2.6). Knows bytes. Knows no HTTP, and nothing of jobs."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fgd.errors import FGDError

MOST = 16 << 20
"""Characters of one event; a stream that has more is none of ours, and must not fill the memory."""


class NotAStream(FGDError):
    """What comes is not server-sent events."""


@dataclass(frozen=True)
class ServerSent:
    event: str
    """message, where the stream names none."""
    data: str
    id: str
    """The last that was said, by this event or one before it."""
    retry_ms: int | None
    """The last that was said."""


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    r"""Whole lines without their ends, which are \n, \r\n or \r and nothing else: JSON may hold U+2028 or \x85 as they
    are. What comes after the last end is no line: the stream broke off within it."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
    rest: list[str] = []
    size, after_cr = 0, False
    for chunk in chunks:
        text = decoder.decode(chunk)
        if after_cr and text:
            text, after_cr = text.removeprefix("\n"), False
        after_cr = after_cr or text.endswith("\r")
        first, *more = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        rest.append(first)
        size += len(first)
        for line in more:
            yield "".join(rest)
            rest, size = [line], len(line)
        if size > MOST:
            raise NotAStream(f"a line of more than {MOST} characters")


def parse(chunks: Iterable[bytes]) -> Iterator[ServerSent | None]:
    """Each event when its blank line has come; None for a comment, which says that the other side lives."""
    data: list[str] = []
    retry_ms: int | None = None
    event, id, size = "", "", 0
    for line in lines(chunks):
        if not line:
            if data:
                yield ServerSent(event or "message", "\n".join(data), id, retry_ms)
            event, data, size = "", [], 0
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not field:
            yield None
        elif field == "event":
            event = value
        elif field == "data":
            data.append(value)
            size += len(value)
        elif field == "id" and "\0" not in value:
            id = value
        elif field == "retry" and value.isascii() and value.isdigit():
            retry_ms = int(value)
        if size > MOST:
            raise NotAStream(f"an event of more than {MOST} characters")
