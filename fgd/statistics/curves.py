"""What a run's validation curve says: time to quality, and whether it stands at a plateau.

A curve is AP on the validation images (0 to 100) after steps. Evaluations make noise: a curve may pass a line early
and fall below it again, which is why `Reached` also says when it stays above.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PLATEAU_RISE = 1.0
"""AP points that a curve at its plateau may still rise over the last third of its schedule."""
FEWEST_POINTS = 3
"""Of the last third: a line through fewer says nothing about noise."""


@dataclass(frozen=True)
class Point:
    """One evaluation."""

    step: int
    """Optimiser steps done."""
    ap: float | None
    """None where the validation images have no box."""
    seconds: float | None = None
    """Since the training began; None where that is not known."""


@dataclass(frozen=True)
class Reached:
    """When a run first had the AP that was asked for."""

    step: int
    seconds: float | None
    steps_ratio: float
    """Of all steps of the control: 0.5 is half the training."""
    stays_from: int | None
    """The step from which on its AP is never lower again; None: its last evaluation is."""


def time_to_quality(curve: Sequence[Point], ap: float | None, control_steps: int) -> Reached | None:
    """The first evaluation that reaches `ap`, the control's final AP on the validation images. None if none does.

    control_steps: how many steps the control was trained for.
    """
    points = sorted((point for point in curve if _known(point.ap)), key=lambda point: point.step)
    if ap is None or not _known(ap):
        return None
    above = [point.ap is not None and point.ap >= ap for point in points]
    if not any(above):
        return None
    first = points[above.index(True)]
    stays = next((n for n in range(len(points), 0, -1) if not above[n - 1]), 0)
    stays_from = points[stays].step if stays < len(points) else None
    return Reached(first.step, first.seconds, first.step / control_steps, stays_from)


@dataclass(frozen=True)
class Plateau:
    """The last third of a run's schedule."""

    points: int
    """Evaluations in it."""
    rise: float
    """AP points by which a straight line through them (least squares) rises from its first to its last."""
    spread: float
    """AP points between the highest and the lowest."""
    noise: float
    """AP points: standard deviation of the evaluations around the line."""
    stands: bool
    """Whether the rise is at most PLATEAU_RISE. A falling curve stands too: more training adds nothing."""


def plateau(curve: Sequence[Point], total_steps: int) -> Plateau | None:
    """Whether a curve has come to rest, by its evaluations after two thirds of `total_steps`. None if there are fewer
    than FEWEST_POINTS of them."""
    late = [(point.step, point.ap) for point in curve if _known(point.ap) and 3 * point.step >= 2 * total_steps]
    if len({step for step, _ in late}) < FEWEST_POINTS:
        return None
    steps, aps = np.array(sorted(late), np.float64).T
    slope, start = np.polynomial.polynomial.polyfit(steps - steps[0], aps, 1)[::-1]
    rest = aps - (start + slope * (steps - steps[0]))
    rise = float(slope * (steps[-1] - steps[0]))
    noise = math.sqrt(float((rest**2).sum()) / (len(rest) - 2))
    return Plateau(len(late), rise, float(np.ptp(aps)), noise, rise <= PLATEAU_RISE)


def _known(ap: float | None) -> bool:
    return ap is not None and not math.isnan(ap)
