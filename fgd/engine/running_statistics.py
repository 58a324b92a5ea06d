"""Running statistics of batch norm: a pass whose result is thrown away must not leave a trace in them."""

from __future__ import annotations

import torch
from torch import nn


class RunningStatistics:
    """Of all batch norms of a module: remembered in a copy, and put back."""

    def __init__(self, module: nn.Module) -> None:
        norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        self.live = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self.kept = [buffer.clone() for buffer in self.live]

    def remember(self) -> None:
        if self.live:
            torch._foreach_copy_(self.kept, self.live)

    def restore(self) -> None:
        if self.live:
            torch._foreach_copy_(self.live, self.kept)
