"""The context block of GCNet (arXiv 1904.11492) in the form FGD uses it."""

# N images, C channels, H x W cells

from __future__ import annotations

import torch
from torch import Tensor, nn


class ContextBlock(nn.Module):
    """Equation 11 of FGD (arXiv 2111.11837): R(F) = F + W_v2 ReLU(LN(W_v1 sum_j softmax_j(W_k F)_j F_j)).

    `forward` returns what is added to F, NC11, the same at every cell. It starts at zero (W_v2 = 0), so R is the
    identity before step 0.
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

    def forward(self, feature_NCHW: Tensor, valid_NHW: Tensor) -> Tensor:
        """valid_NHW: the cells the context is gathered from, at least one an image."""
        logits_NHW = self.attend(feature_NCHW).squeeze(1).masked_fill(~valid_NHW, float("-inf"))
        share_NHW = logits_NHW.flatten(1).softmax(1).view_as(logits_NHW)
        context_NC = torch.einsum("nchw,nhw->nc", feature_NCHW, share_NHW)
        added_NC11: Tensor = self.transform(context_NC[:, :, None, None])
        return added_NC11
