"""Blood cells: a teacher that learned from all labels, a student with few of them, and the images whose labels nobody
reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.ops import box_iou

from fgd.data import formats
from fgd.data.loader import Dataset
from fgd.engine.unlabelled import look
from fgd.events import Finished, Note, Stepped
from fgd.spec import JobSpec
from tests.unit.engine.test_unlabelled import batches_of, parts_of

pytestmark = [pytest.mark.slow, pytest.mark.long]
LABELLED, BARE, VAL = 8, 24, 8
STUDENT = {"backbone": "resnet18", "fpn_channels": 64}
SMALL = {"batch_size": 4, "min_size": 96, "max_size": 128, "optimizer": {"kind": "adamw", "lr": 1e-3}}


@pytest.fixture(scope="module")
def cells(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of the same images: `whole` with all labels, `few` with a list of those that count as unlabelled."""
    home, source = tmp_path_factory.mktemp("cells"), shared_data / "bccd"
    train = (source / "ImageSets/Main/train.txt").read_text().split()[: LABELLED + BARE]
    val = (source / "ImageSets/Main/val.txt").read_text().split()[:VAL]
    lists = {
        "whole": {"train": train, "val": val},
        "few": {"train": train[:LABELLED], "val": val, "unlabelled": train[LABELLED:]},
    }
    for name, of_split in lists.items():
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (home / name / part).mkdir(parents=True)
        for split, members in of_split.items():
            (home / name / f"ImageSets/Main/{split}.txt").write_text("\n".join(members))
            for each in members:
                shutil.copy(source / f"Annotations/{each}.xml", home / name / "Annotations")
                shutil.copy(source / f"JPEGImages/{each}.jpg", home / name / "JPEGImages")
    return {name: home / name for name in lists}


@pytest.fixture(scope="module")
def knowing(cells: dict[str, Path], train: Callable[..., Any], make_spec: Callable[..., JobSpec]) -> dict[str, Any]:
    schedule = SMALL | {"epochs": 25, "evaluate_every": 25}
    result = train(make_spec(student=STUDENT, dataset={"path": str(cells["whole"])}, schedule=schedule)).result
    return {"path": str(result), "allow_unfit": True}


def test_labels_of_the_list_are_ignored_and_said_to_be(cells: dict[str, Path]) -> None:
    index, report, _ = formats.read(cells["few"])
    assert {split: len(images) for split, images in index.splits.items()} == {
        "train": LABELLED,
        "val": VAL,
        "unlabelled": BARE,
    }
    assert report.defect_counts["labels_ignored"] == BARE
    assert not any(image.boxes for image in index.splits["unlabelled"])


def test_masks_are_the_teacher_s_boxes_on_cells_and_the_gradient_is_the_student_s(
    cells: dict[str, Path], knowing: dict[str, Any], make_spec: Callable[..., JobSpec]
) -> None:
    spec = make_spec(
        student=STUDENT,
        dataset={"path": str(cells["few"])},
        teacher=knowing,
        methods=[{"kind": "fgd", "beta": 0, "gamma": 0, "lambda": 0}],
        schedule=SMALL | {"flip": "none"},
        unlabelled={"ratio": 4.0, "score": 0.3},
    )
    parts = parts_of(spec)
    _, (batch,) = batches_of(parts)
    looked = look(parts.teachers, batch, 0.3)
    assert looked.views is not None
    found = [target.boxes_K4 for target in looked.batch.targets]
    truth, root = formats.open_index(cells["whole"])
    known = {image.name: n for n, image in enumerate(truth.splits["train"])}
    labelled = Dataset(truth, "train", root)
    names = {image.id: image.name for image in parts.unlabelled.images} if parts.unlabelled else {}
    samples = [labelled.sample(known[names[n]]) for n in batch.image_ids]
    true = [target.boxes_K4 for target in parts.transform(samples).targets]
    hits = [bool((row > 0.4).any()) for ours, theirs in zip(found, true, strict=True) for row in box_iou(ours, theirs)]
    assert len(hits) >= len(found), "a box an image, at least"
    assert sum(hits) > 0.5 * len(hits), "they lie on the cells"

    term = sum(parts.distill(looked.batch, looked.views, None).values())
    assert isinstance(term, torch.Tensor)
    assert float(term.detach()) > 0, "of the boxes alone: without them the foreground's term is 0"
    term.backward()
    norms = {name: float(p.grad.norm()) for name, p in parts.student.named_parameters() if p.grad is not None}
    assert norms["module.backbone.body.conv1.weight"] > 0
    assert not any(name.startswith("module.head") for name in norms)


def test_a_student_learns_from_them(
    cells: dict[str, Path], knowing: dict[str, Any], train: Callable[..., Any], make_spec: Callable[..., JobSpec]
) -> None:
    run = train(
        make_spec(
            student=STUDENT,
            dataset={"path": str(cells["few"])},
            teacher=knowing,
            methods=[{"kind": "fgd"}],
            schedule=SMALL | {"epochs": 2, "evaluate_every": 2},
            unlabelled={"ratio": 2.0, "score": 0.3, "pseudo_labels": True},
        )
    )
    assert run.of(Finished)[0].step == 4
    assert not [note for note in run.of(Note) if note.code == "unlabelled_without_boxes"]
    assert run.of(Stepped)[-1].values["loss/pseudo/classification"] > 0
