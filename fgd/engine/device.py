"""Where the numbers are computed: device, threads, precision, and what makes a run repeat to the byte."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from fgd.errors import UserError
from fgd.spec import Resources
from fgd.types import Batch, Target

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""glibc's <malloc.h>."""
WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of ONEDNN_MAX_CPU_ISA under which oneDNN multiplies no bf16."""


@dataclass(frozen=True)
class Machine:
    """What a run's bytes depend on besides the spec; recorded beside the weights."""

    device: torch.device
    device_name: str
    threads: int
    bf16: bool
    """Trunk, neck, the towers of the head and the methods' adapters train in bf16."""

    @property
    def precision(self) -> str:
        return "bf16 trunk and towers, float32 predictions and losses" if self.bf16 else "float32"


def native_bf16(device: torch.device) -> bool:
    """Whether the device computes bf16 itself. Processors that only convert are slower in it than in float32, and so is
    one on which oneDNN is told to use no more than these have."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in WITHOUT_BF16:
        return False
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text()
        return "amx_bf16" in flags or "avx512_bf16" in flags
    return False


def choose(resources: Resources, precision: str) -> Machine:
    """Raises UserError if the device asked for is not there."""
    kind = resources.device
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("resources.device is cuda, but torch finds no CUDA device on this host")
    device = torch.device("cuda" if kind != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:  # one of several processes, one card each
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    threads = resources.threads or int(os.environ.get("OMP_NUM_THREADS") or usable_cores())
    torch.set_num_threads(threads)
    make_repeatable(device)
    bf16 = precision == "bf16" or (precision == "auto" and native_bf16(device))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return Machine(device, name, threads, bf16)


def keep_freed_memory() -> None:
    """Freed memory stays with the process, where the C library is glibc; elsewhere nothing happens.

    Each step frees and asks again for maps of tens of MB. glibc hands such blocks back to the kernel, which must then
    clear every page again: writing a fresh map takes many times as long as writing one that is there.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_repeatable(device: torch.device) -> None:
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.use_deterministic_algorithms(True, warn_only=True)


def processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "numpy", "pillow", "safetensors", "faster-coco-eval")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def to_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return replace(
        batch,
        images_NCHW=batch.images_NCHW.to(device, non_blocking=True),
        targets=tuple(Target(each.boxes_K4.to(device), each.labels_K.to(device)) for each in batch.targets),
    )


def seeded(*words: int) -> int:
    """One 63-bit seed from several integers; unlike sums, (0, 1) and (1, 0) differ."""
    text = ",".join(str(word) for word in words).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
