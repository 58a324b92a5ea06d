"""What a method looks at, to be shown to people: masks and attentions, level by level. Knows no losses."""

# N images, C channels, K places, H x W cells of a level

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fgd.types import Predictions

Network = Literal["teacher", "student"]


@dataclass(frozen=True)
class Focus:
    """One mask, attention or distribution on one level."""

    name: str
    """What it is, for people: foreground, spatial attention, ..."""
    level: str
    values: Tensor
    """N x H x W: of each cell; N x C: of each channel. Of any finite range."""
    network: Network | None = None
    """Whose it is; None: both are compared under it."""
    by_magnitude: bool = False
    """It spans orders of magnitude, so its logarithm is what to look at."""


def of_both(name: str, level: str, *, teacher: Tensor, student: Tensor) -> Iterator[Focus]:
    """The same thing of each network."""
    yield Focus(name, level, teacher, "teacher")
    yield Focus(name, level, student, "student")


def largest_of_cells(values_NK: Tensor, predictions: Predictions, level: str, map_NCHW: Tensor) -> Tensor:
    """The largest value among the places of each cell, NHW. values: of all levels' places."""
    images, _, height, width = map_NCHW.shape
    return values_NK[:, predictions.span(level)].float().reshape(images, height, width, -1).amax(3)
