"""When a checkpoint is due, and what it holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fgd.engine.average import Average
from fgd.engine.distill import Distill

KEEP_CHECKPOINTS = 2


def everything_of(
    distill: Distill, optimizer: torch.optim.Optimizer, best: dict[str, Tensor] | None, average: Average | None
) -> dict[str, Any]:
    """What a checkpoint holds."""
    contents = {"model": distill.state_dict(), "optimizer": optimizer.state_dict(), "best": best}
    return contents | ({"average": average.state_dict()} if average is not None else {})
