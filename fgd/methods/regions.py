"""Maps pooled inside boxes. Knows no losses."""

# N images, R boxes of all images in a row, C channels, L levels

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

CANONICAL_SIDE, CANONICAL_LEVEL = 224.0, 4
"""Pixels of a box that belongs to stride 2^4 (arXiv 1612.03144, equation 1)."""


def levels_of(boxes_R4: Tensor, strides: Sequence[int]) -> Tensor:
    """int64 R: the place in `strides` of the level that each box is pooled from, by its size."""
    side_R = (boxes_R4[:, 2:] - boxes_R4[:, :2]).prod(1).clamp(min=1e-12).sqrt()
    power_R = (CANONICAL_LEVEL + (side_R / CANONICAL_SIDE + 1e-8).log2()).floor()
    powers_L = torch.tensor(strides, dtype=torch.float32, device=boxes_R4.device).log2()
    return (power_R[:, None] >= powers_L).sum(1).sub(1).clamp(min=0)


def pooled(
    maps: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], size: int, levels_R: Tensor
) -> Tensor:
    """R x C x size x size, 2 x 2 samples a cell: each box from its level."""
    images_R = torch.cat([box.new_full((len(box),), n) for n, box in enumerate(boxes)])
    boxes_R5 = torch.cat([images_R[:, None], torch.cat(list(boxes))], 1)
    out = maps[0].new_zeros(len(boxes_R5), maps[0].shape[1], size, size)
    for level, (map_NCHW, stride) in enumerate(zip(maps, strides, strict=True)):
        (at_r,) = torch.where(levels_R == level)
        of_level: Tensor = roi_align(
            map_NCHW, boxes_R5[at_r].to(map_NCHW), size, spatial_scale=1 / stride, sampling_ratio=2, aligned=True
        )
        out = out.index_put((at_r,), of_level)
    return out
