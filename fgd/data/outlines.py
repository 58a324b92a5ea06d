"""The box around a polygon or a mask, as COCO and its relatives write them. Knows no format's files and no torch.

    [[x, y, x, y, ...], ...]    polygons, the parts of one object; also one bare list, or lists of [x, y]
    {"size": [height, width], "counts": [n, n, ...]}    a mask: lengths of runs of 0 and 1 in turn, column by column
    {"size": [height, width], "counts": "abc"}          the same, packed into text: five bits a character
No mask is unfolded: a run says which columns and rows it covers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fgd.data.index import Box
from fgd.data.listing import finite

MAX_POINTS = 1_000_000
"""Numbers of one polygon, or runs of one mask."""
_MAX_SIDE = 10**6
_MOST_BITS = 40


def box_around(outline: Any) -> Box | None:
    """None where there is none, or it is none of the forms above."""
    if isinstance(outline, dict):
        return _around_mask(outline)
    if not isinstance(outline, list):
        return None
    points = _points(outline)
    return around(points) if points else None


def around(points: Iterable[tuple[float, float]]) -> Box | None:
    """The box around points; None if it has no area."""
    xs, ys = zip(*points, strict=True)
    box = (min(xs), min(ys), max(xs), max(ys))
    return box if box[0] < box[2] and box[1] < box[3] else None


def _points(outline: list[Any]) -> list[tuple[float, float]]:
    """Of all parts; a part of fewer than three points has no area, and one that is no polygon does not count."""
    parts = outline if all(isinstance(part, list) for part in outline) else [outline]
    if parts and all(len(part) == 2 and not isinstance(part[0], list) for part in parts):
        parts = [outline]  # [[x, y], [x, y], ...]
    return [point for part in parts for point in _part(part)]


def _part(part: list[Any]) -> list[tuple[float, float]]:
    if len(part) > MAX_POINTS:
        return []
    pairs = [pair for pair in part if isinstance(pair, list)]
    flat = [number for pair in pairs for number in pair[:2]] if pairs else part
    known = [finite(value) for value in flat]
    numbers = [value for value in known if value is not None]
    if len(numbers) < len(known) or len(numbers) % 2 or len(numbers) < 6:
        return []
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _around_mask(mask: dict[Any, Any]) -> Box | None:
    size, counts = mask.get("size"), mask.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int for side in size):
        return None
    height, width = size
    if not (0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE):
        return None
    runs: Sequence[int] | None
    if isinstance(counts, str):
        runs = unpacked(counts)
    else:
        runs = counts if isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts) else None
    if runs is None or len(runs) > MAX_POINTS or sum(runs) > height * width:
        return None
    return _around_runs(runs, height)


def unpacked(text: str) -> list[int] | None:
    """The runs in a packed mask: numbers of five bits a character, the sixth says that more follow; from the fourth on
    each is given as its difference to the one before the last."""
    if len(text) > MAX_POINTS:
        return None
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > _MOST_BITS:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            return None
        runs.append(value)
        value = shift = 0
    return runs if shift == 0 else None


def _around_runs(runs: Sequence[int], height: int) -> Box | None:
    spans = list(_spans(runs, height))
    if not spans:
        return None
    lefts, tops, rights, bottoms = zip(*spans, strict=True)
    return (float(min(lefts)), float(min(tops)), float(max(rights)), float(max(bottoms)))


def _spans(runs: Sequence[int], height: int) -> Iterator[tuple[int, int, int, int]]:
    """Left, top, right, bottom of each run of ones."""
    at = 0
    for place, run in enumerate(runs):
        if place % 2 and run:
            (left, top), (right, bottom) = divmod(at, height), divmod(at + run - 1, height)
            yield (left, top, left + 1, bottom + 1) if left == right else (left, 0, right + 1, height)
        at += run
