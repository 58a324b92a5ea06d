"""The wide parts of a head, which train in bf16 beside trunk and neck; what predicts and all after it is float32.

A 3x3 convolution of stride 1 has true gradients in bf16 on maps of any size; only stride 2 has not (`ExtraLevels`).
"""

# N images, C channels, H x W cells, R regions

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead


class Tower(nn.Sequential):
    """The convolutions that a head runs over every level. Its keys are those of the sequence that it replaces."""

    bf16: bool = False
    """Compute in bf16 in training; what it takes and gives is float32 all the same."""

    def forward(self, map_NCHW: Tensor) -> Tensor:
        with torch.autocast(map_NCHW.device.type, torch.bfloat16, enabled=self.bf16 and self.training):
            out: Tensor = super().forward(map_NCHW)  # type: ignore[no-untyped-call]
        return out.float()


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


def one_cast_each(device: torch.device) -> torch.autocast:
    """Within it each weight is cast to bf16 once, and not anew for each level: autocast keeps its casts to the end of
    the outermost context."""
    return torch.autocast(device.type, torch.bfloat16, enabled=False)
