"""The picture that boxes were drawn in, and the way their numbers are written: one rule for every format."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from fgd.data import formats
from fgd.data.checking import Sources
from fgd.data.index import Defect, Index, Report
from tests.unit.data.conftest import picture

Boxes = list[tuple[int, int, int, int]]
Write = Callable[[tuple[int, int, int, int], int, int], Any]
CLASSES = ("cat", "dog")


class Set:
    """Pictures with boxes as left, top, right, bottom of what is seen; written as COCO, VOC, YOLO or Hugging Face."""

    def __init__(self, root: Path, kind: str, declared: tuple[int, int] | None = None) -> None:
        self.root, self.kind, self.declared = root, kind, declared
        self.documents: dict[str, dict[str, Any]] = {}
        self.made = 0

    def add(
        self,
        split: str,
        boxes: list[Any],
        size: tuple[int, int] = (80, 60),
        orientation: int = 1,
        declared: tuple[Any, Any] | None = None,
    ) -> str:
        """boxes: as they are written. size: of the stored picture."""
        self.made += 1
        name, folder = f"p{self.made}", self.root / ("JPEGImages" if self.kind == "voc" else f"images/{split}")
        folder.mkdir(parents=True, exist_ok=True)
        exif = Pillow.Exif()
        exif[0x0112] = orientation
        picture(*size, self.made).save(folder / f"{name}.png", exif=exif)
        getattr(self, f"_{self.kind}")(split, name, boxes, declared or self.declared or size)
        return name

    def _coco(self, split: str, name: str, boxes: list[Any], declared: tuple[Any, Any]) -> None:
        empty = {"images": [], "annotations": [], "categories": [{"id": n, "name": c} for n, c in enumerate(CLASSES)]}
        document = self.documents.setdefault(split, empty)
        image = {"id": self.made, "file_name": f"{name}.png", "width": declared[0], "height": declared[1]}
        document["images"].append(image)
        for box in boxes:
            number = len(document["annotations"])
            document["annotations"].append(
                {"id": number, "image_id": self.made, "category_id": number % 2, "bbox": list(box)}
            )
        (self.root / f"{split}.json").write_text(json.dumps(document))

    def _voc(self, split: str, name: str, boxes: list[Any], declared: tuple[Any, Any]) -> None:
        tags = ("xmin", "ymin", "xmax", "ymax")
        objects = "".join(
            f"<object><name>{CLASSES[n % 2]}</name><bndbox>"
            + "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(tags, box, strict=True))
            + "</bndbox></object>"
            for n, box in enumerate(boxes, start=self.made)
        )
        width, height = declared
        (self.root / "Annotations").mkdir(exist_ok=True)
        (self.root / f"Annotations/{name}.xml").write_text(
            f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"
        )
        (self.root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        with (self.root / f"ImageSets/Main/{split}.txt").open("a") as names:
            names.write(f"{name}\n")

    def _yolo(self, split: str, name: str, boxes: list[Any], declared: tuple[Any, Any]) -> None:
        (self.root / f"labels/{split}").mkdir(parents=True, exist_ok=True)
        lines = [f"{n % 2} {' '.join(map(str, box))}" for n, box in enumerate(boxes, start=self.made)]
        (self.root / f"labels/{split}/{name}.txt").write_text("\n".join(lines))
        plan = {"train": "images/train", "val": "images/val", "names": list(CLASSES)}
        (self.root / "data.yaml").write_text(json.dumps(plan))

    def _huggingface(self, split: str, name: str, boxes: list[Any], declared: tuple[Any, Any]) -> None:
        categories = [CLASSES[n % 2] for n in range(self.made, self.made + len(boxes))]
        row = {"file_name": f"{name}.png", "objects": {"bbox": [list(b) for b in boxes], "category": categories}}
        row |= dict(zip(("width", "height"), declared, strict=True))
        with (self.root / f"images/{split}/metadata.jsonl").open("a") as rows:
            rows.write(json.dumps(row) + "\n")

    def read(self) -> tuple[Index, Report, Sources]:
        return formats.read(self.root)


@pytest.fixture
def of(tmp_path: Path) -> Callable[..., Set]:
    return lambda kind, **more: Set(tmp_path / "set", kind, **more)


def rejected(report: Report) -> Defect:
    assert not report.ok
    return next(defect for defect in report.defects if defect.action == "rejected")


def spread(count: int, width: int, height: int, seed: int = 0) -> Boxes:
    """Boxes all over an image, left, top, right, bottom."""
    rng = random.Random(seed)
    boxes = []
    for _ in range(count):
        x, y = rng.randint(1, width - 12), rng.randint(1, height - 12)
        boxes.append((x, y, x + rng.randint(8, width - x), y + rng.randint(8, height - y)))
    return boxes


# Left, top, right, bottom to what a file says.
def corner_size(box: tuple[int, int, int, int]) -> tuple[float, ...]:
    return (box[0], box[1], box[2] - box[0], box[3] - box[1])


def centre_size(box: tuple[int, int, int, int]) -> tuple[float, ...]:
    return ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1])


def corners(box: tuple[int, int, int, int]) -> tuple[float, ...]:
    return box


def parts(
    layout: Callable[[tuple[int, int, int, int]], tuple[float, ...]], of: float, size: tuple[int, int]
) -> Callable[[tuple[int, int, int, int]], tuple[float, ...]]:
    return lambda box: tuple(value / size[n % 2] * of for n, value in enumerate(layout(box)))


SIZE = (80, 60)
RIGHT = {"coco": corner_size, "voc": corners, "huggingface": corner_size, "yolo": parts(centre_size, 1, SIZE)}


def filled(made: Set, write: Callable[[tuple[int, int, int, int]], tuple[float, ...]], images: int = 8) -> Set:
    for n in range(images):
        made.add("val" if n % 3 == 2 else "train", [write(box) for box in spread(3, *SIZE, seed=n)])
    return made


@pytest.mark.parametrize("kind", RIGHT)
@pytest.mark.parametrize(
    ("box", "code"),
    [((70, 10, 95, 40), "box_clipped"), ((30, 30, 29, 50), "zero_area_box"), ((90, 10, 120, 40), "box_outside")],
)
def test_a_defect_names_its_image_and_the_box_as_it_was(
    of: Callable[..., Set], kind: str, box: tuple[int, int, int, int], code: str
) -> None:
    made = filled(of(kind), RIGHT[kind])
    name = made.add("val", [RIGHT[kind](each) for each in (box, (5, 5, 40, 40), (6, 6, 50, 50))])
    index, report, _ = made.read()

    (defect,) = [each for each in report.defects if each.code == code]

    assert (defect.split, defect.n) == ("val", 2)
    assert index.splits["val"][2].name.endswith(f"{name}.png")
    shift = 1 if kind == "voc" else 0
    assert defect.box == pytest.approx((box[0] - shift, box[1] - shift, box[2], box[3]), abs=1e-3)


# --- how numbers are written ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RIGHT)
def test_a_set_written_as_its_format_has_it_is_read_without_a_word(of: Callable[..., Set], kind: str) -> None:
    index, report, _ = filled(of(kind), RIGHT[kind]).read()
    assert report.ok
    assert report.defect_counts == {}
    found = [box for image in index.splits["train"][:1] for box in image.boxes]
    wanted = spread(3, *SIZE)
    shift = 1 if kind == "voc" else 0
    for box, (x1, y1, x2, y2) in zip(found, wanted, strict=True):
        assert box == pytest.approx((x1 - shift, y1 - shift, x2, y2), abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "write", "code", "words"),
    [
        ("coco", centre_size, "boxes_convention", "the centre"),
        ("huggingface", centre_size, "boxes_convention", "the centre"),
        ("voc", corner_size, "boxes_convention", "from the upper left corner"),
        ("voc", centre_size, "boxes_convention", "the centre"),
        ("yolo", parts(corners, 1, SIZE), "boxes_convention", "left, top, right, bottom as fractions"),
        ("yolo", parts(corner_size, 1, SIZE), "boxes_convention", "from the upper left corner as fractions"),
        ("yolo", centre_size, "boxes_convention", "in pixels"),
        ("yolo", parts(centre_size, 100, SIZE), "boxes_convention", "in percent"),
        ("coco", parts(corner_size, 1, SIZE), "boxes_relative", "from the upper left corner"),
        ("coco", parts(corners, 1, SIZE), "boxes_relative", "left, top, right, bottom"),
        ("voc", parts(corners, 1, SIZE), "boxes_relative", "fractions"),
        ("huggingface", parts(centre_size, 1, SIZE), "boxes_relative", "the centre"),
        ("coco", parts(corner_size, 1000, SIZE), "boxes_convention", "in thousandths"),
        ("voc", lambda box: (box[1], box[0], box[3], box[2]), "boxes_convention", "top, left, bottom, right"),
        ("coco", lambda box: (box[1], box[0], box[3], box[2]), "boxes_convention", "top, left, bottom, right"),
        ("coco", lambda b: (b[1], b[0], b[3] - b[1], b[2] - b[0]), "boxes_convention", "y, x, height, width"),
        ("voc", lambda b: (b[2], b[3], b[0], b[1]), "boxes_convention", "two opposite corners"),
    ],
)
def test_boxes_written_in_another_way_are_refused_by_its_name(
    of: Callable[..., Set], kind: str, write: Any, code: str, words: str
) -> None:
    _, report, _ = filled(of(kind), write).read()
    defect = rejected(report)
    assert defect.code == code
    assert words in defect.message
    assert defect.file.startswith(("images/", "JPEGImages/"))


@pytest.mark.parametrize("kind", ["coco", "huggingface"])
def test_corners_in_place_of_widths_are_read_as_corners_and_told(of: Callable[..., Set], kind: str) -> None:
    index, report, _ = filled(of(kind), corners).read()
    assert report.ok
    assert report.defect_counts["boxes_are_corners"] == 1
    assert index.splits["train"][0].boxes == tuple(map(pytest.approx, spread(3, *SIZE)))


def test_corners_in_one_split_alone_are_found(of: Callable[..., Set]) -> None:
    made = of("coco")
    for n in range(30):
        write = corners if n % 5 == 4 else corner_size
        made.add("val" if n % 5 == 4 else "train", [write(box) for box in spread(3, *SIZE, seed=n)])
    index, report, _ = made.read()
    assert "boxes_are_corners" in report.defect_counts
    assert index.splits["val"][0].boxes == tuple(map(pytest.approx, spread(3, *SIZE, seed=4)))
    assert index.splits["train"][0].boxes == tuple(map(pytest.approx, spread(3, *SIZE)))


def test_fractions_in_one_split_alone_are_refused_by_their_name(of: Callable[..., Set]) -> None:
    made = of("voc")
    for n in range(9):
        made.add("train", spread(3, *SIZE, seed=n))
    made.add("val", [(0.1, 0.2, 0.4, 0.5), (0.3, 0.2, 0.9, 0.8)])
    defect = rejected(made.read()[1])
    assert (defect.code, "fractions" in defect.message) == ("boxes_relative", True)


def test_percent_is_found_in_images_that_it_would_fit(of: Callable[..., Set]) -> None:
    made = of("coco")
    for n in range(10):
        boxes = [*spread(3, 100, 100, seed=n), (50, 50, 99, 99), (1, 1, 30, 30)]
        made.add("val" if n % 3 == 2 else "train", [corner_size(box) for box in boxes], size=(400, 300))
    assert "percent" in rejected(made.read()[1]).message


@pytest.mark.parametrize("kind", ["coco", "voc", "huggingface"])
def test_boxes_that_reach_far_beyond_the_edge_are_no_other_way_of_writing(of: Callable[..., Set], kind: str) -> None:
    """Whole bodies, drawn where they would be: a third of all boxes is outside."""
    made = of(kind)
    write = RIGHT[kind]
    for n in range(8):
        boxes = [(5, 5, 30, 30), (60, 20, 100, 80), (-20, 10, 30, 40), (40, 10, 60, 50)]
        made.add("val" if n % 3 == 2 else "train", [write(box) for box in boxes])
    _, report, _ = made.read()
    assert report.ok
    assert report.defect_counts["box_clipped"] == 16


def test_boxes_beyond_two_edges_of_small_images_are_no_thousandths(of: Callable[..., Set]) -> None:
    made = of("coco")
    for n in range(8):
        boxes = [(300, 200, 500, 370), (500, 100, 240, 200), (10, 300, 100, 300), (50, 20, 90, 80)]
        made.add("val" if n % 3 == 2 else "train", boxes, size=(640, 480))
    _, report, _ = made.read()
    assert report.ok
    assert report.defect_counts == {"box_clipped": 24}


def test_large_boxes_a_little_beyond_the_edge_are_no_corners(of: Callable[..., Set]) -> None:
    """Every one would make corners too."""
    made = of("coco")
    for n in range(8):
        made.add("val" if n % 3 == 2 else "train", [(5, 4, 60, 50), (10, 8, 72, 54), (20, 15, 62, 46)])
    index, report, _ = made.read()
    assert report.ok
    assert report.defect_counts == {"box_clipped": 16}
    assert index.splits["train"][0].boxes[0] == (5, 4, 65, 54)


def test_one_thing_that_always_stands_in_the_same_place_is_no_percent(of: Callable[..., Set]) -> None:
    made = of("coco")
    for n in range(12):
        made.add("val" if n % 3 == 2 else "train", [(60, 60, 35, 36), (70, 64, 20, 30)], size=(400, 300))
    assert made.read()[1].ok


def test_boxes_that_mostly_lie_elsewhere_are_refused(of: Callable[..., Set]) -> None:
    made = filled(of("voc"), lambda box: tuple(3 * value + 70 for value in box))
    defect = rejected(made.read()[1])
    assert (defect.code, "images of another size" in defect.message) == ("boxes_misplaced", True)


@pytest.mark.parametrize("kind", ["coco", "voc", "huggingface"])
def test_a_picture_with_fractions_among_pixels_is_left_out(of: Callable[..., Set], kind: str) -> None:
    made = filled(of(kind), RIGHT[kind])
    name = made.add("train", [(0.1, 0.2, 0.4, 0.5)])
    index, report, _ = made.read()
    assert report.ok
    assert report.defect_counts == {"box_relative": 1, "labels_unreadable": 1}
    assert f"{name}.png" not in [image.name for image in index.splits["train"]]


def test_a_picture_with_pixels_among_fractions_is_left_out(of: Callable[..., Set]) -> None:
    made = filled(of("yolo"), RIGHT["yolo"])
    name = made.add("train", [(17, 22, 25, 35)])
    index, report, _ = made.read()
    assert report.defect_counts == {"box_not_relative": 1, "labels_unreadable": 1}
    assert f"{name}.png" not in [image.name for image in index.splits["train"]]


# --- the picture that boxes were drawn in ---------------------------------------------------------------------

# Upright 60x80, stored 80x60: a box near the upper left corner of what is seen.
SEEN = (3, 5, 23, 45)
STORED = {
    1: (3, 5, 23, 45),
    2: (57, 5, 77, 45),
    3: (57, 15, 77, 55),
    4: (3, 15, 23, 55),
    5: (5, 3, 45, 23),
    6: (5, 37, 45, 57),
    7: (35, 37, 75, 57),
    8: (35, 3, 75, 23),
}


@pytest.mark.parametrize("kind", ["coco", "voc", "huggingface"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_of_the_upright_picture_are_turned_back(of: Callable[..., Set], kind: str, orientation: int) -> None:
    made = of(kind)
    box = (SEEN[0] + 1, SEEN[1] + 1, *SEEN[2:]) if kind == "voc" else corner_size(SEEN)
    for split in ("train", "train", "val"):
        made.add(split, [box, box and RIGHT[kind]((30, 50, 58, 78))], orientation=orientation, declared=(60, 80))
    index, report, _ = made.read()
    assert report.ok
    assert report.defect_counts == {"exif_rotated": 3}
    assert index.splits["train"][0].boxes[0] == pytest.approx(STORED[orientation])


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_a_half_turn_follows_the_other_turned_pictures_of_the_set(of: Callable[..., Set], orientation: int) -> None:
    made = of("coco")
    made.add("train", [corner_size(SEEN)], orientation=orientation)
    made.add("val", [corner_size(SEEN)] * 1 + [(30, 30, 9, 9)])
    made.add("train", [corner_size((10, 10, 30, 30))])
    alone, report, _ = made.read()
    assert alone.splits["train"][0].boxes[0] == pytest.approx(SEEN), "nothing says that it was turned"
    made.add("train", [corner_size((10, 60, 30, 75))], orientation=6, declared=(60, 80))
    among, report, _ = made.read()
    assert among.splits["train"][0].boxes[0] == pytest.approx(STORED[orientation])
    assert report.defect_counts["exif_rotated"] == 2


def test_turned_pictures_whose_stored_size_is_declared_keep_their_boxes(of: Callable[..., Set]) -> None:
    made = of("coco")
    for split in ("train", "val"):
        made.add(split, [corner_size((3, 5, 70, 45)), corner_size((1, 1, 9, 9))], orientation=6)
    index, report, _ = made.read()
    assert index.splits["train"][0].boxes[0] == (3, 5, 70, 45)
    assert report.defect_counts == {"exif_rotated": 2}


def test_a_turned_size_beside_boxes_that_fit_the_stored_pixels_alone_is_only_told(of: Callable[..., Set]) -> None:
    made = of("coco")
    for split in ("train", "train", "val"):
        made.add(split, [(3, 5, 67, 40), (1, 1, 9, 9)], orientation=6, declared=(60, 80))
    index, report, _ = made.read()
    assert index.splits["train"][0].boxes[0] == (3, 5, 70, 45)
    assert report.defect_counts == {"exif_rotated": 3, "size_differs": 3}


def test_without_a_declared_size_the_boxes_tell_the_turned_picture(of: Callable[..., Set]) -> None:
    made = of("voc", declared=(0, 0))
    for split in ("train", "train", "val"):
        made.add(split, [(4, 6, 23, 45), (20, 50, 50, 78)], orientation=6)
    index, report, _ = made.read()
    assert index.splits["train"][0].boxes[0] == pytest.approx(STORED[6])
    assert report.ok


@pytest.mark.parametrize("kind", ["coco", "voc", "huggingface"])
@pytest.mark.parametrize("scale", [2, 0.5])
def test_boxes_of_a_copy_of_another_size_are_scaled(of: Callable[..., Set], kind: str, scale: float) -> None:
    made = of(kind)
    for n in range(6):
        boxes = [tuple(int(scale * value) for value in box) for box in spread(3, *SIZE, seed=n)]
        written = [RIGHT[kind](box) for box in boxes]  # type: ignore[arg-type]
        declared = (int(80 * scale), int(60 * scale))
        made.add("val" if n % 3 == 2 else "train", written, declared=declared)
    index, report, _ = made.read()
    assert report.ok
    assert report.defect_counts == {"boxes_scaled": 6}
    for box, wanted in zip(index.splits["train"][0].boxes, spread(3, *SIZE), strict=True):
        assert box == pytest.approx(wanted, abs=3)


def test_a_copy_of_a_nearly_square_turned_picture_has_the_nearer_ratio(of: Callable[..., Set]) -> None:
    made = of("coco")
    for split in ("train", "train", "val"):
        written = [corner_size((30, 60, 90, 150)), corner_size((120, 3, 234, 237))]
        made.add(split, written, size=(80, 79), orientation=6, declared=(237, 240))
    index, report, _ = made.read()
    assert report.defect_counts == {"boxes_scaled": 3, "exif_rotated": 3}
    assert index.splits["train"][0].boxes[0] == pytest.approx((20, 49, 50, 69))


@pytest.mark.parametrize("declared", [(160, 120), (40, 30), (60, 80)])
def test_a_wrong_size_beside_boxes_that_fit_the_real_one_is_only_told(
    of: Callable[..., Set], declared: tuple[int, int]
) -> None:
    made = of("coco")
    for n in range(6):
        made.add("val" if n % 3 == 2 else "train", [(5, 5, 20, 20), (62, 30, 16, 28)], declared=declared)
    index, report, _ = made.read()
    assert report.ok
    assert report.defect_counts == {"size_differs": 6}
    assert index.splits["train"][0].boxes[0] == (5, 5, 25, 25)


def test_an_image_of_another_ratio_is_not_trained_on(of: Callable[..., Set]) -> None:
    made = filled(of("voc"), corners)
    name = made.add("train", [(100, 100, 200, 200)], declared=(640, 640))
    index, report, _ = made.read()
    assert report.ok
    assert report.defect_counts == {"size_contradicts": 1}
    assert f"{name}.png" not in [image.name for image in index.splits["train"]]


def test_a_set_of_images_of_another_ratio_is_refused_with_the_reason(of: Callable[..., Set]) -> None:
    made = of("coco")
    for n in range(6):
        made.add("val" if n % 3 == 2 else "train", [(100, 100, 200, 200)], declared=(640, 640))
    assert "another ratio" in rejected(made.read()[1]).message
