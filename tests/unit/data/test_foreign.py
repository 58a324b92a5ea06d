"""A folder that is no data set: the first line of the refusal names a file, what it is and the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fgd.data import formats
from fgd.data.foreign import json_kind, xml_kind
from fgd.data.images import BadImage, probe
from fgd.data.tree import list_tree
from fgd.errors import DatasetError
from tests.unit.data.conftest import picture
from tests.unit.data.test_yolo import Yolo


def refusal(root: Path, format: str = "auto", skipped: tuple[str, ...] = ()) -> str:
    with pytest.raises(DatasetError) as refused:
        formats.read(root, format, skipped=skipped)
    return str(refused.value)


BOX = {"x": 1, "y": 2, "width": 3, "height": 4}
JSONS: list[tuple[Any, str]] = [
    ({"version": "5.0", "shapes": [], "imagePath": "a.jpg", "imageData": None}, "labelme"),
    ([{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": []}]}], "Label Studio"),
    ([{"image": "a.jpg", "label": [{"x": 1, "rectanglelabels": ["cat"]}]}], "Label Studio"),
    ({"a.jpg123": {"filename": "a.jpg", "size": 1, "regions": []}}, "VIA"),
    ({"_via_settings": {}, "_via_img_metadata": {}}, "VIA"),
    ({"description": "", "tags": [], "size": {"height": 1, "width": 1}, "objects": []}, "Supervisely"),
    ({"classes": [{"title": "cat", "shape": "rectangle", "color": "#fff"}], "tags": []}, "Supervisely"),
    ([{"image": "a.jpg", "annotations": [{"label": "cat", "coordinates": BOX}]}], "CreateML"),
    ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}], "results of a detector"),
    ([{"file_name": "a.jpg", "annotations": [{"bbox": [1, 2, 3, 4], "bbox_mode": 0}]}], "Detectron2"),
    ([{"name": "a.jpg", "labels": [{"category": "car", "box2d": {}}]}], "BDD100K"),
    ([{"data_row": {}, "projects": {}}], "Labelbox"),
    ({"version": "2.0", "item": {"name": "a.jpg"}, "annotations": []}, "Darwin"),
    ({"info": {}, "categories": {}, "items": []}, "Datumaro"),
    ({"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}]}, "captions"),
    ({"images": [], "annotations": [{"segments_info": []}]}, "panoptic"),
    ({"images": [], "annotations": []}, "without a list of categories"),
    ({"images": [], "categories": []}, "without annotations"),
    ({"type": "FeatureCollection", "features": []}, "GeoJSON"),
]


@pytest.mark.parametrize(("content", "words"), JSONS)
def test_the_json_of_other_tools_is_known(content: Any, words: str) -> None:
    assert words in (json_kind(json.dumps(content).encode()) or "")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b'{"a": [}', "line 1, column 8"), (b"[" * 100_000, "invalid JSON"), (b'{"a": "\xe8"}', "UTF-8")],
)
def test_json_that_cannot_be_read_is_told_with_its_place(content: bytes, words: str) -> None:
    assert words in (json_kind(content) or "")


@pytest.mark.parametrize("content", [[], {}, 7, None, ["a"], {"colour": 1}, {"annotations": 1, "objects": [None]}])
def test_other_json_says_nothing(content: Any) -> None:
    assert json_kind(json.dumps(content).encode()) is None


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ('<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><task/></meta>', "CVAT"),
        ('<annotations><image id="0" name="a.jpg" width="1" height="1"><box/></image></annotations>', "CVAT"),
        ("<dataset><name>x</name><images><image file='a.jpg'/></images></dataset>", "imglab"),
        ("<html><body/></html>", "first element is <html>"),
        ("<annotations><im", "first element is <annotations>"),
        ("<a><b></a>", "invalid XML"),
        ("<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>", "DOCTYPE"),
    ],
)
def test_the_xml_of_other_tools_is_known(head: str, words: str) -> None:
    assert words in (xml_kind(head.encode()) or "")
    assert xml_kind(b"<annotation><object/></annotation>") is None


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("a.json", json.dumps(JSONS[0][0]), "a.json: a file of labelme"),
        ("export/annotations.xml", "<annotations><meta/></annotations>", "export/annotations.xml: an export of CVAT"),
        ("train.tfrecord", "x", "train.tfrecord: a TFRecord"),
        ("train.tfrecord-00000-of-00002", "x", "a TFRecord"),
        ("boxes.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n", "boxes.csv: a table with a box a line"),
        ("via.csv", "filename,file_size,region_shape_attributes\n", "via.csv: an export of VIA"),
        ("set.zip", "PK", "set.zip: an archive in the data set"),
        ("a.HEIC", "x", "a.HEIC: 1 pictures of an iPhone in HEIC"),
        ("a.mp4", "x", "a.mp4: 1 videos"),
        ("labels/a.txt", "Car 0.0 0 -1.5 599 156 629 189 2 1.8 3.6 1 1.5 20 -1.5\n", "labels of KITTI"),
        ("labels/a.txt", "1 2 3 2 3 4 1 4 plane 0\n", "labels of DOTA"),
        ("data.yaml", "names: [cat]\n", "data.yaml: it names classes and no folder of images"),
        ("data.yaml", "train: images\n", "data.yaml: it has no names of classes"),
        ("data.yaml", "names:\n\t- cat\ntrain: images\n", "lines start with tabs"),
        ("dataset_dict/data-00000.arrow", "x", "saved by save_to_disk"),
    ],
)
def test_what_lies_there_instead_comes_first(tmp_path: Path, file: str, content: str, words: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(content)
    for format in ("auto", "coco"):
        first = refusal(tmp_path, format).partition(f"; {tmp_path}: ")[0]
        assert words in first
        assert file.rpartition("/")[2] in first


def test_cvat_that_is_asked_to_be_voc_is_told_so(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text("<annotations><meta/></annotations>")
    _, report, _ = formats.read(tmp_path, "voc")
    assert report.defects[0].action == "rejected"
    assert "an export of CVAT in its own XML" in report.defects[0].message


def test_members_that_were_not_unpacked_are_known_by_name(tmp_path: Path) -> None:
    assert refusal(tmp_path, skipped=("inner.zip",)).startswith("inner.zip: an archive")
    assert "2 pictures of an iPhone" in refusal(tmp_path, skipped=("b/1.heic", "b/2.HEIC"))


def test_labels_without_data_yaml_are_told_what_to_write(tmp_path: Path) -> None:
    yolo = Yolo(tmp_path / "set")
    (yolo.root / "classes.txt").write_text("cat\ndog\n")
    (yolo.root / "notes.json").write_text('{"categories": [{"id": 0, "name": "cat"}]}')
    told = refusal(yolo.root)
    assert "there is no data.yaml" in told
    assert 'train: images/train and names: ["cat", "dog"]' in told


def test_pictures_alone_are_told_from_a_data_set(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        picture().save(tmp_path / name / "a.png")
    told = refusal(tmp_path)
    assert told.startswith("cat/a.png: one of 2 pictures")
    assert "a detector needs boxes" in told


def test_a_stray_json_makes_no_coco(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"colour": 1}')
    assert "no data set found" in refusal(tmp_path)
    Yolo(tmp_path).read()
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "project.json").write_text('{"steps": [{"images": 1, "annotations": []}], "categories": []}')
    assert formats.recognised(list_tree(tmp_path)) == "yolo"


def test_pictures_of_a_kind_that_is_not_read_are_the_reason_of_an_empty_split(tmp_path: Path) -> None:
    yolo = Yolo(tmp_path / "set")
    for file in list((yolo.root / "images/train").iterdir()):
        file.rename(file.with_suffix(".heic"))
    _, report = yolo.read()
    first = report.defects[0]
    assert (first.code, first.file) == ("no_images", "data.yaml")
    assert "HEIC, which is not read; convert them to JPEG" in first.message


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"", "image_broken", "empty"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "image_unsupported", "HEIC"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "image_unsupported", "AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "image_unsupported", "a video"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "image_broken", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "image_broken", "a web page"),
        (b"%PDF-1.4", "image_unsupported", "a PDF"),
        (b"PK\x03\x04", "image_unsupported", "an archive"),
        (b"nonsense", "image_broken", "not an image in a known format"),
    ],
)
def test_a_file_that_is_no_picture_is_called_what_it_is(tmp_path: Path, content: bytes, code: str, words: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadImage) as refused:
        probe(tmp_path / "a.jpg", "full")
    assert refused.value.code == code
    assert words in refused.value.message
