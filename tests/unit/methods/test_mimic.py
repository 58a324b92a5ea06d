"""Plain imitation against a slow loop, its edges, its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fgd.method_specs import Mimic
from fgd.methods.base import Pair
from fgd.methods.mimic import MimicLoss
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, View

MakeBatch = Callable[[tuple[int, int], Sequence[tuple[int, int]], Sequence[Sequence[Sequence[float]]]], Batch]

pytestmark = pytest.mark.numeric
LEVELS = {"p3": (4, 6), "p4": (2, 3)}
NO_CALIBRATION = Calibration(teacher_rms={}, boxes_per_image=0.0)


def method(weight: float = 0.5, student_channels: int = 3, teacher_channels: int = 5) -> MimicLoss:
    torch.manual_seed(0)
    pair = Pair.alike({"p3": 8, "p4": 16}, student_channels, teacher_channels)
    return MimicLoss(Mimic(weight=weight), pair, NO_CALIBRATION, Schedule())


def maps(channels: int, seed: int, images: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(images, channels, *size, generator=generator) for name, size in LEVELS.items()}


@pytest.fixture
def batch(make_batch: MakeBatch) -> Batch:
    """Images of 20 x 30 and 32 x 48 pixels: 3 x 4 and 4 x 6 valid cells at p3, 2 x 2 and 2 x 3 at p4."""
    return make_batch((32, 48), [(20, 30), (32, 48)], [[(0, 0, 9, 9)], []])


VALID = {"p3": [(3, 4), (4, 6)], "p4": [(2, 2), (2, 3)]}


def test_equals_a_slow_loop(batch: Batch) -> None:
    """In float64."""
    mimic = method().double()
    student, teacher = (
        {name: value.double() for name, value in each.items()} for each in (maps(3, seed=1), maps(5, seed=2))
    )

    expected = 0.0
    for level in LEVELS:
        with torch.no_grad():
            adapted_NCHW = mimic.align[level](student[level])
        for n, (rows, columns) in enumerate(VALID[level]):
            squares = [
                float(teacher[level][n, c, i, j] - adapted_NCHW[n, c, i, j]) ** 2
                for c in range(5)
                for i in range(rows)
                for j in range(columns)
            ]
            expected += 0.5 * sum(squares) / (rows * columns) / 2

    (loss,) = mimic(View(student), View(teacher), batch).values()
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_equal_maps_cost_nothing(batch: Batch) -> None:
    features = maps(5, seed=1)

    assert method(student_channels=5)(View(features), View(features), batch)["feature"] == 0


def test_padding_does_not_count(batch: Batch) -> None:
    mimic, student, teacher = method(), maps(3, seed=1), maps(5, seed=2)
    before = mimic(View(student), View(teacher), batch)["feature"]

    teacher["p3"][0, :, 3:] = 100
    student["p4"][0, :, :, 2:] = -100
    assert torch.equal(mimic(View(student), View(teacher), batch)["feature"], before), "times 0 it adds 0, in any order"


def test_gradients_reach_student_and_adapters_and_not_the_teacher(batch: Batch) -> None:
    mimic = method()
    student = {name: value.requires_grad_() for name, value in maps(3, seed=1).items()}
    teacher = {name: value.requires_grad_() for name, value in maps(5, seed=2).items()}
    mimic(View(student), View(teacher), batch)["feature"].backward()

    for tensor in (*student.values(), *mimic.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.any()
    assert all(value.grad is None for value in teacher.values())


def test_weight_zero_makes_no_term_and_no_parameter(batch: Batch) -> None:
    mimic = method(weight=0.0)

    assert mimic(View(maps(3, seed=1)), View(maps(5, seed=2)), batch) == {}
    assert list(mimic.parameters()) == []


def test_half_precision_maps_are_summed_in_float32(batch: Batch) -> None:
    mimic = method()
    student = {name: value.bfloat16() for name, value in maps(3, seed=1).items()}
    teacher = {name: (300 * value).bfloat16() for name, value in maps(5, seed=2).items()}
    with torch.autocast("cpu", torch.bfloat16):
        loss = mimic(View(student), View(teacher), batch)["feature"]

    upcast = [{name: value.float() for name, value in maps_.items()} for maps_ in (student, teacher)]
    assert loss.dtype == torch.float32
    assert torch.equal(loss, mimic(*map(View, upcast), batch)["feature"]), "the same sums of the same values"


def test_maps_of_different_sizes_are_refused(batch: Batch) -> None:
    student, teacher = maps(3, seed=1), maps(5, seed=2)
    teacher["p4"] = teacher["p4"][:, :, :1]

    with pytest.raises(AssertionError, match="p4"):
        method()(View(student), View(teacher), batch)
