"""Time to quality and plateaus, by hand."""

from __future__ import annotations

import math

import pytest

from fgd.statistics.curves import Plateau, Point, Reached, plateau, time_to_quality


def curve(*aps: float | None, every: int = 100) -> list[Point]:
    return [Point(every * n, ap, 2.0 * every * n) for n, ap in enumerate(aps, start=1)]


def test_the_first_evaluation_that_reaches_the_figure() -> None:
    found = time_to_quality(curve(10.0, 30.0, 29.0, 31.0), 30.0, control_steps=400)
    assert found == Reached(step=200, seconds=400.0, steps_ratio=0.5, stays_from=400)


def test_a_curve_that_falls_back_at_the_end_does_not_stay() -> None:
    found = time_to_quality(curve(10.0, 30.0, 29.0), 30.0, control_steps=300)
    assert found is not None
    assert (found.step, found.stays_from) == (200, None)


def test_points_may_come_in_any_order_and_without_figures() -> None:
    points = [Point(300, 40.0), Point(100, None), Point(200, math.nan), Point(50, 2.0)]
    assert time_to_quality(points, 2.0, control_steps=200) == Reached(50, None, 0.25, 50)


@pytest.mark.parametrize(
    ("points", "ap"), [(curve(1.0, 2.0), 3.0), ([], 1.0), (curve(5.0), None), (curve(5.0), math.nan)]
)
def test_what_is_never_reached_has_no_time(points: list[Point], ap: float | None) -> None:
    assert time_to_quality(points, ap, control_steps=100) is None


def test_a_flat_end_stands_and_its_noise_is_told() -> None:
    """Of nine evaluations the last third are those after 600 steps: 30, 31, 30, 31."""
    found = plateau(curve(1.0, 9.0, 20.0, 25.0, 28.0, 30.0, 31.0, 30.0, 31.0), 900)
    assert found is not None
    assert (found.points, found.spread, found.stands) == (4, 1.0, True)
    assert found.rise == pytest.approx(0.6)
    assert found.noise == pytest.approx(math.sqrt(0.8 / 2))


def test_a_rising_end_does_not_stand_and_a_falling_one_does() -> None:
    assert plateau(curve(0.0, 0.0, 0.0, 0.0, 0.0, 10.0, 11.0, 12.0, 13.0), 900) == Plateau(
        4, pytest.approx(3.0), 3.0, pytest.approx(0.0, abs=1e-9), False
    )
    falling = plateau(curve(0.0, 0.0, 0.0, 0.0, 0.0, 13.0, 12.0, 11.0, 10.0), 900)
    assert falling is not None
    assert falling.stands


@pytest.mark.parametrize("points", [curve(1.0, 2.0, 3.0), [], curve(1.0, 2.0, None, None, 2.0, 3.0)])
def test_too_few_evaluations_say_nothing(points: list[Point]) -> None:
    assert plateau(points, 600) is None
