"""What this host has. Never through torch: a process that touched CUDA cannot fork, and a worker needs none of it.

python -m worker.devices        prints the GPUs as JSON; the worker asks in a child, for a broken driver may crash it
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from fgd.process import children

ASK_S = 20.0
"""A driver that answers later than this is not there."""
AMPERE = (8, 0)
"""Compute capability of the first GPUs with bfloat16."""


@dataclass(frozen=True)
class Gpu:
    uuid: str
    name: str
    memory: int
    """Bytes."""
    driver: str
    bf16: bool
    """It computes bfloat16 natively."""


@dataclass(frozen=True)
class Hardware:
    gpus: tuple[Gpu, ...]
    cpu: str
    cores: int
    bf16: bool
    """The processor computes bfloat16 natively."""
    memory: int
    """Bytes."""
    free_disk: int
    """Bytes, below the worker's home."""

    def facts(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "gpus"} | {
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        }

    def lines(self) -> list[str]:
        """For a person, at start."""
        gpus = [
            f"GPU {n}: {gpu.name}, {gib(gpu.memory)} memory, driver {gpu.driver}, bf16 {yes_no(gpu.bf16)}"
            for n, gpu in enumerate(self.gpus)
        ]
        return [
            *(gpus or ["GPU: none"]),
            f"processor: {self.cpu}, {self.cores} cores, {gib(self.memory)} memory, bf16 {yes_no(self.bf16)}",
            f"free disk: {gib(self.free_disk)}",
        ]


def gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def yes_no(it: bool) -> str:
    return "yes" if it else "no"


def look(home: Path) -> Hardware:
    return Hardware(
        gpus=_gpus_by_child(),
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        bf16=bool({"amx_bf16", "avx512_bf16"} & _cpu_flags()),
        memory=psutil.virtual_memory().total,
        free_disk=shutil.disk_usage(home).free,
    )


def _gpus_by_child() -> tuple[Gpu, ...]:
    command, env = children.command("worker.devices"), children.environment()
    try:
        answer = subprocess.run(
            command, env=env, capture_output=True, timeout=ASK_S, check=True, stdin=subprocess.DEVNULL
        )
        gpus = tuple(Gpu(**gpu) for gpu in json.loads(answer.stdout))
    except (subprocess.SubprocessError, OSError, ValueError, TypeError):
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus
    wanted = visible.split(",")
    return tuple(gpu for n, gpu in enumerate(gpus) if str(n) in wanted or gpu.uuid in wanted)


def _gpus() -> list[Gpu]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, no card
        return []
    driver = str(pynvml.nvmlSystemGetDriverVersion())
    handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
    return [
        Gpu(
            uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
            name=str(pynvml.nvmlDeviceGetName(handle)),
            memory=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            driver=driver,
            bf16=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)) >= AMPERE,
        )
        for handle in handles
    ]


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def _cpu_name() -> str:
    names = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    return next((set(line.split()) for line in _cpu_lines() if line.startswith(("flags", "Features"))), set())


if __name__ == "__main__":
    print(json.dumps([asdict(gpu) for gpu in _gpus()]))
