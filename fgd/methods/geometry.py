"""Which cells of a pyramid level lie in the image, and which belong to its boxes. Knows no features and no losses.

Nothing here waits for the device: sizes and counts come from the host, boxes stay where they are.
"""

# N images, K boxes (padded to the most in the batch), H x W cells of a level

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fgd.types import Batch

CHUNK_CELLS = 2**22
"""Cells painted at a time, over images and boxes: 16 MiB of float32 however crowded the batch is."""


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

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> Layout:
        boxes = [target.boxes_K4.to(device, torch.float32, non_blocking=True) for target in batch.targets]
        counts_N1 = torch.tensor([[len(each)] for each in boxes]).to(device, non_blocking=True)
        boxes_NK4 = pad_sequence(boxes, batch_first=True)
        return cls(
            boxes_NK4=boxes_NK4,
            present_NK=torch.arange(boxes_NK4.shape[1], device=device) < counts_N1,
            sizes_N2=torch.tensor(batch.image_sizes).to(device, non_blocking=True),
            padded_size=batch.padded_size,
        )


@dataclass(frozen=True)
class Rectangles:
    """The cells each box claims: rows top <= y < bottom, columns left <= x < right."""

    left_NK: Tensor
    top_NK: Tensor
    right_NK: Tensor
    bottom_NK: Tensor
    share_NK: Tensor
    """float32 1 / (number of cells); 0 for a box that claims none."""


BoxCells = Callable[[Layout, int, int], Rectangles]
"""layout, height and width of the level in cells -> what each box claims there."""


def valid_counts(layout: Layout, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows and columns, each int64 N1, that overlap the un-padded image, on a level of height x width cells."""
    padded_height, padded_width = layout.padded_size
    rows_N1, columns_N1 = layout.sizes_N2[:, :1] * height, layout.sizes_N2[:, 1:] * width
    return -(-rows_N1 // padded_height), -(-columns_N1 // padded_width)


def valid_cells(layout: Layout, height: int, width: int) -> Tensor:
    """NHW, true where a cell overlaps the un-padded image."""
    rows_N1, columns_N1 = valid_counts(layout, height, width)
    device = layout.sizes_N2.device
    in_rows_NH = torch.arange(height, device=device) < rows_N1
    in_columns_NW = torch.arange(width, device=device) < columns_N1
    return in_rows_NH[:, :, None] & in_columns_NW[:, None, :]


def tight(layout: Layout, height: int, width: int) -> Rectangles:
    """Cells whose centre lies in the box's visible part, left and top edge included, right and bottom not.

    A box that holds no centre claims the one cell under its own centre; a box outside the image claims nothing.
    """
    corners, visible_NK = _visible_parts(layout, height, width)
    left, top, right, bottom = corners
    rows_N1, columns_N1 = valid_counts(layout, height, width)
    x = torch.minimum(((left + right) / 2).floor().long(), columns_N1 - 1)
    y = torch.minimum(((top + bottom) / 2).floor().long(), rows_N1 - 1)
    # The centre of cell j is j + 1/2.
    left, top, right, bottom = ((corner - 0.5).ceil().long() for corner in corners)
    empty = (right <= left) | (bottom <= top)
    return _claimed(
        torch.where(empty, x, left),
        torch.where(empty, y, top),
        torch.where(empty, x + 1, right),
        torch.where(empty, y + 1, bottom),
        visible_NK,
    )


def inclusive(layout: Layout, height: int, width: int) -> Rectangles:
    """Cells floor(left)..ceil(right), both included, as the reference's, but cut to the valid cells."""
    (left, top, right, bottom), visible_NK = _visible_parts(layout, height, width)
    rows_N1, columns_N1 = valid_counts(layout, height, width)
    return _claimed(
        torch.minimum(left.floor().long(), columns_N1 - 1),
        torch.minimum(top.floor().long(), rows_N1 - 1),
        torch.minimum(right.ceil().long() + 1, columns_N1),
        torch.minimum(bottom.ceil().long() + 1, rows_N1),
        visible_NK,
    )


def official(layout: Layout, height: int, width: int) -> Rectangles:
    """The reference's cells (yzd-v/FGD@c03a6cf mmdet/distillation/losses/fgd.py), its slips included.

    Boxes are divided by the un-padded size; nothing is clamped, so a negative start counts from the far edge as in
    a Python slice, and cells beyond the edge count in the area. In float32 and in its order of operations: whether
    an edge falls on a cell's border depends on the rounding.
    """
    image_height_N1, image_width_N1 = layout.sizes_N2[:, :1], layout.sizes_N2[:, 1:]
    x1, y1, x2, y2 = layout.boxes_NK4.unbind(-1)
    left, right = (x1 / image_width_N1 * width).floor().long(), (x2 / image_width_N1 * width).ceil().long() + 1
    top, bottom = (y1 / image_height_N1 * height).floor().long(), (y2 / image_height_N1 * height).ceil().long() + 1
    share_NK = 1.0 / (bottom - top) / (right - left)
    return Rectangles(
        left_NK=_slice_index(left, width),
        top_NK=_slice_index(top, height),
        right_NK=_slice_index(right, width),
        bottom_NK=_slice_index(bottom, height),
        share_NK=torch.where(layout.present_NK, share_NK, 0.0),
    )


def scale_masks(rectangles: Rectangles, valid_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """M * S and (1 - M) * S of FGD's equations 2 and 3, float32 NHW each.

    Foreground: 1 / area of the smallest box over the cell. Background: 1 / N_bg on the valid cells of no box; all
    zero where boxes cover the whole image. Boxes are painted in chunks, so memory does not grow with their number.
    """
    images, height, width = valid_NHW.shape
    y_H, x_W = (torch.arange(size, device=valid_NHW.device) for size in (height, width))
    in_rows_NKH = (rectangles.top_NK[..., None] <= y_H) & (y_H < rectangles.bottom_NK[..., None])
    in_columns_NKW = (rectangles.left_NK[..., None] <= x_W) & (x_W < rectangles.right_NK[..., None])
    shares_NKW = torch.where(in_columns_NKW, rectangles.share_NK[..., None], 0.0)

    foreground_NHW = torch.zeros(images, height, width, device=valid_NHW.device)
    chunk = max(1, CHUNK_CELLS // (images * height * width))
    for first in range(0, shares_NKW.shape[1], chunk):
        some = slice(first, first + chunk)
        painted_NkHW = torch.where(in_rows_NKH[:, some, :, None], shares_NKW[:, some, None, :], 0.0)
        foreground_NHW = torch.maximum(foreground_NHW, painted_NkHW.amax(1))

    background_NHW = valid_NHW & (foreground_NHW == 0)
    count_N11 = background_NHW.sum((1, 2), keepdim=True).clamp(min=1)
    return foreground_NHW, background_NHW / count_N11


def _visible_parts(layout: Layout, height: int, width: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Left, top, right, bottom of the boxes cut to the image, in cells of the level; which boxes meet the image.

    float64: exact products, so a box edge on a cell's border is seen as such.
    """
    padded_height, padded_width = layout.padded_size
    image_height_N1, image_width_N1 = layout.sizes_N2[:, :1].double(), layout.sizes_N2[:, 1:].double()
    x1, y1, x2, y2 = layout.boxes_NK4.double().unbind(-1)
    outside_NK = (x2 < 0) | (y2 < 0) | (x1 > image_width_N1) | (y1 > image_height_N1)
    left, right = (torch.minimum(x.clamp(min=0), image_width_N1) * width / padded_width for x in (x1, x2))
    top, bottom = (torch.minimum(y.clamp(min=0), image_height_N1) * height / padded_height for y in (y1, y2))
    return (left, top, right, bottom), layout.present_NK & ~outside_NK


def _claimed(left: Tensor, top: Tensor, right: Tensor, bottom: Tensor, visible_NK: Tensor) -> Rectangles:
    area_NK = (right - left) * (bottom - top)
    return Rectangles(left, top, right, bottom, torch.where(visible_NK, 1.0 / area_NK, 0.0))


def _slice_index(index: Tensor, size: int) -> Tensor:
    """What a Python slice makes of `index` on a sequence of `size`."""
    return torch.where(index < 0, index + size, index).clamp(0, size)
