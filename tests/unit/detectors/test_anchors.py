"""The anchors chosen for a data set are those that cover most of its boxes."""

from __future__ import annotations

import random

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from fgd.data.index import Image
from fgd.data.transforms import Transform
from fgd.detectors import anchors
from fgd.detectors.anchors import ONE_FROM_P2, THREE_FROM_P3, AnchorLayout

pytestmark = pytest.mark.numeric  # in float64, and counted


def image(boxes: list[tuple[float, float, float, float]], *, width: int, height: int, crowd: bool = False) -> Image:
    return Image(
        id=1,
        file="a",
        name="a",
        width=width,
        height=height,
        boxes=tuple(boxes),
        labels=(1,) * len(boxes),
        crowd=(crowd,) * len(boxes),
    )


def random_images() -> list[Image]:
    draw = random.Random(0)
    images = []
    for width, height in ((320, 240), (200, 330), (97, 131)):
        boxes = []
        for _ in range(40):
            w, h = draw.uniform(4, width * 0.9), draw.uniform(4, height * 0.9)
            x, y = draw.uniform(0, width - w), draw.uniform(0, height - h)
            boxes.append((x, y, x + w, y + h))
        images.append(image(boxes, width=width, height=height))
    return images


@pytest.mark.parametrize("layout", [THREE_FROM_P3, ONE_FROM_P2])
@pytest.mark.parametrize("base", [32, 12])
def test_recall_equals_that_of_every_anchor_laid_out(layout: AnchorLayout, base: int) -> None:
    transform = Transform(150, 200)
    covered, boxes = 0, 0
    for each in random_images():
        height, width = transform.padded_size_of(each.height, each.width)
        maps = [torch.zeros(1, 1, -(-height // stride), -(-width // stride)) for stride in layout.strides]
        batch = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
        (every,) = anchors.generator(layout.sizes(base))(batch, maps)
        found, _ = anchors.resized_boxes([each], transform)
        covered += int((box_iou(found, every.double()).amax(1) >= 0.5).sum())
        boxes += len(found)
    assert 0.1 < covered / boxes < 1
    assert anchors.recall(random_images(), transform, layout.sizes(base), layout.strides) == covered / boxes


def test_small_boxes_get_small_anchors_and_large_ones_torchvisions() -> None:
    transform = Transform(240, 320)
    small = image([(10, 10, 20, 20), (100, 100, 109, 109)], width=320, height=240)
    large = image([(10, 10, 150, 150)], width=320, height=240)
    for layout in (THREE_FROM_P3, ONE_FROM_P2):
        assert anchors.best_base(anchors.fit(layout, [small], transform)) in (8, 12)
        assert anchors.best_base(anchors.fit(layout, [large], transform)) == 32


def test_crowds_are_not_fitted() -> None:
    crowd = image([(10, 10, 15, 15)], width=320, height=240, crowd=True)
    plain = image([(10, 10, 150, 150)], width=320, height=240)
    assert anchors.recall([crowd, plain], Transform(240, 320), THREE_FROM_P3.sizes(32), THREE_FROM_P3.strides) == 1


def test_of_equal_recalls_the_largest_base_wins() -> None:
    assert anchors.best_base({32: 0.5, 24: 0.9, 16: 0.9, 12: 0.1, 8: 0.0}) == 24


def test_the_largest_base_is_torchvisions_own() -> None:
    assert THREE_FROM_P3.sizes(32)[0] == (32, 40, 50)
    assert ONE_FROM_P2.sizes(32) == ((32,), (64,), (128,), (256,), (512,))
