"""AP, AR and curves from kept detections: COCO's own code, cases worked out by hand, and resamples written out."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fgd.statistics.average_precision import average_precision, draw, figures, precision_recall, resampled
from fgd.statistics.detections import SplitDetections, found_as_coco, joined
from fgd.statistics.matching import Matches, match
from tests.unit.statistics.scenes import coco_truth, random_scene, split

SQUARE = (0.0, 0.0, 100.0, 100.0)
TWICE = (200.0, 0.0, 300.0, 100.0)
STRAY = (0.0, 150.0, 40.0, 190.0)


def by_pycocotools(told: SplitDetections) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = coco_truth(told)
        coco.createIndex()
        reference = COCOeval(coco, coco.loadRes(found_as_coco(told)), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    return reference


@pytest.mark.parametrize("seed", range(8))
def test_every_figure_is_that_of_pycocotools(seed: int) -> None:
    told = random_scene(seed)
    reference, ours = by_pycocotools(told), figures(match(told))
    names = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l", "ar1", "ar10", "ar100", "ar_s", "ar_m", "ar_l")
    theirs = [100 * stat if stat > -1 else math.nan for stat in reference.stats]
    assert [ours[name] for name in names] == pytest.approx(theirs, abs=1e-9, nan_ok=True)
    for k, name in enumerate(told.classes):
        precision = reference.eval["precision"][:, :, k, 0, -1]
        valid = precision[precision > -1]
        expected = 100 * valid.mean() if valid.size else math.nan
        assert ours[f"ap/{name}"] == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_a_hundred_detections_of_a_class_count_on_an_image() -> None:
    strays = [(0, STRAY, 1, 0.9)] * 100
    assert average_precision(match(split([(0, SQUARE, 1)], [*strays[:99], (0, SQUARE, 1, 0.5)]))) > 0
    assert average_precision(match(split([(0, SQUARE, 1)], [*strays, (0, SQUARE, 1, 0.5)]))) == 0.0


def test_one_of_two_found_behind_a_stray() -> None:
    """Precision 1/2 at recalls up to 1/2, 51 of 101, and 0 beyond."""
    told = split([(0, SQUARE, 1), (0, TWICE, 1)], [(0, STRAY, 1, 0.9), (0, SQUARE, 1, 0.8)])
    assert average_precision(match(told)) == pytest.approx(100 * 51 / 101 / 2)
    assert figures(match(told))["ar100"] == pytest.approx(50.0)


def test_an_overlap_of_three_quarters_counts_at_six_thresholds_of_ten() -> None:
    told = match(split([(0, SQUARE, 1)], [(0, (0.0, 0.0, 100.0, 75.0), 1, 0.9)]))
    assert average_precision(told) == pytest.approx(60.0)
    assert (average_precision(told, iou=0.75), average_precision(told, iou=0.8)) == (pytest.approx(100.0), 0.0)


def test_detections_in_a_crowd_count_neither_for_nor_against() -> None:
    crowd = (0, (100.0, 100.0, 300.0, 300.0), 1, True)
    inside = [(0, (120.0 + n, 120.0, 160.0 + n, 160.0), 1, 0.95) for n in range(5)]
    assert average_precision(match(split([(0, SQUARE, 1), crowd], [*inside, (0, SQUARE, 1, 0.5)]))) == pytest.approx(
        100.0
    )


def test_nothing_found_is_zero_and_no_boxes_are_no_figure() -> None:
    assert average_precision(match(split([(0, SQUARE, 1)], []))) == 0.0
    assert math.isnan(average_precision(match(split([], [(0, SQUARE, 1, 0.9)]))))
    assert math.isnan(average_precision(match(split([], [], images=0))))
    two = figures(match(split([(0, SQUARE, 1)], [(0, SQUARE, 1, 0.9)], classes=2)))
    assert two["ap"] == two["ap/class 1"] == pytest.approx(100.0), "a class without boxes is left out of the mean"
    assert math.isnan(two["ap/class 2"])
    assert math.isnan(two["ap_s"])
    assert precision_recall(match(split([], [(0, SQUARE, 1, 0.9)]))) == []


@pytest.mark.parametrize("seed", range(4))
def test_a_resample_is_the_data_set_with_each_image_as_often_as_it_was_drawn(seed: int) -> None:
    told = random_scene(seed)
    told = unlike_scores(told)
    counts_BI = draw(len(told), 6, seed)
    got = resampled(match(told), counts_BI)
    expected = [average_precision(match(repeated(told, counts))) for counts in counts_BI]
    assert got == pytest.approx(expected, abs=1e-9, nan_ok=True)
    small = resampled(match(told), counts_BI, iou=0.5, area="m")
    expected = [average_precision(match(repeated(told, counts)), iou=0.5, area="m") for counts in counts_BI]
    assert small == pytest.approx(expected, abs=1e-9, nan_ok=True)


def unlike_scores(told: SplitDetections) -> SplitDetections:
    """Of equal scores, copies of images would come in another order."""
    rows = zip(told.found_image, told.found_box, told.found_label, told.found_score, strict=True)
    found = [(image, box, label, score + n * 1e-5) for n, (image, box, label, score) in enumerate(rows)]
    truth = list(zip(told.truth_image, told.truth_box, told.truth_label, told.truth_crowd, strict=True))
    return split(truth, found, len(told), len(told.classes))


def repeated(told: SplitDetections, counts: np.ndarray) -> SplitDetections:
    truth, found, place = [], [], 0
    for image, count in enumerate(counts):
        for _ in range(count):
            mine, theirs = told.truth_image == image, told.found_image == image
            truth += [
                (place, *row)
                for row in zip(told.truth_box[mine], told.truth_label[mine], told.truth_crowd[mine], strict=True)
            ]
            found += [
                (place, *row)
                for row in zip(told.found_box[theirs], told.found_label[theirs], told.found_score[theirs], strict=True)
            ]
            place += 1
    return split(truth, found, place, len(told.classes))


def test_resamples_repeat_with_their_seed() -> None:
    assert np.array_equal(draw(10, 5, 3), draw(10, 5, 3))
    assert not np.array_equal(draw(10, 5, 3), draw(10, 5, 4))
    assert (draw(10, 5, 3).sum(axis=1) == 10).all()
    assert draw(0, 5, 3).shape == (5, 0)


def test_joined_splits_have_the_figure_of_one_data_set() -> None:
    val, test = random_scene(1, first_id=50), random_scene(2)
    whole = joined([val, test])
    assert figures(match(whole))["ap"] == pytest.approx(100 * by_pycocotools(whole).stats[0], abs=1e-9)


def test_the_curve_of_one_class_by_hand() -> None:
    """Hit at 0.9, stray at 0.8, hit at 0.7, of four boxes: precision 1 up to a recall of 1/4, 2/3 up to 1/2."""
    truth = [(0, (110.0 * n, 0.0, 110.0 * n + 100, 100.0), 1) for n in range(4)]
    found = [(0, truth[0][1], 1, 0.9), (0, STRAY, 1, 0.8), (0, truth[1][1], 1, 0.7)]
    mean, one = precision_recall(match(split(truth, found)))
    assert (mean.name, one.name) == ("", "class 1")
    assert one.precision_R[[0, 25, 26, 50, 51, 100]] == pytest.approx([1, 1, 2 / 3, 2 / 3, 0, 0])
    assert one.score_R[[0, 25, 26, 50]] == pytest.approx([0.9, 0.9, 0.7, 0.7])
    assert np.isnan(one.score_R[51:]).all()
    assert np.array_equal(mean.precision_R, one.precision_R)


def test_the_area_under_a_curve_is_the_ap_of_its_threshold() -> None:
    told: Matches = match(random_scene(6))
    mean, *_ = precision_recall(told, iou=0.75)
    assert 100 * mean.precision_R.mean() == pytest.approx(average_precision(told, iou=0.75))


def test_a_threshold_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no IoU threshold 0\.42; there are 0\.50"):
        average_precision(match(split([], [])), iou=0.42)
