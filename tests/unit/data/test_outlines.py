"""The box around a polygon or a mask."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fgd.data.outlines import box_around, unpacked

SQUARE = [10, 10, 40, 10, 40, 30, 10, 30]


@pytest.mark.parametrize(
    ("outline", "box"),
    [
        ([SQUARE], (10, 10, 40, 30)),
        ([SQUARE, [50.5, 5, 60, 5, 60, 8]], (10, 5, 60, 30)),
        (SQUARE, (10, 10, 40, 30)),
        ([[10, 10], [40, 10], [40, 30]], (10, 10, 40, 30)),
        ([[[10, 10], [40, 10], [40, 30]], [[1, 1], [2, 1], [2, 2]]], (1, 1, 40, 30)),
        ([SQUARE, [1, 2]], (10, 10, 40, 30)),
        ({"size": [4, 5], "counts": [5, 2, 13]}, (1, 1, 2, 3)),
        ({"size": [4, 5], "counts": [5, 7, 8]}, (1, 0, 3, 4)),
        ({"size": [4, 5], "counts": [0, 20]}, (0, 0, 5, 4)),
        ({"size": [4, 5], "counts": [0, 1, 18, 1]}, (0, 0, 5, 4)),
    ],
)
def test_each_form_has_its_box(outline: Any, box: tuple[float, ...]) -> None:
    assert box_around(outline) == box


@pytest.mark.parametrize(
    "outline",
    [
        None, [], [[]], "x", 7, [[1, 2, 3]], [[1, 2, 3, 4]], [[1, 1, 1, 1, 1, 1]], [["a", 2, 3, 4, 5, 6]],
        [[float("nan"), 2, 3, 4, 5, 6]], {}, {"size": [4, 5]}, {"size": [4, 5], "counts": [20]},
        {"size": [4, 5], "counts": [5, 99]}, {"size": [4, 5], "counts": [-1, 4]}, {"size": [0, 5], "counts": [1, 1]},
        {"size": [4, 5], "counts": [True, 2.0]}, {"size": "45", "counts": [1, 1]}, {"size": [4, 5], "counts": "\x00"},
        {"size": [10**9, 10**9], "counts": [1, 1]}, {"size": [4, 5], "counts": "o" * 100},
    ],
)  # fmt: skip
def test_what_is_no_outline_has_none(outline: Any) -> None:
    assert box_around(outline) is None


def packed(runs: list[int]) -> str:
    """As pycocotools writes them."""
    text = ""
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != -1 if bits & 16 else value != 0
            text += chr(48 + (bits | 32 if more else bits))
    return text


def test_packed_masks_are_unpacked() -> None:
    rng = random.Random(0)
    for _ in range(200):
        runs = [rng.choice([0, 1, 15, 16, 31, 32, 500, 10**6]) for _ in range(rng.randint(1, 12))]
        assert unpacked(packed(runs)) == runs
    assert box_around({"size": [4, 5], "counts": packed([5, 2, 13])}) == (1, 1, 2, 3)
