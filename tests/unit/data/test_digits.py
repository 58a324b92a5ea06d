"""The demo's data: deterministic, disjoint, tight, and whole or absent."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from sklearn.datasets import load_digits

from fgd.data import coco, digits
from fgd.errors import DatasetError

COUNTS = {"train": 60, "val": 20, "test": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits.compose(tmp_path_factory.mktemp("demo") / "digits", counts=COUNTS)


@pytest.fixture(scope="module")
def made_of(folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((folder / "provenance.jsonl").read_text())["made_of"]
    return made


def annotations(folder: Path, split: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"annotations/instances_{split}.json").read_text())
    return content


def boxes_of_each_image(folder: Path, split: str) -> dict[int, list[list[int]]]:
    boxes: dict[int, list[list[int]]] = {}
    for annotation in annotations(folder, split)["annotations"]:
        boxes.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    return boxes


def test_import_finds_nothing_wrong(folder: Path) -> None:
    _, report, _ = coco.read(folder)
    assert report.ok
    assert report.classes == digits.CLASSES
    assert {split: counts.images for split, counts in report.splits.items()} == COUNTS
    assert report.defect_counts == {}


def test_same_seed_gives_the_same_files_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    again = digits.compose(tmp_path / "again", counts=COUNTS)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)
    other = digits.compose(tmp_path / "other", counts=COUNTS, seed=1)
    assert (other / "train/000001.jpg").read_bytes() != (folder / "train/000001.jpg").read_bytes()


def test_splits_share_no_digit(made_of: dict[str, Any]) -> None:
    used = {
        split: {n for name, made in made_of.items() if name.startswith(split) for n in made["digits"]}
        for split in COUNTS
    }
    assert all(used.values())
    for a, b in combinations(used.values(), 2):
        assert not a & b


def test_splits_share_no_pixel_of_a_photograph(made_of: dict[str, Any]) -> None:
    used = {split: np.zeros((2, 427, 640), dtype=bool) for split in COUNTS}
    for name, made in made_of.items():
        x1, y1, x2, y2 = made["region"]
        assert 0 <= x1 < x2 <= 640
        assert 0 <= y1 < y2 <= 427
        used[name.split("/")[0]][["china.jpg", "flower.jpg"].index(made["photo"]), y1:y2, x1:x2] = True
    assert all(mask.any() for mask in used.values())
    for a, b in combinations(used.values(), 2):
        assert not (a & b).any()


def test_every_box_is_labelled_as_the_scan_it_was_made_of(folder: Path, made_of: dict[str, Any]) -> None:
    truth = load_digits().target
    for split in COUNTS:
        content = annotations(folder, split)
        names = {category["id"]: category["name"] for category in content["categories"]}
        files = {image["id"]: image["file_name"] for image in content["images"]}
        labels: dict[str, list[str]] = {f"{split}/{file}": [] for file in files.values()}
        for annotation in content["annotations"]:
            labels[f"{split}/{files[annotation['image_id']]}"].append(names[annotation["category_id"]])
        for name, found in labels.items():
            assert found == [str(truth[number]) for number in made_of[name]["digits"]]


def test_boxes_have_the_size_and_number_asked_for(folder: Path) -> None:
    for split in COUNTS:
        boxes = boxes_of_each_image(folder, split)
        assert len(boxes) == COUNTS[split]
        assert {len(found) for found in boxes.values()} == {2, 3, 4}
        longer = [max(w, h) for found in boxes.values() for _, _, w, h in found]
        assert min(longer) >= 24
        assert max(longer) <= 52


def test_boxes_hardly_overlap(folder: Path) -> None:
    for found in boxes_of_each_image(folder, "train").values():
        for (ax, ay, aw, ah), (bx, by, bw, bh) in combinations(found, 2):
            width = max(0, min(ax + aw, bx + bw) - max(ax, bx))
            height = max(0, min(ay + ah, by + bh) - max(ay, by))
            assert width * height < 0.15 * (aw * ah + bw * bh - width * height)


def test_ink_touches_all_four_sides_of_its_box_and_is_as_large_as_asked() -> None:
    rng = np.random.default_rng(0)
    scan = (load_digits().images[0] / 16).astype(np.float32)
    for longer in (24.0, 35.0, 52.0):
        opacity_HW = digits._opacity(scan, longer, (24, 52), rng)
        visible = opacity_HW > digits._INK
        assert visible[0].any()
        assert visible[-1].any()
        assert visible[:, 0].any()
        assert visible[:, -1].any()
        assert abs(max(opacity_HW.shape) - longer) <= 0.2 * longer


def test_images_have_the_size_asked_for(folder: Path) -> None:
    for path in folder.rglob("*.jpg"):
        with Pillow.open(path) as image:
            assert image.size == (96, 96)


def test_finished_folder_is_left_alone(folder: Path) -> None:
    before = (folder / "train/000001.jpg").stat().st_mtime_ns
    assert digits.compose(folder, counts=COUNTS) == folder
    assert (folder / "train/000001.jpg").stat().st_mtime_ns == before


def test_folder_with_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="contains something else"):
        digits.compose(folder, counts=COUNTS, seed=2)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DatasetError, match="contains something else"):
        digits.compose(tmp_path, counts=COUNTS)


def test_interrupted_composition_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "_compose_one", interrupt)
    with pytest.raises(KeyboardInterrupt):
        digits.compose(tmp_path / "digits", counts=COUNTS)
    assert list(tmp_path.iterdir()) == []


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    digits.compose(tmp_path / "digits", counts={"train": 1, "val": 1, "test": 1})
    assert len(list((tmp_path / "digits").rglob("*.jpg"))) == 3


@pytest.mark.parametrize(
    "arguments", [{"classes": ("cat",)}, {"classes": ("1", "1")}, {"classes": ()}, {"box_px": (22, 200)}]
)
def test_impossible_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(DatasetError):
        digits.compose(tmp_path / "digits", counts=COUNTS, **arguments)
