"""A missing val split is taken out of train, the same one everywhere."""

from __future__ import annotations

import io
import json
import random
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from fgd.data import formats, zips
from fgd.data.index import Index, Report
from fgd.data.splits import Carving, carve, prefix
from fgd.errors import DatasetError
from tests.unit.data.conftest import picture

FILES = [f"photo{photo}_{crop}.jpg" for photo in range(20) for crop in range(5)]


def names(files: list[str], chosen: Any) -> set[str]:
    return {files[place] for place in chosen.places}


def carved(files: list[str], carving: Carving, contents: list[str] | None = None, classes: Any = None) -> set[str]:
    chosen = carve(files, contents or files, classes or [{"a"}] * len(files), carving)
    assert chosen is not None
    return names(files, chosen)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3])
def test_val_has_its_share(fraction: float) -> None:
    assert len(carved(FILES, Carving(fraction))) == round(fraction * len(FILES))


@pytest.mark.parametrize("group_by", ["none", "prefix"])
def test_the_choice_does_not_depend_on_the_order(group_by: Any) -> None:
    shuffled = list(FILES)
    random.Random(0).shuffle(shuffled)
    assert carved(shuffled, Carving(0.2, group_by)) == carved(FILES, Carving(0.2, group_by))


def test_the_choice_stays_what_it_was() -> None:
    assert carved(FILES, Carving(0.03)) == {"photo14_2.jpg", "photo4_0.jpg", "photo6_0.jpg"}


def test_crops_of_one_photograph_stay_together() -> None:
    val = carved(FILES, Carving(0.2, "prefix"))
    assert len(val) == 20
    assert {prefix(file) for file in val}.isdisjoint(prefix(file) for file in set(FILES) - val)


@pytest.mark.parametrize(
    ("file", "group"),
    [
        ("a/photo_12.jpg", "a/photo"),
        ("photo-3.png", "photo"),
        ("photo.jpg", "photo"),
        ("cell_00001_jpg.rf.0a1b2c.jpg", "cell_00001_jpg.rf"),
        ("DSC_1352_12kv2r1k_0.jpg", "DSC_1352_12kv2r1k"),
    ],
)
def test_prefix_is_the_name_without_its_last_part(file: str, group: str) -> None:
    assert prefix(file) == group


def test_images_of_the_same_content_stay_together_even_across_groups() -> None:
    contents = [file.partition("_")[2] for file in FILES]  # crop 0 of every photograph is the same picture
    assert carve(FILES, contents, [{"a"}] * len(FILES), Carving(0.2, "prefix")) is None  # all hang together
    val = carved(FILES, Carving(0.2), contents)
    assert len({file.partition("_")[2] for file in val}) == 1
    assert len(val) == 20


def test_the_last_image_of_a_class_stays_in_train() -> None:
    for lonely in range(len(FILES)):
        classes = [{"a", "rare"} if place == lonely else {"a"} for place in range(len(FILES))]
        assert FILES[lonely] not in carved(FILES, Carving(0.9), classes=classes)


def test_val_has_a_box_even_where_few_images_have_one() -> None:
    classes: list[set[str]] = [set()] * (len(FILES) - 2) + [{"a"}, {"a"}]
    val = carved(FILES, Carving(0.01), classes=classes)
    assert len(val & set(FILES[-2:])) == 1


@pytest.mark.parametrize("classes", [[{"a"}], [{"a"}, {"b"}], [set(), set()], []])
def test_what_cannot_be_parted_is_not(classes: Any) -> None:
    assert carve(FILES[: len(classes)], FILES[: len(classes)], classes, Carving(0.5)) is None


# --- in a data set --------------------------------------------------------------------------------------------


def without_val(make_coco: Callable[..., Any], images: int = 20, **layout: str) -> Any:
    coco = make_coco(**layout)
    (coco.image_path("val", "c.png")).unlink()
    coco.documents.pop("val")
    for n in range(images - 2):
        coco.add_box("train", coco.add_image("train", f"more{n // 3}_{n}.png"), [1, 2, 10, 12], n % 2 * 7)
    return coco


def read(coco: Any, carving: Carving | None = None) -> tuple[Index, Report]:
    index, report, sources = formats.read(coco.write(), carving=carving)
    assert {image.file for split in index.splits.values() for image in split} == set(sources)
    return index, report


def test_missing_val_is_carved_and_the_report_says_how(make_coco: Callable[..., Any]) -> None:
    index, report = read(without_val(make_coco), Carving(0.2, "prefix"))
    assert report.ok, report.defects
    assert (report.splits["train"].images, report.splits["val"].images) == (16, 4)
    assert report.carved is not None
    assert (report.carved.val_fraction, report.carved.group_by, report.carved.images) == (0.2, "prefix", 4)
    assert report.carved.groups == 8  # a, b, more0 to more5
    assert "val_fraction 0.2" in report.defects[0].message
    assert report.defect_counts == {"val_carved": 1}
    assert [image.id for split in ("train", "val") for image in index.splits[split]] == list(range(1, 21))  # type: ignore[index]


def test_a_test_split_is_left_alone(make_coco: Callable[..., Any]) -> None:
    coco = without_val(make_coco)
    coco.add_box("test", coco.add_image("test", "t.png"), [1, 2, 10, 12], 0)
    index, report = read(coco)
    assert report.ok
    assert [image.name for image in index.splits["test"]] == ["t.png"]
    assert (report.splits["train"].images, report.splits["val"].images) == (18, 2)


def test_one_file_without_a_split_is_all_of_train(make_coco: Callable[..., Any]) -> None:
    coco = without_val(make_coco, json_file="annotations.json", image_folder="pictures")
    _, report = read(coco)
    assert report.ok, report.defects
    assert (report.splits["train"].images, report.splits["val"].images) == (18, 2)


def test_a_val_split_that_is_there_is_kept_and_the_idle_option_told(make_coco: Callable[..., Any]) -> None:
    _, report = read(make_coco(), Carving(0.5))
    assert report.ok
    assert report.carved is None
    assert report.splits["val"].images == 1
    assert report.defect_counts == {"option_unused": 1}


def test_broken_val_is_not_replaced_by_a_carved_one(make_coco: Callable[..., Any]) -> None:
    coco = make_coco()
    coco.write()
    (coco.root / "annotations/instances_val2017.json").write_text("{")
    _, report, _ = formats.read(coco.root)
    assert not report.ok
    assert report.defect_counts == {"json_invalid": 1}


def test_too_few_images_to_carve_from_are_rejected(make_coco: Callable[..., Any]) -> None:
    _, report = read(without_val(make_coco, 2))
    assert not report.ok
    assert "val_not_carved" in report.defect_counts


# --- which format ---------------------------------------------------------------------------------------------


def test_folder_that_looks_like_two_formats_asks_for_a_name(make_coco: Callable[..., Any], tmp_path: Path) -> None:
    coco = make_coco()
    root = coco.write()
    (root / "data.yaml").write_text(json.dumps({"train": "train2017", "val": "val2017", "names": ["cat"]}))
    with pytest.raises(DatasetError, match=r"COCO \(annotations/.*\) and YOLO \(data.yaml\).*\"coco\" or \"yolo\""):
        formats.read(root)
    assert formats.read(root, "coco")[1].format == "coco"


def test_folder_of_no_format_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(DatasetError, match=r"COCO .*Pascal VOC .*YOLO"):
        formats.read(tmp_path)


# --- the same set in other folders ----------------------------------------------------------------------------


def _boxed(number: int) -> dict[str, Any]:
    return {"bbox": [[number, 2, 9, 9]], "category": ["cat"]}


NAMES = [f"caf\u00e9 {number}.png" for number in range(12)]


def _coco(names: list[str]) -> dict[str, str]:
    document = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [n, 2, 9, 9], "iscrowd": 0} for n in range(len(names))
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    return {"annotations.json": json.dumps(document)}


def _voc(names: list[str]) -> dict[str, str]:
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    xml = f"<annotation><object><name>cat</name>{box}</object></annotation>"
    return {f"annotations/{Path(name).stem}.xml": xml for name in names}


def _yolo(names: list[str]) -> dict[str, str]:
    labels = {f"labels/{Path(name).stem}.txt": "0 0.5 0.5 0.2 0.2" for name in names}
    return labels | {"data.yaml": "train: images\nnames: [cat]\n"}


def _huggingface(names: list[str]) -> dict[str, str]:
    rows = [{"file_name": f"images/{name}", "objects": _boxed(number)} for number, name in enumerate(names)]
    return {"metadata.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}


@pytest.mark.parametrize("texts", [_coco, _voc, _yolo, _huggingface])
def test_val_is_the_same_whatever_the_set_lies_in(texts: Callable[[list[str]], dict[str, str]], tmp_path: Path) -> None:
    files: dict[str, bytes] = {name: text.encode() for name, text in texts(NAMES).items()}
    for number, name in enumerate(NAMES):
        content = io.BytesIO()
        picture(seed=number).save(content, "PNG")
        files[f"images/{name}"] = content.getvalue()

    def written(folder: Path, top: str = "", form: Literal["NFC", "NFD"] = "NFC") -> Path:
        for name, content in files.items():
            path = folder / top / unicodedata.normalize(form, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder

    def zipped(path: Path, top: str, separator: str = "/") -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(f"{top}{name}".replace("/", separator), content)
        zips.unpack(path, path.with_suffix(""))
        return path.with_suffix("")

    ways = [
        written(tmp_path / "set"),
        written(tmp_path / "val"),
        written(tmp_path / "deep", "home/me/test"),
        written(tmp_path / "mac", form="NFD"),
        zipped(tmp_path / "a.zip", ""),
        zipped(tmp_path / "b.zip", "test set/"),
        zipped(tmp_path / "c.zip", "x/train/", "\\"),
    ]
    (tmp_path / "deep/readme.txt").write_text("not of the set")
    chosen = [{image.file for image in formats.read(way)[0].splits["val"]} for way in ways]
    assert len(chosen[0]) == 1
    assert all(other == chosen[0] for other in chosen)
