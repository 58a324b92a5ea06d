"""Every method between every two families, on tiny networks: a few steps, or a refusal that names who could.

By default each method meets each student family and each teacher family, and these each other; `make matrix` runs all.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from itertools import product

import pytest
import torch
from pydantic import ValidationError

from fgd.detector_specs import DetectorSpec
from fgd.detectors import Detector, build
from fgd.engine.distill import Distill, Lesson, Teacher
from fgd.errors import SpecError
from fgd.method_specs import FGD, DeFeat, MethodSpec, families_with
from fgd.methods import METHODS, Pair
from fgd.methods import build as build_method
from fgd.presets import PRESETS, resolve
from fgd.recipe import Recipe
from fgd.spec import JobSpec, Schedule
from fgd.spec_fields import FromPath, TeacherFromPath, members
from fgd.text.pointers import faults_of_spec
from fgd.types import Batch, Calibration, Target, View

FAMILIES = {family.model_fields["kind"].default: family for family in members(DetectorSpec)}
KINDS = {method.model_fields["kind"].default: method for method in members(MethodSpec)}
SCHEDULE = Schedule(min_size=64, max_size=96)
CLASSES = ("a", "b")
STEPS = 2


def triples() -> list[tuple[str, str, str]]:
    """All (teacher, student, method)."""
    return list(product(FAMILIES, FAMILIES, KINDS))


def cover() -> list[tuple[str, str, str]]:
    """Some triples in which all pairs occur."""
    families = list(FAMILIES)
    found = []
    for place, kind in enumerate(KINDS):
        for n, student in enumerate(families):
            found.append((families[(n + place) % len(families)], student, kind))
    return found


ALL, SOME = triples(), cover()
CASES = [
    pytest.param(*triple, id="-".join(triple), marks=() if triple in SOME else pytest.mark.matrix) for triple in ALL
]


def test_the_cover_has_all_pairs() -> None:
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert {(each[first], each[second]) for each in SOME} == {(each[first], each[second]) for each in ALL}


@cache
def batch() -> Batch:
    """An image without boxes, one with a box around all of it, and one smaller than the padded input with two."""
    generator = torch.Generator().manual_seed(0)
    boxes = [[], [[0.0, 0.0, 96.0, 64.0]], [[4.0, 8.0, 30.0, 41.0], [20.0, 20.0, 62.0, 47.0]]]
    images_NCHW = torch.randn(3, 3, 64, 96, generator=generator)
    images_NCHW[2, :, 48:], images_NCHW[2, :, :, 64:] = 0, 0
    sizes = ((64, 96), (64, 96), (48, 64))
    targets = [Target(torch.tensor(each).reshape(-1, 4), torch.ones(len(each), dtype=torch.int64)) for each in boxes]
    return Batch(images_NCHW, sizes, sizes, tuple(targets), (0, 1, 2))


def network(family: str) -> DetectorSpec:
    spec: DetectorSpec = FAMILIES[family](backbone="mobilenet_v3_small", fpn_channels=64)
    return spec


def recipe(family: str) -> Recipe:
    return Recipe(detector=network(family), classes=CLASSES, min_size=64, max_size=96)


@cache
def taught(family: str, student: str, needs: frozenset[str]) -> tuple[Teacher, View]:
    """A teacher of the family, and what it says of the batch."""
    torch.manual_seed(1)
    detector = build(recipe(family)).train()
    with torch.no_grad():
        for name, each in detector.module.named_parameters():
            if name.endswith("bbox_reg.bias"):  # a network that has learnt nothing finds boxes of no size
                each += 1
        for _ in range(20):  # statistics of its batch norms, or its maps would vanish
            detector.features(batch().images_NCHW)
    teacher = Teacher(detector, recipe(student), needs)  # type: ignore[arg-type]
    return teacher, teacher.view(batch())


@cache
def untrained(family: str) -> Detector:
    torch.manual_seed(0)
    return build(recipe(family))


def served(spec: MethodSpec, *families: str) -> bool:
    return all(spec.takes() <= FAMILIES[family].offers for family in families)


def job(teacher: str, student: str, method: MethodSpec) -> JobSpec:
    spec = JobSpec(
        name="one of the matrix",
        teacher=TeacherFromPath(path="/teacher"),
        student=network(student),
        dataset=FromPath(path="/data"),
        methods=(method,),
    )
    spec.refuse_pair(network(teacher))
    return resolve(spec)


def pointer_of(error: SpecError | ValidationError) -> str:
    if isinstance(error, SpecError):
        return error.pointer
    (fault,) = faults_of_spec(error.errors(), {"methods": [{}]})
    return fault.pointer


def steps(spec: JobSpec, teacher: str) -> Iterator[dict[str, torch.Tensor]]:
    """The loss terms of each step; the gradients are those of the last."""
    (method,) = spec.methods
    theirs, view = taught(teacher, spec.student.kind, spec.needs())
    rms = {level: float(each.square().mean().sqrt()) for level, each in view.features.items()}
    student = deepcopy(untrained(spec.student.kind))
    torch.manual_seed(0)
    pair = Pair.of(spec.student, theirs.detector.recipe.detector)
    loss = build_method(method, pair, Calibration(rms, boxes_per_image=1.0), SCHEDULE)
    distill = Distill(student, {"": Lesson({method.kind: loss})}, spec.needs()).train()
    optimizer = torch.optim.SGD(distill.parameters(), lr=1e-3)
    for step in range(STEPS):
        torch.manual_seed(step)
        optimizer.zero_grad()
        losses = {name: each for name, each in distill(batch(), {"": view}).items() if name[:10] != "detection/"}
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(distill.parameters(), 1.0)
        yield {name: each.detach() for name, each in losses.items()}
        assert_gradients(distill, theirs)
        optimizer.step()


def assert_gradients(distill: Distill, teacher: Teacher) -> None:
    assert all(each.grad is None for each in teacher.detector.parameters())
    assert any(each.grad is not None and each.grad.any() for each in distill.student.parameters())
    for name, each in distill.methods.named_parameters():
        assert not each.requires_grad or each.grad is not None, f"{name} gets none, which DDP does not forgive"


@pytest.mark.parametrize(("teacher", "student", "kind"), CASES)
def test_it_trains_or_is_refused_by_name(teacher: str, student: str, kind: str) -> None:
    method: MethodSpec = FGD(temperature=0.5) if kind == "fgd" else KINDS[kind]()
    if not served(method, teacher, student):
        with pytest.raises((SpecError, ValidationError)) as refused:
            job(teacher, student, method)
        assert pointer_of(refused.value) == "/methods/0"
        who = teacher if served(method, student) else student
        assert f"but {who} has no" in str(refused.value)
        assert f"families that have them: {', '.join(families_with(method.takes())) or 'none'}" in str(refused.value)
        return
    if why := method.refusal(network(student), network(teacher)):
        with pytest.raises(SpecError, match="must be of one family") as unlike:
            job(teacher, student, method)
        assert pointer_of(unlike.value) == "/methods/0"
        assert kind in why
        return
    spec = job(teacher, student, method)
    assert type(spec.methods[0]) in METHODS
    first, again = list(steps(spec, teacher)), next(steps(spec, teacher))
    assert first[0]
    assert first[0] == again, "the same bytes twice"
    assert first[1] != again, "a step changes what is compared"
    for losses in first:
        assert all(each.dtype == torch.float32 and each.isfinite() for each in losses.values())


def test_defeats_head_term_asks_the_teacher_about_the_students_regions() -> None:
    method = DeFeat(head_foreground=2.0, head_background=2.0)
    (losses, _) = steps(job("faster_rcnn", "faster_rcnn", method), "faster_rcnn")

    assert set(losses) == {"defeat/fg", "defeat/bg", "defeat/head_fg", "defeat/head_bg"}
    assert losses["defeat/head_fg"] > 0
    assert losses["defeat/head_bg"] > 0
    with pytest.raises(ValidationError, match="fcos has no proposals; families that have them: faster_rcnn"):
        job("fcos", "fcos", method)


def test_every_served_method_has_numbers_of_its_family() -> None:
    for family, numbers in PRESETS.items():
        for kind in numbers:
            assert kind.needs <= family.offers  # type: ignore[attr-defined]
