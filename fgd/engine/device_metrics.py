"""What the device does while a training runs: memory and how busy it is. Knows nothing of steps or losses."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import torch

from fgd.engine.device import Machine

MIB = 2**20


class DeviceMetrics:
    """Reads the device that a machine computes on."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.asks_card = machine.device.type == "cuda"
        """False once the card's driver has refused to tell its load, as it does for a part of a card (MIG)."""

    def memory_peak_mb(self) -> float:
        """MiB since the start: on a GPU what torch held of its memory, else this process's resident memory."""
        if self.machine.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.machine.device) / MIB
        return resident_peak() / MIB

    def utilisation(self, busy_s: float, elapsed_s: float) -> float | None:
        """Per cent. On a GPU of its time, as the driver counted it last; None where it does not tell.

        On the processor `busy_s` of the `elapsed_s` seconds of each thread of the training; the thread that reads
        images comes on top, so it may be a little over 100.
        """
        if self.machine.device.type != "cuda":
            return 100.0 * busy_s / (elapsed_s * self.machine.threads) if elapsed_s > 0 else None
        if self.asks_card:
            try:
                return float(torch.cuda.utilization(self.machine.device))
            except Exception:  # no NVML, no permission, or a card that is not counted: a training needs none of it
                self.asks_card = False
        return None


def busy_s() -> float:
    """Processor seconds that this process has used, all threads together."""
    used = os.times()
    return used.user + used.system


def resident_peak() -> int:
    """Bytes of memory that this process held at most."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):  # unlike getrusage's it does not begin with what the parent held
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
