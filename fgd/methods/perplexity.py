"""How spread out an attention is, and the temperature that makes it so.

The softmax of a teacher's map is as peaked as its numbers are large: with a fixed temperature one detector's attention
rests on 1 % of the cells and another's on all of them. Perplexity, exp(entropy), counts the cells, or channels, that it
rests on; as a share of all there are it means the same for every detector, level and size.
"""

# K cells or channels

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

HALVINGS = 60
LEAST, MOST = 1e-6, 1e6
"""Temperatures that are looked at, as multiples of the statistics' own spread."""


def perplexity(statistic_K: Tensor, temperature: float) -> float:
    """Of softmax(statistic / temperature): the share of the K that it rests on, 1/K (one of them) to 1 (all alike)."""
    shares_K = (statistic_K.double() / temperature).softmax(0)
    return math.exp(float(torch.special.entr(shares_K).sum())) / len(shares_K)


def median_perplexity(statistics_K: Sequence[Tensor], temperature: float) -> float:
    """Over images."""
    return statistics.median(perplexity(each, temperature) for each in statistics_K)


def temperature_for(statistics_K: Sequence[Tensor], target: float) -> float:
    """The temperature at which the median over images is `target`, by bisection: a warmer softmax is flatter.

    statistics_K: of each image a mean of |F| for each of its K cells, or channels. Where they are all alike any
    temperature gives 1, and the result is their own size.
    """
    spread = statistics.median(float(each.double().std(correction=0)) for each in statistics_K)
    if not spread > 0:
        return max(float(statistics_K[0].double().abs().mean()), LEAST)
    low, high = math.log(LEAST * spread), math.log(MOST * spread)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if median_perplexity(statistics_K, math.exp(middle)) < target:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)
