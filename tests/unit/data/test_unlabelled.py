"""A data set may have images without labels, in every format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow

from fgd.cli.watch import report_lines
from fgd.data import formats
from fgd.data.archive import pack, unpack
from fgd.data.index import Defect, Index, Report
from fgd.data.loader import Dataset
from fgd.data.tree import means_unlabelled, words_split
from tests.unit.data.conftest import CocoFolder, picture
from tests.unit.data.test_huggingface import BOX, Folder, objects, png
from tests.unit.data.test_voc import CAT, Voc
from tests.unit.data.test_yolo import CENTRE, Yolo

Write = Callable[[Path], Path]


def write_coco(root: Path) -> Path:
    coco = CocoFolder(root / "coco")
    coco.add_box("train", coco.add_image("train", "a.png"), [1, 2, 10, 12], 0)
    coco.add_box("train", coco.add_image("train", "b.png"), [5, 5, 20, 20], 7)
    image = coco.add_image("val", "c.png")
    coco.add_box("val", image, [0, 0, 40, 30], 0)
    coco.add_box("val", image, [3, 3, 4, 4], 7)
    return coco.write()


def write_voc(root: Path) -> Path:
    voc = Voc(root / "voc")
    voc.read()
    return voc.root


def write_yolo(root: Path) -> Path:
    yolo = Yolo(root / "yolo")
    yolo.read()
    return yolo.root


def write_huggingface(root: Path) -> Path:
    return Folder(root / "hf").write()


FORMATS = pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo, write_huggingface])


def add(root: Path, folder: str, *names: str, first: int = 100) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names, first):
        picture(40, 30, seed).save(root / folder / name)


def read(root: Path, **how: Any) -> tuple[Index, Report]:
    index, report, _ = formats.read(root, **how)
    assert report.ok, report.defects
    return index, report


def names(index: Index, split: str = "unlabelled") -> list[str]:
    return [image.name for image in index.splits.get(split, ())]  # type: ignore[call-overload]


def only(report: Report, code: str) -> Defect:
    found = [defect for defect in report.defects if defect.code == code]
    assert len(found) == 1, report.defects
    return found[0]


@FORMATS
@pytest.mark.parametrize("folder", ["unlabelled", "unlabeled", "images/Unlabelled", "unlabeled2017/cam1"])
def test_a_folder_of_this_name_is_the_split(write: Write, folder: str, tmp_path: Path) -> None:
    root = write(tmp_path)
    before, _ = read(root)
    add(root, folder, "p.jpg", "q.png")
    index, report = read(root)
    assert names(index) == ["p.jpg", "q.png"]
    assert {split: images for split, images in index.splits.items() if split != "unlabelled"} == before.splits
    assert report.defect_counts == {}
    counts = report.splits["unlabelled"]
    assert (counts.images, counts.boxes, counts.empty_images) == (2, 0, 2)
    assert sorted(image.id for images in index.splits.values() for image in images) == [1, 2, 3, 4, 5]


@FORMATS
@pytest.mark.parametrize("file", ["a.xml", "labels.json", "metadata.jsonl", "a.txt"])
def test_annotations_in_it_are_ignored_and_reported(write: Write, file: str, tmp_path: Path) -> None:
    root = write(tmp_path)
    add(root, "unlabelled", "a.jpg")
    (root / "unlabelled" / file).write_text('{"images": [], "annotations": [')
    index, report = read(root)
    assert names(index) == ["a.jpg"]
    assert report.defect_counts == {"labels_ignored": 1}
    assert only(report, "labels_ignored").file == f"unlabelled/{file}"


@FORMATS
def test_its_defects_are_those_of_pictures_alone(write: Write, tmp_path: Path) -> None:
    root = write(tmp_path)
    add(root, "unlabelled", "p.jpg")
    (root / "unlabelled/broken.jpg").write_bytes(b"no picture")
    shutil.copy(root / "unlabelled/p.jpg", root / "unlabelled/again.jpg")
    index, report = read(root)
    assert names(index) == ["again.jpg", "p.jpg"]
    assert report.defect_counts == {"image_broken": 1, "image_repeated": 1}


@FORMATS
def test_an_image_of_val_among_them_is_a_leak_and_one_of_train_is_not(write: Write, tmp_path: Path) -> None:
    root = write(tmp_path)
    index, _ = read(root)
    sources = formats.read(root)[2]
    (root / "unlabelled").mkdir()
    for split in ("train", "val"):
        file = index.splits[split][0].file
        shutil.copy(sources[file], root / "unlabelled" / f"{split}{Path(file).suffix}")
    _, report = read(root)
    assert report.defect_counts == {"image_in_two_splits": 1, "image_repeated": 1}
    assert "results in val look better" in only(report, "image_in_two_splits").message
    assert "with its labels" in only(report, "image_repeated").message


def test_a_val_split_is_taken_from_the_labelled_images_the_same_as_without(tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    shutil.rmtree(root / "ImageSets")
    before, _ = read(root)
    add(root.parent / "voc", "unlabelled", "p.jpg")
    index, report = read(root)
    assert report.carved is not None
    assert (index.splits["train"], index.splits["val"]) == (before.splits["train"], before.splits["val"])
    assert names(index) == ["p.jpg"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("unlabelled", "unlabelled"),
        ("UNLABELED2017", "unlabelled"),
        ("image_info_unlabeled2017", "unlabelled"),
        ("unlabelled-00000-of-00002", "unlabelled"),
        ("train_unlabelled", "train"),
        ("unlabelled_cats", None),
        ("labelled", None),
    ],
)
def test_only_the_whole_name_means_it(name: str, split: str | None) -> None:
    assert words_split(name) == split
    assert means_unlabelled(name) == (split == "unlabelled")


def test_where_all_images_lie_in_such_a_folder_it_says_nothing(tmp_path: Path) -> None:
    index, report = read(write_yolo(tmp_path / "unlabelled").parent)
    assert report.defect_counts == {}
    assert sorted(index.splits) == ["train", "val"]


# --- COCO -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    ["annotations/image_info_unlabeled2017.json", "annotations/instances_unlabelled.json", "unlabelled/_images.json"],
)
def test_a_json_without_annotations_lists_images_that_lie_anywhere(coco: CocoFolder, file: str) -> None:
    root = coco.write()
    add(root, "pool", "p.jpg", "q.jpg")
    (root / file).parent.mkdir(exist_ok=True)
    images = [{"id": 1, "file_name": "p.jpg", "width": 9, "height": 9}, {"id": 2, "file_name": "q.jpg"}]
    (root / file).write_text(json.dumps({"images": images, "categories": [{"id": 3, "name": "zebra"}]}))
    index, report = read(root)
    assert names(index) == ["p.jpg", "q.jpg"]
    assert (index.classes, report.defect_counts) == (("cat", "dog"), {})


def test_annotations_of_such_a_json_are_ignored(coco: CocoFolder) -> None:
    coco.add_box("unlabelled", coco.add_image("unlabelled", "p.png"), [1, 1, 999, 5], 99)
    index, report = read(coco.write())
    assert names(index) == ["p.png"]
    assert report.defect_counts == {"labels_ignored": 1}


def test_an_image_that_train_names_stays_in_train(coco: CocoFolder) -> None:
    root = coco.write()
    add(root, "unlabelled", "p.jpg", "d.jpg")
    path = root / "annotations/instances_train2017.json"
    document = json.loads(path.read_text())
    document["images"].append({"id": 9, "file_name": "../unlabelled/d.jpg", "width": 40, "height": 30})
    document["images"].append({"id": 10, "file_name": "p.jpg", "width": 40, "height": 30})
    path.write_text(json.dumps(document))
    index, report = read(root)
    assert names(index) == ["p.jpg"], "no picture lends its pixels to a name of another split"
    assert report.defect_counts["image_missing"] == 1
    assert [Path(name).name for name in names(index, "train")] == ["a.png", "b.png", "d.jpg"]


def test_one_json_of_no_split_is_train_all_the_same(coco: CocoFolder) -> None:
    coco.json_file, coco.image_folder = "all.json", "images"
    del coco.documents["val"]
    coco.add_box("train", coco.add_image("train", "d.png"), [1, 2, 10, 12], 0)
    coco.add_box("train", coco.add_image("train", "e.png"), [1, 2, 10, 12], 7)
    root = coco.write()
    add(root, "pool", "p.jpg")
    (root / "unlabelled.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "pool/p.jpg"}]}))
    index, _ = read(root)
    assert {split: len(images) for split, images in index.splits.items()} == {"train": 3, "val": 1, "unlabelled": 1}


# --- VOC ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lists", ["ImageSets/Main", "ImageSets"])
def test_a_list_names_images_with_and_without_annotations(lists: str, tmp_path: Path) -> None:
    voc = Voc(tmp_path / "voc")
    voc.add("d", [CAT])
    (voc.root / lists).mkdir(parents=True, exist_ok=True)
    for split, members in {**voc.lists, "unlabelled": ["d", "p", "nowhere"]}.items():
        (voc.root / lists / f"{split}.txt").write_text("\n".join(members) + "\n")
    voc.lists = {}
    add(voc.root, "JPEGImages", "p.jpg")
    index, report = voc.read()
    assert report.ok
    assert names(index) == ["d.jpg", "p.jpg"]
    assert report.defect_counts == {"labels_ignored": 1, "image_missing": 1}
    assert "nowhere" in only(report, "image_missing").message


# --- YOLO -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["unlabelled", "unlabeled"])
def test_a_key_of_data_yaml_names_a_folder(key: str, tmp_path: Path) -> None:
    yolo = Yolo(tmp_path)
    yolo.add("pool", "p", f"0 {CENTRE}\n")
    yolo.add("pool", "q", None)
    yolo.plan[key] = "images/pool"
    index, report = yolo.read()
    assert names(index) == ["p.png", "q.png"]
    assert report.defect_counts == {"labels_ignored": 1}
    assert only(report, "labels_ignored").file == "labels/pool/p.txt"


def test_a_list_of_data_yaml_may_name_images_beside_others(tmp_path: Path) -> None:
    yolo = Yolo(tmp_path)
    yolo.add("train", "p", f"0 {CENTRE}\n")
    (tmp_path / "pool.txt").write_text("images/train/p.png\n")
    (tmp_path / "few.txt").write_text("images/train/a.png\nimages/train/b.png\n")
    yolo.plan |= {"train": "few.txt", "unlabelled": "pool.txt"}
    index, report = yolo.read()
    assert (names(index, "train"), names(index)) == (["a.png", "b.png"], ["p.png"])
    assert report.defect_counts == {"labels_ignored": 1}


@pytest.mark.parametrize("said", [True, False])
def test_a_folder_inside_that_of_train_is_not_its_background(said: bool, tmp_path: Path) -> None:
    yolo = Yolo(tmp_path)
    yolo.add("train/pool" if said else "train/unlabelled", "p", None)
    yolo.plan |= {"unlabelled": "images/train/pool"} if said else {}
    index, report = yolo.read()
    assert (names(index, "train"), names(index)) == (["a.png", "b.png"], ["p.png"])
    assert report.defect_counts == {}


def test_a_folder_that_is_not_there_costs_the_split_alone(tmp_path: Path) -> None:
    yolo = Yolo(tmp_path)
    yolo.plan["unlabelled"] = "images/pool"
    index, report = yolo.read()
    assert sorted(index.splits) == ["train", "val"]
    assert "no unlabelled split" in only(report, "split_folder_missing").message


# --- Hugging Face ---------------------------------------------------------------------------------------------


def test_a_table_beside_them_is_not_read(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.add("unlabelled", "p.png", objects([BOX], [55]))
    index, report = folder.read()
    assert names(index) == ["p.png"]
    assert report.defect_counts == {"labels_ignored": 1}


@pytest.mark.parametrize("boxes", [None, objects([BOX], [5])])
def test_parquet_of_this_name_is_the_split(boxes: Any, tmp_path: Path) -> None:
    rows = {"train": (objects([BOX, BOX], [0, 1]), 1), "validation": (objects([BOX], [0]), 2), "unlabelled": (boxes, 3)}
    (tmp_path / "data").mkdir()
    for split, (said, seed) in rows.items():
        table = {"image": [{"bytes": png(seed), "path": f"{seed}.png"}], "objects": [said]}
        pq.write_table(pa.table(table), tmp_path / f"data/{split}-00000-of-00001.parquet")
    index, report = read(tmp_path)
    assert {split: names(index, split) for split in index.splits} == {
        "train": ["1.png"],
        "val": ["2.png"],
        "unlabelled": ["3.png"],
    }
    assert report.defect_counts.get("labels_ignored", 0) == (boxes is not None)
    assert not report.defect_counts.keys() - {"labels_ignored", "class_names_missing", "class_absent"}


# --- what comes after -----------------------------------------------------------------------------------------


def test_archive_loader_and_screen_have_it(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    add(root, "unlabelled", "p.jpg")
    index, report, sources = formats.read(root)
    pack(index, sources, tmp_path / "set.tar")
    again, folder = formats.open_index(unpack(tmp_path / "set.tar", tmp_path / "unpacked"))
    assert again == index
    sample = Dataset(again, "unlabelled", folder).sample(0)
    assert (sample.pixels_CHW.shape, sample.boxes_K4.shape) == ((3, 30, 40), (0, 4))
    assert "  unlabelled 1 images, 40-40 x 30-30 px" in report_lines(report)
    opened, _ = formats.open_index(root)
    with Pillow.open(root / opened.splits["unlabelled"][0].file) as image:
        assert image.size == (40, 30)
