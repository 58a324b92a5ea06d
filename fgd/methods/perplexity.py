"""How spread out an attention is, and the temperature that makes it so.

The softmax of a teacher's map is as peaked as its numbers are large: with a fixed temperature one detector's attention
rests on 1 % of the cells and another's on all of them. Perplexity, exp(entropy), counts the cells, or channels, that it
rests on; as a share of all there are it means the same for every detector, level and size.
"""

# N images, K cells or channels of one

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

HALVINGS = 50
LEAST, MOST = 1e-6, 1e6
"""Temperatures that are looked at, as multiples of the statistics' own spread."""

ROUNDING = 1e-6
"""Numbers that differ by less than this share of their size are alike."""


def median_perplexity(statistics_K: Sequence[Tensor], temperature: float) -> float:
    """Over images, each a statistic of its K. Perplexity is the share of the K on which softmax(statistic /
    temperature) rests: 1/K (one of them) to 1 (all alike)."""
    return _median(_stacked(statistics_K), temperature)


def temperature_for(statistics_K: Sequence[Tensor], target: float) -> float:
    """The temperature at which the median over images is `target`, by bisection: a warmer softmax is flatter.

    statistics_K: of each image a mean of |F| for each of its K cells, or channels. Where they are all alike any
    temperature gives 1, and the result is their own size.
    """
    spread = statistics.median(float(each.double().std(correction=0)) for each in statistics_K)
    size = statistics.median(float(each.double().abs().mean()) for each in statistics_K)
    if not spread > ROUNDING * size:
        return max(size, LEAST)
    statistics_NK = _stacked(statistics_K)
    low, high = math.log(LEAST * spread), math.log(MOST * spread)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _median(statistics_NK, math.exp(middle)) < target:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def _stacked(statistics_K: Sequence[Tensor]) -> Tensor:
    """NK float64; images with fewer K than others end in minus infinity, of which a softmax makes nothing."""
    return torch.nn.utils.rnn.pad_sequence([each.double() for each in statistics_K], True, -math.inf)


def _median(statistics_NK: Tensor, temperature: float) -> float:
    entropies_N = torch.special.entr((statistics_NK / temperature).softmax(1)).sum(1)
    counts_N = (statistics_NK > -math.inf).sum(1)
    return float(statistics.median((entropies_N.exp() / counts_N).tolist()))
