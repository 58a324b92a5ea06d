"""YOLO paths, lists and labels as tools write them: what can only be meant is found, the rest is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fgd.data import formats
from fgd.data.index import Index, Report
from tests.unit.data.conftest import picture

LINE = "0 0.5 0.5 0.25 0.2\n"


def make(root: Path, plan: dict[str, Any], *files: str, at: str = "data.yaml") -> Path:
    """Images by their suffix; of labels the class is 0, and of other texts the lines are what stands behind "=" ."""
    for number, file in enumerate(files):
        name, _, text = file.partition("=")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".txt"):
            (root / name).write_text(text or LINE)
        else:
            picture(seed=number).save(root / name)
    (root / at).parent.mkdir(parents=True, exist_ok=True)
    (root / at).write_text(yaml.safe_dump({"names": ["cat"]} | plan))
    return root


def read(root: Path) -> tuple[Index, Report, dict[str, list[tuple[str, int]]]]:
    """And for each split its images and how many boxes they have."""
    index, report, _ = formats.read(root, "yolo")
    found = {split: [(image.name, len(image.boxes)) for image in images] for split, images in index.splits.items()}
    return index, report, found


def told(report: Report, code: str) -> str:
    return next(defect.message for defect in report.defects if defect.code == code)


FOLDERS = ["train/images/a.png", "train/labels/a.txt", "valid/images/b.png", "valid/labels/b.txt"]
BOTH = {"train": [("a.png", 1)], "val": [("b.png", 1)]}


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("proj-1/train/images", "proj-1/valid/images"),
        ("/content/datasets/proj-1/train/images", "/content/datasets/proj-1/valid/images"),
        ("D:\\sets\\proj\\train\\images", "D:\\sets\\proj\\valid\\images"),
        ("..\\train\\images", "..\\valid\\images"),
        ("C:/x/Train/Images/", "C:/x/Valid/Images/"),
        ("~/sets/train/images", "~/sets/valid/images"),
        ("/test-sets/train/images", "/test-sets/valid/images"),
        ("train/images/*.png", "valid/images/**/*.png"),
        (["/far/train/images"], ["/far/valid/images"]),
        ("/far/train/images", "../valid/images"),
        ("/far/train/images", "../val/images"),
    ],
)
@pytest.mark.parametrize(("wrapped", "at"), [("", "data.yaml"), ("set-main/", "data.yaml"), ("", "config/data.yaml")])
def test_folders_of_other_machines(train: Any, val: Any, wrapped: str, at: str, tmp_path: Path) -> None:
    root = make(tmp_path, {"train": train, "val": val}, *(wrapped + file for file in FOLDERS), at=at)
    _, report, found = read(root)
    assert report.ok, report.defects
    assert found == BOTH


def test_the_report_says_what_was_used_instead(tmp_path: Path) -> None:
    root = make(tmp_path, {"path": "/far", "train": "train/images", "val": "proj/valid/images"}, *FOLDERS)
    _, report, _ = read(root)
    assert "val is 'proj/valid/images', which is not there; 'valid/images', the end of it that is, is used" in told(
        report, "split_matched"
    )
    assert report.defect_counts["split_matched"] == 1


def test_below_path_comes_first(tmp_path: Path) -> None:
    files = [f"{folder}/{file}" for folder in ("one", "two") for file in FOLDERS]
    _, report, found = read(make(tmp_path, {"path": "/x/two", "train": "train/images", "val": "valid/images"}, *files))
    assert report.ok
    assert found == BOTH
    _, report, _ = read(make(tmp_path, {"path": "/x", "train": "train/images", "val": "valid/images"}, *files))
    assert report.defect_counts["split_folder_missing"] == 2


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train/images", "/far/other"),
        ("train/images", "../val/images"),  # images there are train's
        ("/one/images", "/two/images"),
    ],
)
def test_a_split_that_is_not_there_is_never_another(train: str, val: str, tmp_path: Path) -> None:
    _, report, _ = read(make(tmp_path, {"train": train, "val": val}, "train/images/a.png", "train/labels/a.txt"))
    assert not report.ok
    assert f"names {val!r} for val, which is not in the data set: images are in train/images" in [
        defect.message.partition(";")[0] for defect in report.defects
    ]


@pytest.mark.parametrize(
    "line",
    [
        "a.png",
        "./images/train/a.png",
        "data/images/train/a.png",
        "/content/sets/images/train/a.png",
        "images\\train\\a.png\r",
        "D:\\sets\\a.png",
        "images/train/A.PNG",
        "images%2Ftrain%2Fa.png",
        "a",
    ],
)
def test_lists_of_images(line: str, tmp_path: Path) -> None:
    files = ["images/train/a.png", "labels/train/a.txt", "images/val/b.png", "labels/val/b.txt"]
    lists = [f"train.txt={line}\n", "val.txt=./images/val/b.png\n"]
    _, report, found = read(make(tmp_path, {"train": "train.txt", "val": "val.txt"}, *files, *lists))
    assert report.ok, report.defects
    assert found == BOTH


def test_list_is_found_by_the_end_of_its_path_and_its_names_may_have_any_space(tmp_path: Path) -> None:
    names = ["at 4\u202fPM", "\u00a0x\u3000y", "line\u2028break"]
    files = [f"images/{name}.png" for name in names] + [f"labels/{name}.txt" for name in names]
    lists = ["lists/train.txt=" + "".join(f"{name}.png\r\n" for name in names)]
    _, report, found = read(make(tmp_path, {"train": "/far/lists/train.txt"}, *files, *lists))
    assert report.ok, report.defects
    assert sorted(name for split in found.values() for name, boxes in split if boxes) == sorted(
        f"{name}.png" for name in names
    )


def test_lists_may_divide_images_otherwise_than_their_folders(tmp_path: Path) -> None:
    files = ["images/train/a.png", "labels/train/a.txt", "images/val/b.png", "labels/val/b.txt"]
    lists = ["train.txt=b.png\n", "val.txt=a.png\n"]
    _, report, found = read(make(tmp_path, {"train": "train.txt", "val": "val.txt"}, *files, *lists))
    assert report.ok, report.defects
    assert found == {"train": [("b.png", 1)], "val": [("a.png", 1)]}


def test_names_of_a_list_that_are_not_there_are_told_with_those_that_are(tmp_path: Path) -> None:
    files = ["images/a.png", "labels/a.txt", "images/photo_1.png", "labels/photo_1.txt", "images/b.png", "labels/b.txt"]
    _, report, found = read(make(tmp_path, {"train": "t.txt"}, *files, "t.txt=a.png\nb.png\nphoto-01.png\n"))
    assert report.ok
    assert sum(map(len, found.values())) == 2
    assert "'photo-01.png' and 'images/photo_1.png'" in told(report, "names_differ")


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("Images/train/a.png", "Labels/train/a.txt"),
        ("IMAGES/train/a.png", "labels/train/a.txt"),
        ("images/train/caf\u00e9.png", "labels/train/cafe\u0301.txt"),
        ("images/train/d\u00e9j\u00e0 vu.png", "labels/train/d%C3%A9j%C3%A0%20vu.txt"),
        ("images/train/d%C3%A9.png", "labels/train/d\u00e9.txt"),
        ("images/train/a.png", "labels/train/A.TXT"),
        ("images/train/a.png", "labels/train/a.png.txt"),
        ("images/train/a.png", "labels/a.txt"),
        ("images/train/cam1/a.png", "labels/train/a.txt"),
        ("images/train/a.png", "annotations/train/a.txt"),
        ("images/train/a b.png", "labels/train/a_b.txt"),
        ("images/train/at 4\u202fPM.png", "labels/train/at 4 PM.txt"),
    ],
)
def test_an_image_whose_label_is_spelled_otherwise_is_no_background(image: str, label: str, tmp_path: Path) -> None:
    files = ["images/train/x.png", "labels/train/x.txt", "images/val/b.png", "labels/val/b.txt"]
    plan = {"train": list(dict.fromkeys([image.partition("/")[0] + "/train", "images/train"])), "val": "images/val"}
    _, report, found = read(make(tmp_path, plan, image, label.replace(".TXT", ".txt"), *files))
    if label.endswith(".TXT"):
        (tmp_path / label.replace(".TXT", ".txt")).rename(tmp_path / label)
        _, report, found = read(tmp_path)
    assert report.ok, report.defects
    assert sorted(found["train"]) == sorted([(image.rpartition("/")[2], 1), ("x.png", 1)])
    assert "labels_matched" in report.defect_counts
    assert "image_unlabelled" not in report.defect_counts


def test_label_that_two_images_could_have_leaves_both_out(tmp_path: Path) -> None:
    files = ["images/cam1/a.png", "images/cam2/a.png", "labels/a.txt", "images/b.png", "labels/b.txt", "images/c.png"]
    _, report, found = read(make(tmp_path, {"train": "images"}, *files, "labels/c.txt"))
    assert report.ok
    assert sorted(name for split in found.values() for name, _ in split) == ["b.png", "c.png"]
    assert report.defect_counts["label_ambiguous"] == 2


def test_background_beside_labels_of_other_images_stays_background(tmp_path: Path) -> None:
    files = ["images/cam1/a.png", "images/cam2/a.png", "labels/cam1/a.txt", "images/cam2/b.png", "labels/cam2/b.txt"]
    _, report, found = read(make(tmp_path, {"train": "images"}, *files, "labels/cam2/z.txt"))
    assert report.ok
    assert sorted(boxes for split in found.values() for _, boxes in split) == [0, 1, 1]
    assert "1 images have no labels, and 1 files of labels have no image" in told(report, "names_differ")


@pytest.mark.parametrize("other", ["captions/c.txt", "runs/exp/labels/c.txt", "c.txt"])
@pytest.mark.parametrize("labels", ["labels", "images"])
def test_texts_of_another_kind_are_not_the_labels_of_a_background(labels: str, other: str, tmp_path: Path) -> None:
    files = ["images/a.png", f"{labels}/a.txt", "images/b.png", f"{labels}/b.txt", "images/c.png"]
    _, report, found = read(make(tmp_path, {"train": "images"}, *files, other))
    assert report.ok, report.defects
    assert sorted(pair for split in found.values() for pair in split) == [("a.png", 1), ("b.png", 1), ("c.png", 0)]


def test_of_two_texts_the_one_at_the_same_place_has_the_labels(tmp_path: Path) -> None:
    files = ["Images/a.png", "Labels/a.txt", "captions/a.txt=a cat", "Images/b.png", "Labels/b.txt", "captions/b.txt=b"]
    _, report, found = read(make(tmp_path, {"train": "Images"}, *files))
    assert report.ok, report.defects
    assert [boxes for split in found.values() for _, boxes in split] == [1, 1]


def test_labels_of_images_of_no_split_are_theirs(tmp_path: Path) -> None:
    files = [*FOLDERS, "test/images/c.png", "test/labels/c.txt", "train/images/c.png"]
    _, report, found = read(make(tmp_path, {"train": "train/images", "val": "valid/images"}, *files))
    assert ("c.png", 0) in found["train"]
    assert "label_without_image" not in report.defect_counts
