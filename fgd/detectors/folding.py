"""A frozen trunk and neck, made as fast as the device runs them. Knows nothing of what they are run for."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval
from torchvision.ops.misc import FrozenBatchNorm2d

from fgd.detectors.trunks import ExtraLevels

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def fold(module: nn.Module) -> None:
    """Each batch norm that follows a convolution becomes part of its weight and bias, in place; rounding changes only.

    torchvision's trunks and pyramids register a norm right behind the convolution whose output it takes. Other
    normalisations depend on their input, and stay.
    """
    if module.training:
        raise ValueError("only a network in eval mode can be folded")
    for parent in module.modules():
        for (name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, NORMS):
                setattr(parent, name, fuse_conv_bn_eval(conv, cast(nn.BatchNorm2d, norm)).requires_grad_(False))
                setattr(parent, norm_name, nn.Identity())


def to_bf16(module: nn.Module) -> None:
    """Weights and sums in bf16, in place, as autocast would cast them again at each call; P6 and P7 stay float32."""
    module.to(torch.bfloat16)
    for each in module.modules():
        if isinstance(each, ExtraLevels):
            each.float()
