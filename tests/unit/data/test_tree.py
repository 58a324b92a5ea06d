"""Every name that can be shown is a name; what cannot be used is reported, never passed over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image as Pillow

from fgd.data import formats
from fgd.data.tree import MAX_PATH_BYTES, Split, SplitWords, list_tree
from tests.unit.data.conftest import CocoFolder


@pytest.mark.parametrize(
    "name",
    [
        "Screen\u202fshot.png",
        "no\u00a0break.png",
        "\u3000wide.png",
        "zero\u200bwidth.png",
        "line\u2028separator.png",
        "right\u202eleft.png",
        "soft\u00adhyphen.png",
        "private\ue000.png",
    ],
)
def test_signs_that_do_not_print_are_part_of_a_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    tree = list_tree(tmp_path)
    assert tree.files == {name}
    assert tree.images() == (name,)
    assert tree.left_out == ()


@pytest.mark.parametrize(
    ("name", "shown", "why"),
    [
        ("a\nb.png", r"a\nb.png", "control character"),
        ("a\x7fb.png", r"a\x7fb.png", "control character"),
        ("a\x85b.png", r"a\x85b.png", "control character"),
        (os.fsdecode(b"caf\xe9.png"), r"caf\udce9.png", "not valid UTF-8"),
    ],
)
def test_names_that_nothing_can_hold_are_reported(name: str, shown: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).write_bytes(b"x")
    (tmp_path / name).mkdir()
    tree = list_tree(tmp_path)
    assert tree.files == frozenset()
    assert tree.folders == ("", "folder")
    assert [told for told, _ in tree.left_out] == [shown, f"folder/{shown}"]
    assert all(why in reason for _, reason in tree.left_out)


def test_files_lie_as_deep_as_a_name_reaches(tmp_path: Path) -> None:
    deep = "/".join(["d"] * ((MAX_PATH_BYTES - 5) // 2))
    (tmp_path / deep).mkdir(parents=True)
    (tmp_path / deep / "a.png").write_bytes(b"x")
    (tmp_path / deep / "longer.png").write_bytes(b"x")
    tree = list_tree(tmp_path)
    assert tree.files == {f"{deep}/a.png"}
    assert [why for _, why in tree.left_out] == [
        f"the file has a name that is, with its folders, longer than {MAX_PATH_BYTES} bytes; it is not used"
    ]


def test_the_report_names_what_was_not_used(coco: CocoFolder) -> None:
    (coco.write() / "train2017" / "a\nb.jpg").write_bytes(b"x")
    _, report, _ = formats.read(coco.root)
    told = [defect for defect in report.defects if defect.code == "name_not_used"]
    assert [defect.file for defect in told] == [r"train2017/a\nb.jpg"]
    assert "control character" in told[0].message


def test_pictures_below_a_folder_are_those_whose_names_begin_with_it(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/b/2.png", "a.x/3.png", "a0/4.png", "5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    tree = list_tree(tmp_path)
    assert tree.images_below("a") == ("a/1.png", "a/b/2.png")
    assert tree.images_below("") == tree.images()
    assert tree.images_below("a/b") == ("a/b/2.png",)
    assert tree.images_below("c") == ()


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".jpeg"])
def test_every_suffix_of_jpeg_is_a_picture(suffix: str, coco: CocoFolder) -> None:
    coco.write()
    with (coco.root / "train2017" / f"z{suffix}").open("wb") as file:
        Pillow.new("RGB", (9, 9)).save(file, "JPEG")
    assert f"train2017/z{suffix}" in list_tree(coco.root).images()
    _, report, _ = formats.read(coco.root)
    assert [d.file for d in report.defects if d.code == "image_unlisted"] == [f"train2017/z{suffix}"]


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["a/train_test_project.json", "a/val_test_project.json"], ["train", "val"]),
        (["a/instances_train.json", "a/captions_train.json"], ["train", "train"]),
        (["a/train_val.json", "a/val.json"], [None, "val"]),
        (["test-shop/test/train_val.json"], [None]),
        (["train test shop/a.json", "val test shop/b/c.json", "info/d.json"], ["train", "val", None]),
        (["train/test_1/a.json", "train/test_2/b.json", "val/c.json"], ["test", "test", "val"]),
    ],
)
def test_words_that_all_names_share_do_not_hide_a_split(files: list[str], splits: list[Split | None]) -> None:
    words = SplitWords(files)
    assert [words.of_file(file) for file in files] == splits
