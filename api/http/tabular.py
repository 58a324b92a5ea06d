"""Answers that are written while they are read: metric points as CSV (RFC 4180) or JSON. Knows no rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

import orjson

from api.core.jobs.history import LatestPoint

CSV_TYPE = "text/csv; charset=utf-8; header=present"
CSV_COLUMNS = ("name", "split", "step", "value", "at")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a spreadsheet takes for the beginning of a formula."""


def as_csv(pieces: Iterable[Sequence[LatestPoint]]) -> Iterator[bytes]:
    """A header, then a line a point. A value that is not finite is an empty cell."""
    yield _lines([CSV_COLUMNS])
    for piece in pieces:
        yield _lines(
            (_text(p.name), _text(p.split), p.step, "" if p.value is None else repr(p.value), p.at.isoformat())
            for p in piece
        )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A header, then a line a row. None is an empty cell."""
    cells = ([_text(cell) if isinstance(cell, str) else "" if cell is None else cell for cell in row] for row in rows)
    return _lines([columns]) + _lines(cells)


def as_json(pieces: Iterable[Sequence[LatestPoint]]) -> Iterator[bytes]:
    """The bytes of a `Points`."""
    yield b'{"items":['
    begun = False
    for piece in pieces:
        if piece:
            yield (b"," if begun else b"") + orjson.dumps([vars(point) for point in piece], option=orjson.OPT_UTC_Z)[
                1:-1
            ]
            begun = True
    yield b"]}"


def _lines(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()


def _text(cell: str) -> str:
    """Names come from trainers: none may become a formula where the file is opened."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
