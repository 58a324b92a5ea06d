"""Cells of boxes, against a slow loop over every cell in exact fractions.

Single products, quotients and minima, each rounded as IEEE 754 says: the same on any processor. What sums there are add
whole numbers, or shares within torch's own tolerance for float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fgd.methods.geometry import BoxCells, Grid, Layout, inclusive, official, scale_masks, tight, valid_cells
from fgd.types import Batch

pytestmark = pytest.mark.numeric
MakeBatch = Callable[[tuple[int, int], Sequence[tuple[int, int]], Sequence[Sequence[Sequence[float]]]], Batch]
Box = tuple[float, float, float, float]
Cells = set[tuple[int, int]]
"""(row, column)"""

CPU = torch.device("cpu")


# --- the slow loop --------------------------------------------------------------------------------------------


def slow_valid(padded: int, image: int, count: int) -> list[int]:
    """Cells of one axis that overlap the image: those that begin before it ends."""
    return [cell for cell in range(count) if Fraction(cell * padded, count) < image]


def slow_claims(box: Box, padded: tuple[int, int], image: tuple[int, int], size: tuple[int, int], how: str) -> Cells:
    """The cells `box` claims, from the words of METHODS.md, section 8, rule 5."""
    (height, width), (image_height, image_width) = size, image
    x1, y1, x2, y2 = (Fraction(v) for v in box)
    if x2 < 0 or y2 < 0 or x1 > image_width or y1 > image_height:
        return set()
    x1, x2 = (min(max(x, Fraction(0)), Fraction(image_width)) * width / padded[1] for x in (x1, x2))
    y1, y2 = (min(max(y, Fraction(0)), Fraction(image_height)) * height / padded[0] for y in (y1, y2))
    rows, columns = slow_valid(padded[0], image_height, height), slow_valid(padded[1], image_width, width)
    if how == "inclusive":
        touched_rows = {min(i, rows[-1]) for i in range(math.floor(y1), math.ceil(y2) + 1)}
        touched_columns = {min(j, columns[-1]) for j in range(math.floor(x1), math.ceil(x2) + 1)}
        return {(i, j) for i in touched_rows for j in touched_columns}
    half = Fraction(1, 2)
    held = {(i, j) for i in rows for j in columns if y1 <= i + half < y2 and x1 <= j + half < x2}
    own = (min(math.floor((y1 + y2) / 2), rows[-1]), min(math.floor((x1 + x2) / 2), columns[-1]))
    return held or {own}


def slow_masks(claims: Sequence[tuple[Cells, float]], valid: Cells, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Foreground and background of one image: the largest share wins; the rest is divided evenly."""
    foreground, background = torch.zeros(size), torch.zeros(size)
    for cells, share in claims:
        for cell in cells:
            foreground[cell] = max(float(foreground[cell]), share)
    outside = [cell for cell in valid if foreground[cell] == 0]
    for cell in outside:
        background[cell] = 1 / len(outside)
    return foreground, background


def slow_image(
    boxes: Sequence[Box], padded: tuple[int, int], image: tuple[int, int], size: tuple[int, int], how: str
) -> tuple[Tensor, Tensor]:
    valid = {(i, j) for i in slow_valid(padded[0], image[0], size[0]) for j in slow_valid(padded[1], image[1], size[1])}
    claims = [slow_claims(box, padded, image, size, how) for box in boxes]
    return slow_masks([(cells, 1 / len(cells)) for cells in claims if cells], valid, size)


def masks(layout: Layout, size: tuple[int, int], cells: BoxCells, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Foreground and background of one level, NHW."""
    grid = Grid.of((size,), CPU)
    valid_NP = valid_cells(layout, grid)[0] if valid is None else valid
    foreground_NP, background_NP = scale_masks(cells(layout, grid), valid_NP, grid)
    return foreground_NP.view(-1, *size), background_NP.view(-1, *size)


# --- scenes ---------------------------------------------------------------------------------------------------


@st.composite
def scenes(
    draw: st.DrawFn,
) -> tuple[tuple[int, int], list[tuple[int, int]], list[list[Box]], tuple[int, int]]:
    """Padded size, image sizes, boxes (some beyond the image), size of the level."""
    padded = draw(st.tuples(st.integers(8, 80), st.integers(8, 80)))
    images = draw(st.lists(st.tuples(st.integers(1, padded[0]), st.integers(1, padded[1])), min_size=1, max_size=3))
    pixel = st.one_of(st.integers(-20, 100).map(float), st.floats(-20, 100, width=32))

    @st.composite
    def box(draw: st.DrawFn) -> Box:
        (x1, x2), (y1, y2) = sorted([draw(pixel), draw(pixel)]), sorted([draw(pixel), draw(pixel)])
        return x1, y1, x2, y2

    boxes = draw(st.lists(st.lists(box(), max_size=4), min_size=len(images), max_size=len(images)))
    return padded, images, boxes, draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))


@pytest.mark.parametrize(("how", "cells"), [("tight", tight), ("inclusive", inclusive)])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(scene=scenes())
def test_masks_equal_a_slow_loop(
    make_batch: MakeBatch,
    how: str,
    cells: BoxCells,
    scene: tuple[tuple[int, int], list[tuple[int, int]], list[list[Box]], tuple[int, int]],
) -> None:
    padded, images, boxes, size = scene
    layout = Layout.of(make_batch(padded, images, boxes), CPU)
    foreground_NHW, background_NHW = masks(layout, size, cells)

    expected = [slow_image(boxes[n], padded, images[n], size, how) for n in range(len(images))]
    torch.testing.assert_close(foreground_NHW, torch.stack([pair[0] for pair in expected]))
    torch.testing.assert_close(background_NHW, torch.stack([pair[1] for pair in expected]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(scene=scenes())
def test_official_masks_equal_python_slices(
    make_batch: MakeBatch, scene: tuple[tuple[int, int], list[tuple[int, int]], list[list[Box]], tuple[int, int]]
) -> None:
    padded, images, boxes, size = scene
    layout = Layout.of(make_batch(padded, images, boxes), CPU)
    foreground_NHW, background_NHW = masks(
        layout, size, official, valid=torch.ones(len(images), size[0] * size[1]).bool()
    )

    everywhere = {(i, j) for i in range(size[0]) for j in range(size[1])}
    for n, (image_height, image_width) in enumerate(images):
        claims = []
        for box in torch.tensor(boxes[n], dtype=torch.float32).reshape(-1, 4):
            left, right = (int(f(box[k] / image_width * size[1])) for f, k in ((torch.floor, 0), (torch.ceil, 2)))
            top, bottom = (int(f(box[k] / image_height * size[0])) for f, k in ((torch.floor, 1), (torch.ceil, 3)))
            rows, columns = range(size[0])[top : bottom + 1], range(size[1])[left : right + 1]
            claimed = {(i, j) for i in rows for j in columns}
            claims.append((claimed, 1 / ((bottom + 1 - top) * (right + 1 - left))))
        foreground_HW, background_HW = slow_masks(claims, everywhere, size)
        torch.testing.assert_close(foreground_NHW[n], foreground_HW)
        torch.testing.assert_close(background_NHW[n], background_HW)


# --- by hand, on a map of 4 x 6 cells of 8 x 8 pixels ------------------------------------------------------------


def foreground(make_batch: MakeBatch, boxes: Sequence[Box], cells: BoxCells = tight) -> Tensor:
    layout = Layout.of(make_batch((32, 48), [(32, 48)], [boxes]), CPU)
    return masks(layout, (4, 6), cells)[0][0]


def test_a_box_claims_the_cells_whose_centre_it_holds(make_batch: MakeBatch) -> None:
    mask_HW = foreground(make_batch, [(5, 3, 21, 13)])

    # Centres at 4, 12, 20, ...: columns 1 and 2, rows 0 and 1.
    assert mask_HW.nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert mask_HW[0, 1] == 0.25


def test_neighbours_share_no_cell(make_batch: MakeBatch) -> None:
    mask_HW = foreground(make_batch, [(4, 0, 20, 8), (20, 0, 28, 8)])

    assert mask_HW[0].tolist() == [0.5, 0.5, 1, 0, 0, 0]


def test_a_box_without_a_centre_claims_the_cell_under_its_own(make_batch: MakeBatch) -> None:
    mask_HW = foreground(make_batch, [(5, 17, 7, 19), (1, 30.5, 46, 31)])

    assert mask_HW.nonzero().tolist() == [[2, 0], [3, 2]]
    assert mask_HW.max() == 1


def test_a_box_outside_the_image_claims_nothing(make_batch: MakeBatch) -> None:
    boxes: list[Box] = [(-9, 3, -1, 9), (49, 3, 60, 9), (3, -9, 9, -1), (3, 33, 9, 50)]

    for cells in (tight, inclusive):
        assert not foreground(make_batch, boxes, cells).any()


def test_the_smallest_of_nested_boxes_wins_whatever_the_order(make_batch: MakeBatch) -> None:
    boxes: list[Box] = [(0, 0, 48, 32), (8, 8, 24, 24), (8, 8, 16, 16)]

    for order in (boxes, boxes[::-1]):
        mask_HW = foreground(make_batch, order)
        assert mask_HW[0, 0] == pytest.approx(1 / 24)
        assert mask_HW[2, 2] == 1 / 4
        assert mask_HW[1, 1] == 1


def test_a_box_over_the_whole_image_leaves_no_background(make_batch: MakeBatch) -> None:
    layout = Layout.of(make_batch((32, 48), [(32, 48)], [[(0, 0, 48, 32)]]), CPU)
    foreground_NHW, background_NHW = masks(layout, (4, 6), tight)

    assert foreground_NHW.sum() == pytest.approx(1)
    assert not background_NHW.any()


def test_without_boxes_all_valid_cells_are_background(make_batch: MakeBatch) -> None:
    layout = Layout.of(make_batch((32, 48), [(20, 30), (32, 48)], [[], []]), CPU)
    foreground_NHW, background_NHW = masks(layout, (4, 6), tight)

    assert not foreground_NHW.any()
    # 20 x 30 pixels reach into 3 x 4 cells.
    torch.testing.assert_close(background_NHW[0, :3, :4], torch.full((3, 4), 1 / 12))
    torch.testing.assert_close(background_NHW.sum((1, 2)), torch.ones(2))


def test_valid_cells_are_those_that_overlap_the_image(make_batch: MakeBatch) -> None:
    # A level of 3 columns under 320 padded pixels has cells of 106.67 pixels.
    layout = Layout.of(make_batch((256, 320), [(256, 213), (256, 214), (1, 1)], [[], [], []]), CPU)

    valid_NP, counts_N1 = valid_cells(layout, Grid.of(((2, 3),), CPU))
    assert valid_NP.sum(1).tolist() == counts_N1.flatten().tolist() == [4, 6, 1]


def crowd(count: int) -> list[Box]:
    corners = torch.rand(count, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([40.0, 24.0, 8.0, 8.0])
    return [(x, y, x + w, y + h) for x, y, w, h in corners.tolist()]


@pytest.mark.parametrize("count", [61, 62, 63, 124, 125, 300])
def test_crowds_of_more_boxes_than_a_word_has_bits(make_batch: MakeBatch, count: int) -> None:
    boxes = crowd(count)
    mask_HW = foreground(make_batch, boxes)

    torch.testing.assert_close(mask_HW, slow_image(boxes, (32, 48), (32, 48), (4, 6), "tight")[0])


@pytest.mark.parametrize("cells", [tight, inclusive, official])
def test_all_levels_at_once_are_each_level_alone(make_batch: MakeBatch, cells: BoxCells) -> None:
    sizes = ((16, 24), (8, 12), (4, 6), (2, 3), (1, 2))
    layout = Layout.of(make_batch((128, 192), [(100, 192), (128, 130)], [crowd(70), [(3, 3, 100, 90)]]), CPU)
    grid = Grid.of(sizes, CPU)
    together = scale_masks(cells(layout, grid), valid_cells(layout, grid)[0], grid)

    for which in (0, 1):
        alone = [masks(layout, size, cells)[which].flatten(1) for size in sizes]
        assert all(map(torch.equal, grid.split(together[which]), alone))
