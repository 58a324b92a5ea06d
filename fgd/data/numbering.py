"""Ids and class numbers as people write them: equal as numbers are equal, and sometimes counted from another number.

Knows no format and no torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from fgd.data.tree import short

_WHOLE = re.compile(r"[+-]?\d{1,18}(\.0*)?")
_TOLD = 5
STRAY = 0.01
"""The share of labels with an unknown class up to which they are slips."""


def key(value: Any) -> int | str | None:
    """An id: 1, 1.0, "1" and "1.0" are the same. None for what is no id."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        bare = value.strip()
        # "007" is a name: another image may be called "7".
        plain = _WHOLE.fullmatch(bare) and not re.match(r"[+-]?0\d", bare)
        return int(bare.partition(".")[0]) if plain else value
    return value if isinstance(value, int) else None


class Ids:
    """The ids of a list, to which others refer. Zeros in front count only where two ids differ by them."""

    def __init__(self, keys: Collection[int | str]) -> None:
        self._keys = keys
        self._padded: dict[int, int | str | None] = {}
        for one in keys:
            number = _padded_number(one)
            if number is not None:
                self._padded[number] = one if number not in self._padded else None

    def of(self, value: Any) -> int | str | None:
        """The id that a reference means; None for one that is not in the list."""
        found = key(value)
        if found is None or found in self._keys:
            return found
        number = found if isinstance(found, int) else _padded_number(found)
        if number is None:
            return None
        return number if number in self._keys else self._padded.get(number)


def _padded_number(value: int | str) -> int | None:
    """7 for "007"."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"0[0-9]{1,17}", value) else None


def number_of(value: Any) -> int | None:
    """The same for ids that are always numbers."""
    found = key(value)
    return found if isinstance(found, int) else None


def flag(value: Any) -> bool:
    """True for 1, true, "1", "true" and "yes": other words, "Unspecified" among them, say nothing."""
    return value.strip().lower() in ("1", "1.0", "true", "yes") if isinstance(value, str) else bool(value)


def shifted(used: Collection[int], known: Collection[int], table: str) -> str | None:
    """Why class numbers are all one too high, or too low, for their table; None if they are not."""
    if not used or not known or all(number in known for number in used):
        return None
    there = set(known)
    lowest, highest = min(there), max(there)
    told = f"the class numbers range from {min(used)} to {max(used)}, but {table} has {lowest} to {highest}"
    if lowest not in used and all(number - 1 in there for number in used):
        cause = f"and {lowest} is never there: they are counted from {lowest + 1}, so subtract 1 from each"
        return f"{told}, {cause}; otherwise every class would be wrong"
    if highest not in used and all(number + 1 in there for number in used):
        cause = f"and {highest} is never there: they are counted from {lowest - 1}, so add 1 to each"
        return f"{told}, {cause}; otherwise every class would be wrong"
    return None


def beyond(used: Mapping[int, int], known: Collection[int], files: int, table: str) -> str | None:
    """Why so many labels have class numbers that their table lacks; None if it is only a slip here and there.

    used: number -> how many labels have it. files: how many files have one that the table lacks.
    """
    unknown = sorted(number for number in used if number not in known)
    if sum(used[number] for number in unknown) <= STRAY * sum(used.values()):
        return None
    numbers = ", ".join(map(short, unknown[:_TOLD])) + (", ..." if len(unknown) > _TOLD else "")
    return (
        f"labels of {files} files have the class numbers {numbers}, which {table} does not name; names are missing, "
        "or it belongs to other labels"
    )
