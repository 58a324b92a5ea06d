"""The importer survives what people publish, and says what it did."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from fgd.data import coco as importer
from fgd.data import images
from fgd.data.formats import open_index
from fgd.data.index import Defect, Index, Report
from fgd.errors import DatasetError


def read(coco: Any, verify: Any = "full") -> tuple[Index, Report]:
    index, report, sources = importer.read(coco.write(), verify)
    assert {image.file for split in index.splits.values() for image in split} == set(sources)
    return index, report


def only(report: Report, code: str) -> Defect:
    found = [defect for defect in report.defects if defect.code == code]
    assert len(found) == 1, report.defects
    assert report.defect_counts[code] == 1
    return found[0]


# --- real data ------------------------------------------------------------------------------------------------


def test_facemask_is_imported_whole(shared_data: Path) -> None:
    index, report, sources = importer.read(shared_data / "facemask")
    assert report.ok
    assert report.defect_counts == {}
    assert index.classes == ("mask_weared_incorrect", "with_mask", "without_mask")
    train, val = report.splits["train"], report.splits["val"]
    assert set(report.splits) == {"train", "val"}
    assert (train.images, train.boxes, train.empty_images) == (677, 3106, 0)
    assert (val.images, val.boxes, val.empty_images) == (171, 915, 0)
    assert train.boxes_per_class == {"mask_weared_incorrect": 103, "with_mask": 2443, "without_mask": 560}
    assert val.boxes_per_class == {"mask_weared_incorrect": 18, "with_mask": 741, "without_mask": 156}
    assert (train.width, train.height) == ((193, 600), (156, 575))
    assert train.box_sizes == {"small": 2066, "medium": 847, "large": 193}
    assert len(sources) == 848


def test_rbc_is_imported_without_its_unused_root_category(shared_data: Path) -> None:
    index, report, sources = importer.read(shared_data / "rbc")
    assert report.ok
    assert report.defect_counts == {"class_unused": 1}
    assert "RBC-WBC" in report.defects[0].message
    assert index.classes == ("rbc", "wbc")
    counts = {name: (split.images, split.boxes, split.empty_images) for name, split in report.splits.items()}
    assert counts == {"train": (210, 4947, 0), "val": (20, 470, 0), "test": (10, 221, 0)}
    assert report.splits["train"].boxes_per_class == {"rbc": 4725, "wbc": 222}
    assert len(sources) == 240


def test_real_data_that_is_no_coco_is_refused_with_what_was_looked_for(shared_data: Path) -> None:
    for name in ("bccd", "pear"):
        with pytest.raises(DatasetError, match="no COCO annotations found"):
            importer.read(shared_data / name)


# --- layouts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("json_file", "image_folder"),
    [
        ("annotations/instances_{split}2017.json", "{split}2017"),
        ("annotations/custom_{split}.json", "images/{split}"),
        ("{split}/_annotations.coco.json", "{split}"),
        ("{split}.json", "images"),
        ("labels_{split}.json", ""),
        ("{split}/labels/boxes.json", "{split}/images"),
    ],
)
def test_each_layout_is_found_by_content(make_coco: Callable[..., Any], json_file: str, image_folder: str) -> None:
    index, report = read(make_coco(json_file=json_file, image_folder=image_folder))
    assert report.ok, report.defects
    assert report.defect_counts == {}
    assert [image.name for image in index.splits["train"]] == ["a.png", "b.png"]
    assert [image.name for image in index.splits["val"]] == ["c.png"]


@pytest.mark.parametrize(("word", "split"), [("validation", "val"), ("valid", "val"), ("training", "train")])
def test_usual_words_for_a_split_are_understood(coco: Any, word: str, split: str) -> None:
    coco.write()
    (coco.root / f"annotations/instances_{split}2017.json").rename(coco.root / f"annotations/{word}.json")
    _, report, _ = importer.read(coco.root)
    assert report.ok, report.defects


def test_split_of_a_nameless_json_is_that_of_the_folder_its_images_are_in(coco: Any) -> None:
    coco.write()
    (coco.root / "annotations/instances_train2017.json").rename(coco.root / "annotations/first.json")
    (coco.root / "annotations/instances_val2017.json").rename(coco.root / "annotations/second.json")
    index, report, _ = importer.read(coco.root)
    assert report.ok, report.defects
    assert [image.name for image in index.splits["val"]] == ["c.png"]


def test_file_names_may_hold_folders(coco: Any) -> None:
    for split, document in coco.documents.items():
        for image in document["images"]:
            image["file_name"] = f"{split}2017/{image['file_name']}"
    _, report = read(coco)
    assert report.ok
    assert report.defect_counts == {}


def test_two_files_for_one_split_are_ambiguous(coco: Any) -> None:
    coco.write()
    shutil.copy(coco.root / "annotations/instances_val2017.json", coco.root / "annotations/val_old.json")
    _, report, _ = importer.read(coco.root)
    assert not report.ok
    defect = only(report, "split_ambiguous")
    assert "instances_val2017.json" in defect.message
    assert "val_old.json" in defect.message


def test_files_of_other_tasks_are_skipped_with_a_reason(coco: Any) -> None:
    coco.write()
    folder = coco.root / "annotations"
    captions = {"images": [], "annotations": [{"id": 1, "image_id": 0, "caption": "a cat"}]}
    (folder / "captions_train2017.json").write_text(json.dumps(captions))
    keypoints = coco.documents["train"] | {"categories": [{"id": 1, "name": "person", "keypoints": ["nose"]}]}
    (folder / "person_keypoints_train2017.json").write_text(json.dumps(keypoints))
    (folder / "image_info_train2017.json").write_text(json.dumps({"images": [], "categories": []}))
    (coco.root / "package.json").write_text("{}")
    _, report, _ = importer.read(coco.root)
    assert report.ok
    assert report.defect_counts == {"json_skipped": 3, "json_invalid": 1}
    assert {defect.action for defect in report.defects} == {"kept"}


def test_links_and_pipes_among_the_annotations_are_survived(coco: Any, tmp_path: Path) -> None:
    coco.write()
    folder = coco.root / "annotations"
    (folder / "dangling.json").symlink_to("nowhere.json")
    (folder / "loop.json").symlink_to("loop.json")
    os.mkfifo(folder / "pipe.json")
    shutil.copy(folder / "instances_train2017.json", tmp_path / "outside.json")
    (folder / "outside_test.json").symlink_to(tmp_path / "outside.json")
    _, report, _ = importer.read(coco.root)
    assert not report.ok
    assert report.defect_counts == {"json_skipped": 3, "json_invalid": 1}
    assert "leads out of the data set" in only(report, "json_invalid").message


# --- whole files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [}', "line 1, column 13"),
        ("[" * 200_000, "invalid JSON"),
        ("[1, 2]", "contains a list"),
        ('{"images": [' + "9" * 5000 + "]}", "invalid JSON"),
        (b"\xff\xfe\xfa", "invalid JSON"),
        ('{"images": [], "annotations": [{"bbox": [1, 2, 3, 4]}]}', "categories must be a list"),
        ('{"images": {}, "annotations": [], "categories": []}', "images must be a list"),
        ('{"images": [], "categories": []}', "without annotations"),
    ],
)
def test_broken_annotations_reject_the_set_naming_file_and_fault(coco: Any, content: Any, message: str) -> None:
    coco.write()
    file = coco.root / "annotations/instances_train2017.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    _, report, _ = importer.read(coco.root)
    assert not report.ok
    defect = only(report, "json_invalid")
    assert defect.file == "annotations/instances_train2017.json"
    assert defect.action == "rejected"
    assert message in defect.message
    # The annotations are there: to add some, or boxes to them, would be the wrong advice.
    assert [each.code for each in report.defects if each.action == "rejected"] == ["json_invalid"]
    assert "class_unused" not in report.defect_counts


def test_split_that_is_missing_beside_a_broken_one_is_told_after_it(coco: Any) -> None:
    del coco.documents["train"]
    coco.write()
    (coco.root / "annotations/instances_val2017.json").write_text("{")
    _, report, _ = importer.read(coco.root)
    assert [each.code for each in report.defects] == ["json_invalid", "split_missing"]
    assert "train" in report.defects[1].message


def test_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        importer.read(tmp_path / "nowhere")


def test_folder_without_annotations_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"colour": 1}')
    with pytest.raises(DatasetError, match="no COCO annotations found"):
        importer.read(tmp_path)


def test_missing_training_split_is_rejected(coco: Any) -> None:
    del coco.documents["train"]
    _, report = read(coco)
    assert not report.ok
    assert "train" in only(report, "split_missing").message


@pytest.mark.parametrize("split", ["train", "val"])
def test_split_without_boxes_is_rejected(coco: Any, split: str) -> None:
    coco.documents[split]["annotations"] = []
    _, report = read(coco)
    assert not report.ok
    assert split in only(report, "no_boxes").message


def test_split_without_images_is_rejected(coco: Any) -> None:
    coco.documents["train"]["images"] = []
    _, report = read(coco)
    assert not report.ok
    assert only(report, "no_images").action == "rejected"


def test_crowd_regions_alone_are_no_boxes_to_train_on(coco: Any) -> None:
    for annotation in coco.documents["train"]["annotations"]:
        annotation["iscrowd"] = 1
    _, report = read(coco)
    assert not report.ok
    assert "no_boxes" in report.defect_counts


def test_repeated_box_is_dropped_and_its_first_is_named(coco: Any) -> None:
    coco.add_box("train", 0, [1, 2, 10, 12], 0)
    coco.add_box("train", 0, [1, 2, 10, 12], 7)  # of another class: it may be both
    index, report = read(coco)
    assert len(index.splits["train"][0].boxes) == 2
    defect = only(report, "box_duplicate")
    assert (defect.file, defect.action) == ("train2017/a.png", "dropped_box")
    assert "annotation 2" in defect.message
    assert "annotation 0" in defect.message


def test_class_that_cannot_be_scored_is_told(coco: Any) -> None:
    coco.documents["val"]["annotations"] = coco.documents["val"]["annotations"][:1]
    _, report = read(coco)
    assert report.ok
    assert "'dog' has no box in val" in only(report, "class_absent").message


def test_image_that_no_annotation_names_is_told(coco: Any) -> None:
    coco.write()
    shutil.copy(coco.image_path("train", "a.png"), coco.image_path("train", "stray.png"))
    _, report, _ = importer.read(coco.root)
    defect = only(report, "image_unlisted")
    assert (defect.file, defect.action) == ("train2017/stray.png", "dropped_image")


# --- categories -----------------------------------------------------------------------------------------------


def test_labels_count_from_one_whatever_the_category_ids(coco: Any) -> None:
    index, report = read(coco)
    assert index.classes == ("cat", "dog")
    assert [image.labels for image in index.splits["train"]] == [(1,), (2,)]
    assert index.splits["val"][0].labels == (1, 2)
    assert report.splits["val"].boxes_per_class == {"cat": 1, "dog": 1}


def test_classes_agree_among_splits_by_name_and_not_by_id(coco: Any) -> None:
    coco.documents["val"]["categories"] = [{"id": 3, "name": "dog"}, {"id": 4, "name": "cat"}]
    for annotation in coco.documents["val"]["annotations"]:
        annotation["category_id"] = {0: 4, 7: 3}[annotation["category_id"]]
    index, report = read(coco)
    assert report.ok
    assert index.classes == ("cat", "dog")
    assert index.splits["val"][0].labels == (1, 2)


def test_class_without_training_boxes_is_left_out_with_its_boxes(coco: Any) -> None:
    coco.documents["val"]["categories"].append({"id": 9, "name": "emu"})
    coco.add_box("val", 0, [1, 1, 5, 5], 9)
    index, report = read(coco)
    assert report.ok
    assert index.classes == ("cat", "dog")
    assert len(index.splits["val"][0].boxes) == 2
    assert "emu" in only(report, "class_unused").message
    assert only(report, "class_not_in_train").action == "dropped_box"


@pytest.mark.parametrize("twin", [{"id": 0, "name": "emu"}, {"id": 9, "name": "cat"}])
def test_duplicate_categories_are_rejected(coco: Any, twin: dict[str, Any]) -> None:
    coco.documents["train"]["categories"].append(twin)
    coco.add_box("train", 0, [5, 5, 3, 3], twin["id"])
    _, report = read(coco)
    assert not report.ok
    assert only(report, "category_duplicate").action == "rejected"


@pytest.mark.parametrize(
    "odd",
    [
        {"id": "one", "name": "emu"},
        {"id": True, "name": "emu"},
        {"id": 4},
        {"id": 4, "name": "\ud800"},
        {"id": 4, "name": "e" * 201},
        "emu",
        None,
    ],
)
def test_malformed_category_is_rejected(coco: Any, odd: Any) -> None:
    coco.documents["train"]["categories"].append(odd)
    coco.add_box("train", 0, [5, 5, 3, 3], 4)
    _, report = read(coco)
    assert not report.ok
    assert only(report, "category_invalid").action == "rejected"


@pytest.mark.parametrize(
    "root",
    [{"id": 3, "name": "cat", "supercategory": "none"}, {"id": 3, "name": ""}, {"id": 3}, {"id": 7, "name": "dog"}],
)
def test_a_category_that_nothing_is_labelled_with_refuses_nothing(coco: Any, root: dict[str, Any]) -> None:
    for document in coco.documents.values():
        document["categories"].insert(0, root)
    index, report = read(coco)
    assert report.ok
    assert sorted(index.classes) == ["cat", "dog"]
    assert report.defect_counts == {"category_repeated" if root["id"] == 7 else "category_unused": 2}


@pytest.mark.parametrize("step", [1, -1])
def test_category_numbers_that_are_all_off_by_one_are_refused(coco: Any, step: int) -> None:
    for document in coco.documents.values():
        document["categories"] = [{"id": n, "name": name} for n, name in enumerate(("emu", "cat", "dog"), start=5)]
        for annotation in document["annotations"]:
            annotation["category_id"] = {0: 6, 7: 7}[annotation["category_id"]] + step
        document["annotations"][0]["category_id"] = 8 if step == 1 else 4
    for annotation in coco.documents["val"]["annotations"]:
        annotation["category_id"] = 6
    _, report = read(coco)
    defect = only(report, "class_numbers_shifted")
    assert defect.action == "rejected"
    assert f"counted from {5 + step}" in defect.message


def test_ids_are_equal_as_numbers_are(coco: Any) -> None:
    before, _ = read(coco)
    for document in coco.documents.values():
        for image in document["images"]:
            image["id"] = float(image["id"])
        for category in document["categories"]:
            category["id"] = str(category["id"])
        for annotation in document["annotations"]:
            annotation |= {"image_id": f"{annotation['image_id']}.0", "category_id": float(annotation["category_id"])}
    after, report = read(coco)
    assert report.defect_counts == {}
    assert after == before


def test_a_name_that_begins_with_0_is_no_number(coco: Any) -> None:
    for name, key in (("seven.png", "007"), ("other.png", 7)):
        coco.add_image("train", name, id=key)
        coco.add_box("train", key, [5, 5, 3, 3])
    index, report = read(coco)
    assert report.defect_counts == {}
    assert [len(image.boxes) for image in index.splits["train"]] == [1, 1, 1, 1]


@pytest.mark.parametrize(("listed", "meant"), [("007", 7), (7, "007"), ("007", "07"), ("007", 7.0)])
def test_zeros_in_front_are_no_difference_where_no_other_id_has_that_number(coco: Any, listed: Any, meant: Any) -> None:
    coco.add_image("train", "seven.png", id=listed)
    coco.add_box("train", meant, [5, 5, 3, 3])
    index, report = read(coco)
    assert report.defect_counts == {}
    assert sum(len(image.boxes) for image in index.splits["train"]) == 3


@pytest.mark.parametrize(("written", "crowd"), [("0", False), ("1", True), (0.0, False), (None, False)])
def test_crowd_may_be_written_as_text(coco: Any, written: Any, crowd: bool) -> None:
    coco.add_box("train", 0, [5, 5, 3, 3], iscrowd=written)
    assert read(coco)[0].splits["train"][0].crowd == (False, crowd)


@pytest.mark.parametrize("bbox", [None, [], [0, 0, 0, 0], "gone"])
def test_box_of_an_annotation_without_one_is_that_around_its_outline(coco: Any, bbox: Any) -> None:
    outlines = [[[5, 5, 9, 5, 9, 8, 5, 8]], {"size": [30, 40], "counts": [155, 3, 27, 3, 27, 3, 27, 3, 952]}]
    for outline in outlines:
        coco.add_box("train", len(coco.documents["train"]["annotations"]) - 2, bbox, segmentation=outline)
    if bbox == "gone":
        for annotation in coco.documents["train"]["annotations"][2:]:
            del annotation["bbox"]
    index, report = read(coco)
    assert [image.boxes[1] for image in index.splits["train"]] == [(5, 5, 9, 8), (5, 5, 9, 8)]
    assert report.defect_counts == {"outline_to_box": 2}


def test_a_file_of_outlines_alone_is_one_of_detection(coco: Any) -> None:
    for document in coco.documents.values():
        for annotation in document["annotations"]:
            x, y, w, h = annotation.pop("bbox")
            annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
    index, report = read(coco)
    assert report.ok
    assert index.splits["train"][0].boxes == ((1, 2, 11, 14),)


@pytest.mark.parametrize("bbox", [[math.nan, 5, 3, 3], [5, 5], None])
def test_image_whose_only_box_cannot_be_read_is_no_background(coco: Any, bbox: Any) -> None:
    coco.add_box("train", coco.add_image("train", "odd.png"), bbox)
    index, report = read(coco)
    assert [image.name for image in index.splits["train"]] == ["a.png", "b.png"]
    defect = only(report, "labels_unreadable")
    assert (defect.file, defect.action) == ("train2017/odd.png", "dropped_image")


def test_names_that_would_steer_a_terminal_are_written_out(coco: Any) -> None:
    for document in coco.documents.values():
        document["categories"][0]["name"] = "\x1b]0;cat\x07\0\u202e"
    index, report = read(coco)
    assert report.ok
    assert index.classes == ("\\u001b]0;cat\\u0007\\u0000\\u202e", "dog")
    assert only(report, "class_name_escaped").action == "kept"
    assert len(index.splits["val"][0].boxes) == 2


# --- images ---------------------------------------------------------------------------------------------------


def test_missing_image_is_dropped_with_its_boxes(coco: Any) -> None:
    coco.write()
    (coco.root / "train2017/b.png").unlink()
    coco.add_box("train", 0, [4, 4, 4, 4], 7)
    index, report = read(coco)
    assert report.ok
    assert [image.name for image in index.splits["train"]] == ["a.png"]
    defect = only(report, "image_missing")
    assert defect.file == "train2017/b.png"
    assert defect.action == "dropped_image"
    assert report.defect_counts == {"image_missing": 1}


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"this is no image", b"\x89PNG\r\n\x1a\n\x00\x00"])
@pytest.mark.parametrize("verify", ["full", "headers"])
def test_file_that_is_no_image_is_dropped(coco: Any, content: bytes, verify: str) -> None:
    image_id = coco.add_image("train", "broken.png")
    coco.add_box("train", image_id, [1, 1, 5, 5])
    coco.image_path("train", "broken.png").write_bytes(content)
    index, report = read(coco, verify)
    assert report.ok
    assert len(index.splits["train"]) == 2
    assert only(report, "image_broken").file == "train2017/broken.png"


def test_truncated_jpeg_is_found_by_full_verification(make_coco: Callable[..., Any]) -> None:
    coco = make_coco()
    coco.add_image("train", "cut.jpg", 200, 200)
    path = coco.image_path("train", "cut.jpg")
    path.write_bytes(path.read_bytes()[:-3000])
    _, report = read(coco, "full")
    assert "truncated" in only(report, "image_broken").message
    _, report = read(coco, "headers")
    assert report.defect_counts == {"image_unlabelled": 1}


def test_decompression_bomb_is_dropped_without_being_decoded(coco: Any) -> None:
    coco.add_image("train", "bomb.png")
    Pillow.new("1", (20_000, 20_000)).save(coco.image_path("train", "bomb.png"))
    coco.add_image("train", "large.png")
    Pillow.new("1", (11_000, 9_100)).save(coco.image_path("train", "large.png"))
    index, report = read(coco)
    assert len(index.splits["train"]) == 2
    assert report.defect_counts == {"image_too_large": 2}


def test_image_of_more_than_the_limit_is_dropped(coco: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 40 * 30)
    coco.add_image("train", "large.png", 41, 30)
    _, report = read(coco)
    assert only(report, "image_too_large").message == "41x30 pixels are more than 1200"


def test_real_size_wins_over_the_declared_one(coco: Any) -> None:
    coco.documents["train"]["images"][0] |= {"width": 400, "height": None}
    index, report = read(coco)
    assert (index.splits["train"][0].width, index.splits["train"][0].height) == (40, 30)
    assert "40x30" in only(report, "size_differs").message


def test_size_need_not_be_declared(coco: Any) -> None:
    for image in coco.documents["train"]["images"]:
        del image["width"], image["height"]
    assert read(coco)[1].defect_counts == {}


@pytest.mark.parametrize("declared", [(40, 30), (30, 40)])
def test_exif_rotation_is_not_applied(coco: Any, declared: tuple[int, int]) -> None:
    coco.add_image("train", "turned.jpg")
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.new("RGB", (40, 30)).save(coco.image_path("train", "turned.jpg"), exif=exif)
    coco.documents["train"]["images"][-1] |= dict(zip(("width", "height"), declared, strict=True))
    index, report = read(coco)
    assert only(report, "exif_rotated").action == "kept"
    assert report.defect_counts == {"exif_rotated": 1, "image_unlabelled": 1}
    sizes = [(image.width, image.height) for image in index.splits["train"] if image.name == "turned.jpg"]
    assert sizes == [(40, 30)]


@pytest.mark.parametrize(
    ("mode", "name"), [("L", "l.png"), ("CMYK", "c.jpg"), ("P", "p.gif"), ("RGBA", "r.png"), ("1", "b.png")]
)
def test_colours_other_than_rgb_are_kept_and_reported(coco: Any, mode: str, name: str) -> None:
    name = f"odd-{name}"
    coco.add_image("train", name)
    Pillow.new(mode, (40, 30)).save(coco.image_path("train", name))
    index, report = read(coco)
    assert len(index.splits["train"]) == 3
    assert mode in only(report, "colour_converted").message


def test_sixteen_bit_image_is_dropped_because_pillow_would_turn_it_white(coco: Any) -> None:
    coco.add_image("train", "deep.png")
    Pillow.new("I;16", (40, 30)).save(coco.image_path("train", "deep.png"))
    _, report = read(coco)
    assert only(report, "image_unsupported").action == "dropped_image"


def test_duplicate_image_ids_are_rejected(coco: Any) -> None:
    coco.documents["train"]["images"][1]["id"] = 0
    _, report = read(coco)
    assert not report.ok
    assert only(report, "image_id_duplicate").action == "rejected"


@pytest.mark.parametrize(
    "odd", [{"id": 5}, {"file_name": "a.png"}, {"id": 1.5, "file_name": "a.png"}, {"id": 5, "file_name": "\ud800"}, 3]
)
def test_malformed_image_entry_is_dropped(coco: Any, odd: Any) -> None:
    coco.documents["train"]["images"].append(odd)
    index, report = read(coco)
    assert report.ok
    assert len(index.splits["train"]) == 2
    assert only(report, "image_invalid").action == "dropped_image"


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "x/../../secret.png", "a\0.png"])
def test_file_name_that_leads_out_of_the_folder_is_dropped(coco: Any, name: str) -> None:
    coco.root.parent.joinpath("secret.png").write_bytes(b"secret")
    coco.documents["train"]["images"].append({"id": 9, "file_name": name})
    index, report = read(coco)
    assert len(index.splits["train"]) == 2
    assert only(report, "path_escapes").action == "dropped_image"


def test_link_that_leads_out_of_the_folder_is_dropped(coco: Any, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    Pillow.new("RGB", (40, 30)).save(outside / "x.png")
    coco.documents["train"]["images"].append({"id": 9, "file_name": "link.png"})
    coco.image_path("train", "link.png").symlink_to(outside / "x.png")
    (coco.root / "more").symlink_to(outside)
    index, report = read(coco)
    assert len(index.splits["train"]) == 2
    assert report.defect_counts == {"path_escapes": 1, "link_not_followed": 1}


def test_overlong_and_looping_names_are_survived(coco: Any) -> None:
    coco.documents["train"]["images"].append({"id": 8, "file_name": "x" * 5000})
    coco.documents["train"]["images"].append({"id": 9, "file_name": "loop.png"})
    coco.image_path("train", "loop.png").symlink_to("loop.png")
    index, report = read(coco)
    assert report.ok
    assert len(index.splits["train"]) == 2
    assert sum(report.defect_counts.values()) == 2


def test_same_image_in_two_splits_is_reported(coco: Any) -> None:
    coco.add_image("val", "twin.png")
    coco.add_image("train", "copy.png")
    shutil.copy(coco.image_path("train", "a.png"), coco.image_path("val", "twin.png"))
    shutil.copy(coco.image_path("train", "a.png"), coco.image_path("train", "copy.png"))
    index, report = read(coco)
    assert "a.png in train" in only(report, "image_in_two_splits").message
    assert only(report, "image_repeated").file == "train2017/copy.png"
    assert len(index.splits["train"]) == 3


def test_images_without_boxes_are_kept_and_counted(coco: Any) -> None:
    coco.add_image("train", "empty.png")
    index, report = read(coco)
    assert report.splits["train"].empty_images == 1
    assert index.splits["train"][2].boxes == ()
    assert only(report, "image_unlabelled").file == "train2017/empty.png"


def test_images_come_in_the_order_of_the_users_ids_and_get_ids_of_their_own(coco: Any) -> None:
    coco.documents["train"]["images"].reverse()
    index, _ = read(coco)
    assert [(image.id, image.name) for image in index.splits["train"]] == [(1, "a.png"), (2, "b.png")]
    assert [(image.id, image.name) for image in index.splits["val"]] == [(3, "c.png")]


def test_image_ids_may_be_words(coco: Any) -> None:
    coco.documents["train"]["images"][0]["id"] = "first"
    coco.documents["train"]["annotations"][0]["image_id"] = "first"
    index, report = read(coco)
    assert report.ok
    assert [image.name for image in index.splits["train"]] == ["b.png", "a.png"]


# --- boxes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bbox", "code"),
    [
        ([5, 5, 0, 3], "zero_area_box"),
        ([5, 5, 3, 0], "zero_area_box"),
        ([5, 5, -3, 3], "zero_area_box"),
        ([5, 5, 0.01, 3], "zero_area_box"),
        ([39.95, 5, 10, 3], "zero_area_box"),
        ([40, 5, 3, 3], "box_outside"),
        ([5, 30, 3, 3], "box_outside"),
        ([-5, 5, 5, 3], "box_outside"),
        ([math.nan, 5, 3, 3], "box_not_finite"),
        ([5, 5, math.inf, 3], "box_not_finite"),
        ([5, 5, -math.inf, 3], "box_not_finite"),
        ([5, 5, 10**400, 3], "box_not_finite"),
        ([5, 5, 1e300, 3], "box_not_finite"),
        (["5", 5, 3, 3], "box_not_finite"),
        ([None, 5, 3, 3], "box_not_finite"),
        ([True, 5, 3, 3], "box_not_finite"),
        ([[5], 5, 3, 3], "box_not_finite"),
        ([5, 5, 3], "box_invalid"),
        ([5, 5, 3, 3, 3], "box_invalid"),
        ([], "box_invalid"),
        (None, "box_invalid"),
        ({"x": 5}, "box_invalid"),
        ("5 5 3 3", "box_invalid"),
    ],
)
def test_unusable_box_is_dropped_and_named(coco: Any, bbox: Any, code: str) -> None:
    coco.add_box("train", 0, bbox, id=77)
    index, report = read(coco)
    assert report.ok
    assert len(index.splits["train"][0].boxes) == 1
    assert report.defect_counts == {code: 1}
    defect = only(report, code)
    assert defect.file == "train2017/a.png"
    assert "annotation 77" in defect.message
    assert "instances_train2017.json" in defect.message
    assert defect.action == "dropped_box"


def test_box_that_reaches_out_is_cut_and_reported(coco: Any) -> None:
    coco.add_box("train", 0, [-4, 20, 14, 20])
    index, report = read(coco)
    assert index.splits["train"][0].boxes[1] == (0, 20, 10, 30)
    assert only(report, "box_clipped").action == "clipped_box"


def test_half_a_pixel_too_far_is_cut_without_a_word(coco: Any) -> None:
    coco.add_box("train", 0, [-0.5, 20, 10.5, 10.5])
    index, report = read(coco)
    assert index.splits["train"][0].boxes[1] == (0, 20, 10, 30)
    assert report.defect_counts == {}


@pytest.mark.parametrize("image_id", [99, None, "a", True, [0]])
def test_box_of_an_unknown_image_is_dropped(coco: Any, image_id: Any) -> None:
    coco.add_box("train", image_id, [5, 5, 3, 3])
    assert only(read(coco)[1], "annotation_unknown_image").action == "dropped_box"


@pytest.mark.parametrize("category_id", [99, None, "cat", False, {}])
def test_box_of_an_unknown_category_is_dropped(coco: Any, category_id: Any) -> None:
    coco.add_box("train", 0, [5, 5, 3, 3], category_id)
    assert only(read(coco)[1], "annotation_unknown_category").action == "dropped_box"


def test_annotation_that_is_no_object_is_dropped(coco: Any) -> None:
    coco.documents["train"]["annotations"].append([1, 2, 3])
    assert only(read(coco)[1], "annotation_invalid").action == "dropped_box"


def test_duplicate_annotation_ids_are_kept_and_reported(coco: Any) -> None:
    coco.add_box("train", 0, [5, 5, 3, 3], id=0)
    index, report = read(coco)
    assert only(report, "annotation_id_duplicate").action == "kept"
    assert len(index.splits["train"][0].boxes) == 2


def test_crowd_regions_keep_their_flag(coco: Any) -> None:
    coco.add_box("train", 0, [5, 5, 3, 3], iscrowd=1, segmentation={"counts": [1], "size": [30, 40]})
    index, report = read(coco)
    assert index.splits["train"][0].crowd == (False, True)
    assert report.splits["train"].boxes == 3


def test_only_the_first_thousand_defects_are_told_but_all_are_counted(coco: Any) -> None:
    for _ in range(1200):
        coco.add_box("train", 0, [5, 5, 0, 0])
    coco.documents["val"]["annotations"] = []
    _, report = read(coco)
    assert report.defect_counts["zero_area_box"] == 1200
    assert len(report.defects) == 1000
    assert report.defects[0].code == "no_boxes", "a rejection is not crowded out"


def test_random_damage_never_raises(coco: Any) -> None:
    odd = [None, True, -1, 0, 3, 1.5, math.nan, 10**30, "", "x", "\ud800", "a.png", [], {}, [1, 2, 3, 4], {"id": 1}]
    coco.add_box("train", 0, [5, 5, 3, 3], 7)
    original = json.dumps(coco.documents)
    rng = random.Random(0)
    for _ in range(300):
        coco.documents = json.loads(original)
        for _ in range(rng.randint(1, 4)):
            node: Any = coco.documents[rng.choice(["train", "val"])]
            while True:
                key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
                if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.2:
                    break
                node = node[key]
            node[key] = rng.choice(odd)
        _, report, _ = importer.read(coco.write(), "headers")
        Report.model_validate_json(report.model_dump_json())


# --- the whole ------------------------------------------------------------------------------------------------


def test_reading_twice_gives_the_same(coco: Any) -> None:
    coco.add_box("train", 0, [5, 5, 0, 0])
    assert read(coco) == read(coco)


def test_both_verifications_give_the_same_index_of_a_sound_set(coco: Any) -> None:
    assert read(coco, "full") == read(coco, "headers")


def test_open_index_of_a_raw_folder_resolves_against_its_root(coco: Any) -> None:
    index, root = open_index(coco.write())
    assert [image.file for image in index.splits["train"]] == ["train2017/a.png", "train2017/b.png"]
    assert all((root / image.file).is_file() for images in index.splits.values() for image in images)


def test_open_index_refuses_a_rejected_folder_with_its_defects(coco: Any) -> None:
    del coco.documents["train"]
    with pytest.raises(DatasetError, match="no annotations of the train split"):
        open_index(coco.write())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not a valid index"),
        ({"file": "../x.png"}, "leads out of the folder"),
        ({"labels": (3,)}, "label"),
        ({"labels": ()}, "unequal numbers"),
        ({"boxes": ((1, 2, 1, 5),)}, "box outside"),
        ({"boxes": ((1, 2, 41, 5),)}, "box outside"),
        ({"id": 2}, "used twice"),
    ],
)
def test_open_index_refuses_an_index_that_lies(coco: Any, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    index, _ = read(coco)
    content = json.loads(index.model_dump_json())
    target = content if "format" in change else content["splits"]["train"][0]
    target.update(change)
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=message):
        open_index(tmp_path)


def test_importing_the_package_and_reading_loads_no_torch() -> None:
    code = "import sys, fgd.data, fgd.data.coco, fgd.data.archive, fgd.data.digits; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
