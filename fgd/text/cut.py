"""Names of strangers in reports: of any length in a file, of a readable one here."""

from __future__ import annotations

from collections.abc import Sequence

MAX_NAME = 200
MAX_FILE = 1000


def cut(name: str, most: int = MAX_NAME) -> str:
    """The name, or its begin where it is longer than `most` characters."""
    return name if len(name) <= most else f"{name[: most - 3]}..."


def some(names: Sequence[str], count: int = 8) -> str:
    """The first ones, and how many more there are."""
    return ", ".join(map(cut, names[:count])) + (f" and {len(names) - count} more" if len(names) > count else "")
