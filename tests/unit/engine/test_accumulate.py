"""Several batches a step: the gradient of the large batch, and a training that repeats and resumes as any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models.detection.fcos import FCOSHead

from fgd.engine import device, loop, prepare, step
from fgd.engine.identity import checkpoint_digest
from fgd.engine.optimise import make_optimizer
from fgd.engine.prepare import Training
from fgd.errors import SpecError
from fgd.events import Finished, Note, Saved, Started, Stepped
from fgd.spec import JobSpec
from fgd.types import Batch, Target
from tests.rounding import of_network

MakeSpec = Callable[..., JobSpec]
ACCUMULATED = {"batch_size": 2, "accumulate": 2, "precision": "float32"}
LAYERS, TERMS = 40, 4608
"""Convolutions in a row, and products a sum, of the networks here."""


def parts_of(spec: JobSpec) -> Training:
    spec = loop.resolve(spec)
    machine = device.choose(spec.resources, spec.schedule.precision)
    parts, _, _ = prepare.prepare(spec, machine, None, lambda _: None, lambda: None)
    parts.distill.train()
    return parts


def first_batches(parts: Training, count: int) -> list[Batch]:
    batches = loop.train_batches(parts.train, parts.transform, parts.spec.schedule, 0, 0)
    return [next(batches) for _ in range(count)]


def gradients(parts: Training) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in parts.student.named_parameters() if p.grad is not None}


def stepped(parts: Training, batches: list[Batch]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The step's gradients and losses."""
    optimizer = make_optimizer([parts.distill], parts.spec.schedule.optimizer)
    losses, _ = step.step(parts, optimizer, batches, number=0, per_epoch=3)
    return gradients(parts), losses


def joined(*batches: Batch) -> Batch:
    whole = {
        name: sum((getattr(batch, name) for batch in batches), ())
        for name in ("image_sizes", "original_sizes", "targets", "image_ids")
    }
    return replace(batches[0], images_NCHW=torch.cat([batch.images_NCHW for batch in batches]), **whole)


@pytest.mark.numeric
@pytest.mark.parametrize("empty", [False, True])
def test_the_gradient_and_losses_are_those_of_the_large_batch(make_spec: MakeSpec, teacher: Path, empty: bool) -> None:
    """With group norm, whose statistics are each image's own; also where a batch has no box at all.

    Batches of 2 and 4 images may run through different kernels, so losses differ by the rounding of a network.
    Gradients may differ by more: a unit whose input is hardly more than rounding may be on in one and off in the other.
    The deepest maps have 4 cells for each of 4 images. There one unit of 512 is 1/sqrt(512) of a weight's gradient and
    one cell of 16 a quarter of that, 0.011 of it in all. A wrong share is a matter of tenths.
    """
    spec = make_spec(
        student={"backbone": "resnet18", "fpn_channels": 64, "norm": "group"},
        teacher={"path": str(teacher), "allow_unfit": True},
        methods=[{"kind": "fgd"}, {"kind": "mimic"}],
        schedule=ACCUMULATED | {"clip_norm": 0},
    )
    accumulated, large = parts_of(spec), parts_of(spec.but(schedule=spec.schedule.but(accumulate=1)))
    first, second = first_batches(accumulated, 2)
    if empty:
        nothing = Target(torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64))
        second = replace(second, targets=tuple(nothing for _ in second.targets))
    counts = [accumulated.student.counted(batch) for batch in (first, second)]
    assert counts[0] != counts[1], "equal ones would prove nothing"
    (ours, our_losses), (theirs, their_losses) = (
        stepped(accumulated, [first, second]),
        stepped(large, [joined(first, second)]),
    )
    assert our_losses == pytest.approx(their_losses, rel=2 * of_network(LAYERS, TERMS))  # some are squares
    assert ours.keys() == theirs.keys()
    least = 1e-3 * max(float(gradient.norm()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        assert float((ours[name] - gradient).norm()) < 0.03 * max(float(gradient.norm()), least), name


def test_what_fcos_counts_is_what_torchvision_divides_by(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = parts_of(
        make_spec(schedule=ACCUMULATED | {"batch_size": 4, "accumulate": 1, "min_size": 100, "max_size": 150})
    )
    seen: list[int] = []
    compute_loss = FCOSHead.compute_loss

    def watched(self: Any, targets: Any, outputs: Any, anchors: Any, matched: Any) -> Any:
        seen.append(sum(int((each >= 0).sum()) for each in matched))
        return compute_loss(self, targets, outputs, anchors, matched)

    monkeypatch.setattr(FCOSHead, "compute_loss", watched)
    for batch in first_batches(parts, 3):
        predictions = parts.student.predict(parts.student.features(batch.images_NCHW), batch)
        parts.student.losses(predictions, batch)
        assert parts.student.counted(batch) == seen[-1]
    assert len(set(seen)) > 1


@pytest.mark.slow
def test_steps_rates_and_progress_count_updates_and_a_resumed_run_ends_alike(
    train: Callable[..., Any], make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fgd.engine.meter.REPORT_S", 0.0)  # of every step
    spec = make_spec(schedule={"batch_size": 2, "accumulate": 2, "checkpoint_s": 0.001})
    whole = train(spec)
    (started,) = whole.of(Started)
    assert started.total_steps == 6, "two epochs of 12 images, 4 a step"
    (finished,) = whole.of(Finished)
    assert finished.step == 6
    rates = [event.values["lr"] for event in whole.of(Stepped)]
    plain = train(make_spec())
    assert rates == [event.values["lr"] for event in plain.of(Stepped)]
    (saved,) = [event for event in whole.of(Saved) if event.step == 5]
    rest = train(spec, resume=Path(saved.path))
    assert rest.of(Finished)[0].weights_digest == finished.weights_digest, "the same steps of the same values"
    assert plain.of(Finished)[0].weights_digest != finished.weights_digest


def test_images_left_over_are_told(train: Callable[..., Any], make_spec: MakeSpec) -> None:
    run = train(make_spec(schedule={"epochs": 1, "batch_size": 5}))
    (note,) = [note for note in run.of(Note) if note.code == "left_over"]
    assert note.data == {"images": 2}


def test_a_step_larger_than_the_set_is_refused_with_what_would_fit(make_spec: MakeSpec) -> None:
    with pytest.raises(SpecError, match=r"4 batches of 4 .* 12 images; set accumulate to 3 or less") as refused:
        parts_of(make_spec(schedule={"accumulate": 4}))
    assert refused.value.pointer == "/schedule/accumulate"


SCHEDULES: list[dict[str, Any]] = [
    {},
    {"lr_schedule": {"kind": "cosine"}},
    {"lr_schedule": {"kind": "step"}},
    {"optimizer": {"kind": "sgd", "lr": 4e-4}},
    {"optimizer": {"kind": "adamw", "lr": 4e-3}},
    {"accumulate": 2},
]


def test_checkpoints_of_different_schedules_are_told_apart(make_spec: MakeSpec) -> None:
    """Also where each is at its own defaults, and only its kind is another."""
    digests = [checkpoint_digest(make_spec(schedule=schedule), {}) for schedule in SCHEDULES]
    assert len(set(digests)) == len(SCHEDULES)


def test_checkpoints_of_different_methods_are_told_apart(make_spec: MakeSpec) -> None:
    reference = {"path": "x"}
    digests = {checkpoint_digest(make_spec(teacher=reference, methods=[{"kind": k}]), {}) for k in ("fgd", "mimic")}
    assert len(digests) == 2


def test_a_checkpoint_does_not_belong_to_names_and_places(make_spec: MakeSpec) -> None:
    digests = {
        checkpoint_digest(make_spec(**changes), {})
        for changes in ({}, {"name": "other"}, {"dataset": {"path": "x"}}, {"resources": {"threads": 3}})
    }
    assert len(digests) == 1
