from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from worker import devices
from worker.devices import Gpu

CARD = Gpu(uuid="GPU-a", name="NVIDIA H100 80GB HBM3", memory=80 * 2**30, driver="550.54.15", bf16=True)


def test_host_says_what_each_part_of_it_is_and_can(tmp_path: Path) -> None:
    found = replace(
        devices.look(tmp_path), gpus=(CARD, replace(CARD, name="Tesla T4", bf16=False)), cpu="A CPU", cores=8,
        bf16=False, memory=16 * 2**30, free_disk=100 * 2**30,
    )  # fmt: skip
    assert found.lines() == [
        "GPU 0: NVIDIA H100 80GB HBM3, 80.0 GiB memory, driver 550.54.15, bf16 yes",
        "GPU 1: Tesla T4, 80.0 GiB memory, driver 550.54.15, bf16 no",
        "processor: A CPU, 8 cores, 16.0 GiB memory, bf16 no",
        "free disk: 100.0 GiB",
    ]
    assert replace(found, gpus=()).lines()[0] == "GPU: none"


@pytest.mark.gpu
def test_the_cards_are_those_that_torch_finds(tmp_path: Path) -> None:
    import torch

    if any("MIG" in torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())):
        pytest.skip("torch sees a part of a card by a name of its own")
    found = {gpu.name: gpu for gpu in devices.look(tmp_path).gpus}
    for n in range(torch.cuda.device_count()):
        gpu = found[torch.cuda.get_device_name(n)]
        assert gpu.bf16 == (torch.cuda.get_device_capability(n) >= (8, 0))
        assert gpu.memory >= torch.cuda.get_device_properties(n).total_memory


def test_this_host_is_found(tmp_path: Path) -> None:
    found = devices.look(tmp_path)
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert found.memory > 0
    assert found.free_disk > 0
    assert found.cpu
