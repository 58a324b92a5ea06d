"""Several processes that train one student, each on a device of one host. Knows no steps and no losses.

Each process takes its share of every batch and of every evaluation. `DistributedDataParallel` wraps the one module
that trains and makes the mean of the gradients; whatever else must be the same everywhere is agreed here. Alone, a
process agrees with itself: the loop reads the same for one device and for eight.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""So long a process waits for the others, for instance while the first one writes a checkpoint. One that died is
noticed at once; one that hangs, by the supervisor."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its job."""

    rank: int = 0
    size: int = 1
    device: torch.device | None = None
    """Where tensors that are agreed on lie. None: on the processor."""

    @property
    def first(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0

    @property
    def shard(self) -> tuple[int, int]:
        return self.rank, self.size

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module whose gradients are those of all processes; all begin with the first one's tensors."""
        if self.size == 1:
            return module
        # No device_ids: the module is where it belongs, and a Batch is not DDP's to move.
        return DistributedDataParallel(module, gradient_as_bucket_view=True)

    def summed(self, value_N: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.size > 1:
            distributed.all_reduce(value_N)
        return value_N

    def any(self, mine: bool) -> bool:
        """Whether it is so for one of them. All must ask at the same place."""
        if self.size == 1:
            return mine
        return bool(self.summed(torch.tensor(float(mine), device=self.device)).item())

    def gathered(self, mine: T) -> list[T]:
        """Everyone's, in the order of ranks."""
        if self.size == 1:
            return [mine]
        everyones: list[Any] = [None] * self.size
        distributed.all_gather_object(everyones, mine)
        return everyones

    def of_first(self, make: Callable[[], T]) -> T:
        """What the first process makes of it; the others wait. An exception there ends them all."""
        if self.size == 1:
            return make()
        holder: list[Any] = [make() if self.first else None]
        distributed.broadcast_object_list(holder, src=0)
        made: T = holder[0]
        return made

    def share_buffers(self, module: nn.Module) -> None:
        """The first one's running means and the like, everywhere: an evaluation is of one network."""
        if self.size > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, src=0)

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            distributed.barrier()


ALONE = Ranks()


def join(device: torch.device) -> Ranks:
    """Meet the others that torchrun started; alone where it did not."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks(device=device)
    # One host: the loopback needs no name, no route and no firewall's leave.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return Ranks(distributed.get_rank(), size, device)


def leave() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def quiet(model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """For the backward passes of one step: gradients are shared once, in the last."""
    if last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()
