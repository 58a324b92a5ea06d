"""What a file of weights looks like, by its names and shapes alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fgd.detector_specs import FCOS, DetectorSpec, FasterRCNN, RetinaNet
from fgd.detectors import build
from fgd.engine import recognise
from fgd.engine.foreign_state import NamedTensor, named_tensors
from fgd.recipe import Recipe

NAMED = Recipe(detector=FCOS(fpn_channels=64), classes=("cat", "dog"), min_size=96, max_size=128)


def file_of(detector: DetectorSpec, classes: int = 2, before: str = "", **more: Any) -> list[NamedTensor]:
    recipe = NAMED.but(detector=detector, classes=tuple(map(str, range(classes))), **more)
    with torch.device("meta"):
        tensors = build(recipe).module.state_dict()
    return named_tensors({"model": {f"{before}{key}": value for key, value in tensors.items()}})


@pytest.mark.parametrize(
    ("detector", "classes", "says", "fields"),
    [
        (FCOS(fpn_channels=64), 90, "fcos resnet18 with 91 classes (90 and background)", []),
        (FCOS(fpn_channels=96), 2, '"fpn_channels": 96', ["fpn_channels"]),
        (FCOS(backbone="resnet34", fpn_channels=64), 2, "fcos resnet34 with 3 classes", ["backbone"]),
        (FCOS(fpn_channels=64, norm="group"), 2, '"norm": "group"', ["norm"]),
        (FCOS(fpn_channels=64, norm="frozen"), 2, '"norm": "frozen"', ["norm"]),
        (RetinaNet(fpn_channels=64), 5, "retinanet resnet18 with 6 classes", ["kind"]),
        (RetinaNet(fpn_channels=64, version=2), 2, '"version": 2', ["kind"]),
        (FasterRCNN(fpn_channels=64), 2, "faster_rcnn resnet18 with 3 classes", ["kind"]),
        (FasterRCNN(fpn_channels=32, backbone="mobilenet_v2", version=2), 7, "faster_rcnn mobilenet_v2 with 8 classes",
         ["kind", "backbone", "fpn_channels"]),
    ],
)  # fmt: skip
def test_family_trunk_width_norm_and_classes_are_recognised(
    detector: DetectorSpec, classes: int, says: str, fields: list[str]
) -> None:
    found = recognise.likeness(file_of(detector, classes, "module."), NAMED, "ema")
    assert found is not None
    assert found.sentence().startswith("The file looks like ")
    assert says in found.sentence()
    assert (found.recipe.detector, len(found.recipe.classes)) == (detector.but(norm=detector.trunk_norm()), classes)
    assert list(found.other_fields(NAMED)) == fields


def test_anchors_of_any_number_do_not_hide_the_classes() -> None:
    sizes = ((16, 20), (32, 40), (64, 80), (100, 128), (200, 256))
    file = file_of(RetinaNet(fpn_channels=64), 4, anchor_sizes=sizes, anchor_ratios=(0.5, 1.0))
    found = recognise.likeness(file, NAMED, "ema")
    assert found is not None
    assert "retinanet resnet18 with 5 classes" in found.sentence()


def test_a_network_with_a_part_of_its_own_is_called_most_like() -> None:
    file = file_of(FCOS(fpn_channels=64))
    odd = [each for each in file if not each.key.endswith("scales.0.scale")]
    odd.append(NamedTensor(("model",), "head.extra.weight", torch.empty(1, device="meta")))
    found = recognise.likeness(odd, NAMED, "ema")
    assert found is not None
    assert "does not fit, but is most like, fcos resnet18 with 3 classes" in found.sentence()


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("module.bbox_head.cls_convs.0.conv.weight", "MMDetection"),
        ("backbone.bottom_up.stem.conv1.weight", "Detectron2"),
        ("class_embed.weight", "DETR"),
        ("fc.weight", "a classifier"),
        ("encoder.weight", None),
    ],
)
def test_a_network_of_other_software_is_named(key: str, says: str | None) -> None:
    items = named_tensors({key: torch.ones(2, 2), "conv1.weight": torch.ones(1)})
    assert recognise.likeness(items, NAMED, "ema") is None
    hint = recognise.elsewhere(items)
    assert hint is None if says is None else says in (hint or "")
