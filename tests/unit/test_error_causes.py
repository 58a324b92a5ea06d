"""An error's cause, from what it says: real ones where this machine can raise them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fgd.process.error_causes import code_of
from worker.memory import oom_kills


def test_a_full_disk_behind_torchs_own_error_is_seen() -> None:
    with pytest.raises(Exception) as caught, open("/dev/full", "wb") as file:  # torch chooses which
        torch.save({"weights": torch.zeros(1_000_000)}, file)

    assert code_of(caught.value) == "no_space"


def test_an_allocation_that_the_host_cannot_give_is_seen() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(MemoryError) as of_numpy:
        np.ones(2**60, dtype=np.uint8)

    assert [code_of(caught.value) for caught in (of_torch, of_numpy)] == ["host_out_of_memory"] * 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "gpu_out_of_memory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "gpu_out_of_memory",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "gpu_out_of_memory"),
        (RuntimeError("CUDA error: out of memory"), "gpu_out_of_memory"),
        (RuntimeError("std::bad_alloc"), "host_out_of_memory"),
        (MemoryError(), "host_out_of_memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "host_out_of_memory"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "no_space"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "no_space"),
        (KeyError("memory"), "protocol"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "protocol"),
    ],
)
def test_what_an_error_says_is_its_code(error: Exception, code: str) -> None:
    assert code_of(error) == code


@pytest.mark.gpu
def test_a_gpu_that_is_too_small_is_seen() -> None:
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(2**45, dtype=torch.uint8, device="cuda")

    assert code_of(caught.value) == "gpu_out_of_memory"


@pytest.mark.parametrize(
    ("membership", "file"),
    [
        ("0::/user.slice/a.scope\n", "user.slice/a.scope/memory.events"),
        ("0::/\n", "memory.events"),
        ("4:memory:/a/b\n1:cpu:/\n0::/\n", "memory/a/b/memory.oom_control"),
        ("4:cpu,memory:/gone\n", "memory/memory.oom_control"),
    ],
)
def test_the_kernels_count_is_found_in_either_version(tmp_path: Path, membership: str, file: str) -> None:
    proc, counter = tmp_path / "cgroup", tmp_path / "sys" / file
    proc.write_text(membership)
    counter.parent.mkdir(parents=True)
    assert oom_kills(proc, tmp_path / "sys") == 0
    counter.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\noom_group_kill 1\n")
    assert oom_kills(proc, tmp_path / "sys") == 3
