"""COCO file names as tools write them: whatever is there and can only be meant is found, the rest is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fgd.data import formats
from fgd.data.index import Index, Report
from tests.unit.data.conftest import CATEGORIES, picture


def make(root: Path, files: dict[str, list[str]], documents: dict[str, list[str]]) -> Path:
    """files: folder -> images. documents: annotation file -> file names, each with one box."""
    seed = 0
    for folder, names in files.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            seed += 1
            picture(seed=seed).save(root / folder / name)
    for file, names in documents.items():
        images = [{"id": n, "file_name": name, "width": 40, "height": 30} for n, name in enumerate(names)]
        boxes = [
            {"id": n, "image_id": n, "category_id": n % 2 * 7, "bbox": [n, 1, 9, 9], "iscrowd": 0}
            for n in range(len(names))
        ]
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(json.dumps({"images": images, "annotations": boxes, "categories": CATEGORIES}))
    return root


def read(root: Path) -> tuple[Index, Report, dict[str, str]]:
    """And for each image's name, the file it comes from."""
    index, report, sources = formats.read(root)
    used = {
        image.name: sources[image.file].relative_to(root).as_posix()
        for images in index.splits.values()
        for image in images
    }
    return index, report, used


NAMES = [f"{letter}.png" for letter in "abcdef"]


@pytest.mark.parametrize(
    "written",
    ["{}", "./{}", "images//{}", "images\\{}", "..\\x\\{}", "/home/me/images/{}", "D:\\sets\\images\\{}", "x%2F{}"],
)
def test_names_of_other_machines(written: str, tmp_path: Path) -> None:
    names = [written.format(name) for name in NAMES]
    _, report, used = read(make(tmp_path, {"images": NAMES}, {"all.json": names}))
    assert report.ok
    assert used == {name: f"images/{file}" for name, file in zip(names, NAMES, strict=True)}
    assert "image_unlisted" not in report.defect_counts
    plain = written in ("{}", "./{}", "images//{}")
    assert report.defect_counts.get("names_matched") == (None if plain else 1)


def test_images_in_several_folders(tmp_path: Path) -> None:
    files = {"one/images": NAMES[:2], "two/images": NAMES[2:4], "three/images": NAMES[4:]}
    _, report, used = read(make(tmp_path, files, {"annotations/instances_default.json": NAMES}))
    assert report.ok
    assert used == {name: f"{folder}/{name}" for folder, names in files.items() for name in names}


def test_a_name_of_several_images_in_several_folders_is_that_of_none(tmp_path: Path) -> None:
    files = {"one": ["a.png", "b.png", "c.png"], "two": ["a.png", "d.png"]}
    _, report, used = read(make(tmp_path, files, {"all.json": ["a.png", "a.png", "b.png", "c.png", "d.png"]}))
    assert used == {"b.png": "one/b.png", "c.png": "one/c.png", "d.png": "two/d.png"}
    told = next(defect.message for defect in report.defects if defect.code == "image_missing")
    assert "one/a.png" in told
    assert "two/a.png" in told


def test_a_name_of_several_images_is_no_longer_clear_where_one_of_them_is_missing(tmp_path: Path) -> None:
    files = {"one": ["b.png", "c.png"], "two": ["a.png"], "three": ["d.png", "e.png"]}
    _, report, used = read(make(tmp_path, files, {"all.json": ["a.png", "a.png", "b.png", "c.png", "d.png", "e.png"]}))
    assert sorted(used) == ["b.png", "c.png", "d.png", "e.png"]
    told = next(defect.message for defect in report.defects if defect.code == "image_missing")
    assert "several images have this name, 'two/a.png' is one of them" in told


def test_where_most_are_missing_the_rest_is_that_of_the_fullest_folder(tmp_path: Path) -> None:
    files = {"one": ["a.png", "b.png", "c.png"], "two": ["b.png"]}
    _, report, used = read(make(tmp_path, files, {"all.json": [*NAMES, *(f"{n}.png" for n in range(4))]}))
    assert report.ok
    assert used == {name: f"one/{name}" for name in ("a.png", "b.png", "c.png")}
    assert report.defect_counts["image_missing"] == 7


def test_an_image_that_is_missing_is_not_the_one_of_that_name_in_the_other_split(tmp_path: Path) -> None:
    files = {"train2017": ["a.png", "b.png"], "val2017": ["a.png", "b.png", "c.png"]}
    lists = {"annotations/train.json": ["a.png", "b.png", "c.png"], "annotations/val.json": ["a.png", "b.png"]}
    index, report, _ = read(make(tmp_path, files, lists))
    assert [len(index.splits[split]) for split in ("train", "val")] == [2, 2]
    assert report.defect_counts["image_missing"] == 1
    told = next(defect.message for defect in report.defects if defect.code == "names_differ")
    assert "1 file is listed and not found, 1 file is found and not listed" in told
    assert "'c.png' and 'val2017/c.png'" in told


def test_what_does_not_match_is_told_on_both_sides(tmp_path: Path) -> None:
    files = {"images": [*NAMES, "holiday_0001.png", "holiday_0002.png"]}
    _, report, _ = read(make(tmp_path, files, {"all.json": [*NAMES, "holiday1.png", "holiday2.png", "x.png"]}))
    order = [defect.code for defect in report.defects]
    assert order.index("names_differ") < order.index("image_missing") < order.index("image_unlisted")
    told = next(defect.message for defect in report.defects if defect.code == "names_differ")
    assert "3 files are listed and not found, 2 files are found and not listed" in told
    assert "'holiday1.png' and 'images/holiday_0001.png'" in told


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "..\\secret.png", "C:\\secret.png"])
def test_no_name_leads_out(name: str, tmp_path: Path) -> None:
    picture(seed=99).save(tmp_path / "secret.png")
    _, report, used = read(make(tmp_path / "set", {"images": NAMES}, {"all.json": [*NAMES, name]}))
    assert set(used) == set(NAMES)
    assert report.defect_counts["path_escapes"] == 1


def test_a_link_that_leads_out_is_no_file_of_any_spelling(tmp_path: Path) -> None:
    picture(seed=99).save(tmp_path / "secret.png")
    root = make(tmp_path / "set", {"images": NAMES}, {"all.json": [*NAMES, "x\\secret.png"]})
    (root / "images/secret.png").symlink_to(tmp_path / "secret.png")
    _, report, used = read(root)
    assert set(used) == set(NAMES)
    assert report.defect_counts["path_escapes"] == 1


@pytest.mark.parametrize("top", ["test", "my val", "train-test", "set/test data"])
@pytest.mark.parametrize("images", ["", "images/"])
def test_a_folder_that_holds_all_says_nothing_about_splits(top: str, images: str, tmp_path: Path) -> None:
    index, report, _ = read(make(tmp_path, {f"{top}/{images}": NAMES}, {f"{top}/labels.json": NAMES}))
    assert report.ok
    assert {split: len(images) for split, images in index.splits.items()} == {"train": 5, "val": 1}


@pytest.mark.parametrize("top", ["test", "val"])
def test_splits_within_such_a_folder(top: str, tmp_path: Path) -> None:
    files = {f"{top}/train": NAMES[:4], f"{top}/valid": NAMES[4:]}
    lists = {f"{top}/{split}/_annotations.coco.json": files[f"{top}/{split}"] for split in ("train", "valid")}
    index, report, _ = read(make(tmp_path, files, lists))
    assert report.ok
    assert {split: len(images) for split, images in index.splits.items()} == {"train": 4, "val": 2}
