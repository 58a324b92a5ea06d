"""Pascal VOC as people publish it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from fgd.data import formats
from fgd.data.index import Defect, Index, Report
from fgd.errors import DatasetError
from tests.unit.data.conftest import picture

CAT = ("cat", 2, 3, 11, 14)


class Voc:
    """Images of 40x30: a and b in train, c in val."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made = 0
        self.lists: dict[str, list[str]] = {"train": ["a", "b"], "val": ["c"]}
        self.add("a", [CAT])
        self.add("b", [("dog", 5, 5, 24, 24)])
        self.add("c", [("cat", 1, 1, 40, 30), ("dog", 4, 4, 7, 7)])

    def add(
        self, name: str, objects: list[Any], folder: str = "Annotations", images: str = "JPEGImages", **changes: Any
    ) -> Path:
        self.made += 1
        for part in (folder, images):
            (self.root / part).mkdir(parents=True, exist_ok=True)
        picture(40, 30, self.made).save(self.root / images / f"{name}.jpg")
        boxes = "".join(
            f"<object><name>{what}</name>{extra[0] if extra else ''}<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for what, x1, y1, x2, y2, *extra in objects
        )
        filename = changes.get("filename", f"{name}.jpg")
        size = changes.get("size", "<size><width>40</width><height>30</height><depth>3</depth></size>")
        file = self.root / folder / f"{name}.xml"
        file.write_text(f"<annotation><filename>{filename}</filename>{size}{boxes}</annotation>")
        return file

    def read(self, **how: Any) -> tuple[Index, Report]:
        if self.lists:
            (self.root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        for split, lines in self.lists.items():
            (self.root / f"ImageSets/Main/{split}.txt").write_text("\n".join(lines) + "\n")
        index, report, sources = formats.read(self.root, **how)
        assert {image.file for split in index.splits.values() for image in split} == set(sources)
        return index, report


@pytest.fixture
def voc(tmp_path: Path) -> Voc:
    return Voc(tmp_path / "voc")


def only(report: Report, code: str) -> Defect:
    found = [defect for defect in report.defects if defect.code == code]
    assert len(found) == 1, report.defects
    return found[0]


def test_bccd_is_imported_whole(shared_data: Path) -> None:
    index, report, sources = formats.read(shared_data / "bccd")
    assert report.ok
    assert (report.format, report.defect_counts) == ("voc", {})
    assert index.classes == ("Platelets", "RBC", "WBC")
    counts = {name: (split.images, split.boxes) for name, split in report.splits.items()}
    assert counts == {"train": (205, 2805), "val": (87, 1138), "test": (72, 945)}
    assert len(sources) == 364
    first = next(image for image in index.splits["val"] if image.name == "BloodImage_00000.jpg")
    assert first.boxes[0] == (259, 176, 491, 376)  # 260, 177, 491, 376 counted from 1


def test_pixels_are_counted_from_one_and_the_last_is_inside(voc: Voc) -> None:
    index, report = voc.read()
    assert report.ok, report.defects
    assert (report.format, report.defect_counts) == ("voc", {})
    assert index.classes == ("cat", "dog")
    assert index.splits["train"][0].boxes == ((1, 2, 11, 14),)
    assert index.splits["val"][0].boxes == ((0, 0, 40, 30), (3, 3, 7, 7))


def test_a_set_that_counts_from_zero_is_read_as_it_stands_and_told(voc: Voc) -> None:
    voc.add("a", [("cat", 0, 0, 11, 14)])
    voc.add("c", [("cat", 0, 0, 40, 30), ("dog", 4, 4, 7, 7)])
    index, report = voc.read()
    assert index.splits["train"][0].boxes == ((0, 0, 11, 14),)
    assert index.splits["val"][0].boxes == ((0, 0, 40, 30), (4, 4, 7, 7))
    assert report.defect_counts == {"voc_counts_from_zero": 1}


def test_one_stray_zero_in_a_set_that_counts_from_one_is_cut(voc: Voc) -> None:
    voc.add("a", [("cat", 0, 3, 11, 14)])
    index, report = voc.read()
    assert index.splits["train"][0].boxes == ((0, 2, 11, 14),)
    defect = only(report, "box_clipped")
    assert (defect.file, defect.action) == ("JPEGImages/a.jpg", "clipped_box")
    assert "Annotations/a.xml: object 1 has box '[0, 3, 11, 14]'" in defect.message


def test_difficult_objects_are_neither_trained_on_nor_scored(voc: Voc) -> None:
    voc.add("a", [CAT, ("dog", 5, 5, 9, 9, "<difficult>1</difficult>")])
    index, report = voc.read()
    assert index.splits["train"][0].crowd == (False, True)
    assert only(report, "object_difficult").file == "Annotations/a.xml"


def test_trainval_without_train_is_train_and_val_is_carved(voc: Voc) -> None:
    voc.lists = {"trainval": ["a", "b", "c"], "test": ["d"]}
    voc.add("d", [CAT])
    _, report = voc.read()
    assert report.ok, report.defects
    assert {name: split.images for name, split in report.splits.items()} == {"train": 2, "val": 1, "test": 1}


def test_trainval_beside_train_and_val_counts_nothing(voc: Voc) -> None:
    voc.lists["trainval"] = ["a", "b", "c"]
    _, report = voc.read()
    assert report.defect_counts == {}
    assert report.splits["train"].images == 2


@pytest.mark.parametrize(("train", "val"), [("train", "valid"), ("data/train", "data/val")])
def test_split_folders_with_the_xml_beside_the_image(tmp_path: Path, train: str, val: str) -> None:
    voc = Voc(tmp_path / "voc")
    other = Voc(tmp_path / "other")
    other.lists = {}
    for folder in ("Annotations", "JPEGImages"):
        (other.root / folder).rename(tmp_path / folder)
    for name in ("a", "b"):
        other.add(name, [CAT, ("dog", 5, 5, 9, 9)], train, train)
    other.add("c", [CAT, ("dog", 5, 5, 9, 9)], val, val)
    index, report = other.read()
    assert report.ok, report.defects
    assert report.defect_counts == {}
    assert [image.name for image in index.splits["val"]] == ["c.jpg"]
    assert voc.read()[1].ok


def test_folder_without_any_split_is_carved(tmp_path: Path) -> None:
    voc = Voc(tmp_path)
    voc.lists = {}
    for name in "defgh":
        voc.add(name, [CAT], "annotations", "images")
    _, report = voc.read()
    assert report.ok, report.defects
    assert {name: split.images for name, split in report.splits.items()} == {"train": 7, "val": 1}


def test_several_years_below_one_folder_are_one_set(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        part = Voc(tmp_path / "VOCdevkit" / year)
        part.made = 10 if year == "VOC2012" else 0
        part.add("a", [("cat", 2, 2, 30, 30)])
        part.add("b", [("dog", 2, 2, 30, 30)])
        part.add("c", [("cat", 2, 2, 30, 30), ("dog", 2, 2, 30, 30)])
        part.read()
    _, report, _ = formats.read(tmp_path)
    assert report.ok, report.defects
    assert {name: split.images for name, split in report.splits.items()} == {"train": 4, "val": 2}


# --- defects --------------------------------------------------------------------------------------------------


def test_xml_without_its_image_is_named(voc: Voc) -> None:
    (voc.root / "JPEGImages/b.jpg").unlink()
    _, report = voc.read()
    defect = only(report, "image_missing")
    assert (defect.file, defect.action) == ("Annotations/b.xml", "dropped_image")


@pytest.mark.parametrize("listed", [True, False])
def test_image_without_its_xml_is_named(voc: Voc, listed: bool) -> None:
    (voc.root / "Annotations/b.xml").unlink()
    if not listed:
        voc.lists["train"].remove("b")
    _, report = voc.read()
    defects = {(defect.code, defect.file) for defect in report.defects}
    assert ("annotation_missing" if listed else "image_unlisted", "JPEGImages/b.jpg") in defects


def test_annotation_in_no_list_is_named(voc: Voc) -> None:
    voc.add("extra", [CAT])
    _, report = voc.read()
    assert only(report, "split_unknown").file == "Annotations/extra.xml"
    assert report.defect_counts == {"split_unknown": 1}


def test_name_twice_in_a_list_counts_once(voc: Voc) -> None:
    voc.lists["train"].append("a")
    index, report = voc.read()
    assert len(index.splits["train"]) == 2
    assert only(report, "image_listed_twice").file == "ImageSets/Main/train.txt"


def test_name_in_two_lists_is_in_both_splits_and_told(voc: Voc) -> None:
    voc.lists["val"].append("a")
    _, report = voc.read()
    assert (report.splits["train"].images, report.splits["val"].images) == (2, 2)
    assert only(report, "image_in_two_splits").file == "JPEGImages/a.jpg"


def test_other_filename_than_the_files_own_is_told_and_its_own_name_counts(voc: Voc) -> None:
    voc.add("a", [CAT], filename="b.jpg")
    index, report = voc.read()
    assert [image.name for image in index.splits["train"]] == ["a.jpg", "b.jpg"]
    defect = only(report, "filename_differs")
    assert (defect.file, defect.action) == ("Annotations/a.xml", "kept")


def test_filename_is_used_where_there_is_no_image_of_the_files_own_name(voc: Voc) -> None:
    voc.add("a", [CAT], filename="photo.jpg")
    (voc.root / "JPEGImages/a.jpg").rename(voc.root / "JPEGImages/photo.jpg")
    index, report = voc.read()
    assert [image.name for image in index.splits["train"]] == ["photo.jpg", "b.jpg"]
    assert report.defect_counts == {}


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["a 1", "b 0", "c -1"], ["a", "b"]),
        (["a  1", "b  1"], ["a", "b"]),
        (["photo 1", "photo 0"], ["photo 1", "photo 0"]),
        (["a", "photo 1"], ["a", "photo 1"]),
    ],
)
def test_numbers_behind_names_are_flags_only_where_all_lines_have_them(
    voc: Voc, names: list[str], read: list[str]
) -> None:
    for name in ("photo 0", "photo 1"):
        if name in names:
            voc.add(name, [CAT, ("dog", 5, 5, 24, 24)])
    voc.lists["train"] = names
    index, _ = voc.read()
    assert [image.name for image in index.splits["train"]] == [f"{name}.jpg" for name in read]


POLYGONS = [
    "<polygon><pt><x>5</x><y>6</y></pt><pt><x>15</x><y>6</y></pt><pt><x>9</x><y>16</y></pt></polygon>",
    "<polygon><x1>5</x1><y1>6</y1><x2>15</x2><y2>6</y2><x3>9</x3><y3>16</y3></polygon>",
    "<robndbox><cx>10</cx><cy>11</cy><w>10</w><h>10</h><angle>1.5707963</angle></robndbox>",
]


@pytest.mark.parametrize("polygon", POLYGONS)
def test_object_without_a_bndbox_has_the_box_around_its_polygon(voc: Voc, polygon: str) -> None:
    file = voc.add("a", [CAT])
    file.write_text(
        file.read_text().replace("</annotation>", f"<object><name>dog</name>{polygon}</object></annotation>")
    )
    index, report = voc.read()
    assert index.splits["train"][0].boxes[1] == pytest.approx((5, 6, 15, 16), abs=1e-3)
    assert report.defect_counts == {"outline_to_box": 1}


@pytest.mark.parametrize(("written", "difficult"), [("Unspecified", False), ("False", False), ("True", True)])
def test_difficult_may_be_a_word(voc: Voc, written: str, difficult: bool) -> None:
    voc.add("a", [(*CAT, f"<difficult>{written}</difficult>")])
    assert voc.read()[0].splits["train"][0].crowd == (difficult,)


def test_a_file_that_is_surely_utf8_stays_so_among_others(voc: Voc) -> None:
    for name, things, encoding in (("a", ["安全帽", "猫"], "utf-8"), ("b", ["狗"], "gbk"), ("c", ["猫"], "gbk")):
        file = voc.add(name, [(thing, *CAT[1:]) for thing in things])
        file.write_bytes(file.read_text().encode(encoding))
    index, _ = voc.read()
    assert sorted(index.classes) == sorted(["安全帽", "狗", "猫"])


@pytest.mark.parametrize(
    "head", ["", '<?xml version="1.0" encoding="UTF-8"?>', '<?xml version="1.0" encoding="gb2312"?>']
)
def test_one_encoding_is_found_for_all_files(voc: Voc, head: str) -> None:
    for name, what in (("a", "猫"), ("b", "狗"), ("c", "猫")):
        file = voc.add(name, [(what, *CAT[1:])])
        file.write_bytes((head + file.read_text()).encode("gbk"))
    index, report = voc.read()
    assert sorted(index.classes) == ["狗", "猫"]
    told = only(report, "encoding_guessed").message if "gb" not in head else "gb18030"
    assert "gb18030" in told


@pytest.mark.parametrize(
    ("box", "code"),
    [
        (("x", 3, 11, 14), "box_not_finite"),
        (("nan", 3, 11, 14), "box_not_finite"),
        (("1_0", 3, 11, 14), "box_not_finite"),
        (("", 3, 11, 14), "box_invalid"),
        ((12, 3, 11, 14), "zero_area_box"),
        ((11, 14, 2, 3), "zero_area_box"),
        ((50, 3, 61, 14), "box_outside"),
    ],
)
def test_unusable_box_is_dropped_and_named(voc: Voc, box: Any, code: str) -> None:
    voc.add("a", [CAT, ("cat", *box)])
    index, report = voc.read()
    assert len(index.splits["train"][0].boxes) == 1
    defect = only(report, code)
    assert (defect.file, defect.action) == ("JPEGImages/a.jpg", "dropped_box")
    assert "Annotations/a.xml: object 2" in defect.message


def test_object_without_a_name_is_dropped(voc: Voc) -> None:
    voc.add("a", [CAT, ("", 5, 5, 9, 9)])
    _, report = voc.read()
    assert only(report, "annotation_invalid").file == "Annotations/a.xml"


@pytest.mark.parametrize(("size", "code"), [(0, None), (41, "size_differs")])
def test_declared_size_is_compared_unless_it_is_zero(voc: Voc, size: int, code: str | None) -> None:
    voc.add("a", [CAT], size=f"<size><width>{size}</width><height>{size and 30}</height></size>")
    _, report = voc.read()
    assert report.defect_counts == ({code: 1} if code else {})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<annotation><object>", "invalid XML"),
        (b"<annotation>\x00</annotation>", "invalid XML"),
        ("<!DOCTYPE a><annotation/>".encode("utf-16"), "DOCTYPE"),
        (
            b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>',
            "DOCTYPE",
        ),
        (b"<html/>", "not the <annotation>"),
        (b"", "invalid XML"),
        (b'<?xml version="1.0" encoding="nonsense"?><annotation/>', "unknown encoding"),
    ],
)
def test_broken_xml_is_named_and_its_image_left_out(voc: Voc, content: bytes, words: str) -> None:
    voc.read()
    (voc.root / "Annotations/a.xml").write_bytes(content)
    _, report = voc.read()
    assert report.ok
    assert words in only(report, "xml_invalid").message
    assert only(report, "annotation_missing").file == "JPEGImages/a.jpg"
    assert "image_unlisted" not in report.defect_counts


def test_billion_laughs_are_not_told(voc: Voc) -> None:
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "lol"}">' for n in range(12))
    voc.read()
    (voc.root / "Annotations/a.xml").write_text(f"<!DOCTYPE a [{entities}]><annotation>&l11;</annotation>")
    began = time.process_time()
    _, report = voc.read()
    assert "DOCTYPE" in only(report, "xml_invalid").message
    assert time.process_time() - began < 5


def test_deep_xml_is_survived(voc: Voc) -> None:
    voc.read()
    (voc.root / "Annotations/a.xml").write_text("<annotation>" + "<a>" * 300_000 + "</a>" * 300_000 + "</annotation>")
    _, report = voc.read()
    assert report.ok


def test_xml_larger_than_the_bound_is_not_read(voc: Voc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgd.data.voc_xml.MAX_XML_BYTES", 600)
    voc.add("a", [CAT] * 9)
    _, report = voc.read()
    assert "larger than 600 bytes" in only(report, "xml_invalid").message


def test_links_out_of_the_folder_are_not_followed(voc: Voc, tmp_path: Path) -> None:
    Pillow.new("RGB", (40, 30)).save(tmp_path / "secret.jpg")
    (tmp_path / "secret.xml").write_text("<annotation/>")
    voc.read()
    for file, target in (("JPEGImages/a.jpg", "secret.jpg"), ("Annotations/b.xml", "secret.xml")):
        (voc.root / file).unlink()
        (voc.root / file).symlink_to(tmp_path / target)
    _, report = voc.read()
    assert only(report, "path_escapes").file == "JPEGImages/a.jpg"
    assert only(report, "xml_invalid").file == "Annotations/b.xml"


def test_folder_without_xml_is_no_voc(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no Pascal VOC annotations"):
        formats.read(tmp_path, "voc")


def test_lists_without_a_training_split_are_rejected(voc: Voc) -> None:
    voc.lists = {"test": ["a", "b", "c"]}
    _, report = voc.read()
    assert not report.ok
    assert "ImageSets/Main/train.txt" in next(d.message for d in report.defects if d.code == "split_missing")


@pytest.mark.parametrize("folder", ["", "ImageSets", "lists"])
@pytest.mark.parametrize("line", ["{}", "{}.jpg", "D:\\voc\\JPEGImages\\{}.jpg"])
def test_lists_of_splits_may_lie_elsewhere(voc: Voc, folder: str, line: str) -> None:
    (voc.root / folder).mkdir(exist_ok=True)
    for split, names in voc.lists.items():
        (voc.root / folder / f"{split}.txt").write_text("".join(f"{line.format(name)}\n" for name in names))
    voc.lists = {}
    index, report = voc.read()
    assert {split: len(images) for split, images in index.splits.items()} == {"train": 2, "val": 1}
    assert "val_carved" not in report.defect_counts


@pytest.mark.parametrize(
    "files", [{"train": "a\nb\n", "val": ""}, {"train": "x\ny\n"}, {"val": "c\n"}, {"train": "\0\1"}]
)
def test_texts_of_another_kind_are_no_lists_of_splits(voc: Voc, files: dict[str, str]) -> None:
    voc.lists = {}
    for split, text in files.items():
        (voc.root / f"{split}.txt").write_text(text)
    assert voc.read()[1].defect_counts["val_carved"] == 1


def test_lists_for_segmentation_are_not_those_of_boxes(voc: Voc) -> None:
    voc.lists = {}
    (voc.root / "ImageSets/Segmentation").mkdir(parents=True)
    for split, name in (("train", "a"), ("val", "b")):
        (voc.root / f"ImageSets/Segmentation/{split}.txt").write_text(f"{name}\n")
    index, _ = voc.read()
    assert sum(map(len, index.splits.values())) == 3
