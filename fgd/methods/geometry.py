"""Which cells of a pyramid level lie in the image, and which belong to its boxes. Knows no features and no losses.

All images and levels at once, and nothing waits for the device: sizes and counts come from the host, boxes stay where
they are.
"""

# N images, K boxes (padded to the most in the batch), L levels; P cells, R lines (or columns) of all levels together

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fgd.types import Batch

WORD = 62
"""Boxes to an int64, a bit each; a lone bit below the sign is exact as a float64."""


@dataclass(frozen=True)
class Layout:
    """Where the images of a batch and their boxes lie in the padded input."""

    boxes_NK4: Tensor
    """float32 xyxy in pixels of the padded input; rows beyond an image's own boxes are zeros."""
    present_NK: Tensor
    """Which rows are boxes."""
    sizes_N2: Tensor
    """int64 (height, width) of each image before padding."""
    padded_size: tuple[int, int]
    apart: Layout | None = None
    """The same of the boxes that are kept apart: `Batch.apart`."""

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> Layout:
        return cls.of_boxes(
            [target.boxes_K4 for target in batch.targets],
            batch,
            device,
            cls.of_boxes(batch.apart, batch, device) if batch.apart else None,
        )

    @classmethod
    def of_boxes(
        cls, boxes: Sequence[Tensor], batch: Batch, device: torch.device, apart: Layout | None = None
    ) -> Layout:
        """boxes: of each image of the batch."""
        boxes = [boxes_K4.to(device, torch.float32, non_blocking=True) for boxes_K4 in boxes]
        counts_N1 = torch.tensor([[len(each)] for each in boxes]).to(device, non_blocking=True)
        boxes_NK4 = pad_sequence(boxes, batch_first=True)
        return cls(
            boxes_NK4=boxes_NK4,
            present_NK=torch.arange(boxes_NK4.shape[1], device=device) < counts_N1,
            sizes_N2=torch.tensor(batch.image_sizes).to(device, non_blocking=True),
            padded_size=batch.padded_size,
            apart=apart,
        )


@dataclass(frozen=True)
class Axis:
    """The lines of all levels, one level after the other; or their columns."""

    size_L1: Tensor
    """int64: how many each level has."""
    level_R: Tensor
    """int64: the level each is of."""
    place_R: Tensor
    """int64: where each lies on its level, from 0."""

    @classmethod
    def of(cls, sizes_L: Tensor, device: torch.device) -> Axis:
        level_R = torch.arange(len(sizes_L)).repeat_interleave(sizes_L)
        place_R = torch.arange(len(level_R)) - (sizes_L.cumsum(0) - sizes_L)[level_R]
        return cls(*(each.to(device, non_blocking=True) for each in (sizes_L[:, None], level_R, place_R)))


@dataclass(frozen=True)
class Grid:
    """The cells of all levels in a row: one level after the other, line after line."""

    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each level."""
    level_P: Tensor
    """int64: the level each cell is of."""
    lines: Axis
    columns: Axis

    @staticmethod
    @lru_cache(maxsize=64)  # training at many scales meets few sizes
    def of(sizes: tuple[tuple[int, int], ...], device: torch.device) -> Grid:
        heights_L, widths_L = torch.tensor(sizes).unbind(1)
        level_P = torch.arange(len(sizes)).repeat_interleave(heights_L * widths_L).to(device, non_blocking=True)
        return Grid(sizes, level_P, Axis.of(heights_L, device), Axis.of(widths_L, device))

    def split(self, values_NP: Tensor) -> tuple[Tensor, ...]:
        """The cells' values of each level."""
        return torch.split_with_sizes(values_NP, [height * width for height, width in self.sizes], 1)


@dataclass(frozen=True)
class Rectangles:
    """The cells each box claims on each level: lines top <= y < bottom, columns left <= x < right."""

    left_NLK: Tensor
    top_NLK: Tensor
    right_NLK: Tensor
    bottom_NLK: Tensor
    share_NLK: Tensor
    """float32 1 / (number of cells); 0 for a box that claims none."""


BoxCells = Callable[[Layout, Grid], Rectangles]


def valid_counts(layout: Layout, grid: Grid) -> tuple[Tensor, Tensor]:
    """Lines and columns of each level, each int64 NL1, that overlap the un-padded image."""
    padded_height, padded_width = layout.padded_size
    height_N11, width_N11 = layout.sizes_N2[:, None, None].unbind(-1)
    lines_NL1, columns_NL1 = height_N11 * grid.lines.size_L1, width_N11 * grid.columns.size_L1
    return -(-lines_NL1 // padded_height), -(-columns_NL1 // padded_width)


def valid_cells(layout: Layout, grid: Grid, *, padding: bool = False) -> tuple[Tensor, Tensor]:
    """NP, true where a cell overlaps the un-padded image and is not `apart`; NL, how many do, which may be none.

    padding: cells outside the image count too, as authors have it.
    """
    lines_NL1, columns_NL1 = all_counts(layout, grid) if padding else valid_counts(layout, grid)
    in_lines_NR, in_columns_NR = (
        axis.place_R < count_NL1[:, axis.level_R, 0]
        for axis, count_NL1 in ((grid.lines, lines_NL1), (grid.columns, columns_NL1))
    )
    valid_NP = torch.empty(len(in_lines_NR), len(grid.level_P), dtype=torch.bool, device=in_lines_NR.device)
    _cross(in_lines_NR, in_columns_NR, grid, valid_NP)
    if layout.apart is None:
        return valid_NP, (lines_NL1 * columns_NL1)[..., 0]
    valid_NP &= ~cells_apart(layout, layout.apart, grid)
    return valid_NP, torch.stack([each.sum(1) for each in grid.split(valid_NP)], 1)


def all_counts(layout: Layout, grid: Grid) -> tuple[Tensor, Tensor]:
    """Lines and columns of each level, each int64 NL1."""
    images = len(layout.sizes_N2)
    return grid.lines.size_L1.expand(images, -1, 1), grid.columns.size_L1.expand(images, -1, 1)


def cells_apart(layout: Layout, apart: Layout, grid: Grid) -> Tensor:
    """NP, true where a cell's centre lies in a box that is kept apart, and the cell belongs to no other box."""
    own_NP, apart_NP = (
        scale_masks(cells, torch.ones(1, dtype=torch.bool, device=grid.level_P.device), grid)[0] > 0
        for cells in (tight(layout, grid), centres(apart, grid))
    )
    return apart_NP & ~own_NP


def centres(layout: Layout, grid: Grid) -> Rectangles:
    """Cells whose centre lies in the box's visible part, as `tight` has them; a box that holds none claims none."""
    corners, visible_N1K = _visible_parts(layout, grid)
    left, top, right, bottom = ((corner - 0.5).ceil().long() for corner in corners)
    return _claimed(left, top, right, bottom, visible_N1K & (right > left) & (bottom > top))


def tight(layout: Layout, grid: Grid) -> Rectangles:
    """Cells whose centre lies in the box's visible part, left and top edge included, right and bottom not.

    A box that holds no centre claims the one cell under its own centre; a box outside the image claims nothing.
    """
    corners, visible_N1K = _visible_parts(layout, grid)
    left, top, right, bottom = corners
    lines_NL1, columns_NL1 = valid_counts(layout, grid)
    x = torch.minimum(((left + right) / 2).floor().long(), columns_NL1 - 1)
    y = torch.minimum(((top + bottom) / 2).floor().long(), lines_NL1 - 1)
    # The centre of cell j is j + 1/2.
    left, top, right, bottom = ((corner - 0.5).ceil().long() for corner in corners)
    empty = (right <= left) | (bottom <= top)
    return _claimed(
        torch.where(empty, x, left),
        torch.where(empty, y, top),
        torch.where(empty, x + 1, right),
        torch.where(empty, y + 1, bottom),
        visible_N1K,
    )


def inclusive(layout: Layout, grid: Grid) -> Rectangles:
    """Cells floor(left)..ceil(right), both included, as the reference's, but cut to the valid cells."""
    (left, top, right, bottom), visible_N1K = _visible_parts(layout, grid)
    lines_NL1, columns_NL1 = valid_counts(layout, grid)
    return _claimed(
        torch.minimum(left.floor().long(), columns_NL1 - 1),
        torch.minimum(top.floor().long(), lines_NL1 - 1),
        torch.minimum(right.ceil().long() + 1, columns_NL1),
        torch.minimum(bottom.ceil().long() + 1, lines_NL1),
        visible_N1K,
    )


def official(layout: Layout, grid: Grid) -> Rectangles:
    """The reference's cells (yzd-v/FGD@c03a6cf mmdet/distillation/losses/fgd.py), its slips included.

    Boxes are divided by the un-padded size; nothing is clamped, so a negative start counts from the far edge as in
    a Python slice, and cells beyond the edge count in the area. In float32 and in its order of operations: whether
    an edge falls on a cell's border depends on the rounding.
    """
    image_height_N11, image_width_N11 = layout.sizes_N2[:, None, None].unbind(-1)
    height_L1, width_L1 = grid.lines.size_L1, grid.columns.size_L1
    x1, y1, x2, y2 = layout.boxes_NK4[:, None].unbind(-1)
    left, right = (x1 / image_width_N11 * width_L1).floor().long(), (x2 / image_width_N11 * width_L1).ceil().long() + 1
    top, bottom = (
        (y1 / image_height_N11 * height_L1).floor().long(),
        (y2 / image_height_N11 * height_L1).ceil().long() + 1,
    )
    share_NLK = 1.0 / (bottom - top) / (right - left)
    return Rectangles(
        left_NLK=_slice_index(left, width_L1),
        top_NLK=_slice_index(top, height_L1),
        right_NLK=_slice_index(right, width_L1),
        bottom_NLK=_slice_index(bottom, height_L1),
        share_NLK=torch.where(layout.present_NK[:, None], share_NLK, 0.0),
    )


def scale_masks(rectangles: Rectangles, valid_NP: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """M * S and (1 - M) * S of FGD's equations 2 and 3, float32 NP each.

    Foreground: 1 / area of the smallest box over the cell. Background: 1 / N_bg on the valid cells of no box; all
    zero where boxes cover the whole image.

    Boxes are ranked, the smallest first. Each line and each column of a level knows its boxes as bits by rank: the
    lowest bit a cell's line and column have in common is the smallest box over it. So the work per cell is an `and`
    for 62 boxes, and memory does not grow with their number.
    """
    share_NLK, rank_NLK = rectangles.share_NLK.sort(dim=2, descending=True, stable=True)
    lines_WNR = _words(rectangles.top_NLK, rectangles.bottom_NLK, rank_NLK, grid.lines)
    columns_WNR = _words(rectangles.left_NLK, rectangles.right_NLK, rank_NLK, grid.columns)

    images, _, boxes = share_NLK.shape
    cells = len(grid.level_P)
    first_NP = torch.zeros(images, cells, dtype=torch.int64, device=valid_NP.device)
    word_NP = torch.zeros_like(first_NP)
    common_NP = torch.empty_like(first_NP)
    for word in reversed(range(len(lines_WNR))):
        _cross(lines_WNR[word], columns_WNR[word], grid, common_NP)
        covered_NP = common_NP != 0
        first_NP = torch.where(covered_NP, common_NP, first_NP)
        word_NP = torch.where(covered_NP, word, word_NP)
    lowest_NP = (first_NP & -first_NP).double().view(torch.int64).bitwise_right_shift_(52).sub_(1023)  # the exponent
    winner_NP = torch.where(first_NP == 0, boxes, word_NP * WORD + lowest_NP)  # beyond the boxes: the share 0
    shares_NLK = torch.nn.functional.pad(share_NLK, (0, 1))
    foreground_NP = shares_NLK.flatten(1).gather(1, winner_NP + grid.level_P * (boxes + 1))

    background_NP = (valid_NP & (foreground_NP == 0)).float()
    for background_Np in grid.split(background_NP):
        background_Np /= background_Np.sum(1, keepdim=True).clamp(min=1)  # whole numbers, so exact
    return foreground_NP, background_NP


def _cross(lines_NR: Tensor, columns_NR: Tensor, grid: Grid, out_NP: Tensor) -> None:
    """out = the bits that each cell's line and column have in common."""
    lines = torch.split_with_sizes(lines_NR, [height for height, _ in grid.sizes], 1)
    columns = torch.split_with_sizes(columns_NR, [width for _, width in grid.sizes], 1)
    for lines_NH, columns_NW, out_Np in zip(lines, columns, grid.split(out_NP), strict=True):
        out_NHW = out_Np.view(-1, lines_NH.shape[1], columns_NW.shape[1])
        torch.bitwise_and(lines_NH[:, :, None], columns_NW[:, None, :], out=out_NHW)


def _words(first_NLK: Tensor, beyond_NLK: Tensor, rank_NLK: Tensor, axis: Axis) -> Tensor:
    """Which boxes cover each line (or column) of all levels, as bits by rank: int64, 62 boxes a word."""
    first_NRK, beyond_NRK = (edge.gather(2, rank_NLK)[:, axis.level_R] for edge in (first_NLK, beyond_NLK))
    place_R1 = axis.place_R[:, None]
    covers_NRK = (first_NRK <= place_R1) & (place_R1 < beyond_NRK)
    padded_NRK = torch.nn.functional.pad(covers_NRK, (0, -covers_NRK.shape[2] % WORD))
    bits = torch.arange(WORD, device=padded_NRK.device)
    words_NRWK = padded_NRK.view(*padded_NRK.shape[:2], padded_NRK.shape[2] // WORD, WORD)
    return (words_NRWK.long() << bits).sum(3).permute(2, 0, 1)


def _visible_parts(layout: Layout, grid: Grid) -> tuple[tuple[Tensor, ...], Tensor]:
    """Left, top, right, bottom of the boxes cut to the image, in cells of each level; which boxes meet the image.

    float64: exact products, so a box edge on a cell's border is seen as such.
    """
    padded_height, padded_width = layout.padded_size
    image_height_N11, image_width_N11 = layout.sizes_N2[:, None, None].double().unbind(-1)
    height_L1, width_L1 = grid.lines.size_L1, grid.columns.size_L1
    x1, y1, x2, y2 = layout.boxes_NK4[:, None].double().unbind(-1)
    outside_N1K = (x2 < 0) | (y2 < 0) | (x1 > image_width_N11) | (y1 > image_height_N11)
    left, right = (torch.minimum(x.clamp(min=0), image_width_N11) * width_L1 / padded_width for x in (x1, x2))
    top, bottom = (torch.minimum(y.clamp(min=0), image_height_N11) * height_L1 / padded_height for y in (y1, y2))
    return (left, top, right, bottom), layout.present_NK[:, None] & ~outside_N1K


def _claimed(left: Tensor, top: Tensor, right: Tensor, bottom: Tensor, visible_N1K: Tensor) -> Rectangles:
    area_NLK = (right - left) * (bottom - top)
    return Rectangles(left, top, right, bottom, torch.where(visible_N1K, 1.0 / area_NLK, 0.0))


def _slice_index(index: Tensor, size_L1: Tensor) -> Tensor:
    """What a Python slice makes of `index` on a sequence of each level's size."""
    return torch.where(index < 0, index + size_L1, index).clamp(min=0).minimum(size_L1)
