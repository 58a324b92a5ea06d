"""Which image an XML file describes: by the same place, by what it says, by its name in any spelling."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgd.data import formats
from fgd.data.index import Report
from tests.unit.data.conftest import picture

XML = (
    "<annotation>{said}<size><width>40</width><height>30</height></size><object><name>cat</name><bndbox>"
    "<xmin>{left}</xmin><ymin>2</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object></annotation>"
)


def make(root: Path, *files: str) -> Path:
    """Images by their suffix; of XML files, what stands behind "=" goes into it. Each box begins at another pixel."""
    for number, file in enumerate(files, start=1):
        name, _, said = file.partition("=")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".xml"):
            (root / name).write_text(XML.format(said=said, left=number), encoding="utf-8")
        elif name.endswith(".txt"):
            (root / name).write_text(said)
        else:
            picture(seed=number).save(root / name)
    return root


def read(root: Path) -> tuple[Report, dict[str, str]]:
    """The report, and for each image the XML file its box is of."""
    index, report, sources = formats.read(root, "voc")
    lefts = {
        float(file.read_text().partition("<xmin>")[2].partition("<")[0]) - 1: file.relative_to(root).as_posix()
        for file in root.rglob("*.xml")
    }
    return report, {
        sources[image.file].relative_to(root).as_posix(): lefts[image.boxes[0][0]]
        for images in index.splits.values()
        for image in images
    }


@pytest.mark.parametrize(
    ("images", "xmls"),
    [
        ("images/{cam}/{n}.png", "annotations/{cam}/{n}.xml"),
        ("{cam}/images/{n}.png", "{cam}/annotations/{n}.xml"),
        ("JPEGImages/{cam}/{n}.png", "Annotations/xmls/{cam}/{n}.xml"),
        ("pictures/2024/{cam}/{n}.png", "annotations/{cam}/{n}.xml"),
        ("images/{cam}/caf\u00e9 {n}.png", "annotations/{cam}/cafe\u0301 {n}.xml"),
        ("images/{cam}/{n}.png", "annotations/{cam}/{n}.png.xml"),
        ("Images/{cam}/a{n}.png", "annotations/{cam}/A{n}.xml"),
    ],
)
def test_images_at_the_same_place_of_a_parallel_structure(images: str, xmls: str, tmp_path: Path) -> None:
    pairs = {
        images.format(cam=cam, n=n): xmls.format(cam=cam, n=n) for cam in ("cam1", "cam2") for n in ("0000", "0001")
    }
    report, found = read(make(tmp_path, *pairs, *pairs.values()))
    assert report.ok, report.defects
    assert found == pairs


@pytest.mark.parametrize(
    "said",
    [
        "<filename>b.png</filename>",
        "<folder>right</folder><filename>b.png</filename>",
        "<filename>b.png</filename><path>C:\\x\\right\\b.png</path>",
        "<path>/home/me/right/b.png</path>",
        "<filename>../right/b.png</filename>",
        "<filename>b</filename>",
    ],
)
def test_what_the_file_says_where_no_image_has_its_name(said: str, tmp_path: Path) -> None:
    others = [] if said.startswith("<filename>b") and "<path>" not in said else ["wrong/b.png"]
    root = make(tmp_path, "right/b.png", *others, f"annotations/1.xml={said}", "images/a.png", "annotations/a.xml")
    report, found = read(root)
    assert report.ok, report.defects
    assert found == {"right/b.png": "annotations/1.xml", "images/a.png": "annotations/a.xml"}


def test_of_two_images_of_its_name_it_is_the_one_the_file_says(tmp_path: Path) -> None:
    files = ["images/a.png", "images/a.bmp", "annotations/a.xml=<filename>a.png</filename>"]
    files += ["one/b.png", "two/b.png", "annotations/b.xml=<folder>two</folder><filename>b.png</filename>"]
    files += ["one/c.png", "two/c.png", "annotations/c.xml=<filename>c.png</filename>"]
    report, found = read(make(tmp_path, *files))
    assert report.ok, report.defects
    assert found == {"images/a.png": "annotations/a.xml", "two/b.png": "annotations/b.xml"}
    told = next(defect.message for defect in report.defects if defect.code == "image_missing")
    assert "it could be 'one/c.png' or 'two/c.png'" in told


def test_an_image_of_one_file_is_not_that_of_another(tmp_path: Path) -> None:
    files = ["images/cam1/1.png", "annotations/cam1/1.xml", "annotations/cam2/1.xml", "images/b.png"]
    report, found = read(make(tmp_path, *files, "annotations/b.xml", "annotations/x.xml=<filename>b.png</filename>"))
    assert report.ok, report.defects
    assert found == {"images/cam1/1.png": "annotations/cam1/1.xml", "images/b.png": "annotations/b.xml"}
    assert report.defect_counts["image_missing"] == 2


def test_an_image_of_the_other_split_is_not_that_of_a_file(tmp_path: Path) -> None:
    files = ["images/train/a.png", "annotations/train/a.xml", "images/val/b.png", "annotations/val/b.xml"]
    report, found = read(make(tmp_path, *files, "annotations/train/c.xml", "images/val/c.png"))
    assert report.ok, report.defects
    assert sorted(found) == ["images/train/a.png", "images/val/b.png"]
    assert "'c' and 'images/val/c.png'" in next(d.message for d in report.defects if d.code == "names_differ")


@pytest.mark.parametrize("name", ["a 1", "a 1.png", "/x/JPEGImages/a 1.png", "..\\a 1", "A 1", "a%201", "./a 1"])
@pytest.mark.parametrize("folder", ["Annotations", "Annotations/deep"])
def test_names_of_lists(name: str, folder: str, tmp_path: Path) -> None:
    files = ["JPEGImages/a 1.png", f"{folder}/a 1.xml", "JPEGImages/b.png", f"{folder}/b.xml"]
    lists = [f"ImageSets/Main/train.txt={name}\r\n", "ImageSets/Main/val.txt=b\n"]
    report, found = read(make(tmp_path, *files, *lists))
    assert report.ok, report.defects
    assert found == {"JPEGImages/a 1.png": f"{folder}/a 1.xml", "JPEGImages/b.png": f"{folder}/b.xml"}


@pytest.mark.parametrize("top", ["test", "my val", "test-project"])
def test_a_folder_that_holds_all_says_nothing_about_splits(top: str, tmp_path: Path) -> None:
    files = [f"{top}/{kind}{n}.{suffix}" for n in range(4) for kind, suffix in (("i/", "png"), ("x/", "xml"))]
    report, found = read(make(tmp_path, *files))
    assert report.ok, report.defects
    assert len(found) == 4
    assert set(report.splits) == {"train", "val"}
