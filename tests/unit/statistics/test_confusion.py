"""The confusion matrix by hand."""

from __future__ import annotations

import numpy as np

from fgd.statistics.confusion import confusion
from tests.unit.statistics.scenes import random_scene, split

LEFT, RIGHT = (0.0, 0.0, 100.0, 100.0), (200.0, 0.0, 300.0, 100.0)
NEAR = (0.0, 0.0, 100.0, 90.0)


def counts(truth: list, found: list, images: int = 1, classes: int = 2, score: float = 0.5) -> list:
    return confusion(split(truth, found, images, classes), score=score).counts.tolist()


def test_right_wrong_missed_and_invented() -> None:
    truth = [(0, LEFT, 1), (0, RIGHT, 2), (1, LEFT, 2)]
    found = [(0, LEFT, 1, 0.9), (0, RIGHT, 1, 0.8), (1, RIGHT, 2, 0.7)]
    assert counts(truth, found, images=2) == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]


def test_a_second_detection_of_a_box_is_one_of_nothing() -> None:
    assert counts([(0, LEFT, 1)], [(0, NEAR, 1, 0.9), (0, LEFT, 1, 0.8)]) == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_the_higher_score_chooses_first() -> None:
    found = [(0, LEFT, 1, 0.8), (0, NEAR, 2, 0.9)]
    assert counts([(0, LEFT, 1)], found) == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_of_two_boxes_in_one_place_that_of_its_class_is_taken() -> None:
    truth = [(0, LEFT, 1), (0, LEFT, 2)]
    assert counts(truth, [(0, LEFT, 1, 0.9), (0, LEFT, 2, 0.8)]) == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert counts(truth[::-1], [(0, LEFT, 1, 0.9), (0, LEFT, 2, 0.8)]) == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_low_scores_are_not_there() -> None:
    assert counts([(0, LEFT, 1)], [(0, LEFT, 1, 0.4)]) == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert counts([(0, LEFT, 1)], [(0, LEFT, 1, 0.5)]) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]], "0.5 is enough"


def test_crowds_are_not_missed_and_what_lies_in_them_is_left_out() -> None:
    crowd = (0, (0.0, 0.0, 400.0, 300.0), 1, True)
    assert counts([crowd], [(0, LEFT, 2, 0.9)]) == [[0, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_nothing_at_all() -> None:
    assert counts([], [], images=0) == [[0] * 3] * 3


def test_every_box_and_every_sure_detection_outside_crowds_is_counted_once() -> None:
    told = random_scene(3)
    found = confusion(told, score=0.3)
    boxes = np.bincount(told.truth_label[~told.truth_crowd], minlength=6)[1:5]
    assert found.counts[:4].sum(axis=1).tolist() == boxes.tolist()
    assert found.counts[:, :4].sum() <= (told.found_score >= 0.3).sum()
    assert found.counts[4, 4] == 0
