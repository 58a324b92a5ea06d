"""The wide parts of a head, which train in bf16 beside trunk and neck; what predicts and all after it is float32.

A 3x3 convolution of stride 1 has true gradients in bf16 on maps of any size; only stride 2 has not (`ExtraLevels`).
"""

# N images, C channels, H x W cells, R regions

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from fgd.types import Output


class Tower(nn.Sequential):
    """The convolutions that a head runs over every level. Its keys are those of the sequence that it replaces."""

    bf16: bool = False
    """Compute in bf16 in training; what it takes and gives is float32 all the same."""

    def forward(self, map_NCHW: Tensor) -> Tensor:
        with torch.autocast(map_NCHW.device.type, torch.bfloat16, enabled=self.bf16 and self.training):
            out: Tensor = super().forward(map_NCHW)  # type: ignore[no-untyped-call]
        return out.float()

    @property
    def depth(self) -> int:
        return len(self._steps())

    def held(self, map_NCHW: Tensor, first: int = 0) -> tuple[Tensor, ...]:
        """What goes into each convolution from `first` on, float32 all of them, and what comes out of the last."""
        maps = [map_NCHW]
        with torch.autocast(map_NCHW.device.type, torch.bfloat16, enabled=self.bf16 and self.training):
            for step in self._steps()[first:]:
                maps.append(reduce(lambda x, layer: layer(x), step, maps[-1]))
        return tuple(each.float() for each in maps)

    def _steps(self) -> list[list[nn.Module]]:
        """The layers, cut before each convolution."""
        steps: list[list[nn.Module]] = []
        for layer in self:
            if any(isinstance(each, nn.Conv2d) for each in layer.modules()):
                steps.append([])
            steps[-1].append(layer)
        return steps


class BoxTower(TwoMLPHead):  # type: ignore[misc]
    """The two wide layers of Faster R-CNN 1 over pooled regions."""

    bf16: bool = False

    def __init__(self, replaced: TwoMLPHead) -> None:
        nn.Module.__init__(self)  # not TwoMLPHead's: it would draw weights that nobody wants
        self.fc6, self.fc7 = replaced.fc6, replaced.fc7

    def forward(self, pooled_RCHW: Tensor) -> Tensor:
        with torch.autocast(pooled_RCHW.device.type, torch.bfloat16, enabled=self.bf16 and self.training):
            out: Tensor = super().forward(pooled_RCHW)
        return out.float()


@dataclass(frozen=True)
class Layer:
    """What predicts from a tower's last map."""

    predict: Callable[[Tensor], Tensor]
    columns: int
    """Numbers of a place; the map has as many for each anchor of a cell."""
    background: int = 0
    """Of the columns the first ones, which belong to no class and are never asked for."""

    def rows(self, map_NCHW: Tensor) -> Tensor:
        """N x places x columns, as torchvision's heads put them."""
        out = self.predict(map_NCHW)
        images, _, height, width = out.shape
        out = out.view(images, -1, self.columns, height, width).permute(0, 3, 4, 1, 2)
        return out.reshape(images, -1, self.columns)


@dataclass(frozen=True)
class LevelTower:
    """`fgd.types.HeadTower`: the same tower and layers at each level."""

    tower: Tower
    layers: Mapping[Output, Layer]

    @property
    def depth(self) -> int:
        return self.tower.depth

    def channels(self, level: str) -> int:  # noqa: ARG002
        return next(each.in_channels for each in self.tower.modules() if isinstance(each, nn.Conv2d))

    def __call__(self, level: str, map_NCHW: Tensor, first: int = 0) -> dict[Output, Tensor]:  # noqa: ARG002
        last_NCHW = self.tower.held(map_NCHW, first)[-1]
        rows = {name: layer.rows(last_NCHW)[..., layer.background :] for name, layer in self.layers.items()}
        return {name: each.squeeze(2) if name == "quality" else each for name, each in rows.items()}


def one_cast_each(device: torch.device) -> torch.autocast:
    """Within it each weight is cast to bf16 once, not again for each level: autocast keeps its casts to the end of
    the outermost context."""
    return torch.autocast(device.type, torch.bfloat16, enabled=False)
