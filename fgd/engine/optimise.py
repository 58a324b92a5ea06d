"""Optimiser and learning rate from a schedule. The rate is a pure function of the step: nothing of it to restore."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from fgd.spec import SGD, AdamW, Cosine, OneCycle, Schedule

NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


def make_optimizer(modules: Iterable[nn.Module], spec: AdamW | SGD) -> Optimizer:
    """AdamW decays no bias and no normalisation; SGD decays everything, as the paper's schedule does."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for module in (each for root in modules for each in root.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                (spared if name == "bias" or isinstance(module, NORMS) else decayed).append(parameter)
    if isinstance(spec, SGD):
        return torch.optim.SGD([*decayed, *spared], lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)
    groups = [
        {"params": decayed, "weight_decay": spec.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=spec.lr, fused=True)


def learning_rate(step: int, *, steps_per_epoch: int, schedule: Schedule) -> float:
    """Rate of step 0, 1, ...; linear warm-up, then the schedule's own curve."""
    total = schedule.epochs * steps_per_epoch
    peak, curve = schedule.optimizer.lr, schedule.lr_schedule
    warmup = (
        round(curve.warmup_fraction * total) if isinstance(curve, OneCycle) else min(curve.warmup_steps, total // 2)
    )
    if step < warmup:
        return peak * (step + 1) / warmup
    if isinstance(curve, OneCycle | Cosine):
        floor = peak * 1e-3 if isinstance(curve, OneCycle) else 0.0
        progress = (step - warmup) / max(1, total - warmup)
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    passed = sum(step >= milestone * steps_per_epoch for milestone in curve.milestones)
    return peak * float(curve.factor**passed)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
