"""Teachers that were trained for other classes: what they may teach, and how fit they are."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from fgd.class_names import shared_labels
from fgd.data.formats import open_index
from fgd.data.index import Image, Index
from fgd.data.loader import Dataset
from fgd.data.transforms import Transform
from fgd.detector_specs import FCOS
from fgd.detectors import build
from fgd.engine.distill import Teacher
from fgd.engine.teacher import Fitness, check_teacher, checked_images, refuse_unfit, relabelled
from fgd.errors import TeacherUnfit
from fgd.recipe import Recipe

SIZE = (64, 64)


@pytest.mark.parametrize(
    ("ours", "theirs", "labels"),
    [
        (("cat", "dog"), ("dog", "cat"), {1: 2, 2: 1}),
        (("cat", "cow"), ("dog", "cat"), {1: 2}),
        (("Traffic light", "stop-sign"), ("traffic_light", "Stop Sign"), {1: 1, 2: 2}),
        (("cat", "Cat"), ("Cat", "CAT"), {2: 1}),
        (("cat",), ("CAT", "Cat"), {}),
        (("N/A", "cat"), ("N/A", "N/A", "cat"), {2: 3}),
        (("cell",), ("person", "car"), {}),
    ],
)
def test_classes_are_the_same_by_name(ours: tuple[str, ...], theirs: tuple[str, ...], labels: dict[int, int]) -> None:
    assert shared_labels(ours, theirs) == labels


def image(id: int, *labels: int) -> Image:
    boxes = tuple((8.0 * n, 8.0, 8.0 * n + 8.0, 24.0) for n in range(len(labels)))
    crowd = tuple(label == 3 for label in labels)
    name = f"{id}.png"
    return Image(id=id, file=name, name=name, width=64, height=64, boxes=boxes, labels=labels, crowd=crowd)


def val(classes: tuple[str, ...], images: tuple[Image, ...], root: Path = Path()) -> Dataset:
    return Dataset(Index(classes=classes, splits={"val": images}), "val", root)


def test_boxes_of_classes_that_the_teacher_does_not_know_are_left_out() -> None:
    first, empty = relabelled([image(1, 1, 2, 3, 1), image(2)], {1: 5, 3: 9})
    assert (first.labels, first.crowd) == ((5, 9, 5), (False, True, False))
    assert [box[0] for box in first.boxes] == [0.0, 16.0, 24.0]
    assert empty.labels == ()


def test_a_teacher_is_checked_on_images_of_classes_that_it_knows() -> None:
    images = (image(1, 1), image(2, 2), image(3), image(4, 2, 1))
    assert checked_images(val(("cat", "dog"), images), ("dog", "cat")) == images, "it knows all"
    assert [each.id for each in checked_images(val(("cat", "dog"), images), ("cow", "dog"))] == [2, 4]
    assert checked_images(val(("cat", "dog"), images), ("cow",)) == ()


@pytest.mark.parametrize(
    ("theirs", "images", "known", "says"),
    [
        (("0", "7"), 6, None, "on 6 validation images at min_size 64, max_size 64 is "),
        (("x", "7", "N/A", "N/A"), None, ("7",), "for 7, the classes that it knows, is "),
        (("person",), 0, (), "is unknown: no validation image has a class that it knows"),
    ],
)
def test_its_fitness_is_that_of_the_classes_both_know(
    digits: Path, theirs: tuple[str, ...], images: int | None, known: tuple[str, ...] | None, says: str
) -> None:
    index, root = open_index(digits)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = build(Recipe(detector=FCOS(fpn_channels=64), classes=theirs, min_size=64, max_size=64))
    student = Recipe(detector=FCOS(fpn_channels=64), classes=index.classes, min_size=64, max_size=64)
    dataset, transform = Dataset(index, "val", root), Transform(64, 64, student.image_mean, student.image_std)

    found = check_teacher(
        Teacher(detector, student), dataset, transform,
        batch_size=4, device=torch.device("cpu"), check_stop=lambda: None,
    )  # fmt: skip

    with_a_seven = sum(2 in each.labels for each in index.splits["val"])
    assert found.images == (with_a_seven if images is None else images)
    assert found.classes == known
    assert says in str(found)
    kept = json.loads(json.dumps(dataclasses.asdict(found)))
    assert str(Fitness.from_json(kept)) == str(found), "as the next training reads it"


def test_a_teacher_of_whom_nothing_is_known_may_teach_and_a_poor_one_may_not() -> None:
    refuse_unfit(Fitness(math.nan, 0, SIZE, SIZE, ()), allow_unfit=False)
    with pytest.raises(TeacherUnfit, match=r"for cat, the classes that it knows, is 1\.0, under 5"):
        refuse_unfit(Fitness(1.0, 8, SIZE, SIZE, ("cat",)), allow_unfit=False)
    with pytest.raises(TeacherUnfit):
        refuse_unfit(Fitness(math.nan, 8, SIZE, SIZE), allow_unfit=False)
