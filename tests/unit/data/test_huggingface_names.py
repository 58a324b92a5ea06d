"""File names in tables of Hugging Face sets, as other machines write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fgd.data import formats
from fgd.data.index import Report
from tests.unit.data.conftest import picture


def make(root: Path, *images: str, **tables: list[str]) -> Path:
    """tables: folder of metadata.jsonl ("_" is the root, "__" is "/") -> file names, each with one box."""
    for number, image in enumerate(images):
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        picture(seed=number).save(root / image)
    for folder, names in tables.items():
        home = root / folder.replace("__", "/").strip("_")
        home.mkdir(parents=True, exist_ok=True)
        rows = [{"file_name": name, "objects": {"bbox": [[1, 2, 9, 9]], "category": ["cat"]}} for name in names]
        (home / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def read(root: Path) -> tuple[Report, dict[str, list[str]]]:
    """And of each split the files that its images come from."""
    index, report, sources = formats.read(root, "huggingface")
    found = {
        split: sorted(sources[image.file].relative_to(root).as_posix() for image in images)
        for split, images in index.splits.items()
    }
    return report, found


@pytest.mark.parametrize(
    "written",
    [
        "images/{}",
        "./images//{}",
        "images\\{}",
        "C:\\x\\images\\{}",
        "/far/images/{}",
        "../train/images/{}",
        "{}",
        "images%2F{}",
    ],
)
def test_names_of_other_machines(written: str, tmp_path: Path) -> None:
    images = ["train/images/a.png", "train/images/b.png", "validation/images/c.png"]
    train, val = [written.format("a.png"), written.format("b.png")], [written.format("c.png").replace("train", "val")]
    report, found = read(make(tmp_path, *images, train=train, validation=val))
    assert report.ok, report.defects
    assert found == {"train": images[:2], "val": images[2:]}
    assert "image_unlisted" not in report.defect_counts


def test_a_table_beside_the_images_of_all_splits(tmp_path: Path) -> None:
    images = ["train/a.png", "train/b.png", "validation/c.png"]
    report, found = read(make(tmp_path, *images, data=images))
    assert report.ok, report.defects
    assert found == {"train": images[:2], "val": images[2:]}


def test_a_missing_image_is_not_the_one_of_that_name_in_the_other_split(tmp_path: Path) -> None:
    images = ["train/a.png", "train/b.png", "validation/c.png", "validation/d.png"]
    report, found = read(make(tmp_path, *images, train=["a.png", "b.png", "d.png"], validation=["c.png"]))
    assert found == {"train": ["train/a.png", "train/b.png"], "val": ["validation/c.png"]}
    told = next(defect.message for defect in report.defects if defect.code == "names_differ")
    assert "1 file is listed and not found, 1 file is found and not listed" in told


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "C:\\secret.png"])
def test_no_name_leads_out(name: str, tmp_path: Path) -> None:
    picture(seed=9).save(tmp_path / "secret.png")
    root = make(tmp_path / "set", "train/a.png", "val/b.png", train=["a.png", name], val=["b.png"])
    report, found = read(root)
    assert found == {"train": ["train/a.png"], "val": ["val/b.png"]}
    assert report.defect_counts["path_escapes"] == 1


@pytest.mark.parametrize(("table", "top"), [("hf_test", "hf_test/"), ("_", "my test/"), ("eval__set", "eval/set/")])
def test_a_folder_that_holds_all_says_nothing_about_splits(table: str, top: str, tmp_path: Path) -> None:
    names = [f"{letter}.png" for letter in "abcd"]
    written = [f"{top}{name}" for name in names] if table == "_" else names
    report, found = read(make(tmp_path, *(top + name for name in names), **{table: written}))
    assert report.ok, report.defects
    assert sorted(found["train"] + found["val"]) == [top + name for name in names]
