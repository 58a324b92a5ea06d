"""What a step of a distillation computes, counted and not timed: the teacher costs little, and nothing waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from fgd.data.loader import Dataset, train_batches
from fgd.data.transforms import Transform
from fgd.engine import device, prepare, step
from fgd.engine.optimise import make_optimizer
from fgd.engine.prepare import Training
from fgd.presets import resolve
from fgd.spec import JobSpec, Schedule

MakeSpec = Callable[..., JobSpec]

CALLS_PLAIN, CALLS_DISTILLED = 7600, 17700
"""torch's operators in a step, those that others call included: measured 6885 and 16086 with torch 2.14.1."""


@pytest.fixture(scope="module")
def parts(make_spec: MakeSpec, teacher: Path) -> Callable[..., Training]:
    def parts(precision: str, *, distilled: bool) -> Training:
        learnt = {"teacher": {"path": str(teacher), "allow_unfit": True}, "methods": [{"kind": "fgd"}]}
        student = {"backbone": "resnet18", "fpn_channels": 64}
        schedule = {"precision": precision}
        spec = resolve(make_spec(student=student, schedule=schedule, **(learnt if distilled else {})))
        machine = device.choose(spec.resources, spec.schedule.precision)
        return prepare.prepare(spec, machine, None, lambda _: None, lambda: None, rehearsal_images=2)[0]

    return parts


def calls_of_step(parts: Training) -> Counter[str]:
    parts.distill.train()
    optimizer = make_optimizer([parts.distill], parts.spec.schedule.optimizer)
    batches = train_batches(*first_epoch(parts))
    first, second = next(batches), next(batches)
    batches.close()  # type: ignore[attr-defined]
    step.step(parts, optimizer, [first], 0, 3)  # the first one makes the optimiser's state
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step.step(parts, optimizer, [second], 1, 3)
    events = profiler.events()
    assert events is not None
    return Counter(event.name for event in events if event.name.startswith("aten::"))


def test_a_step_is_few_operations(parts: Callable[..., Training]) -> None:
    plain, distilled = (calls_of_step(parts("float32", distilled=each)) for each in (False, True))
    assert plain.total() <= CALLS_PLAIN
    assert distilled.total() <= CALLS_DISTILLED


def test_the_student_runs_once_and_the_teacher_without_head_or_norms(parts: Callable[..., Training]) -> None:
    plain, distilled = (parts("float32", distilled=each) for each in (False, True))
    without, with_teacher = calls_of_step(plain), calls_of_step(distilled)
    assert distilled.teacher is not None
    parts_of_teacher = nn.ModuleList(distilled.teacher.detector.trunk_and_neck)
    convolutions = sum(isinstance(each, nn.Conv2d) for each in parts_of_teacher.modules())
    adapters = sum(isinstance(each, nn.Conv2d) for each in distilled.distill.methods.modules())
    assert with_teacher["aten::convolution"] - without["aten::convolution"] <= convolutions + 8 * adapters
    assert with_teacher["aten::native_batch_norm"] == without["aten::native_batch_norm"]
    assert with_teacher["aten::convolution_backward"] - without["aten::convolution_backward"] <= 8 * adapters


def test_in_bf16_no_weight_of_the_teacher_is_cast_at_each_step(parts: Callable[..., Training]) -> None:
    teacher = parts("bf16", distilled=True).teacher
    assert teacher is not None
    assert teacher.dtype == torch.bfloat16
    batch = next(train_batches(*first_epoch(parts("bf16", distilled=True))))
    with Counting() as counting:
        teacher.features(batch)
    levels = teacher.detector.recipe.detector.levels()
    # The images, the maps, and the two that P6 and P7 are made from in float32.
    assert counting.calls["aten::_to_copy"] <= 1 + len(levels) + 2


def test_a_step_reads_the_losses_once_and_the_two_norms(parts: Callable[..., Training]) -> None:
    """Each read is a wait for the device; torchvision's FCOS adds one, the number of cells that have a box."""
    distilled = parts("float32", distilled=True)
    distilled.distill.train()
    optimizer = make_optimizer([distilled.distill], distilled.spec.schedule.optimizer)
    batch = next(train_batches(*first_epoch(distilled)))
    with Counting() as counting:
        step.step(distilled, optimizer, [batch], 0, 3)
    # A list of the losses is read without a dispatch of its own: it does not show here.
    assert counting.calls["aten::_local_scalar_dense"] <= 2 + 1


class Counting(TorchDispatchMode):
    """Operators as they are asked for, without those that they call inside."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.name().partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def first_epoch(parts: Training) -> tuple[Dataset, Transform, Schedule, int, int]:
    return parts.train, parts.transform, parts.spec.schedule, 0, 0
