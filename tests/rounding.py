"""How far two ways to the same number may lie apart, on any processor.

Which kernel takes a sum, and so in which order, depends on the instruction set (AVX2, AVX512, AMX), on the shape and on
the number of threads. A test that compares two ways therefore does one of three things, and says which:

- Both ways make the same calls on the same values. Then they are equal to the bit everywhere.
- Both compute one formula in different orders. Then they are compared in float64, where rounding is far below any
  mistake; or in float32 or bf16 within a bound from the number of roundings, by what stands here.
- Two trainings are rounded differently. Then they are compared for a few steps of SGD, which moves a weight in
  proportion to its gradient. Adam divides a gradient by its own size: one that is nothing but rounding moves its weight
  as far as any other, and after one step the trainings are no longer near each other.
"""

from __future__ import annotations

import math

FLOAT32, BF16 = 2.0**-24, 2.0**-8
"""What one rounding changes a number by at most, relative to it: half a unit of the last of 24 or 8 binary digits."""

SURE = 8.0
"""Roundings go up as often as down, so n of them add up like a random walk: beyond SURE sqrt(n) of them with a
probability of less than 2 n exp(-SURE**2 / 2), 3e-14 n (N. Higham, T. Mary: A new approach to probabilistic rounding
error analysis, SIAM J. Sci. Comput. 41, 2019)."""


def of_sum(terms: int, unit: float = FLOAT32) -> float:
    """Of a sum of so many products in any order, relative to the sum of their magnitudes."""
    return unit * min(terms + 1.0, SURE * math.sqrt(terms))


def of_network(layers: int, terms: int, unit: float = FLOAT32) -> float:
    """Of a map behind so many convolutions of so many products, by the norm: their errors are independent."""
    return unit * SURE * math.sqrt(layers * terms)
