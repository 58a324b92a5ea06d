"""What is found and missed on each image: by hand, and as the matching of COCO has it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fgd.statistics import per_image
from fgd.statistics.detections import SplitDetections
from fgd.statistics.matching import match
from fgd.statistics.per_image import NEVER, Paired, apart, counts, pair
from tests.unit.statistics.scenes import random_scene, split

LEFT, RIGHT = (0.0, 0.0, 100.0, 100.0), (200.0, 0.0, 300.0, 100.0)
NEAR = (0.0, 0.0, 100.0, 90.0)
CROWD = (0, (0.0, 0.0, 400.0, 300.0), 1, True)


def counted(told: SplitDetections, paired: Paired, score: float, *labels: int) -> list[list[int]]:
    """Found, missed, false of each image."""
    wanted = np.isin(np.arange(1, len(told.classes) + 1), labels or np.arange(1, len(told.classes) + 1))
    found = counts(told, paired, score, wanted)
    return np.stack([found.found_I, found.missed_I, found.false_I], axis=1).tolist()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("at_once", [7, per_image.PAIRS_AT_ONCE])
def test_pairs_are_those_of_coco(seed: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_image, "PAIRS_AT_ONCE", at_once)
    told = random_scene(seed, images=20)
    paired = pair(told, told, 0.0)

    for label, expected in enumerate(match(told).of_class, start=1):
        mine = paired.label_D == label
        rows = zip(paired.image_D[mine], paired.score_D[mine], paired.hit_D[mine], paired.ignored_D[mine], strict=True)
        theirs = zip(
            expected.image_D, expected.score_D, expected.hit_ATD[0, 0], expected.ignored_ATD[0, 0], strict=True
        )
        assert sorted(map(tuple, rows)) == sorted(map(tuple, theirs))
    taken = paired.score_T[paired.score_T != NEVER]
    assert sorted(taken) == sorted(paired.score_D[paired.hit_D])


@pytest.mark.parametrize("score", [0.0, 0.3, 0.55, 1.0])
def test_one_pairing_serves_every_score(score: float) -> None:
    told = random_scene(4, images=20)
    sure = told.found_score >= score
    fewer = replace(
        told, found_image=told.found_image[sure], found_box=told.found_box[sure],
        found_score=told.found_score[sure], found_label=told.found_label[sure],
    )  # fmt: skip
    assert counted(told, pair(told, told, 0.0), score) == counted(fewer, pair(fewer, fewer, 0.0), 0.0)


def test_found_missed_and_false_on_each_image() -> None:
    truth = [(0, LEFT, 1), (0, RIGHT, 2), (2, LEFT, 1)]
    told = split(truth, [(0, NEAR, 1, 0.9), (0, LEFT, 1, 0.8), (1, LEFT, 2, 0.4), (2, RIGHT, 1, 0.7)], 3, 2)
    paired = pair(told, told, 0.05)

    assert counted(told, paired, 0.5) == [[1, 1, 1], [0, 0, 0], [0, 1, 1]]
    assert counted(told, paired, 0.85) == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]
    assert counted(told, paired, 0.3, 2) == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert paired.of_image(0) == slice(0, 2)
    assert paired.of_image(2) == slice(3, 4)


def test_crowds_are_not_missed_and_what_lies_in_them_counts_neither_way() -> None:
    told = split([CROWD], [(0, LEFT, 1, 0.9), (0, RIGHT, 1, 0.8)])
    assert counted(told, pair(told, told, 0.0), 0.5) == [[0, 0, 0]]


def test_another_network_has_its_own_classes_and_images() -> None:
    truth = split([(0, LEFT, 2), (1, LEFT, 1)], [], images=2, classes=2, first_id=5)
    found = SplitDetections.of(
        ["class 2", "unheard of"], ["5.png", "9.png"], image_id=[5, 9], size=[(400, 300)] * 2, truth_image=[],
        truth_box=[], truth_label=[], truth_crowd=[], found_image=[0, 0, 1], found_box=[LEFT] * 3,
        found_label=[1, 2, 1], found_score=[0.9] * 3,
    )  # fmt: skip
    paired = pair(truth, found, 0.0)
    assert counted(truth, paired, 0.5) == [[1, 0, 0], [0, 1, 0]]
    assert paired.known_C.tolist() == [False, True]


def test_two_differ_by_boxes_that_one_alone_finds_and_by_false_detections() -> None:
    truth = [(0, LEFT, 1), (0, RIGHT, 1), (1, LEFT, 1)]
    told = split(truth, [(0, LEFT, 1, 0.9), (1, LEFT, 1, 0.9), (1, RIGHT, 1, 0.9)], 2)
    other = split(truth, [(0, RIGHT, 1, 0.9), (1, LEFT, 1, 0.9)], 2)
    wanted = np.ones(1, bool)
    one, two = pair(told, told, 0.0), pair(told, other, 0.0)
    assert apart(told, one, two, 0.5, wanted).tolist() == [2, 1]
    assert apart(told, one, one, 0.5, wanted).tolist() == [0, 0]
    assert apart(told, one, two, 0.95, wanted).tolist() == [0, 0]


def test_nothing_at_all() -> None:
    told = split([], [], images=0)
    assert counted(told, pair(told, told, 0.0), 0.5) == []
