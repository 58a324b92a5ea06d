"""YOLO as people publish it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image as Pillow
from PIL import ImageOps

from fgd.data import formats
from fgd.data.index import Defect, Index, Report
from fgd.errors import DatasetError
from tests.unit.data.conftest import picture

CENTRE = "0.5 0.5 0.25 0.2"


class Yolo:
    """Images of 40x30: a and b in train, c in val; `plan` is data.yaml."""

    def __init__(self, root: Path, images: str = "images/{split}", labels: str = "labels/{split}") -> None:
        self.root, self.images, self.labels = root, images, labels
        self.made = 0
        self.plan: dict[str, Any] = {"train": "images/train", "val": "images/val", "names": ["cat", "dog"]}
        self.add("train", "a", f"0 {CENTRE}\n")
        self.add("train", "b", f"1 {CENTRE}\n")
        self.add("val", "c", f"0 {CENTRE}\n1 0.1 0.1 0.1 0.1\n")

    def add(self, split: str, name: str, labels: str | None) -> None:
        self.made += 1
        folder = self.root / self.images.format(split=split)
        folder.mkdir(parents=True, exist_ok=True)
        picture(40, 30, self.made).save(folder / f"{name}.png")
        if labels is not None:
            self.label(split, name).parent.mkdir(parents=True, exist_ok=True)
            self.label(split, name).write_text(labels)

    def label(self, split: str, name: str) -> Path:
        return self.root / self.labels.format(split=split) / f"{name}.txt"

    def read(self, **how: Any) -> tuple[Index, Report]:
        (self.root / "data.yaml").write_text(yaml.safe_dump(self.plan))
        index, report, sources = formats.read(self.root, **how)
        assert {image.file for split in index.splits.values() for image in split} == set(sources)
        return index, report


@pytest.fixture
def yolo(tmp_path: Path) -> Yolo:
    return Yolo(tmp_path / "yolo")


def only(report: Report, code: str) -> Defect:
    found = [defect for defect in report.defects if defect.code == code]
    assert len(found) == 1, report.defects
    return found[0]


def test_pear_is_imported_with_its_defects(shared_data: Path) -> None:
    index, report, sources = formats.read(shared_data / "pear")
    assert report.ok
    assert (report.format, index.classes) == ("yolo", ("pear",))
    counts = {name: (split.images, split.boxes, split.empty_images) for name, split in report.splits.items()}
    assert counts == {"train": (180, 2182, 3), "val": (54, 482, 1)}
    assert report.defect_counts == {"image_unlabelled": 4, "zero_area_box": 18}
    assert len(sources) == 234


def test_centre_and_size_become_corners_in_pixels(yolo: Yolo) -> None:
    index, report = yolo.read()
    assert report.ok, report.defects
    assert (report.format, report.defect_counts) == ("yolo", {})
    assert index.classes == ("cat", "dog")
    assert index.splits["train"][0].boxes == ((15, 12, 25, 18),)
    assert index.splits["val"][0].labels == (1, 2)


# --- data.yaml ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels", "plan"),
    [
        ("images/{split}", "labels/{split}", {"path": ".", "train": "images/train", "val": "images/val"}),
        (
            "images/{split}",
            "labels/{split}",
            {"path": "../sets/mine", "train": "images/train", "val": "images/val"},
        ),
        (
            "images/{split}",
            "labels/{split}",
            {"path": "/home/me", "train": "./images/train/", "val": "images/val"},
        ),
        ("images/{split}", "labels/{split}", {"train": ["images/train"], "val": ["images/val"]}),
        ("{split}/images", "{split}/labels", {"train": "../train/images", "val": "../val/images"}),
        ("{split}/images", "{split}/labels", {"train": "train/images", "val": "val/images"}),
        ("{split}/images", "{split}/labels", {"train": "train", "val": "val"}),
        ("set/images/{split}", "set/labels/{split}", {"path": "set", "train": "images/train", "val": "images/val"}),
        ("{split}", "{split}", {"train": "train", "val": "val"}),
        ("images/{split}", "labels/{split}", {"train": "images/train", "valid": "images/val"}),
    ],
)
def test_paths_are_found_as_people_write_them(tmp_path: Path, images: str, labels: str, plan: dict[str, Any]) -> None:
    yolo = Yolo(tmp_path / "yolo", images, labels)
    yolo.plan = plan | {"names": {0: "cat", 1: "dog"}, "nc": 2}
    index, report = yolo.read()
    assert report.ok, report.defects
    assert report.defect_counts == {}
    assert [image.name for image in index.splits["train"]] == ["a.png", "b.png"]
    assert index.classes == ("cat", "dog")


def test_split_may_be_a_list_of_names(yolo: Yolo) -> None:
    yolo.plan["train"] = "train.txt"
    (yolo.root / "train.txt").write_text("./images/train/a.png\nimages/train/b.png\nimages/train/gone.png\n")
    index, report = yolo.read()
    assert report.ok
    assert len(index.splits["train"]) == 2
    assert only(report, "image_missing").file == "images/train/gone.png"


def test_data_yaml_may_lie_in_a_folder_of_its_own(tmp_path: Path) -> None:
    Yolo(tmp_path / "export/pears").read()
    _, report, _ = formats.read(tmp_path)
    assert report.ok, report.defects


def test_missing_val_is_carved(yolo: Yolo) -> None:
    del yolo.plan["val"]
    for n in range(10):
        yolo.add("train", f"more{n}", f"{n % 2} {CENTRE}\n")
    _, report = yolo.read()
    assert report.ok, report.defects
    assert {name: split.images for name, split in report.splits.items()} == {"train": 11, "val": 1}
    assert report.defect_counts == {"val_carved": 1, "image_unlisted": 1, "class_absent": 1}


@pytest.mark.parametrize(("split", "ok"), [("train", False), ("val", False), ("test", True)])
def test_split_that_is_named_and_not_there_is_told(yolo: Yolo, split: str, ok: bool) -> None:
    yolo.plan[split] = "images/nowhere"
    _, report = yolo.read()
    assert report.ok is ok
    defect = only(report, "split_folder_missing")
    assert defect.file == "data.yaml"
    assert f"'images/nowhere' for {split}" in defect.message


def test_same_folder_for_train_and_val_is_told(yolo: Yolo) -> None:
    yolo.plan["val"] = "images/train"
    _, report = yolo.read()
    assert report.ok
    assert report.defect_counts["image_in_two_splits"] == 2


def test_wrong_number_of_classes_is_told_and_names_count(yolo: Yolo) -> None:
    yolo.plan["nc"] = 5
    index, report = yolo.read()
    assert index.classes == ("cat", "dog")
    assert "nc is 5, but names has 2" in only(report, "class_count_differs").message


@pytest.mark.parametrize(
    ("names", "code", "words"),
    [
        (["cat", "cat"], "category_duplicate", "used twice"),
        (["cat", True], "category_invalid", "quote it"),
        (["cat", " "], "category_invalid", "needs an index and a name"),
        ({"one": "cat"}, "category_invalid", "needs an index and a name"),
        ([], "category_invalid", "must be a list"),
        ("cat", "category_invalid", "must be a list"),
    ],
)
def test_names_that_are_no_classes_are_rejected(yolo: Yolo, names: Any, code: str, words: str) -> None:
    yolo.plan["names"] = names
    _, report = yolo.read()
    assert not report.ok
    assert words in only(report, code).message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("names: [cat\ntrain: x", "invalid YAML"),
        ("!!python/object/apply:os.system ['touch canary']", "invalid YAML"),
        ("[" * 100_000, "invalid YAML"),
        ("train: 0001-99-99\nnames: [a]", "invalid YAML"),
        ("just text", "it contains text"),
        ("", "it contains nothing"),
        ("names:\n\t0: cat\ntrain: x", "line 2, column 1"),
        ("names:\n\t0: cat\ntrain: x", "start with tabs"),
        ("names: [cat]", "no folder of images"),
        ('train: "C:\\data\\train"\nnames: [cat]', "in single quotes"),
        ("train: images/train", "no names of classes"),
    ],
)
def test_unusable_data_yaml_is_an_error_and_nothing_is_run(yolo: Yolo, content: str, words: str) -> None:
    (yolo.root / "data.yaml").write_text(content)
    with pytest.raises(DatasetError, match=r"no YOLO data.yaml found") as refused:
        formats.read(yolo.root, "yolo")
    assert str(refused.value).startswith("data.yaml: ")
    assert words in str(refused.value).partition(f"; {yolo.root}: ")[0]
    assert not (Path.cwd() / "canary").exists()


def test_yaml_bomb_is_survived(yolo: Yolo) -> None:
    bomb = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))
    (yolo.root / "data.yaml").write_text(bomb + "names: *a39\ntrain: images/train\nval: images/val\n")
    began = time.process_time()
    with pytest.raises(DatasetError, match="aliases"):
        formats.read(yolo.root, "yolo")
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("listed", "differ"),
    [("dog\ncat\n", True), ("cat\ndog\n", False), ("cat\ndog\nemu\n", False), ("person\ncar\n", True)],
)
def test_a_list_of_classes_that_contradicts_data_yaml_is_told_with_both(yolo: Yolo, listed: str, differ: bool) -> None:
    (yolo.root / "classes.txt").write_text(listed)
    _, report = yolo.read()
    assert report.ok
    assert report.defect_counts == ({"class_lists_differ": 1} if differ else {})
    if differ:
        defect = only(report, "class_lists_differ")
        assert defect.file == "classes.txt"
        assert f"it says '{', '.join(listed.split())}', and data.yaml says 'cat, dog'" in defect.message


@pytest.mark.parametrize("file", ["Classes.TXT", "class_names.txt", "obj.names"])
def test_lists_of_classes_have_many_names(yolo: Yolo, file: str) -> None:
    (yolo.root / file).write_text("dog\ncat\n")
    assert only(yolo.read()[1], "class_lists_differ").file == file


def test_the_notes_of_label_studio_are_a_list_of_classes(yolo: Yolo) -> None:
    (yolo.root / "notes.json").write_text('{"categories": [{"id": 1, "name": "cat"}, {"id": 0, "name": "dog"}]}')
    _, report = yolo.read()
    assert "'dog, cat'" in only(report, "class_lists_differ").message


def test_a_name_twice_refuses_nothing_where_one_number_is_not_used(yolo: Yolo) -> None:
    yolo.plan["names"] = ["cat", "dog", "cat"]
    index, report = yolo.read()
    assert index.classes == ("cat", "dog")
    assert report.defect_counts == {"category_unused": 1}
    yolo.label("val", "c").write_text(f"2 {CENTRE}\n")
    assert "'cat' is used twice" in only(yolo.read()[1], "category_duplicate").message


@pytest.mark.parametrize("encoding", ["gbk", "utf-16", "utf-8-sig"])
def test_data_yaml_in_another_encoding_keeps_its_names(yolo: Yolo, encoding: str) -> None:
    content = "train: images/train\nval: images/val\nnames: ['猫', '狗']\n".encode(encoding)
    (yolo.root / "data.yaml").write_bytes(content)
    index, report, _ = formats.read(yolo.root)
    assert index.classes == ("猫", "狗")
    assert report.defect_counts == ({} if encoding == "utf-8-sig" else {"encoding_guessed": 1})


def test_data_yaml_is_looked_for_in_the_twenty_files_that_lie_highest(yolo: Yolo) -> None:
    (yolo.root / "a/b/c").mkdir(parents=True)
    (yolo.root / "a/b/c/deep.yaml").write_text("names: [emu]\ntrain: images/train\n")
    for number in range(40):
        (yolo.root / f"a/{number}.yaml").write_text("names: [")  # each costs a look
    _, report = yolo.read()
    assert report.ok
    assert "yaml_skipped" not in report.defect_counts


# --- labels ---------------------------------------------------------------------------------------------------


def test_image_without_labels_is_background_and_named(yolo: Yolo) -> None:
    yolo.add("train", "empty", "")
    yolo.add("train", "none", None)
    index, report = yolo.read()
    assert len(index.splits["train"]) == 4
    assert report.splits["train"].empty_images == 2
    files = [defect.file for defect in report.defects if defect.code == "image_unlabelled"]
    assert files == ["images/train/empty.png", "images/train/none.png"]


def test_label_without_an_image_is_named(yolo: Yolo) -> None:
    yolo.label("train", "orphan").write_text(f"0 {CENTRE}\n")
    yolo.label("train", "classes").write_text("cat\ndog\n")
    _, report = yolo.read()
    assert only(report, "label_without_image").file == "labels/train/orphan.txt"


def test_polygon_becomes_the_box_around_it(yolo: Yolo) -> None:
    yolo.label("train", "a").write_text("0 0.25 0.2 0.5 0.1 0.75 0.4\n")
    index, report = yolo.read()
    assert index.splits["train"][0].boxes[0] == pytest.approx((10, 3, 30, 12))
    assert "line 1 is a polygon of 3 points" in only(report, "polygon_to_box").message


def test_keypoints_after_a_box_are_left_out(yolo: Yolo) -> None:
    yolo.plan["kpt_shape"] = [2, 2]
    yolo.label("train", "a").write_text(f"0 {CENTRE} 0.1 0.1 0.2 0.2\n")
    index, report = yolo.read()
    assert index.splits["train"][0].boxes == ((15, 12, 25, 18),)
    assert report.defect_counts == {}


@pytest.mark.parametrize(
    ("line", "code", "action"),
    [
        (f"-1 {CENTRE}", "annotation_unknown_category", "dropped_box"),
        (f"0.5 {CENTRE}", "annotation_unknown_category", "dropped_box"),
        (f"cat {CENTRE}", "annotation_unknown_category", "dropped_box"),
        (f"0 {CENTRE} 0.9", "box_invalid", "dropped_box"),
        ("0 0.5 0.5", "box_invalid", "dropped_box"),
        ("0 0.5 nan 0.1 0.1", "box_not_finite", "dropped_box"),
        ("0 0.5 x 0.1 0.1", "box_not_finite", "dropped_box"),
        ("0 20 15 10 6", "box_not_relative", "dropped_box"),
        ("0 0.5 0.5 0 0.2", "zero_area_box", "dropped_box"),
        ("0 0.5 0.5 -0.1 0.2", "zero_area_box", "dropped_box"),
        ("0 1.2 0.5 0.2 0.2", "box_outside", "dropped_box"),
        ("0 0.9 0.5 0.4 0.2", "box_clipped", "clipped_box"),
        (f"0 {CENTRE}", "box_duplicate", "dropped_box"),
    ],
)
def test_odd_line_is_named_and_told(yolo: Yolo, line: str, code: str, action: str) -> None:
    yolo.label("train", "a").write_text(f"0 {CENTRE}\n{line}\n")
    index, report = yolo.read()
    assert report.ok
    assert len(index.splits["train"][0].boxes) == (2 if action == "clipped_box" else 1)
    defect = only(report, code)
    assert defect.action == action
    assert "labels/train/a.txt: line 2" in defect.message
    assert report.defect_counts == {code: 1}


@pytest.mark.parametrize(
    ("numbers", "code", "words"),
    [
        ((1, 2, 1, 2), "class_numbers_shifted", "0 is never there: they are counted from 1"),
        ((2, 1, 2, 2), "class_numbers_shifted", "subtract 1"),
        ((0, 1, 2, 5), "class_numbers", "2 files have the class numbers 2, 5"),
    ],
)
def test_class_numbers_that_data_yaml_does_not_have_are_refused(
    yolo: Yolo, numbers: tuple[int, ...], code: str, words: str
) -> None:
    for name, number in zip("abde", numbers, strict=True):
        yolo.add("train", name, f"{number} {CENTRE}\n")
    yolo.label("val", "c").write_text(f"1 {CENTRE}\n")
    _, report = yolo.read()
    assert not report.ok
    defect = only(report, code)
    assert (defect.file, report.defects[0]) == ("data.yaml", defect)
    assert words in defect.message


def test_one_slip_among_many_labels_refuses_nothing(yolo: Yolo) -> None:
    lines = [f"{n % 2} 0.5 0.5 0.{n + 101} 0.2" for n in range(120)]
    yolo.label("train", "a").write_text("\n".join([*lines, f"7 {CENTRE}"]))
    _, report = yolo.read()
    assert report.ok
    assert report.defect_counts == {"annotation_unknown_category": 1}


@pytest.mark.parametrize("line", ["cat 0.5 0.5 0.2 0.2", "0 0.5 0.5", "0 20 15 10 6", "7.5 0.5 0.5 0.2 0.2"])
def test_image_without_a_line_that_can_be_read_is_no_background(yolo: Yolo, line: str) -> None:
    yolo.add("train", "odd", f"{line}\n")
    index, report = yolo.read()
    assert [image.name for image in index.splits["train"]] == ["a.png", "b.png"]
    assert only(report, "labels_unreadable").file == "images/train/odd.png"


@pytest.mark.parametrize(
    "line", ["0,0.5,0.5,0.25,0.2", "0, 0.5, 0.5, 0.25, 0.2", "0;0.5;0.5;0.25;0.2", "0 0,5 0,5 0,25 0,2"]
)
def test_commas_between_numbers_or_in_them_are_read_and_told(yolo: Yolo, line: str) -> None:
    yolo.label("train", "a").write_text(f"{line}\n")
    index, report = yolo.read()
    assert index.splits["train"][0].boxes == ((15, 12, 25, 18),)
    assert only(report, "label_commas").file == "labels/train/a.txt"


def test_label_file_that_is_no_text_leaves_the_image_out(yolo: Yolo) -> None:
    yolo.label("train", "a").write_bytes(b"\xff\xfe\x00")
    index, report = yolo.read()
    assert [image.name for image in index.splits["train"]] == ["b.png"]
    defect = only(report, "annotation_missing")
    assert (defect.file, defect.action) == ("images/train/a.png", "dropped_image")


def test_names_cannot_lead_out_of_the_folder(yolo: Yolo, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    picture().save(tmp_path / "outside/x.png")
    yolo.plan["val"] = "../outside"
    _, report = yolo.read()
    assert "split_folder_missing" in report.defect_counts
    yolo.plan["val"] = "val.txt"
    (yolo.root / "val.txt").write_text("../outside/x.png\n/etc/passwd\n")
    _, report = yolo.read()
    assert report.defect_counts["image_missing"] == 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_of_the_upright_picture_are_turned_back_to_the_stored_pixels(yolo: Yolo, orientation: int) -> None:
    upright = Pillow.new("RGB", (40, 30))
    upright.paste((255, 255, 255), (24, 6, 36, 12))
    back = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
            7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    stored = upright.transpose(Pillow.Transpose[back[orientation]]) if orientation > 1 else upright
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    path = yolo.root / "images/train/a.png"
    stored.save(path, exif=exif)
    assert ImageOps.exif_transpose(Pillow.open(path)).tobytes() == upright.tobytes()
    yolo.label("train", "a").write_text("0 0.75 0.3 0.3 0.2\n")

    index, report = yolo.read()
    box = index.splits["train"][0].boxes[0]
    assert box == pytest.approx(stored.getbbox())
    assert report.defect_counts == ({} if orientation == 1 else {"exif_rotated": 1})
