"""A running mean of the student's weights, which is evaluated and exported in its place. Knows no steps' losses."""

from __future__ import annotations

import copy
from typing import Any

import torch

from fgd.detectors import Detector
from fgd.spec import EMA


class Average:
    """The exponential moving average of a detector, in float32.

    Batch norm's running mean and variance are averaged as weights are, since they belong to them; counters are copied.
    """

    def __init__(self, student: Detector, spec: EMA) -> None:
        self.spec = spec
        self.detector: Detector = copy.deepcopy(student).eval().requires_grad_(False)

    def keeps(self, step: int) -> float:
        """The share of itself that the average keeps at update 1, 2, ...: rising with the steps, `decay` at most."""
        return min(self.spec.decay, step / (step + self.spec.warmup))

    @torch.no_grad()
    def update(self, student: Detector, step: int) -> None:
        """Take in the weights after update `step`, counted from 1."""
        weight = 1.0 - self.keeps(step)
        mine, news = self.detector.state_dict(), student.state_dict()
        for name, value in news.items():
            if value.is_floating_point():
                mine[name].lerp_(value, weight)
            else:
                mine[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return self.detector.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state, strict=True)
