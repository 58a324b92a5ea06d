"""Both networks see what plain torchvision would show them, bit for bit: the same calls on the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torchvision.models.detection import fcos_resnet50_fpn
from torchvision.transforms.functional import to_tensor

from fgd.data.transforms import Sample, Transform, drawn_flips, flip
from tests.rounding import FLOAT32

pytestmark = pytest.mark.numeric
SIZES = [(30, 40), (40, 30), (64, 64), (97, 211), (480, 640), (641, 13), (1, 50), (333, 500)]
"""Height, width."""


def sample_of(height: int, width: int, image_id: int = 1) -> Sample:
    rng = np.random.default_rng(height * 1000 + width)
    corners = np.sort(rng.random((3, 2, 2)), axis=1) * (width, height)
    return Sample(
        image_id=image_id,
        pixels_CHW=torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8)),
        boxes_K4=torch.tensor(corners.reshape(3, 4), dtype=torch.float32),
        labels_K=torch.tensor([1, 2, 1]),
    )


@pytest.mark.parametrize(("min_size", "max_size"), [(240, 320), (128, 128), (33, 500)])
def test_batch_is_what_an_unchanged_torchvision_detector_makes_of_the_image_file(min_size: int, max_size: int) -> None:
    detector = fcos_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=min_size, max_size=max_size
    )
    samples = [sample_of(height, width, number) for number, (height, width) in enumerate(SIZES)]
    images = [to_tensor(Pillow.fromarray(s.pixels_CHW.permute(1, 2, 0).numpy())) for s in samples]
    theirs, targets = detector.eval().transform(images, [{"boxes": s.boxes_K4, "labels": s.labels_K} for s in samples])

    batch = Transform(min_size, max_size)(samples)

    assert torch.equal(batch.images_NCHW, theirs.tensors)
    assert batch.images_NCHW.dtype == torch.float32
    assert list(batch.image_sizes) == theirs.image_sizes
    assert list(batch.original_sizes) == SIZES
    assert batch.image_ids == tuple(range(len(SIZES)))
    for ours, target in zip(batch.targets, targets, strict=True):
        assert torch.equal(ours.boxes_K4, target["boxes"])
        assert torch.equal(ours.labels_K, target["labels"])


def test_mean_and_std_are_those_given() -> None:
    sample = sample_of(32, 32)
    batch = Transform(32, 32, mean=(0, 0, 0), std=(1, 1, 1))([sample])
    assert torch.equal(batch.images_NCHW[0], sample.pixels_CHW.float().div(255))


def test_sizes_are_foretold_exactly() -> None:
    transform = Transform(240, 320)
    rng = np.random.default_rng(0)
    for height, width in [*SIZES, *(tuple(map(int, rng.integers(20, 900, 2))) for _ in range(60))]:
        if min(transform.size_of(height, width)) < 1:
            continue
        pixels = torch.zeros((3, height, width), dtype=torch.uint8)
        batch = transform([Sample(1, pixels, torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64))])
        assert batch.image_sizes == (transform.size_of(height, width),)
        assert batch.padded_size == transform.padded_size_of(height, width)


def test_image_without_boxes_makes_an_empty_target() -> None:
    empty = Sample(
        1, torch.zeros((3, 20, 20), dtype=torch.uint8), torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64)
    )
    target = Transform(32, 32)([empty]).targets[0]
    assert target.boxes_K4.shape == (0, 4)
    assert target.labels_K.shape == (0,)


@pytest.mark.parametrize(("horizontal", "vertical"), [(True, False), (False, True), (True, True), (False, False)])
def test_flip_moves_boxes_with_their_pixels(horizontal: bool, vertical: bool) -> None:
    pixels_CHW = torch.zeros((3, 20, 30), dtype=torch.uint8)
    pixels_CHW[:, 3:8, 10:12] = 255
    sample = Sample(1, pixels_CHW, torch.tensor([[10.0, 3.0, 12.0, 8.0]]), torch.tensor([1]))
    flipped = flip(sample, horizontal=horizontal, vertical=vertical)
    x1, y1, x2, y2 = (int(v) for v in flipped.boxes_K4[0])
    assert bool((flipped.pixels_CHW[:, y1:y2, x1:x2] == 255).all())
    assert int((flipped.pixels_CHW == 255).sum()) == 3 * 5 * 2
    assert (x2 - x1, y2 - y1) == (2, 5)


def test_flipping_twice_gives_the_sample_back() -> None:
    sample = sample_of(30, 41)
    twice = flip(flip(sample, horizontal=True, vertical=True), horizontal=True, vertical=True)
    assert torch.equal(twice.pixels_CHW, sample.pixels_CHW)
    assert torch.allclose(twice.boxes_K4, sample.boxes_K4, rtol=0, atol=2 * 41 * FLOAT32), "two differences to 41"


def test_flips_are_fair_independent_and_only_those_allowed() -> None:
    both = [drawn_flips("both", 0, epoch, image) for epoch in range(20) for image in range(100)]
    for wanted in [(False, False), (False, True), (True, False), (True, True)]:
        assert 420 < both.count(wanted) < 580
    assert {drawn_flips("none", 0, 0, image) for image in range(50)} == {(False, False)}
    horizontal = [drawn_flips("horizontal", 0, epoch, image) for epoch in range(20) for image in range(100)]
    assert horizontal == [(h, False) for h, _ in both], "the same draw, whatever else is allowed"
    vertical = [drawn_flips("vertical", 0, epoch, image) for epoch in range(20) for image in range(100)]
    assert vertical == [(False, v) for _, v in both]


def test_flips_follow_from_seed_epoch_and_image() -> None:
    def drawn(seed: int, epoch: int) -> list[tuple[bool, bool]]:
        return [drawn_flips("both", seed, epoch, image) for image in range(100)]

    assert drawn(0, 0) == drawn(0, 0)
    assert len({tuple(drawn(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_flips_stay_what_they_were_in_older_versions() -> None:
    assert [drawn_flips("both", 0, 0, image) for image in range(1, 5)] == [
        (True, False),
        (True, False),
        (False, False),
        (False, False),
    ]
