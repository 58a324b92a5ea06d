"""Run by test_on_gpu.py with TRITON_INTERPRET=1: the GPU's kernels on the processor, against torch's operations."""

from __future__ import annotations

import torch

from fgd.methods.on_gpu import OnGpu
from tests.unit.methods.compared import WANTED, assert_close, example, outcome

FIRST, LAST, STRIDED = "channels first", "channels last", "strided"
CASES = [
    ((FIRST, FIRST), torch.float32),
    ((FIRST, LAST), torch.bfloat16),
    ((LAST, LAST), torch.float32),
    ((LAST, FIRST), torch.bfloat16),
    ((STRIDED, FIRST), torch.float32),
]


def main() -> None:
    kernels, compared = OnGpu(torch.device("cpu")), 0
    for layouts, dtype in CASES:
        maps = example((2, 37, 150), layouts, (dtype, torch.float32))  # neither is a multiple of a tile
        assert_close(outcome(maps, WANTED["all"], kernels), outcome(maps, WANTED["all"], None))
        compared += 1
    for wanted in WANTED.values():
        maps = example((1, 3, 5), (FIRST, FIRST), (torch.float32, torch.float32))
        assert_close(outcome(maps, wanted, kernels), outcome(maps, wanted, None))
        compared += 1
    print(f"compared {compared}")


if __name__ == "__main__":
    main()
