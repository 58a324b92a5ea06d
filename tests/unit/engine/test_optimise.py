from __future__ import annotations

import pytest
import torch
from torch import nn

from fgd.engine.optimise import learning_rate, make_optimizer
from fgd.spec import SGD, AdamW, Cosine, OneCycle, Schedule, Step


def rates(schedule: Schedule, steps_per_epoch: int = 10) -> list[float]:
    total = schedule.epochs * steps_per_epoch
    return [learning_rate(step, steps_per_epoch=steps_per_epoch, schedule=schedule) for step in range(total)]


def test_one_cycle_warms_up_linearly_to_the_peak_and_ends_near_zero() -> None:
    curve = rates(Schedule(epochs=10, optimizer=AdamW(lr=1.0), lr_schedule=OneCycle(warmup_fraction=0.1)))
    assert curve[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert max(curve) == 1.0
    assert curve[10:] == sorted(curve[10:], reverse=True)
    assert 0.001 <= curve[-1] < 0.003


def test_step_falls_by_the_factor_after_each_milestone() -> None:
    schedule = Schedule(
        epochs=6, optimizer=SGD(lr=1.0), lr_schedule=Step(milestones=(2, 4), factor=0.1, warmup_steps=0)
    )
    assert [round(rate, 6) for rate in rates(schedule, steps_per_epoch=1)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_a_warm_up_longer_than_half_the_training_is_cut_to_half() -> None:
    curve = rates(Schedule(epochs=2, optimizer=SGD(lr=1.0), lr_schedule=Cosine(warmup_steps=500)))
    assert curve.index(max(curve)) in (9, 10)


def test_adamw_decays_kernels_and_not_biases_or_norms() -> None:
    norms = [nn.BatchNorm2d(4), nn.LayerNorm([4, 1, 1]), nn.GroupNorm(2, 4)]
    convolution = nn.Conv2d(3, 4, 1)
    optimizer = make_optimizer([nn.Sequential(convolution, *norms)], AdamW(weight_decay=0.05))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(convolution.weight)] == 0.05
    assert {decays[id(p)] for p in (convolution.bias, *(p for norm in norms for p in norm.parameters()))} == {0.0}


def test_frozen_parameters_are_not_optimised() -> None:
    module = nn.Conv2d(1, 1, 1)
    module.bias.requires_grad_(False)  # type: ignore[union-attr]
    optimizer = make_optimizer([module], SGD())
    assert [p for group in optimizer.param_groups for p in group["params"]] == [module.weight]
    assert isinstance(optimizer, torch.optim.SGD)
