"""What is found in one picture: turned as its EXIF says, in its own pixels, without the background."""

from __future__ import annotations

import pytest
import torch
from PIL import Image as Pillow
from PIL import ImageOps

from fgd.detector_specs import FCOS
from fgd.detectors import Detector, build
from fgd.engine.predict import predict, upright
from fgd.errors import UserError
from fgd.recipe import Recipe


def picture(width: int = 5, height: int = 3) -> Pillow.Image:
    """No two pixels are alike."""
    made = Pillow.new("RGB", (width, height))
    made.putdata([(n, 2 * n, 255 - n) for n in range(width * height)])
    return made


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_viewers_turn_it(orientation: int) -> None:
    stored = picture()
    turned = stored.copy()
    turned.getexif()[0x0112] = orientation

    assert upright(stored, orientation).tobytes() == ImageOps.exif_transpose(turned).tobytes()


@pytest.fixture(scope="module")
def detector() -> Detector:
    """Sure of everything, also of the background, which is no class."""
    torch.manual_seed(0)
    spec = FCOS(fpn_channels=64, backbone="mobilenet_v3_small")
    made = build(Recipe(detector=spec, classes=("a", "b"), min_size=64, max_size=96)).eval()
    with torch.no_grad():
        for name, parameter in made.module.named_parameters():
            if name.endswith("cls_logits.bias"):
                parameter.fill_(-1.0)
    return made


def test_boxes_are_in_pixels_of_the_picture_and_the_surest_come_first(detector: Detector) -> None:
    found = predict(detector, picture(15, 10), 0.05)

    assert found
    scores = [each.score for each in found]
    assert scores == sorted(scores, reverse=True)
    assert {each.name for each in found} <= {"a", "b"}
    for each in found:
        left, top, right, bottom = each.box
        assert 0 <= left <= right <= 15
        assert 0 <= top <= bottom <= 10
    assert [each for each in found if each.score >= scores[2]] == list(predict(detector, picture(15, 10), scores[2]))


def test_a_picture_of_which_nothing_would_be_left_is_refused(detector: Detector) -> None:
    with pytest.raises(UserError, match="5000x1 is too elongated"):
        predict(detector, Pillow.new("RGB", (5000, 1)), 0.3)
