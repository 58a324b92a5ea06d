"""The context block of GCNet (arXiv 1904.11492) in the form FGD uses it."""

# N images, C channels, H x W cells of a level

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fgd.methods.focus import Focus, of_both
from fgd.methods.paired import PairedMaps, masked


class ContextBlock(nn.Module):
    """Equation 11 of FGD (arXiv 2111.11837): R(F) = F + W_v2 ReLU(LN(W_v1 sum_j softmax_j(W_k F)_j F_j)).

    `forward` makes of the context, the sum over j, what is added to F, the same at every cell. It starts at zero
    (W_v2 = 0), so R is the identity before step 0. The context itself is summed in `fgd.methods.maps`, beside all else
    that is summed over the map, with the weights `attend` (W_k).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 2
        self.attend = nn.Conv2d(channels, 1, kernel_size=1)  # W_k
        widen = nn.Conv2d(hidden, channels, kernel_size=1)  # W_v2
        self.transform = nn.Sequential(
            nn.Conv2d(channels, hidden, kernel_size=1),  # W_v1, initialised as PyTorch does
            nn.LayerNorm([hidden, 1, 1]),
            nn.ReLU(inplace=True),
            widen,
        )
        nn.init.kaiming_normal_(self.attend.weight, mode="fan_in", nonlinearity="relu")
        with torch.no_grad():
            for zero in (self.attend.bias, widen.weight, widen.bias):
                assert zero is not None
                zero.zero_()

    def forward(self, context_NC: Tensor) -> Tensor:
        """context_NC -> what is added to every cell, NC."""
        narrow, norm, relu, widen = self.transform
        hidden = linear(context_NC, narrow)[:, :, None, None]
        return linear(relu(norm(hidden)).flatten(1), widen)


def context_shares(attend: nn.Module, map_NCHW: Tensor, valid_N1HW: Tensor) -> Tensor:
    """softmax_j(W_k F)_j of each cell, N1HW, over the cells that count."""
    logits_N1HW = masked(attend(map_NCHW), valid_N1HW > 0)
    shares_N1HW: Tensor = logits_N1HW.flatten(1).softmax(1).view_as(logits_N1HW)
    return shares_N1HW


def context_focus(student: ContextBlock, teacher: ContextBlock, maps: PairedMaps) -> Iterator[Focus]:
    """Where each network's context is taken from, of mean 1 over the cells that count."""
    cells_N1HW = maps.valid_N1HW.sum((1, 2, 3), keepdim=True)
    ours_N1HW, theirs_N1HW = (
        cells_N1HW * context_shares(block.attend, each, maps.valid_N1HW)
        for block, each in ((student, maps.student_NCHW), (teacher, maps.teacher_NCHW))
    )
    yield from of_both("global context", maps.level, teacher=theirs_N1HW[:, 0], student=ours_N1HW[:, 0])


def linear(x_NC: Tensor, convolution: nn.Module) -> Tensor:
    """A 1x1 convolution of one cell, without a convolution's preparations."""
    assert isinstance(convolution, nn.Conv2d)
    return nn.functional.linear(x_NC, convolution.weight.flatten(1), convolution.bias)
