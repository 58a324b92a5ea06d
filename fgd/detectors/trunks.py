"""Trunk and pyramid of every family, and how model.py spells them. Knows nothing of heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from fgd.detector_specs import Norm, Trunk
from fgd.recipe import Recipe

Taps = dict[int, tuple[str, int]]
"""Stride -> the layer that ends the stage of that stride, and its width."""

RESNET = {4: ("layer1", 64), 8: ("layer2", 128), 16: ("layer3", 256), 32: ("layer4", 512)}
BOTTLENECK = {4: ("layer1", 256), 8: ("layer2", 512), 16: ("layer3", 1024), 32: ("layer4", 2048)}
TAPS: dict[Trunk, Taps] = {
    "resnet18": RESNET,
    "resnet34": RESNET,
    "resnet50": BOTTLENECK,
    "resnet101": BOTTLENECK,
    "resnext50_32x4d": BOTTLENECK,
    "resnext101_32x8d": BOTTLENECK,
    "resnext101_64x4d": BOTTLENECK,
    # torchvision's own builder taps the first block of each stage; the last one has seen more.
    "mobilenet_v2": {4: ("3", 24), 8: ("6", 32), 16: ("13", 96), 32: ("18", 1280)},
    "mobilenet_v3_large": {4: ("3", 24), 8: ("6", 40), 16: ("12", 112), 32: ("16", 960)},
    "mobilenet_v3_small": {4: ("1", 16), 8: ("3", 24), 16: ("8", 48), 32: ("12", 576)},
}
MOBILENET_V3_EPS, MOBILENET_V3_MOMENTUM = 0.001, 0.01
"""Of its batch norms, as torchvision builds and trained it."""


class ExtraLevels(LastLevelP6P7):  # type: ignore[misc]
    """P6 and P7 in float32, also where trunk and neck run in bf16.

    oneDNN's bf16 gradient of a 3x3 convolution of stride 2 is garbage on maps one cell wide, as P6 is in images of up
    to 64 pixels (seen with torch 2.14.1 on AVX512_BF16). These levels are so small that float32 costs nothing.
    """

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        with torch.autocast(p[0].device.type, enabled=False):
            coarse, names = super().forward([p[-1].float()], [c[-1].float()], names)
        return [*p, *coarse[1:]], names


class OwnLayout(nn.Sequential):
    """The stage of stride 32 of a trunk that trains channels last: its many channels over few cells are faster in
    torch's own layout, its gradients by a third."""

    def forward(self, map_NCHW: Tensor) -> Tensor:
        out: Tensor = super().forward(map_NCHW.contiguous() if self.training else map_NCHW)  # type: ignore[no-untyped-call]
        return out


def norm_layer(recipe: Recipe) -> Callable[[int], nn.Module]:
    """The trunk's normalisation, with the eps its weights were trained with."""
    norm, eps, momentum = _norm_numbers(recipe)
    if norm == "group":
        return partial(nn.GroupNorm, 32)
    if norm == "frozen":
        return partial(FrozenBatchNorm2d, eps=eps)
    return partial(nn.BatchNorm2d, eps=eps, momentum=momentum)


def norm_source(recipe: Recipe) -> str:
    norm, eps, momentum = _norm_numbers(recipe)
    if norm == "group":
        return "lambda c: nn.GroupNorm(32, c)"
    if norm == "frozen":
        return f"lambda c: misc.FrozenBatchNorm2d(c, eps={eps})"
    if (eps, momentum) == (1e-5, 0.1):
        return "nn.BatchNorm2d"
    return f"lambda c: nn.BatchNorm2d(c, eps={eps}, momentum={momentum})"


def _norm_numbers(recipe: Recipe) -> tuple[Norm, float, float]:
    v3 = recipe.detector.backbone.startswith("mobilenet_v3")
    eps, momentum = (MOBILENET_V3_EPS, MOBILENET_V3_MOMENTUM) if v3 else (1e-5, 0.1)
    return recipe.detector.trunk_norm(), eps if recipe.norm_eps is None else recipe.norm_eps, momentum


def tapped(recipe: Recipe, strides: tuple[int, ...]) -> tuple[dict[str, str], list[int]]:
    """Layer -> name of its map, and the maps' widths, of the trunk's stages that the pyramid stands on."""
    taps = [TAPS[recipe.detector.backbone][stride] for stride in strides]
    return {layer: str(place) for place, (layer, _) in enumerate(taps)}, [width for _, width in taps]


def build_neck(
    recipe: Recipe,
    strides: tuple[int, ...],
    extra: Callable[[], ExtraFPNBlock],
    norm: Callable[[int], nn.Module] | None = None,
) -> nn.Module:
    """Trunk and pyramid with fresh weights. `norm`: of the pyramid's convolutions; None: none.

    The trunk draws its weights before `extra` does: a seed then means the network that it meant in the first version.
    """
    name = recipe.detector.backbone
    trunk = getattr(torchvision.models, name)(weights=None, norm_layer=norm_layer(recipe))
    if name.startswith("mobilenet"):
        trunk = trunk.features
    else:
        trunk.layer4 = OwnLayout(*trunk.layer4)
    stages, widths = tapped(recipe, strides)
    neck: nn.Module = BackboneWithFPN(trunk, stages, widths, recipe.detector.fpn_channels, extra(), norm)
    return neck


def neck_source(recipe: Recipe, strides: tuple[int, ...], extra: str, norm: str = "None") -> str:
    """The lines of model.py's build() that make `neck`."""
    name = recipe.detector.backbone
    features = ".features" if name.startswith("mobilenet") else ""
    stages, widths = tapped(recipe, strides)
    channels = recipe.detector.fpn_channels
    return (
        f"    trunk = torchvision.models.{name}(weights=None, norm_layer={norm_source(recipe)}){features}\n"
        f"    stages, widths, extra = {stages}, {widths}, {extra}\n"
        f"    neck = detection.backbone_utils.BackboneWithFPN(trunk, stages, widths, {channels}, extra, {norm})\n"
    )


def model_source(recipe: Recipe, build: str) -> str:
    """The whole of model.py. `build`: the indented body of build(), which ends in a return."""
    return MODEL_PY.format(classes=list(recipe.classes), build=build.rstrip("\n"))


def sizes_source(recipe: Recipe) -> str:
    """Arguments of every family's constructor: sizes and statistics of the input."""
    return (
        f"min_size={recipe.min_size}, max_size={recipe.max_size}, "
        f"image_mean={list(recipe.image_mean)}, image_std={list(recipe.image_std)}"
    )


P6P7_SOURCE = "feature_pyramid_network.LastLevelP6P7({}, {})"

MODEL_PY = '''"""Builds this student in plain torchvision; weights: student.safetensors beside this file.

    python model.py photo.jpg
"""
import sys
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torchvision.models import detection
from torchvision.ops import feature_pyramid_network, misc

CLASSES = {classes}  # label k means CLASSES[k - 1]


def build():
{build}


def load(path=Path(__file__).with_name("student.safetensors")):
    model = build()
    model.load_state_dict(load_file(path), strict=True)
    return model.eval()


if __name__ == "__main__":
    image = torchvision.io.read_image(sys.argv[1], torchvision.io.ImageReadMode.RGB) / 255
    with torch.no_grad():
        found = load()([image])[0]
    for box, score, label in zip(found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist()):
        print(f"{{repr(CLASSES[label - 1])[1:-1]}} {{score:.2f}} {{[round(x, 1) for x in box]}}")
'''
