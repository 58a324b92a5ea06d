"""Crops and colours: boxes stay on their objects, and all that is random follows from (seed, epoch, image)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fgd.data.augment import augmented, clipped, cropped, drawn, drawn_window, recoloured, stays
from fgd.data.formats import open_index
from fgd.data.loader import Dataset, epoch_order, train_batches
from fgd.data.transforms import Sample, Transform, drawn_scale
from fgd.spec import Augment, Crop, Photometric, Schedule
from fgd.types import Batch

ALWAYS = Crop(probability=1.0, min_area=0.2, max_aspect_change=2.0)
STRONG = Photometric(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2)


def object_at(box: tuple[int, int, int, int], height: int = 60, width: int = 80, image_id: int = 1) -> Sample:
    """A white object on black, and its box."""
    x1, y1, x2, y2 = box
    pixels_CHW = torch.zeros((3, height, width), dtype=torch.uint8)
    pixels_CHW[:, y1:y2, x1:x2] = 255
    return Sample(image_id, pixels_CHW, torch.tensor([box], dtype=torch.float32), torch.tensor([1]))


def noise(image_id: int, height: int = 40, width: int = 50) -> Sample:
    rng = np.random.default_rng(image_id)
    pixels_CHW = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    return Sample(image_id, pixels_CHW, torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64))


def white_box(pixels_CHW: Tensor) -> list[int]:
    rows, columns = torch.where(pixels_CHW[0] == 255)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def test_a_box_stays_on_its_object_and_follows_its_clipping() -> None:
    kept = 0
    for image_id in range(300):
        whole = object_at((20, 15, 50, 40), image_id=image_id)
        part = augmented(whole, Augment(crop=ALWAYS), seed=0, epoch=0)
        for box in part.boxes_K4.tolist():
            assert box == white_box(part.pixels_CHW)
            kept += 1
        assert part.labels_K.shape == part.boxes_K4.shape[:1]
    assert 150 < kept < 300, "some lose their box, most do not"


def test_a_crop_lies_in_the_image_and_is_as_large_as_allowed() -> None:
    areas = []
    for number, (height, width) in itertools.product(range(200), [(60, 80), (80, 60), (1, 50), (7, 7)]):
        window = drawn_window(height, width, ALWAYS, drawn("crop", 0, 0, number))
        assert window is not None
        x1, y1, x2, y2 = window
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        if (height, width) == (60, 80):
            areas.append((x2 - x1) * (y2 - y1) / 4800)
            assert 0.45 < (x2 - x1) / (y2 - y1) / (80 / 60) < 2.2
    assert min(areas) > 0.12
    assert max(areas) > 0.9
    corners = {drawn_window(60, 80, ALWAYS, drawn("crop", 0, 0, number))[:2] for number in range(200)}  # type: ignore[index]
    assert len(corners) > 100


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (0.5, 400, 600), (1.0, 1000, 1000)])
def test_as_many_are_cropped_as_asked(probability: float, low: int, high: int) -> None:
    crop = ALWAYS.but(probability=probability)
    windows = [drawn_window(60, 80, crop, drawn("crop", 0, 0, number)) for number in range(1000)]
    assert low <= sum(window is not None for window in windows) <= high


WINDOW = (10, 10, 30, 30)
BOXES: list[tuple[list[float], bool, bool]] = [
    ([12, 12, 20, 20], True, True),  # inside
    ([0, 10, 21, 20], True, True),  # its centre just inside, half of it
    ([0, 10, 18, 20], False, True),  # centre outside, 44 %
    ([0, 10, 12, 20], False, False),  # a sixth
    ([0, 0, 40, 40], True, False),  # around the crop: its centre is in, a quarter of it
    ([30, 10, 40, 20], False, False),  # beside it
    ([0, 0, 5, 5], False, False),  # far
    ([29.5, 12, 31, 20], False, False),  # half a pixel is left
    ([12, 12, 12.4, 20], True, True),  # as thin before
]


@pytest.mark.parametrize(("box", "by_centre", "by_share"), BOXES)
def test_which_boxes_stay(box: list[float], by_centre: bool, by_share: bool) -> None:
    boxes_K4 = torch.tensor([box])
    assert stays(boxes_K4, WINDOW, Crop()).tolist() == [by_centre]
    assert stays(boxes_K4, WINDOW, Crop(keep="share", min_share=0.3)).tolist() == [by_share]


def test_boxes_are_clipped_to_the_crop() -> None:
    assert clipped(torch.tensor([[0.0, 12, 40, 29]]), WINDOW).tolist() == [[10, 12, 30, 29]]


def test_an_image_may_lose_all_its_boxes() -> None:
    lost = [augmented(object_at((0, 0, 4, 4), image_id=n), Augment(crop=ALWAYS), 0, 0) for n in range(50)]
    empty = next(sample for sample in lost if not len(sample.boxes_K4))
    assert (empty.boxes_K4.shape, empty.labels_K.shape) == ((0, 4), (0,))
    target = Transform(32, 64)([empty]).targets[0]
    assert target.boxes_K4.shape == (0, 4)


def test_a_crop_of_which_nothing_would_be_left_is_not_made() -> None:
    sample = object_at((2, 2, 9, 9))
    assert cropped(sample, ALWAYS, drawn("crop", 0, 0, 1), lambda *_: False) is sample


@pytest.mark.numeric
def test_colours_are_torchvisions_and_stay_in_bounds() -> None:
    from torchvision.transforms.v2 import functional

    sample = noise(1)
    shares = [0.75, 0.25, 1.0, 0.0]
    expected = functional.adjust_brightness(sample.pixels_CHW, 1.25)
    expected = functional.adjust_contrast(expected, 0.75)
    expected = functional.adjust_saturation(expected, 1.5)
    expected = functional.adjust_hue(expected, -0.2)
    found = recoloured(sample.pixels_CHW, STRONG, shares)
    assert torch.equal(found, expected), "the same calls on the same pixels"
    assert found.dtype == torch.uint8


def test_a_colour_setting_of_zero_touches_nothing() -> None:
    sample = noise(1)
    assert recoloured(sample.pixels_CHW, Photometric(), [0.1] * 4) is sample.pixels_CHW
    assert augmented(sample, Augment(), 0, 0) is sample


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_setting_has_its_own_effect_and_leaves_boxes_and_cache_alone(name: str) -> None:
    sample = noise(3)
    before = sample.pixels_CHW.clone()
    changed = augmented(sample, Augment(photometric=Photometric(**{name: 0.4})), 0, 0)
    assert not torch.equal(changed.pixels_CHW, sample.pixels_CHW)
    assert torch.equal(sample.pixels_CHW, before)


def test_draws_are_even_and_follow_from_seed_epoch_and_image_alone() -> None:
    shares = np.array([drawn("crop", 0, epoch, image) for epoch in range(10) for image in range(200)])
    assert shares.shape == (2000, 8)
    assert np.abs(shares.mean(axis=0) - 0.5).max() < 0.03
    assert 0 <= shares.min() < shares.max() < 1
    assert np.abs(np.corrcoef(shares.T) - np.eye(8)).max() < 0.08
    assert drawn("crop", 1, 2, 3) == drawn("crop", 1, 2, 3)
    assert len({tuple(drawn("crop", *key)) for key in itertools.product(range(3), repeat=3)}) == 27


def test_scales_are_drawn_evenly_for_each_step() -> None:
    sides = [drawn_scale((64, 96, 128), 0, epoch, step) for epoch in range(10) for step in range(100)]
    assert all(270 < sides.count(side) < 400 for side in (64, 96, 128))
    assert sides[:100] != sides[100:200]


# --- in batches -----------------------------------------------------------------------------------------------

TRANSFORM = Transform(32, 64)
EVERYTHING = Schedule(
    batch_size=2,
    flip="both",
    min_size=32,
    max_size=64,
    scales=(32, 48, 64),
    augment=Augment(photometric=STRONG, crop=ALWAYS),
)


@pytest.fixture
def dataset(coco: Any) -> Dataset:
    for number, (width, height) in enumerate([(60, 30), (30, 60), (40, 30), (33, 31)]):
        image_id = coco.add_image("train", f"more-{number}.png", width, height)
        coco.add_box("train", image_id, [2, 3, 11 + number, 9], 7)
    index, root = open_index(coco.write())
    return Dataset(index, "train", root)


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.images_NCHW, b.images_NCHW) and all(
        torch.equal(x.boxes_K4, y.boxes_K4) for x, y in zip(a.targets, b.targets, strict=True)
    )


def batches(dataset: Dataset, schedule: Schedule = EVERYTHING, epoch: int = 0, first_step: int = 0) -> list[Batch]:
    return list(train_batches(dataset, TRANSFORM, schedule, 0, epoch, first_step))


def test_augmented_batches_repeat_and_resume_to_the_byte(dataset: Dataset) -> None:
    whole = batches(dataset)
    assert all(same(a, b) for a, b in zip(whole, batches(dataset), strict=True))
    assert all(same(a, b) for a, b in zip(whole[1:], batches(dataset, first_step=1), strict=True))
    assert not all(same(a, b) for a, b in zip(whole, batches(dataset, epoch=1), strict=True))


def test_all_images_of_a_step_have_its_scale_also_in_several_batches(dataset: Dataset) -> None:
    schedule = EVERYTHING.but(augment=Augment(), batch_size=1, accumulate=2)
    for epoch in range(4):
        for number, batch in enumerate(batches(dataset, schedule, epoch)):
            side = drawn_scale((32, 48, 64), 0, epoch, number // 2)
            (height, width), (original_height, original_width) = batch.image_sizes[0], batch.original_sizes[0]
            assert (height, width) == TRANSFORM.at(side).size_of(original_height, original_width)


def test_a_larger_scale_really_makes_larger_images() -> None:
    transform = Transform(240, 320)
    assert transform.at(480).size_of(480, 640) == (480, 640)
    assert transform.at(120).size_of(480, 640) == (120, 160)
    assert transform.at(240) is transform


def test_defaults_leave_batches_as_they_were(dataset: Dataset) -> None:
    plain = Schedule(batch_size=2, flip="both", min_size=32, max_size=64)
    for batch in batches(dataset, plain):
        assert all(size == TRANSFORM.size_of(*stored) for size, stored in zip(batch.image_sizes, batch.original_sizes))  # noqa: B905
    assert epoch_order(dataset, 0, 0)[:2] == [
        next(p for p, image in enumerate(dataset.images) if image.id == image_id)
        for image_id in batches(dataset, plain)[0].image_ids
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"augment": {"crop": {"min_area": 0}}},
        {"augment": {"crop": {"max_aspect_change": 0.5}}},
        {"augment": {"photometric": {"hue": 0.6}}},
        {"augment": {"photometric": {"brightness": 1}}},
        {"augment": {"blur": 1}},
        {"scales": [64, 32]},
        {"scales": [64, 64]},
        {"scales": [16]},
        {"accumulate": 0},
        {"ema": {"decay": 1}},
        {"early_stop": {}},
        {"early_stop": {"patience": 0}},
    ],
)
def test_settings_out_of_bounds_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Schedule.model_validate(change)
