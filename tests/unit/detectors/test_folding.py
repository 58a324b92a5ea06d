"""A frozen trunk computes the same without its batch norms, and nearly the same in bf16.

That folding is the same function is shown in float64. In float32 and bf16 the maps are compared by the norm: the errors
of up to 70 convolutions in a row, each a sum of at most 4608 products, are independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from fgd.detector_specs import FCOS, DetectorSpec, FasterRCNN, RetinaNet
from fgd.detectors import Detector, build
from fgd.detectors.folding import NORMS, fold
from fgd.engine.distill import Teacher
from fgd.recipe import Recipe
from fgd.types import Batch
from tests.rounding import BF16, of_network

pytestmark = pytest.mark.numeric
LAYERS, TERMS = 70, 4608
IMAGES_NCHW = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
SPECS: dict[str, DetectorSpec] = {
    "basic blocks": FCOS(backbone="resnet18", fpn_channels=64),
    "bottlenecks": FCOS(backbone="resnet50", fpn_channels=64),
    "grouped": RetinaNet(backbone="resnext50_32x4d", fpn_channels=64),
    "inverted residuals": FasterRCNN(backbone="mobilenet_v2", fpn_channels=64),
    "an eps of its own": FCOS(backbone="mobilenet_v3_large", fpn_channels=64),
    "norms in the pyramid": FasterRCNN(backbone="resnet18", fpn_channels=64, version=2),
    "frozen norms": FCOS(backbone="resnet18", fpn_channels=64, norm="frozen", weights="IMAGENET1K_V1"),
}


def trained(spec: DetectorSpec) -> Detector:
    """With batch norms that do something, as after a training."""
    torch.manual_seed(1)
    detector = build(Recipe(detector=spec, classes=("a", "b"), min_size=64, max_size=96))
    for module in detector.modules():
        if isinstance(module, NORMS):
            for name, low in (("weight", 0.5), ("bias", -0.3), ("running_mean", -0.3), ("running_var", 0.5)):
                values: Any = getattr(module, name)
                nn.init.uniform_(values.data, low, low + 0.8)
    return detector.eval().requires_grad_(False)


def batch() -> Batch:
    return Batch(IMAGES_NCHW, ((64, 96),) * 2, ((64, 96),) * 2, (), (0, 1))


def norms(module: nn.Module) -> Iterator[nn.Module]:
    return (each for each in module.modules() if isinstance(each, NORMS))


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


IN_FLOAT32 = of_network(LAYERS, TERMS)
IN_BF16 = math.sqrt(3 * LAYERS) * BF16
"""A layer rounds its input, its weights and its output, each by 2^-8 at most and by 0.4 of that in the mean."""


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_a_folded_trunk_is_the_same_function(spec: DetectorSpec) -> None:
    trunk = trained(spec).module.get_submodule("backbone").double()
    trunk.get_submodule("fpn").extra_blocks = None  # P6 and P7 are float32 whatever they are made from
    plain = trunk(IMAGES_NCHW.double())
    fold(trunk)
    assert not any(norms(trunk))
    for level, map_NCHW in trunk(IMAGES_NCHW.double()).items():
        assert apart(map_NCHW, plain[level]) < 1e-12


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_folded_maps_are_the_same_but_for_rounding(spec: DetectorSpec) -> None:
    detector = trained(spec)
    plain = detector.features(IMAGES_NCHW)
    assert any(norms(detector.module.backbone))
    teacher = Teacher(detector, detector.recipe)
    assert not any(norms(teacher.detector.module.backbone)), "each of them follows a convolution"
    for level, map_NCHW in teacher.features(batch()).items():
        assert apart(map_NCHW, plain[level]) < IN_FLOAT32
        assert map_NCHW.is_contiguous()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_bf16_maps_come_out_float32_and_close(spec: DetectorSpec) -> None:
    teacher = Teacher(detector := trained(spec), detector.recipe)
    exact = teacher.features(batch())
    teacher.quicken()
    for level, map_NCHW in teacher.features(batch()).items():
        assert map_NCHW.dtype == torch.float32
        assert apart(map_NCHW, exact[level]) < IN_BF16
        assert not torch.equal(map_NCHW, exact[level])


def test_a_trunk_that_still_learns_is_not_folded() -> None:
    detector = trained(SPECS["basic blocks"]).train()
    with pytest.raises(ValueError, match="eval mode"):
        fold(detector.module.backbone)
    assert any(isinstance(each, nn.BatchNorm2d) for each in norms(detector))


def test_group_norms_depend_on_their_input_and_stay() -> None:
    detector = trained(FCOS(backbone="resnet18", fpn_channels=64, norm="group"))
    plain = detector.features(IMAGES_NCHW)
    teacher = Teacher(detector, detector.recipe)
    assert any(isinstance(each, nn.GroupNorm) for each in detector.module.backbone.modules())
    for level, map_NCHW in teacher.features(batch()).items():
        assert apart(map_NCHW, plain[level]) < IN_FLOAT32
    teacher.quicken()
    for level, map_NCHW in teacher.features(batch()).items():
        assert map_NCHW.dtype == torch.float32
        assert apart(map_NCHW, plain[level]) < IN_BF16


def test_frozen_norms_are_folded_too() -> None:
    detector = trained(SPECS["frozen norms"])
    assert any(isinstance(each, FrozenBatchNorm2d) for each in norms(detector))
    Teacher(detector, detector.recipe)
    assert not any(norms(detector.module.backbone))
