"""Where a training computes, and in what precision."""

from __future__ import annotations

import pytest
import torch

from fgd.engine import device
from fgd.spec import Resources


@pytest.mark.parametrize("limit", ["AVX2", "avx512_core"])
def test_a_processor_on_which_onednn_may_use_no_bf16_trains_in_float32(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert not device.choose(Resources(device="cpu"), "auto").bf16
    assert device.choose(Resources(device="cpu"), "bf16").bf16, "what is asked for is done"
