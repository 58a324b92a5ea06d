"""Predictions made of golden arrays, for methods that take what a head says."""

# N images, K places, C classes, D numbers of a coded box, A places of a cell, H x W cells of a level

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fgd.types import Predictions


def of_places(map_NCHW: Tensor, anchors: int) -> Tensor:
    """N A*D H W, anchor by anchor -> N x places x D."""
    images, channels, height, width = map_NCHW.shape
    rows = map_NCHW.view(images, anchors, channels // anchors, height, width)
    return rows.permute(0, 3, 4, 1, 2).reshape(images, height * width * anchors, -1)


def undecoded(boxes_NKD: Tensor, _anchors_K4: Tensor) -> Tensor:
    return boxes_NKD


def predictions(
    logits: Mapping[str, Tensor],
    boxes: Mapping[str, Tensor] | None = None,
    *,
    anchors_K4: Tensor | None = None,
    decode: Callable[[Tensor, Tensor], Tensor] = undecoded,
    matches: Sequence[Tensor] | None = None,
    quality_NK: Tensor | None = None,
) -> Predictions:
    """Of each level's rows; what a method does not look at is left at zero."""
    logits_NKC = torch.cat(list(logits.values()), 1)
    images, places, _ = logits_NKC.shape
    return Predictions(
        rows={level: each.shape[1] for level, each in logits.items()},
        logits_NKC=logits_NKC,
        boxes_NKD=torch.cat(list(boxes.values()), 1) if boxes else logits_NKC.new_zeros(images, places, 4),
        anchors_K4=logits_NKC.new_zeros(places, 4) if anchors_K4 is None else anchors_K4,
        decode=decode,
        matches=tuple(matches) if matches is not None else None,
        quality_NK=quality_NK,
    )
