"""Intervals: by hand where that can be done, and what must hold of any bootstrap."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from fgd.statistics.average_precision import average_precision
from fgd.statistics.detections import SplitDetections
from fgd.statistics.intervals import (
    difference,
    difference_over_images,
    gap_closed,
    gap_closed_over_images,
    students_t,
)
from fgd.statistics.matching import Matches, match
from tests.unit.statistics.scenes import random_scene, split

SQUARE = (0.0, 0.0, 100.0, 100.0)


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)]
)
def test_students_t_is_that_of_the_tables(freedom: int, t: float) -> None:
    assert students_t(freedom) == pytest.approx(t, abs=1e-4)


def test_a_difference_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t of two degrees of freedom."""
    found = difference({0: 11.0, 1: 22.0, 2: 33.0}, {0: 10.0, 1: 20.0, 2: 30.0})
    assert found is not None
    half = 4.30265 / math.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2 - half, 2 + half), abs=1e-4)
    assert (found.seeds, found.left_out, found.above_zero) == ((0, 1, 2), (), False)


def test_only_pairs_count_and_what_is_left_out_is_named() -> None:
    found = difference({0: 11.0, 1: 22.0, 2: None, 5: 9.0}, {0: 10.0, 1: 20.0, 2: 30.0, 3: math.nan, 4: 1.0})
    assert found is not None
    assert (found.value, found.seeds, found.left_out) == (1.5, (0, 1), (2, 4, 5))


def test_one_pair_has_no_interval_and_none_has_no_figure() -> None:
    found = difference({3: 11.0}, {3: 10.0})
    assert found is not None
    assert (found.value, found.low, found.high, found.above_zero) == (1.0, None, None, False)
    assert difference({1: 1.0}, {2: 1.0}) is None
    assert difference({}, {}) is None


def test_the_gap_closed_by_hand() -> None:
    """Half of a gap of 10. The residuals are 1 and -1 AP of a gap of 10, with t of one degree of freedom."""
    found = gap_closed({0: 26.0, 1: 24.0}, {0: 20.0, 1: 20.0}, 30.0)
    assert found is not None
    half = 12.7062 * 0.1 * math.sqrt(2) / math.sqrt(2)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-4)


@pytest.mark.parametrize("teacher", [None, math.nan, 20.5, 10.0])
def test_without_a_gap_nothing_of_it_is_closed(teacher: float | None) -> None:
    assert gap_closed({0: 26.0}, {0: 20.0}, teacher) is None


# --- over images ---


def better(told: SplitDetections, by: float) -> SplitDetections:
    """The same detections, and sure ones of some of the boxes."""
    draw = np.random.default_rng(len(told.truth_box))
    chosen = np.flatnonzero((draw.random(len(told.truth_box)) < by) & ~told.truth_crowd)
    return dataclasses.replace(
        told,
        found_image=np.append(told.found_image, told.truth_image[chosen]),
        found_box=np.append(told.found_box, told.truth_box[chosen].astype(np.float32), axis=0),
        found_label=np.append(told.found_label, told.truth_label[chosen]),
        found_score=np.append(told.found_score, np.full(len(chosen), 0.999, np.float32)),
    )


def arms(by: float, seeds: int = 3, images: int = 40) -> tuple[dict[int, Matches], dict[int, Matches]]:
    """Runs that look at the same images: what they find is drawn for each seed."""
    plain = random_scene(0, images=images)
    controls = {seed: shifted(plain, seed) for seed in range(seeds)}
    return (
        {seed: match(better(told, by)) for seed, told in controls.items()},
        {seed: match(told) for seed, told in controls.items()},
    )


def shifted(told: SplitDetections, seed: int) -> SplitDetections:
    moved = told.found_box + np.random.default_rng(seed).normal(0, 4, (len(told.found_box), 1)).astype(np.float32)
    return dataclasses.replace(told, found_box=moved)


def test_a_large_gain_is_above_zero_and_lies_in_its_interval() -> None:
    students, controls = arms(0.5)
    found = difference_over_images(students, controls, resamples=300)
    by_seeds = difference(
        {seed: average_precision(run) for seed, run in students.items()},
        {seed: average_precision(run) for seed, run in controls.items()},
    )
    assert found is not None
    assert by_seeds is not None
    assert found.value == pytest.approx(by_seeds.value)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.value < found.high
    assert found.above_zero


def test_equal_seeds_give_equal_intervals() -> None:
    students, controls = arms(0.2)
    one, two, other = (difference_over_images(students, controls, resamples=100, seed=seed) for seed in (1, 1, 2))
    assert one == two
    assert one != other


def test_the_same_run_differs_from_itself_by_nothing() -> None:
    """Both arms are drawn on the same images: else the images alone would make a difference."""
    _, controls = arms(0.0, seeds=2)
    found = difference_over_images(controls, controls, resamples=50)
    assert found is not None
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_one_seed_has_an_interval_over_images_alone() -> None:
    students, controls = arms(0.3, seeds=1)
    found = difference_over_images(students, controls, resamples=200)
    assert found is not None
    assert found.low is not None
    assert found.low < found.value
    assert found.seeds == (0,)


def test_seeds_that_differ_widen_the_interval_as_much_as_students_do() -> None:
    """All images are alike, so that all spread is that of the seeds: that of a mean of three, not two thirds of it."""
    truth = [(n, SQUARE, 1) for n in range(20)]

    def hits(share: float) -> Matches:
        box = (0.0, 0.0, 100.0, 100.0 * share)
        return match(split(truth, [(n, box, 1, 0.9) for n in range(20)], images=20))

    students, controls = {0: hits(0.61), 1: hits(0.71), 2: hits(0.81)}, {n: hits(0.51) for n in range(3)}
    values = [average_precision(students[n]) - average_precision(controls[n]) for n in range(3)]
    assert values == pytest.approx([20.0, 40.0, 60.0])
    found = difference_over_images(students, controls, resamples=2000)
    assert found is not None
    assert found.high is not None
    assert found.high == pytest.approx(40.0 + math.sqrt(1.5) * 20.0, abs=8.0), "three times the highest, widened"


def test_the_gap_closed_over_images() -> None:
    students, controls = arms(0.3)
    teacher = match(better(shifted(random_scene(0, images=40), 9), 0.8))
    found = gap_closed_over_images(students, controls, teacher, resamples=200)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.value < found.high < 1
    assert gap_closed_over_images(students, controls, controls[0], resamples=50) is None, "no gap"


def test_missing_pairs_and_no_boxes_have_no_figure() -> None:
    students, controls = arms(0.1, seeds=2)
    found = difference_over_images({0: students[0]}, controls, resamples=20)
    assert found is not None
    assert found.left_out == (1,)
    assert difference_over_images({5: students[0]}, controls) is None
    empty = match(split([], [], images=3))
    assert difference_over_images({0: empty}, {0: empty}) is None


def test_runs_of_other_images_are_refused() -> None:
    students, _ = arms(0.1, seeds=1)
    other = {0: match(random_scene(0, images=40, first_id=500))}
    with pytest.raises(ValueError, match="not of the same images"):
        difference_over_images(students, other)
