"""Images without labels: what the teacher finds in them teaches, and the labelled images stay those of the control."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image as Pillow
from pydantic import ValidationError

from fgd.data.formats import open_index
from fgd.data.loader import Dataset, train_batches, unlabelled_batches, unlabelled_parts
from fgd.data.transforms import Transform
from fgd.engine import device, loop, prepare, step
from fgd.engine.distill import Teacher
from fgd.engine.optimise import make_optimizer
from fgd.engine.prepare import Training
from fgd.engine.unlabelled import FoundBoxes, confident, look
from fgd.engine.weights import load_detector, read_recipe
from fgd.errors import SpecError
from fgd.events import Finished, Note, Saved, Stepped
from fgd.recipe import Recipe
from fgd.result_files import RECIPE, WEIGHTS
from fgd.spec import JobSpec, Schedule, Unlabelled
from fgd.types import Batch, Detections
from tests.rounding import of_network

MakeSpec = Callable[..., JobSpec]
LAYERS, TERMS = 40, 4608


@pytest.fixture(scope="module")
def bare(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, and seven images without labels."""
    folder = tmp_path_factory.mktemp("data") / "bare"
    shutil.copytree(digits, folder)
    (folder / "unlabelled").mkdir()
    for n in range(7):
        noise = np.random.default_rng(n).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Pillow.fromarray(noise).save(folder / f"unlabelled/{n}.png")
    return folder


@pytest.fixture(scope="module")
def sure(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher, whose head finds the second class everywhere."""
    folder = tmp_path_factory.mktemp("teacher") / "sure"
    shutil.copytree(teacher, folder)
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    tensors["head.classification_head.cls_logits.bias"][2] += 12.0
    tensors["head.regression_head.bbox_ctrness.bias"] += 12.0
    safetensors.torch.save_file(tensors, folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def taught(make_spec: MakeSpec, bare: Path, sure: Path) -> Callable[..., JobSpec]:
    def taught(unlabelled: dict[str, Any] | None, **changes: Any) -> JobSpec:
        usual: dict[str, Any] = {
            "dataset": {"path": str(bare)},
            "teacher": {"path": str(sure), "allow_unfit": True},
            "methods": [{"kind": "fgd", "rho": 0.0}],
            "unlabelled": unlabelled,
        }
        return make_spec(**usual | changes)

    return taught


def parts_of(spec: JobSpec) -> Training:
    spec = loop.resolve(spec)
    machine = device.choose(spec.resources, spec.schedule.precision)
    parts, _, _ = prepare.prepare(spec, machine, None, lambda _: None, lambda: None, rehearsal_images=2)
    parts.distill.train()
    return parts


def batches_of(parts: Training) -> tuple[list[Batch], list[Batch]]:
    """Of the first step: labelled, unlabelled."""
    schedule = parts.spec.schedule
    labelled = train_batches(parts.train, parts.transform, schedule, 0, 0)
    bare, count = prepare.unlabelled_of(parts, schedule, range(3), 3)
    return [next(labelled) for _ in range(schedule.accumulate)], [next(bare) for _ in range(count)]


def stepped(parts: Training, labelled: list[Batch], bare: list[Batch]) -> tuple[dict[str, torch.Tensor], Any]:
    """The step's gradients and losses."""
    optimizer = make_optimizer([parts.distill], parts.spec.schedule.optimizer)
    losses, _ = step.step(parts, optimizer, labelled, 0, 3, bare)
    return {name: p.grad.clone() for name, p in parts.student.named_parameters() if p.grad is not None}, losses


# --- batches --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(bare: Path) -> Dataset:
    index, root = open_index(bare)
    return Dataset(index, "unlabelled", root)


def stream(
    images: Dataset, steps: range = range(7), shard: tuple[int, int] = (0, 1), **changes: Any
) -> Iterator[Batch]:
    schedule = Schedule(min_size=64, max_size=64, flip="both").but(**changes)
    transform = Transform(64, 64)
    return unlabelled_batches(images, transform, schedule, 5, 4, steps=steps, per_epoch=3, shard=shard)


def test_a_pass_has_each_image_once_and_each_pass_an_order_of_its_own(images: Dataset) -> None:
    ids = [n for batch in stream(images) for n in batch.image_ids]
    passes = [ids[at : at + 7] for at in range(0, 28, 7)]
    assert all(sorted(each) == sorted(image.id for image in images.images) for each in passes)
    assert len({tuple(each) for each in passes}) > 1


def test_a_step_has_the_same_images_wherever_the_training_goes_on(images: Dataset) -> None:
    for whole, rest in zip(list(stream(images))[3:], stream(images, range(3, 7)), strict=True):
        assert (whole.image_ids, whole.flips) == (rest.image_ids, rest.flips)
        assert torch.equal(whole.images_NCHW, rest.images_NCHW)


def test_processes_and_batches_share_a_step_s_images(images: Dataset) -> None:
    whole = [batch.image_ids for batch in stream(images)]
    halves = [[batch.image_ids for batch in stream(images, shard=(rank, 2))] for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    parts = [batch.image_ids for batch in stream(images, accumulate=3)]
    assert [len(each) for each in parts[:3]] == [1, 1, 2]
    assert [sum(parts[at : at + 3], ()) for at in range(0, 21, 3)] == whole


@pytest.mark.parametrize(("images", "accumulate"), [(1, 1), (1, 4), (3, 4), (7, 3), (9, 2)])
def test_the_parts_of_a_step_are_its_images(images: int, accumulate: int) -> None:
    parts = unlabelled_parts(images, accumulate)
    assert [n for part in parts for n in part] == list(range(images))
    assert len(parts) == min(images, accumulate)


def test_all_images_of_a_step_have_its_size(images: Dataset) -> None:
    labelled = Schedule(min_size=64, max_size=64, scales=(64, 96, 128))
    ours = [batch.padded_size for batch in stream(images, range(6), scales=labelled.scales)]
    index = images.with_images(images.images[:6], ("0",))
    theirs: list[tuple[int, int]] = []
    for epoch in (0, 1):
        schedule = labelled.but(batch_size=2)
        theirs += [batch.padded_size for batch in train_batches(index, Transform(64, 64), schedule, 5, epoch)]
    assert ours == theirs
    assert len(set(ours)) > 1


# --- what the teacher finds -----------------------------------------------------------------------------------


def test_boxes_are_those_of_enough_score_and_of_a_class_that_the_student_has() -> None:
    found = Detections(
        torch.tensor([[0.0, 0, 8, 8], [1, 1, 9, 9], [2, 2, 2, 9], [3, 3, 9, 9]]),
        torch.tensor([0.9, 0.3, 0.9, 0.6]),
        torch.tensor([3, 3, 3, 1]),
    )
    target = confident(found, {3: 1}, 0.5)
    assert target.boxes_K4.tolist() == [[0, 0, 8, 8]]
    assert target.labels_K.tolist() == [1]


def test_they_lie_where_the_student_sees_the_image_and_have_its_labels(sure: Path, images: Dataset) -> None:
    """A teacher that calls the classes otherwise and knows one more, and images that are twice as large for both."""
    detector = load_detector(sure)
    detector.recipe = Recipe.model_validate(detector.recipe.model_dump(by_alias=True) | {"classes": ("x", "7")})
    teacher = Teacher(detector, detector.recipe.but(classes=("7", "0")), {"features"})
    (batch, *_) = (Transform(128, 128)([images.sample(n)]) for n in range(1))
    looked = look({"": teacher}, batch, 0.5)
    (target,) = looked.batch.targets
    assert set(target.labels_K.tolist()) == {1}
    (plain,) = detector.detect(detector.predict(teacher.features(batch), batch), batch)
    own = [
        box
        for box, label, score in zip(plain.boxes_K4, plain.labels_K, plain.scores_K, strict=True)
        if label == 2 and score >= 0.5
    ]
    assert len(own) == len(target.boxes_K4) > 5
    assert target.boxes_K4 == pytest.approx(2 * torch.stack(own), abs=1e-3)
    assert looked.views is not None
    assert looked.views[""].predictions is None, "no method asks for it"
    for level, map_NCHW in teacher.view(batch).features.items():
        assert torch.equal(looked.views[""].features[level], map_NCHW)


def test_boxes_are_counted_and_none_at_all_is_a_warning(images: Dataset, sure: Path) -> None:
    detector = load_detector(sure)
    teacher = Teacher(detector, detector.recipe, {"features"})
    batch = Transform(64, 64)([images.sample(0), images.sample(1)])
    found = FoundBoxes(0.5)
    assert (found.figures(), found.warning()) == ({}, None)
    found.add(batch)
    assert found.figures() == {"unlabelled/boxes_per_image": 0.0}
    warning = found.warning()
    assert warning is not None
    assert "no box with a score of 0.5 or more in 2 unlabelled images" in warning.message
    found.add(look({"": teacher}, batch, 0.5).batch)
    assert found.figures()["unlabelled/boxes_per_image"] > 5
    assert found.warning() is None


# --- a step ---------------------------------------------------------------------------------------------------


def test_the_labelled_images_and_their_losses_are_those_of_a_training_without(taught: Callable[..., JobSpec]) -> None:
    without, with_them = parts_of(taught(None)), parts_of(taught({"pseudo_labels": True}))
    (labelled, none), (same, bare) = batches_of(without), batches_of(with_them)
    assert (none, len(bare)) == ([], 1)
    assert [batch.image_ids for batch in labelled] == [batch.image_ids for batch in same]
    assert all(torch.equal(a.images_NCHW, b.images_NCHW) for a, b in zip(labelled, same, strict=True))
    (_, plain), (_, losses) = stepped(without, labelled, []), stepped(with_them, same, bare)
    assert {name: loss for name, loss in losses.items() if name.startswith("detection/")} == {
        name: loss for name, loss in plain.items() if name.startswith("detection/")
    }
    assert {name for name in losses if name.startswith("pseudo/")} == {
        name.replace("detection/", "pseudo/") for name in plain if name.startswith("detection/")
    }
    assert {name for name in losses if name.startswith("fgd/")} == {name for name in plain if name.startswith("fgd/")}


def test_the_methods_losses_are_means_over_labelled_and_unlabelled_images(taught: Callable[..., JobSpec]) -> None:
    """Of as many images of both as the batch has: half the loss on one half, half on the other."""
    parts = parts_of(taught({"ratio": 0.5}, student={"backbone": "resnet18", "fpn_channels": 64, "norm": "group"}))
    labelled, bare = batches_of(parts)
    assert [len(batch.image_ids) for batch in (*labelled, *bare)] == [4, 2]
    with torch.no_grad():
        looked = look(parts.teachers, bare[0], 0.5)
        on_bare = parts.distill(looked.batch, looked.views or {}, None)
        on_labelled = parts.distill(labelled[0], parts.views(labelled[0]))
    _, losses = stepped(parts, labelled, bare)
    assert on_bare.keys() == {name for name in losses if name.startswith("fgd/")}
    for name, loss in on_bare.items():
        assert losses[name] == pytest.approx((4 * float(on_labelled[name]) + 2 * float(loss)) / 6, rel=1e-5)


@pytest.mark.parametrize("pseudo", [False, True])
def test_their_gradient_reaches_the_head_with_pseudo_labels_alone(taught: Callable[..., JobSpec], pseudo: bool) -> None:
    parts = parts_of(taught({"pseudo_labels": pseudo}))
    _, bare = batches_of(parts)
    looked = look(parts.teachers, bare[0], 0.5)
    losses = parts.distill(looked.batch, looked.views or {}, "pseudo" if pseudo else None)
    torch.stack(list(losses.values())).sum().backward()
    head = parts.student.module.head
    assert float(parts.student.module.backbone.body["0"][0].weight.grad.norm()) > 0
    assert all((p.grad is not None and float(p.grad.norm()) > 0) == pseudo for p in head.parameters() if p.ndim == 4)


def test_the_masks_are_the_teacher_s_boxes(taught: Callable[..., JobSpec], sure: Path) -> None:
    """FGD's foreground term sees the sure teacher's boxes; with a score that nothing has it sees none."""
    parts = parts_of(taught({}, methods=[{"kind": "fgd", "beta": 0, "gamma": 0, "lambda": 0}]))
    _, bare = batches_of(parts)
    with torch.no_grad():
        for score, some in ((0.5, True), (1.0, False)):
            looked = look(parts.teachers, bare[0], score)
            assert (float(sum(parts.distill(looked.batch, looked.views or {}, None).values())) > 0) == some


def test_methods_that_ask_the_head_see_what_it_says_of_them(taught: Callable[..., JobSpec]) -> None:
    student = {"backbone": "resnet18", "fpn_channels": 96, "norm": "group"}
    parts = parts_of(taught({}, student=student, methods=[{"kind": "crosskd"}, {"kind": "gid"}, {"kind": "fgfi"}]))
    labelled, bare = batches_of(parts)
    _, losses = stepped(parts, labelled, bare)
    assert {name.partition("/")[0] for name in losses} == {"detection", "crosskd", "gid", "fgfi"}
    assert all(np.isfinite(loss) for loss in losses.values())


@pytest.mark.numeric
def test_several_batches_have_the_losses_of_the_large_one(taught: Callable[..., JobSpec]) -> None:
    """FCOS divides by the cells that have a box: those of all unlabelled images of the step."""
    student = {"backbone": "resnet18", "fpn_channels": 64, "norm": "group"}
    schedule = {"batch_size": 2, "accumulate": 2, "precision": "float32", "clip_norm": 0}
    spec = taught({"pseudo_labels": True, "weight": 0.5, "ratio": 1.25}, student=student, schedule=schedule)
    several, large = parts_of(spec), parts_of(spec.but(schedule=spec.schedule.but(accumulate=1, batch_size=4)))
    (ours, our_losses), (theirs, their_losses) = (stepped(each, *batches_of(each)) for each in (several, large))
    assert [len(batch.image_ids) for batch in batches_of(several)[1]] == [2, 3]
    assert our_losses == pytest.approx(their_losses, rel=2 * of_network(LAYERS, TERMS))
    for name in ("head.classification_head.cls_logits.bias", "backbone.fpn.layer_blocks.0.0.bias"):
        gradient = theirs[f"module.{name}"]
        assert float((ours[f"module.{name}"] - gradient).norm()) < 0.03 * float(gradient.norm()), name


# --- a training -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_says_what_it_does_and_resumes_to_the_same_bytes(
    train: Callable[..., Any], taught: Callable[..., JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fgd.engine.meter.REPORT_S", 0.0)
    spec = taught({"pseudo_labels": True, "ratio": 1.25}, schedule={"checkpoint_s": 0.001, "ema": {"decay": 0.9}})
    whole = train(spec)
    (note,) = [note for note in whole.of(Note) if note.code == "unlabelled"]
    assert note.data == {"images": 7, "per_step": 5}
    values = whole.of(Stepped)[0].values
    assert values["unlabelled/boxes_per_image"] > 5
    assert {name for name in values if "pseudo" in name} == {
        f"loss/pseudo/{term}" for term in ("classification", "bbox_regression", "bbox_ctrness")
    }
    (saved,) = [event for event in whole.of(Saved) if event.step == 5]
    rest = train(spec, resume=Path(saved.path))
    assert rest.of(Finished)[0].weights_digest == whole.of(Finished)[0].weights_digest


def test_a_teacher_that_finds_nothing_is_warned_of(
    train: Callable[..., Any], taught: Callable[..., JobSpec], teacher: Path
) -> None:
    hardly = {"path": str(teacher), "allow_unfit": True}
    run = train(taught({"score": 1.0}, teacher=hardly, schedule={"epochs": 1}))
    assert "unlabelled_without_boxes" in {note.code for note in run.of(Note) if note.level == "warning"}


# --- refusals -------------------------------------------------------------------------------------------------


def test_a_data_set_without_them_is_refused(taught: Callable[..., JobSpec], digits: Path) -> None:
    with pytest.raises(SpecError, match="no unlabelled split") as refused:
        parts_of(taught({}, dataset={"path": str(digits)}))
    assert refused.value.pointer == "/unlabelled"


def test_a_teacher_that_knows_none_of_the_classes_is_refused(
    taught: Callable[..., JobSpec], sure: Path, tmp_path: Path
) -> None:
    shutil.copytree(sure, tmp_path / "foreign")
    recipe = read_recipe(sure).but(classes=("cow", "pig"))
    (tmp_path / "foreign" / RECIPE).write_text(recipe.model_dump_json())
    foreign = {"path": str(tmp_path / "foreign"), "allow_unfit": True}
    parts_of(taught(None, teacher=foreign))
    with pytest.raises(SpecError, match="knows none") as refused:
        parts_of(taught({}, teacher=foreign))
    assert refused.value.pointer == "/unlabelled"


def test_plain_training_has_no_use_for_them(make_spec: MakeSpec) -> None:
    with pytest.raises(ValidationError, match="teach through a teacher and methods"):
        make_spec(unlabelled={})


@pytest.mark.parametrize(
    ("ratio", "batch", "accumulate", "devices", "images"),
    [(1.0, 8, 1, 1, 8), (0.01, 8, 1, 1, 1), (1.5, 4, 2, 2, 12), (0.1, 4, 2, 4, 4), (4.0, 1, 3, 1, 12)],
)
def test_a_step_has_as_many_as_come_nearest_to_the_ratio(
    ratio: float, batch: int, accumulate: int, devices: int, images: int
) -> None:
    schedule = Schedule(batch_size=batch, accumulate=accumulate)
    assert Unlabelled(ratio=ratio).per_step(schedule, devices) == images


# --- several teachers -----------------------------------------------------------------------------------------


def test_each_of_several_teachers_finds_what_it_knows(sure: Path, images: Dataset) -> None:
    """Of a class that two know the first finds the objects: no object has two boxes."""
    detector, other = load_detector(sure), load_detector(sure)
    other.recipe = Recipe.model_validate(other.recipe.model_dump(by_alias=True) | {"classes": ("x", "0")})
    student = detector.recipe
    whole, first = Teacher(detector, student, {"features"}), Teacher(other, student, {"features"})
    batch = Transform(64, 64)([images.sample(0)])
    (alone,), (of_0,) = (look({"a": each}, batch, 0.5).batch.targets for each in (whole, first))
    assert set(of_0.labels_K.tolist()) == {1 + student.classes.index("0")}

    looked = look({"zero": first, "": whole}, batch, 0.5)

    (target,) = looked.batch.targets
    kept_K = alone.labels_K != of_0.labels_K[0]
    assert torch.equal(target.boxes_K4, torch.cat([of_0.boxes_K4, alone.boxes_K4[kept_K]]))
    assert looked.views is not None
    assert set(looked.views) == {"zero", ""}
