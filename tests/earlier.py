"""What an earlier version wrote, packed in tests/fixtures: unpacked, put into a database, compared."""

from __future__ import annotations

import io
import json
import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parent / "fixtures" / "v13949c9"
NOT_KEPT = frozenset({"waiting_reason", "queue_position", "advice"})
"""Computed for each answer, or words for people: these may change with time and version."""
RETIRED = frozenset({"compile"})
"""Fields of a stored spec that a later version may leave out of its answers."""
NOT_LISTED = frozenset({"report"})
"""Null in a list since then, for they may be large; the thing itself still shows them."""
UNKNOWN_THEN = frozenset({"step"})
"""Of the best weights: null before the manifest was asked."""


def unpack(name: str, folder: Path) -> Path:
    with tarfile.open(fileobj=io.BytesIO(content(name))) as tar:
        tar.extractall(folder, filter="data")
    return folder


def content(name: str) -> bytes:
    return lzma.decompress((FIXTURES / name).read_bytes())


def told(name: str) -> Any:
    """A file of JSON, packed or not."""
    return json.loads(content(name) if name.endswith(".xz") else (FIXTURES / name).read_bytes())


def fill(url: str) -> None:
    """The rows, with their tables, into an empty PostgreSQL database."""
    import psycopg

    lines = content("postgresql.sql.xz").decode().splitlines()
    script = "\n".join(line for line in lines if not line.startswith("\\"))  # those are psql's own
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute(script)  # type: ignore[call-overload]


def differences(then: Any, now: Any, at: str = "") -> Iterator[str]:
    """Where `now` does not say what `then` said. More than it said is no difference."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key, value in then.items():
            if key in NOT_KEPT or (key in RETIRED and key not in now):
                continue
            if key in UNKNOWN_THEN and value is None:
                continue
            if key in NOT_LISTED and at.startswith("/items/") and now.get(key) is None:
                continue
            if key not in now:
                yield f"{at}/{key} is missing"
            else:
                yield from differences(value, now[key], f"{at}/{key}")
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for number, (was, value) in enumerate(zip(then, now, strict=True)):
            yield from differences(was, value, f"{at}/{number}")
    elif then != now or type(then) is not type(now):
        yield f"{at} was {then!r:.200}, is {now!r:.200}"
