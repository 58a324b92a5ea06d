"""What a report shows of networks beside AP: python -m fgd.inspection."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from fgd import inspection
from fgd.data.formats import open_index
from fgd.detector_specs import FCOS
from fgd.detectors import build
from fgd.engine import weights
from fgd.engine.operations import gflops
from fgd.inspected import Pictures
from fgd.recipe import Recipe
from fgd.statistics.detections import SplitDetections

CLASSES = ("0", "7")


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BATCHES": (1, 2), "ROUNDS": 2, "FEWEST": 1}.items():
        monkeypatch.setattr(inspection, name, value)


def finds(digits: Path, some: Sequence[int], *, beside: Sequence[int] = ()) -> SplitDetections:
    """All boxes of the images at these places, and one where nothing is on those of `beside`."""
    index, _ = open_index(digits)
    images = sorted(index.splits["val"], key=lambda image: image.id)
    rows = [(n, box, label) for n in some for box, label in zip(images[n].boxes, images[n].labels, strict=True)]
    rows += [(n, (0.0, 0.0, 3.0, 3.0), 1) for n in beside]
    rows.sort(key=lambda row: row[0])
    return SplitDetections.of(
        index.classes,
        [image.name for image in images],
        image_id=[image.id for image in images],
        size=[(image.width, image.height) for image in images],
        truth_image=[n for n, image in enumerate(images) for _ in image.boxes],
        truth_box=[box for image in images for box in image.boxes],
        truth_label=[label for image in images for label in image.labels],
        truth_crowd=[crowd for image in images for crowd in image.crowd],
        found_image=[n for n, _, _ in rows],
        found_box=[box for _, box, _ in rows],
        found_label=[label for _, _, label in rows],
        found_score=[0.9 for _ in rows],
    )


def network(
    folder: Path, found: SplitDetections | None = None, width: int = 64, classes: Sequence[str] = CLASSES
) -> Path:
    torch.manual_seed(0)
    spec = FCOS(fpn_channels=width, backbone="mobilenet_v3_small")
    recipe = Recipe(detector=spec, classes=tuple(classes), min_size=64, max_size=64)
    weights.export(folder, build(recipe), {}, best=None, found=None if found is None else {"val": found})
    return folder


def inspected(tmp_path: Path, *arguments: object) -> tuple[Any, Pictures | None]:
    out, file = tmp_path / "answer.json", tmp_path / "pictures.json"
    sizes = ["--min-size", "64", "--max-size", "64", "--device", "cpu", "--out", str(out), "--pictures", str(file)]
    code = inspection.main([*map(str, arguments), *sizes])
    answer = json.loads(out.read_text())
    assert code == 0, answer
    pictures = Pictures.model_validate_json(file.read_text()) if file.exists() else None
    return answer["result"], pictures


def test_images_that_differ_most_come_first_with_what_each_network_finds(digits: Path, tmp_path: Path) -> None:
    student, control = finds(digits, [0, 1, 2, 3, 4, 5]), finds(digits, [0, 1, 2, 4, 5], beside=[5, 5, 5, 5, 5, 5])
    nets = {
        "teacher": network(tmp_path / "t", width=128),
        "control": network(tmp_path / "c", control),
        "student": network(tmp_path / "s", student),
    }

    result, pictures = inspected(tmp_path, *(f"{r}={n}" for r, n in nets.items()), "--dataset", digits)

    assert pictures is not None
    assert (pictures.differ, result["pictures"], result["pictures_reason"]) == (("student", "control"), 6, None)
    by_name = list(student.names)
    assert [by_name.index(each.name) for each in pictures.pictures[:2]] == [5, 3]
    first, second = pictures.pictures[:2]
    assert [each.role for each in first.networks] == ["teacher", "control", "student"]  # it looked itself
    boxes = len(first.boxes)
    assert [(n.right, n.wrong, n.missed) for n in first.networks[1:]] == [(boxes, 6, 0), (boxes, 0, 0)]
    assert [(n.right, n.missed) for n in second.networks[1:]] == [(0, len(second.boxes)), (len(second.boxes), 0)]
    assert {each.right for each in first.networks[1].detections} == {True, False}
    jpeg = Pillow.open(io.BytesIO(base64.b64decode(first.jpeg)))
    assert (jpeg.format, jpeg.size) == ("JPEG", (first.width, first.height))


def test_operations_and_times_are_of_each_network(digits: Path, tmp_path: Path) -> None:
    nets = [network(tmp_path / "t", width=128), network(tmp_path / "s", finds(digits, [0]))]

    result, pictures = inspected(tmp_path, f"teacher={nets[0]}", f"student={nets[1]}", "--dataset", digits)

    assert pictures is not None
    assert pictures.differ is None  # nobody knows what the teacher finds on the others
    teacher, student = result["networks"]
    assert teacher["gflops"] > 2 * student["gflops"] > 0
    for each in (teacher, student):
        assert [speed["batch"] for speed in each["speeds"]] == [1, 2]
        assert all(speed["time"]["median_ms"] > 0 for speed in each["speeds"])
    assert result["input"] == [64, 64]


def test_a_batch_that_does_not_fit_and_a_data_set_that_is_gone_are_told(digits: Path, tmp_path: Path) -> None:
    net = network(tmp_path / "s", finds(digits, [0]))

    result, pictures = inspected(tmp_path, f"student={net}", "--memory", "1")

    assert pictures is None
    assert result["pictures_reason"] == "the data set is no longer there"
    assert result["input"] == [64, 64]
    (student,) = result["networks"]
    assert [speed["batch"] for speed in student["speeds"]] == [1]
    assert result["not_timed"].startswith("batches of 2 need about")


def test_a_network_of_other_classes_is_left_out_of_the_pictures(digits: Path, tmp_path: Path) -> None:
    nets = [network(tmp_path / "t", classes=("moon",)), network(tmp_path / "s", finds(digits, [0]))]

    _, pictures = inspected(tmp_path, f"teacher={nets[0]}", f"student={nets[1]}", "--dataset", digits)

    assert pictures is not None
    assert {each.role for picture in pictures.pictures for each in picture.networks} == {"student"}


def test_the_same_pictures_have_the_same_bytes(digits: Path, tmp_path: Path) -> None:
    net = network(tmp_path / "s", finds(digits, [0, 1], beside=[2]))
    found = [inspected(tmp_path, f"student={net}", "--dataset", digits)[1] for _ in range(2)]
    assert found[0] == found[1]


def test_a_multiplication_with_its_addition_is_two_operations() -> None:
    layer = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
    image = torch.zeros(1, 3, 16, 16)
    assert gflops(lambda: layer(image)) * 1e9 == pytest.approx(2 * 3 * 8 * 9 * 16 * 16)
    assert np.isfinite(gflops(lambda: None))
