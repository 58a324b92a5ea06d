"""The wide parts of a head compute in bf16 what they compute in float32, but for the rounding: no garbage anywhere.

What they are compared with is float32 arithmetic on values rounded where bf16 rounds them. Against unrounded values
gradients differ by about a tenth whatever the kernels do, for a unit near zero is on in one and off in the other.

A single layer has the reference's roundings but for those that another order of the sums tips over, and those of sums
over five levels and over images, which some kernels keep in bf16: a few of 2^-8, and independent. Behind a layer more
values tip over. There no kernel need be nearer to the reference than the reference is to float32: both are equally far
from it.
"""

# N images, C channels, H x W cells

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgd.detector_specs import FCOS, DetectorSpec, FasterRCNN, RetinaNet
from fgd.detectors import Detector, build
from fgd.detectors.towers import BoxTower, Tower, one_cast_each
from fgd.recipe import Recipe
from tests.rounding import BF16

pytestmark = pytest.mark.numeric
TOWERS: dict[str, DetectorSpec] = {
    "fcos": FCOS(fpn_channels=64),
    "retinanet": RetinaNet(fpn_channels=64),
    "retinanet_v2": RetinaNet(fpn_channels=64, version=2),
    "faster_rcnn": FasterRCNN(fpn_channels=64),
    "faster_rcnn_v2": FasterRCNN(fpn_channels=64, version=2),
}
PYRAMIDS = {
    "64 px": [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)],
    "160x224": [(20, 28), (10, 14), (5, 7), (3, 4), (2, 2)],
    "slivers": [(8, 1), (1, 7), (2, 1), (1, 2), (1, 1)],
}
TOLERATED = 5 * BF16


class Round(torch.autograd.Function):
    """To bf16 and back, also the gradient."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.bfloat16().float()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.bfloat16().float()


def rounded(x: Tensor) -> Tensor:
    out: Tensor = Round.apply(x)  # type: ignore[no-untyped-call]
    return out


def reference(tower: nn.Module, x: Tensor) -> Tensor:
    """The tower in float32, rounded where bf16 rounds."""
    x = rounded(x)
    for layer in leaves(tower):
        if isinstance(layer, nn.Conv2d):
            bias = None if layer.bias is None else rounded(layer.bias)
            x = rounded(nn.functional.conv2d(x, rounded(layer.weight), bias, layer.stride, layer.padding))
        elif isinstance(layer, nn.Linear):
            x = rounded(nn.functional.linear(x.flatten(1), rounded(layer.weight), rounded(layer.bias)))
            x = x if isinstance(tower, Tower) else x.relu()  # BoxTower has no modules for them
        else:
            x = rounded(layer(x))
    return x


def leaves(tower: nn.Module) -> Iterator[nn.Module]:
    return (each for each in tower.modules() if not list(each.children()))


def detector_of(spec: DetectorSpec) -> Detector:
    torch.manual_seed(0)
    return build(Recipe(detector=spec, classes=("a", "b"), min_size=64, max_size=64)).train()


def towers_of(detector: Detector) -> dict[str, nn.Module]:
    return {name: each for name, each in detector.module.named_modules() if isinstance(each, Tower | BoxTower)}


def gradients(tower: nn.Module, run: Any, inputs: list[Tensor]) -> dict[str, Tensor]:
    """Of each weight and input, of a loss that weighs every output differently."""
    tower.zero_grad()
    ours = [each.clone().requires_grad_() for each in inputs]
    generator = torch.Generator().manual_seed(2)
    with one_cast_each(inputs[0].device):
        outputs = [run(each) for each in ours]
    garbage = [torch.full((size,), float("nan")) for size in (1 << 20, 1 << 16, 40_000, 1 << 14) * 3]
    del garbage  # what is not written then shows
    losses = [(out * torch.randn(out.shape, generator=generator)).sum() for out in outputs]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    found = {name: parameter.grad.clone() for name, parameter in tower.named_parameters() if parameter.grad is not None}
    return found | {f"input {place}": each.grad for place, each in enumerate(ours) if each.grad is not None}


@pytest.mark.parametrize("pyramid", list(PYRAMIDS))
@pytest.mark.parametrize("family", list(TOWERS))
def test_each_layer_has_the_gradients_of_float32(family: str, pyramid: str) -> None:
    detector = detector_of(TOWERS[family])
    detector.bf16 = True
    for name, tower in towers_of(detector).items():
        for layer in (each for each in leaves(tower) if isinstance(each, nn.Conv2d | nn.Linear)):
            alone = Tower(layer).train()
            if isinstance(layer, nn.Linear):
                inputs = drawn([(6, layer.in_features)])
            else:
                inputs = drawn([(6, 64, 7, 7)] if "box_head" in name else [(2, 64, *hw) for hw in PYRAMIDS[pyramid]])
            expected = gradients(alone, lambda x, alone=alone: reference(alone, x), inputs)
            alone.bf16 = True
            for key, error in errors(gradients(alone, alone, inputs), expected).items():
                assert error < TOLERATED, f"{name} {key}"


@pytest.mark.parametrize("pyramid", list(PYRAMIDS))
@pytest.mark.parametrize("family", list(TOWERS))
def test_a_whole_tower_has_the_gradients_of_rounded_float32(family: str, pyramid: str) -> None:
    """At most twice as far from it as rounding by itself takes it from float32."""
    detector = detector_of(TOWERS[family])
    for name, tower in towers_of(detector).items():
        detector.bf16 = False
        inputs = drawn([(6, 64, 7, 7)] if "box_head" in name else [(2, 64, *hw) for hw in PYRAMIDS[pyramid]])
        unrounded = gradients(tower, tower, inputs)
        expected = gradients(tower, lambda x, tower=tower: reference(tower, x), inputs)
        detector.bf16 = True
        found = gradients(tower, tower, inputs)
        assert len(found) == len(inputs) + len(list(tower.parameters()))
        assert {each.dtype for each in found.values()} == {torch.float32}
        by_rounding = errors(expected, unrounded)
        for key, error in errors(found, expected).items():
            assert error < max(TOLERATED, 2 * by_rounding[key]), f"{name} {key}"


def drawn(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative, by the norm; what is nearly nothing beside the largest is measured by that."""
    assert found.keys() == expected.keys()
    least = 1e-3 * max(float(each.norm()) for each in expected.values())
    return {key: float((found[key] - each).norm()) / max(float(each.norm()), least) for key, each in expected.items()}


@pytest.mark.parametrize("family", list(TOWERS))
def test_towers_are_bf16_inside_and_only_in_training(family: str) -> None:
    detector = detector_of(TOWERS[family])
    detector.bf16 = True
    seen: set[torch.dtype] = set()
    for name, tower in towers_of(detector).items():
        layers = [each for each in leaves(tower) if isinstance(each, nn.Conv2d | nn.Linear)]
        layers[-1].register_forward_hook(lambda _, __, out: seen.add(out.dtype))
        (x,) = drawn([(6, 64, 7, 7) if "box_head" in name else (2, 64, 4, 4)])
        for training, inside in ((True, torch.bfloat16), (False, torch.float32)):
            detector.train(training)
            seen.clear()
            assert tower(x).dtype == torch.float32
            assert seen == {inside}, name
    detector.bf16 = False
    assert not any(tower.bf16 for tower in towers_of(detector).values())


@pytest.mark.parametrize(("norm", "laid_out"), [("batch", torch.channels_last), ("group", torch.contiguous_format)])
def test_in_bf16_the_early_trunk_is_channels_last_and_nothing_after_it(
    norm: Any, laid_out: torch.memory_format
) -> None:
    detector = detector_of(FCOS(fpn_channels=64, norm=norm))
    detector.bf16 = True
    body = detector.module.get_submodule("backbone.body")
    seen: dict[str, Tensor] = {}
    for name in ("layer3", "layer4"):
        body.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    (images_NCHW,) = drawn([(2, 3, 64, 96)])
    maps = detector.features(images_NCHW)
    assert seen["layer3"].is_contiguous(memory_format=laid_out)
    assert seen["layer4"].is_contiguous()
    assert all(each.is_contiguous() and each.dtype == torch.float32 for each in maps.values())
