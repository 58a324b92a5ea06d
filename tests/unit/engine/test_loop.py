"""Trainings of a real, tiny detector: what the library promises of order, pairs, resuming and failing.

Where bytes are the same, the same calls were made on the same values: torch's kernels for the processor give the same
bits each time, whatever its instructions.
"""

from __future__ import annotations

import json
import pickle
import runpy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file

from fgd.data import archive, formats
from fgd.data.formats import open_index
from fgd.data.loader import Dataset, eval_batches, ground_truth_coco
from fgd.data.transforms import Transform
from fgd.engine import checkpoint, loop, weights
from fgd.engine.checkpoint import TrainingState
from fgd.engine.distill import Teacher
from fgd.engine.step import step as one_step
from fgd.engine.teacher import Fitness, refuse_unfit
from fgd.errors import Diverged, SpecError, Stopped, TeacherUnfit, UserError
from fgd.events import Alive, Evaluated, Finished, Note, Saved, Started, Stepped
from fgd.result_files import DETECTIONS
from fgd.spec import JobSpec
from fgd.statistics import average_precision, detections
from fgd.statistics.matching import match
from fgd.types import Batch, Calibration
from tests.rounding import FLOAT32

pytestmark = pytest.mark.slow
Train = Callable[..., Any]
MakeSpec = Callable[..., JobSpec]


def distilled(make_spec: MakeSpec, teacher: Path, **changes: Any) -> JobSpec:
    return make_spec(teacher={"path": str(teacher), "allow_unfit": True}, **{"methods": [{"kind": "fgd"}]} | changes)


@pytest.fixture(scope="module")
def whole(train: Train, make_spec: MakeSpec, teacher: Path) -> Any:
    """One distillation, start to end."""
    return train(distilled(make_spec, teacher))


def digest(run: Any) -> str:
    (finished,) = run.of(Finished)
    return str(finished.weights_digest)


@pytest.mark.numeric
def test_the_same_spec_gives_the_same_student_to_the_bit(
    whole: Any, train: Train, make_spec: MakeSpec, teacher: Path
) -> None:
    again = train(distilled(make_spec, teacher))
    assert digest(again) == digest(whole)
    assert (again.result / "student.safetensors").read_bytes() == (whole.result / "student.safetensors").read_bytes()
    assert (again.result / "manifest.json").read_bytes() == (whole.result / "manifest.json").read_bytes()
    assert (again.result / DETECTIONS).read_bytes() == (whole.result / DETECTIONS).read_bytes()


@pytest.mark.long
def test_the_kept_detections_give_every_figure_of_the_manifest(fit: Any, easy_digits: Path) -> None:
    """Of a teacher that has learned to find something, without its data set."""
    metrics = json.loads((fit.result / "manifest.json").read_text())["metrics"]
    found = detections.read(fit.result / DETECTIONS)
    assert found.keys() == {"val", "test"}
    for split, told in found.items():
        figures = average_precision.figures(match(told))
        mine = {name: figures[name] for name in metrics[split]}
        theirs = {name: np.nan if value is None else value for name, value in metrics[split].items()}
        assert mine == pytest.approx(theirs, abs=1e-9, nan_ok=True)
        assert told.names == tuple(image.name for image in open_index(easy_digits)[0].splits[split])
    assert metrics["test"]["ap"] > 5, "a figure near zero proves nothing"


def test_another_seed_gives_another_student(whole: Any, train: Train, make_spec: MakeSpec, teacher: Path) -> None:
    assert digest(train(distilled(make_spec, teacher, seed=1))) != digest(whole)


@pytest.mark.numeric
@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_a_training_stopped_and_resumed_ends_with_the_same_bits(
    whole: Any, train: Train, make_spec: MakeSpec, teacher: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    """After step 1 (mid-epoch), 3 (before the first evaluation) and 4 (mid-epoch, after it)."""
    spec = distilled(make_spec, teacher)
    done = 0

    def counted(*arguments: Any) -> Any:
        nonlocal done
        done += 1
        return one_step(*arguments)

    first: list[Any] = []

    def stop(run: Any) -> bool:
        first[:] = [run]
        return done >= stop_after

    monkeypatch.setattr(loop, "step", counted)
    with pytest.raises(Stopped):
        train(spec, stop=stop)
    monkeypatch.undo()
    (saved,) = first[0].of(Saved)[-1:]
    assert saved.step == stop_after
    rest = train(spec, resume=Path(saved.path))
    assert rest.of(Started)[0].step == stop_after
    assert digest(rest) == digest(whole)
    assert rest.of(Finished)[0].files[DETECTIONS] == whole.of(Finished)[0].files[DETECTIONS]
    assert [e.values for e in rest.of(Evaluated)][-2:] == [e.values for e in whole.of(Evaluated)][-2:]


@pytest.mark.numeric
def test_control_and_distilled_run_see_the_same_batches_and_start_from_the_same_weights(
    train: Train, make_spec: MakeSpec, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Batch]] = []
    starts: list[str] = []

    def recorded(
        parts: Any, optimizer: Any, batches: Iterator[Batch], number: int, per_epoch: int, unlabelled: Any
    ) -> Any:
        (batch,) = batches
        if number == 0:
            seen.append([])
            starts.append(checkpoint.digest_of_tensors(parts.student.module.state_dict()))
        seen[-1].append(replace(batch, images_NCHW=batch.images_NCHW.clone()))
        return one_step(parts, optimizer, [batch], number, per_epoch, unlabelled)

    monkeypatch.setattr(loop, "step", recorded)
    augment = {"photometric": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1}, "crop": {}}
    schedule = {"flip": "both", "scales": [64, 96], "augment": augment}
    train(make_spec(schedule=schedule))
    train(distilled(make_spec, teacher, schedule=schedule))
    control, distillation = seen
    assert starts[0] == starts[1]
    assert len(control) == len(distillation) == 6
    for ours, theirs in zip(control, distillation, strict=True):
        assert ours.image_ids == theirs.image_ids
        assert torch.equal(ours.images_NCHW, theirs.images_NCHW)
        for mine, other in zip(ours.targets, theirs.targets, strict=True):
            assert torch.equal(mine.boxes_K4, other.boxes_K4)


@pytest.mark.numeric
def test_each_term_is_reported_weighted_and_with_its_share_of_the_detection_loss(whole: Any) -> None:
    epochs = [e.values for e in whole.of(Stepped) if "epoch/loss/detection" in e.values]
    assert len(epochs) == 2
    for values in epochs:
        terms = {name for name in values if name.startswith("epoch/share/")}
        assert terms == {f"epoch/share/fgd/{term}" for term in ("fg", "bg", "attention", "global")}
        total = values["epoch/loss/detection"] + sum(
            values[f"epoch/loss/fgd/{t}"] for t in ("fg", "bg", "attention", "global")
        )
        # A float32 sum of 7 positive terms; their means over the epoch are taken in float64.
        assert values["epoch/loss/total"] == pytest.approx(total, rel=7 * FLOAT32)


def test_the_teacher_is_checked_and_calibrated_and_the_figures_are_kept(whole: Any) -> None:
    notes = {note.code: note for note in whole.of(Note)}
    assert notes["teacher_checked"].data["images"] == 6
    assert "6 validation images at min_size 64, max_size 64 is" in notes["teacher_checked"].message
    assert "trained at" not in notes["teacher_checked"].message
    assert set(notes["calibration"].data["teacher_rms"]) == {"p3", "p4", "p5", "p6", "p7"}
    manifest = json.loads((whole.result / "manifest.json").read_text())
    assert manifest["calibration"] == notes["calibration"].data
    assert manifest["weights_digest"] == digest(whole)
    assert manifest["machine"]["threads"] == 1


def test_the_student_holds_nothing_of_teacher_or_method(whole: Any, train: Train, make_spec: MakeSpec) -> None:
    control = train(make_spec())
    assert (
        load_file(whole.result / "student.safetensors").keys()
        == load_file(control.result / "student.safetensors").keys()
    )


@pytest.mark.long
@pytest.mark.numeric
def test_the_exported_student_in_plain_torchvision_has_the_reported_ap_and_boxes(fit: Any, easy_digits: Path) -> None:
    """In the batches of the evaluation, so that the same layers are called on the same values."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    model = runpy.run_path(str(fit.result / "model.py"))["load"]()
    index, root = open_index(easy_digits)
    dataset = Dataset(index, "test", root)
    files = {image.id: root / image.file for image in dataset.images}
    plain: dict[int, dict[str, torch.Tensor]] = {}
    ours = weights.load_detector(fit.result).eval()
    for batch in eval_batches(dataset, Transform(64, 64), batch_size=4):
        pixels = [np.asarray(Pillow.open(files[image_id]).convert("RGB")) for image_id in batch.image_ids]
        with torch.no_grad():
            theirs = model([torch.from_numpy(each.copy()).permute(2, 0, 1) / 255 for each in pixels])
            detections = ours.detect(ours.predict(ours.features(batch.images_NCHW), batch), batch)
        for image_id, mine, found in zip(batch.image_ids, detections, theirs, strict=True):
            assert torch.equal(mine.boxes_K4, found["boxes"])
            assert torch.equal(mine.scores_K, found["scores"])
            plain[image_id] = found
    coco = COCO()
    coco.dataset = ground_truth_coco(dataset)
    coco.createIndex()
    boxes = [
        {"image_id": i, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score, "category_id": label}
        for i, out in plain.items()
        for (x1, y1, x2, y2), score, label in zip(
            out["boxes"].tolist(), out["scores"].tolist(), out["labels"].tolist(), strict=True
        )
    ]
    evaluation = COCOeval(coco, coco.loadRes(boxes), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    (reported,) = [event.values for event in fit.of(Evaluated) if event.split == "test"]
    assert reported["ap"] > 5, "a figure near zero proves nothing"
    assert 100 * evaluation.stats[0] == pytest.approx(reported["ap"], abs=1e-6)
    assert 100 * evaluation.stats[1] == pytest.approx(reported["ap50"], abs=1e-6)


@pytest.mark.long
def test_a_fit_teacher_may_teach_and_with_its_head_shuffled_may_not(
    train: Train, make_spec: MakeSpec, fit: Any, easy_digits: Path, tmp_path: Path
) -> None:
    spec = make_spec(
        dataset={"path": str(easy_digits)},
        teacher={"path": str(fit.result)},
        methods=[{"kind": "fgd"}],
        schedule={"epochs": 1},
    )
    before = weights.read_tensors(fit.result / "student.safetensors")
    (note,) = [note for note in train(spec).of(Note) if note.code == "teacher_checked"]
    assert note.data["ap50"] >= 5

    shuffled = tmp_path / "shuffled"
    shutil.copytree(fit.result, shuffled)
    generator = torch.Generator().manual_seed(0)
    for name, value in before.items():
        if name.startswith("head."):
            before[name] = value.flatten()[torch.randperm(value.numel(), generator=generator)].view(value.shape)
    save_file(before, shuffled / "student.safetensors")
    with pytest.raises(
        TeacherUnfit, match=r"AP50 on 8 validation images at min_size 64, max_size 64 is \d\.\d, under 5: wrong weights"
    ):
        train(spec.but(teacher={"path": str(shuffled)}))


def test_an_unfit_teacher_is_told_at_which_size_it_was_looked_at_and_at_which_it_learned() -> None:
    with pytest.raises(TeacherUnfit) as error:
        refuse_unfit(Fitness(2.84, 64, (64, 96), (96, 128)), allow_unfit=False)

    assert str(error.value).startswith(
        "the teacher's AP50 on 64 validation images at min_size 64, max_size 96 is 2.8, under 5: "
        "it was trained at min_size 96, max_size 128, so set these in `schedule`"
    )
    assert error.value.data == {
        "ap50": 2.84, "images": 64, "min_size": 64, "max_size": 96, "teacher_min_size": 96, "teacher_max_size": 128
    }  # fmt: skip
    assert pickle.loads(pickle.dumps(error.value)).data == error.value.data


def test_teaching_leaves_the_teacher_as_it_was(
    train: Train, make_spec: MakeSpec, teacher: Path, monkeypatch: Any
) -> None:
    """Weights and mode, which has no batch statistics left to change; and no gradient is kept for it."""
    digests: list[str] = []

    def watched(parts: Any, *arguments: Any) -> Any:
        outcome = one_step(parts, *arguments)
        network = parts.teacher.detector
        assert not network.training
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())
        digests.append(checkpoint.digest_of_tensors(network.module.state_dict()))
        return outcome

    monkeypatch.setattr(loop, "step", watched)
    stored = (teacher / "student.safetensors").read_bytes()
    train(distilled(make_spec, teacher, schedule={"epochs": 1, "precision": "bf16"}))
    fresh = Teacher(weights.load_detector(teacher), weights.read_recipe(teacher))
    fresh.quicken()
    assert len(digests) == 3
    assert set(digests) == {checkpoint.digest_of_tensors(fresh.detector.module.state_dict())}
    assert (teacher / "student.safetensors").read_bytes() == stored


@pytest.mark.numeric
def test_a_teacher_of_another_normalisation_gets_its_own_pixels(digits: Path, teacher: Path) -> None:
    detector = weights.load_detector(teacher)
    student = detector.recipe.but(image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.25))
    index, root = open_index(digits)
    dataset = Dataset(index, "val", root)
    theirs = next(iter(eval_batches(dataset, Transform(60, 60), 2)))  # padded from 60 to 64
    ours = next(iter(eval_batches(dataset, Transform(60, 60, student.image_mean, student.image_std), 2)))
    # Pixel by pixel a few roundings of values up to 3, on any processor.
    assert torch.allclose(Teacher(detector, student).renormalised(ours), theirs.images_NCHW, atol=3 * 10 * FLOAT32)


def test_a_teacher_of_other_classes_teaches_by_its_features(
    train: Train, make_spec: MakeSpec, teacher: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    recipe = json.loads((other / "recipe.json").read_text())
    (other / "recipe.json").write_text(json.dumps(recipe | {"classes": ["0", "cat"]}))

    run = train(distilled(make_spec, other, schedule={"epochs": 1}))

    (checked,) = [note for note in run.of(Note) if note.code == "teacher_checked"]
    assert checked.data["classes"] == ["0"]
    assert "for 0, the classes that it knows, is " in checked.message
    assert run.of(Finished)


def test_a_loss_that_is_not_finite_names_the_step_and_the_term(
    train: Train, make_spec: MakeSpec, teacher: Path
) -> None:
    spec = distilled(make_spec, teacher, methods=[{"kind": "fgd", "lambda": 1e38}])
    with pytest.raises(Diverged) as error:
        train(spec)
    assert error.value.step <= 1
    assert error.value.term in ("fgd/global", "the student's gradient", "the methods' gradient")
    assert f"step {error.value.step}: {error.value.term} is" in str(error.value)
    assert error.value.data == {"step": error.value.step, "term": error.value.term}


def test_a_batch_larger_than_the_set_is_refused(train: Train, make_spec: MakeSpec) -> None:
    with pytest.raises(SpecError, match="12") as error:
        train(make_spec(schedule={"batch_size": 13}))
    assert error.value.pointer == "/schedule/batch_size"


def test_a_checkpoint_of_another_spec_is_refused(whole: Any, train: Train, make_spec: MakeSpec, teacher: Path) -> None:
    latest = Path(whole.of(Saved)[-1].path)
    with pytest.raises(UserError, match="belongs to a different spec"):
        train(distilled(make_spec, teacher, seed=5), resume=latest)


def test_a_torn_checkpoint_is_refused(
    whole: Any, train: Train, make_spec: MakeSpec, teacher: Path, tmp_path: Path
) -> None:
    torn = tmp_path / "torn.pt"
    torn.write_bytes(Path(whole.of(Saved)[-1].path).read_bytes()[:-1000])
    with pytest.raises(UserError, match="not a readable checkpoint"):
        train(distilled(make_spec, teacher), resume=torn)


def test_two_checkpoints_are_kept(whole: Any) -> None:
    assert len(list((whole.out / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize(
    ("method", "terms"),
    [
        ({"kind": "fgd", "lambda": 0}, {"fgd/fg", "fgd/bg", "fgd/attention"}),
        ({"kind": "fgd", "alpha": 0, "beta": 0, "gamma": 0}, {"fgd/global"}),
        ({"kind": "fgd", "beta": 0, "gamma": 0, "lambda": 0}, {"fgd/fg"}),
        ({"kind": "fgd", "compat": "official"}, {"fgd/fg", "fgd/bg", "fgd/attention", "fgd/global"}),
        ({"kind": "mimic"}, {"mimic/feature"}),
    ],
)
def test_variants_are_specs(
    train: Train, make_spec: MakeSpec, teacher: Path, method: dict[str, Any], terms: set[str]
) -> None:
    run = train(distilled(make_spec, teacher, methods=[method], schedule={"epochs": 1}))
    values = run.of(Stepped)[-1].values
    assert {name.removeprefix("epoch/loss/") for name in values if name.startswith("epoch/loss/")} - {
        "total", "detection", "detection/classification", "detection/bbox_regression", "detection/bbox_ctrness"
    } == terms  # fmt: skip


def test_a_folder_used_again_keeps_nothing_of_the_run_before(train: Train, make_spec: MakeSpec, tmp_path: Path) -> None:
    stale = [tmp_path / "checkpoints" / "step-00009999-00009999.pt", tmp_path / "result" / "best.safetensors"]
    for path in stale:
        path.parent.mkdir()
        path.write_bytes(b"old")
    events: list[Any] = []
    loop.run(make_spec(), tmp_path, resume=None, emit=events.append, stop=lambda: False)
    (finished,) = [event for event in events if isinstance(event, Finished)]
    assert not stale[0].exists()
    assert set(finished.files) == {path.name for path in (tmp_path / "result").iterdir()}
    assert all(Path(event.path).exists() for event in events if isinstance(event, Saved))


def test_inheriting_a_head_of_other_classes_is_refused(
    train: Train, make_spec: MakeSpec, teacher: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    recipe = json.loads((other / "recipe.json").read_text())
    (other / "recipe.json").write_text(json.dumps(recipe | {"classes": ["7", "0"]}))
    student = {"backbone": "resnet18", "fpn_channels": 96, "inherit": {"path": str(other)}}
    with pytest.raises(SpecError, match="/student/inherit"):
        train(make_spec(student=student))


def test_long_work_without_steps_gives_signs_of_life(
    train: Train, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fgd.engine.alive.ALIVE_S", 0.0)
    assert train(make_spec(schedule={"epochs": 1})).of(Alive)


def test_inherit_is_a_setting_of_the_student_and_is_told(train: Train, make_spec: MakeSpec, teacher: Path) -> None:
    student = {"backbone": "resnet18", "fpn_channels": 96, "inherit": {"path": str(teacher)}}
    run = train(make_spec(student=student, schedule={"epochs": 1}))
    (note,) = [note for note in run.of(Note) if note.code == "inherited"]
    assert "head.classification_head.cls_logits.weight" in note.data["copied"]
    assert not [name for name in note.data["copied"] if name.startswith("backbone.body.")]


def test_a_checkpoint_round_trip_keeps_the_state(tmp_path: Path) -> None:
    state = TrainingState(
        step=3, evaluated_step=2, scores={"ap": 1.5}, best_ap=1.5, best_step=2, sums={"x": 0.1}, summed_steps=1
    )
    path = tmp_path / "a" / "step-3.pt"
    calibrations = {name: Calibration({"p3": 0.5}, boxes) for boxes, name in enumerate(("", "cells"))}
    checkpoint.save(path, {"model": {"w": torch.ones(2)}}, state, calibrations, "digest")
    contents, again, found = checkpoint.load(path, "digest", torch.device("cpu"))
    assert again == state
    assert found == calibrations
    assert torch.equal(contents["model"]["w"], torch.ones(2))
    assert [each.name for each in path.parent.iterdir()] == ["step-3.pt"]


def test_images_that_do_not_decode_are_told_and_counted_and_control_and_student_still_see_the_same(
    train: Train, make_spec: MakeSpec, teacher: Path, digits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "torn"
    shutil.copytree(digits, folder)
    index, _, sources = formats.read(folder, verify="headers")
    for split in ("train", "val"):
        file = sources[index.splits[split][1].file]  # type: ignore[index]
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    index, report, sources = formats.read(folder, verify="headers")
    assert report.ok
    archive.pack(index, sources, tmp_path / "torn.tar")
    data = {"path": str(archive.unpack(tmp_path / "torn.tar", tmp_path / "data"))}
    runs = [
        train(make_spec(dataset=data, schedule={"epochs": 1})),
        train(distilled(make_spec, teacher, dataset=data, schedule={"epochs": 1})),
    ]
    for run in runs:
        notes = [note for note in run.of(Note) if note.code == "image_undecodable"]
        assert {note.data["split"]: note.data["count"] for note in notes} == {"train": 1, "val": 1}
        assert {note.level for note in notes} == {"warning"}
        assert notes[0].data["file"]
        assert run.result.is_dir()
