"""The passes in Triton: interpreted on any host, compiled where there is a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fgd.errors import UserError
from fgd.methods import compiled
from fgd.methods.maps import Wanted
from fgd.methods.on_gpu import CELLS, CHANNELS
from tests.unit.methods.compared import WANTED, assert_close, example, outcome

ROOT = Path(__file__).parents[3]


def test_interpreted_kernels_give_what_torch_gives() -> None:
    """In a process of its own: triton asks how it is to run when it is first imported."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.unit.methods.interpreted"]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "compared 10\n"


KERNELS = ("magnitudes", "differences", "gradients")


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_for_a_gpu_that_is_not_here(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fgd.methods import kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(kernels, name)
    maps = {"student": "*bf16", "gradient": "*bf16", "CHANNELS": "constexpr", "CELLS": "constexpr"}
    numbers = {f"{which}_{axis}": "i32" for which in "stg" for axis in "ncp"} | dict.fromkeys("CP", "i32")
    types = {argument: (maps | numbers).get(argument, "*fp32") for argument in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=types, constexprs={"CHANNELS": CHANNELS, "CELLS": CELLS})
    assert compile(source, target=GPUTarget("cuda", 80, 32)).asm["cubin"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it works")
def test_where_triton_does_not_work_the_field_is_named() -> None:
    with pytest.raises(UserError, match=r"resources\.compile is true, but triton"):
        compiled(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["channels first", "channels last", "strided"])
@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
def test_a_gpus_kernels_give_the_processors_numbers(wanted: Wanted, layout: str, dtype: torch.dtype) -> None:
    kernels = compiled(torch.device("cuda"))
    for shape in ((2, 256, 1000), (1, 3, 5)):
        maps = example(shape, (layout, layout), (dtype, dtype))
        found = outcome([each.cuda() for each in maps], wanted, kernels)
        assert_close({name: value.cpu() for name, value in found.items()}, outcome(maps, wanted, None))


@pytest.mark.gpu
def test_a_gpu_with_kernels_is_never_waited_for_and_repeats_to_the_byte() -> None:
    kernels = compiled(torch.device("cuda"))
    maps = [each.cuda() for each in example((2, 256, 1000), ("channels first",) * 2, (torch.float32,) * 2)]
    ones_NP, ones_NC = torch.ones(2, 1000, device="cuda"), torch.ones(2, 256, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        first, again = (kernels.magnitudes(*maps, ones_NP, ones_NC, ones_NC) for _ in range(2))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(map(torch.equal, first, again))
