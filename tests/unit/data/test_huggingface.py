"""Hugging Face data sets as people publish them: image folders with metadata, and Parquet files."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from fgd.data import formats, huggingface_parquet
from fgd.data.formats import open_index
from fgd.data.index import Defect, Index, Report
from fgd.data.report import Defects
from fgd.errors import DatasetError
from tests.unit.data.conftest import picture

NAMES = ["cat", "dog"]
BOX = [10, 5, 20, 10]


def png(seed: int, width: int = 40, height: int = 30) -> bytes:
    into = io.BytesIO()
    picture(width, height, seed).save(into, "PNG")
    return into.getvalue()


def objects(boxes: Any, categories: Any, key: str = "category") -> dict[str, Any]:
    return {"bbox": boxes, key: categories}


class Folder:
    """Images of 40x30: a and b in train, c in validation, and a card that names the classes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows: dict[str, list[Any]] = {"train": [], "validation": []}
        self.made = 0
        self.card: dict[str, Any] = {
            "dataset_info": {
                "features": [
                    {"name": "image", "dtype": "image"},
                    {
                        "name": "objects",
                        "sequence": [
                            {"name": "bbox", "sequence": "float32"},
                            {"name": "category", "dtype": {"class_label": {"names": {"0": "cat", "1": "dog"}}}},
                        ],
                    },
                ]
            }
        }
        self.add("train", "a.png", objects([BOX], [0]))
        self.add("train", "b.png", objects([BOX], [1]))
        self.add("validation", "c.png", objects([BOX, [0, 0, 40, 30]], [0, 1]))

    def add(self, split: str, name: str, objects: Any, **more: Any) -> None:
        self.made += 1
        path = self.root / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(self.made))
        self.rows.setdefault(split, []).append({"file_name": name, "objects": objects} | more)

    def write(self) -> Path:
        for split, rows in self.rows.items():
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            (self.root / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        (self.root / "README.md").write_text(f"---\n{yaml.safe_dump(self.card)}---\n# A card\n")
        return self.root

    def read(self, **how: Any) -> tuple[Index, Report]:
        return read(self.write(), **how)


def read(root: Path, format: str = "auto", **how: Any) -> tuple[Index, Report]:
    index, report, sources = formats.read(root, format, **how)
    assert {image.file for split in index.splits.values() for image in split} == set(sources)
    return index, report


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "hf")


def only(report: Report, code: str) -> Defect:
    found = [defect for defect in report.defects if defect.code == code]
    assert len(found) == 1, report.defects
    return found[0]


# --- image folders --------------------------------------------------------------------------------------------


def test_box_is_x_y_width_height_and_the_card_names_the_classes(folder: Folder) -> None:
    index, report = folder.read()
    assert report.ok, report.defects
    assert (report.format, report.defect_counts) == ("huggingface", {})
    assert index.classes == ("cat", "dog")
    assert index.splits["train"][0].boxes == ((10, 5, 30, 15),)
    assert index.splits["val"][0].labels == (1, 2)
    assert [image.name for image in index.splits["train"]] == ["a.png", "b.png"]


@pytest.mark.parametrize("key", ["categories", "category", "label", "category_id"])
def test_categories_may_be_names_and_stand_under_the_usual_keys(folder: Folder, key: str) -> None:
    for rows in folder.rows.values():
        for row in rows:
            row["objects"] = objects(row["objects"]["bbox"], [NAMES[c] for c in row["objects"]["category"]], key)
    folder.card = {}
    index, report = folder.read()
    assert (index.classes, report.defect_counts) == (("cat", "dog"), {})


def test_objects_may_be_a_list_of_objects(folder: Folder) -> None:
    for rows in folder.rows.values():
        for row in rows:
            pairs = zip(row["objects"]["bbox"], row["objects"]["category"], strict=True)
            row["objects"] = [{"bbox": box, "category": category, "iscrowd": 1} for box, category in pairs]
    folder.add("train", "d.png", [{"bbox": BOX, "category": 0}])
    folder.add("validation", "e.png", [{"bbox": BOX, "category": 0}])
    index, _ = folder.read()
    assert [image.crowd for image in index.splits["train"]] == [(True,), (True,), (False,)]


def test_one_table_at_the_root_may_speak_of_all_splits(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf")
    rows = [row | {"file_name": f"{split}/{row['file_name']}"} for split, rows in folder.rows.items() for row in rows]
    folder.write()
    for split in folder.rows:
        (folder.root / split / "metadata.jsonl").unlink()
    (folder.root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, report = read(folder.root)
    assert {name: split.boxes for name, split in report.splits.items()} == {"train": 2, "val": 2}
    assert report.defect_counts == {}


def test_csv_has_its_objects_as_json(folder: Folder) -> None:
    folder.write()
    for split, rows in folder.rows.items():
        (folder.root / split / "metadata.jsonl").unlink()
        with (folder.root / split / "metadata.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, ["file_name", "objects"])
            table.writeheader()
            table.writerows(row | {"objects": json.dumps(row["objects"])} for row in rows)
    index, report = read(folder.root)
    assert (report.defect_counts, index.classes) == ({}, ("cat", "dog"))
    assert index.splits["train"][0].boxes == ((10, 5, 30, 15),)


def test_without_a_split_all_is_train_and_val_is_carved(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hf")
    folder.rows = {}
    for n in range(12):
        folder.add("pictures", f"{n}.png", objects([BOX], [n % 2]))
    _, report = folder.read()
    assert report.ok, report.defects
    assert {name: split.images for name, split in report.splits.items()} == {"train": 11, "val": 1}


def test_numbers_that_nothing_names_are_their_own_names_and_it_is_told(folder: Folder) -> None:
    folder.card = {}
    index, report = folder.read()
    assert index.classes == ("0", "1")
    assert report.defect_counts == {"class_names_missing": 2}


def test_older_repositories_name_classes_in_dataset_infos(folder: Folder) -> None:
    folder.card = {}
    label = {"num_classes": 2, "names": NAMES, "_type": "ClassLabel"}
    features = {"objects": {"feature": {"category": label, "bbox": {}}, "_type": "Sequence"}}
    folder.write()
    (folder.root / "dataset_infos.json").write_text(json.dumps({"default": {"features": features}}))
    index, _ = read(folder.root)
    assert index.classes == ("cat", "dog")


@pytest.mark.parametrize("names", [{"0": "cat", "2": "dog"}, ["cat", "cat"], ["cat", True], ["cat", ""]])
def test_names_that_are_no_table_of_classes_are_rejected(folder: Folder, names: Any) -> None:
    label = {"names": names}
    folder.card = {"dataset_info": [{"features": [{"name": "category", "dtype": {"class_label": label}}]}]}
    _, report = folder.read()
    assert not report.ok
    assert only(report, "category_invalid").file == "README.md"


@pytest.mark.parametrize(
    ("given", "code", "action", "words"),
    [
        (objects([BOX, BOX], [0]), "annotation_invalid", "dropped_image", "bbox has 2 entries and category 1"),
        (objects("x", [0]), "annotation_invalid", "dropped_image", "both must be lists"),
        (objects(None, [0]), "annotation_invalid", "dropped_image", "both must be lists"),
        ("nonsense", "annotation_invalid", "dropped_image", "not lists of bbox and category"),
        (objects([BOX], [7]), "annotation_unknown_category", "dropped_box", "none of the 2 classes, 0 to 1"),
        (objects([BOX], [None]), "annotation_unknown_category", "dropped_box", "class None"),
        (objects([BOX], [-1]), "annotation_unknown_category", "dropped_box", "class -1"),
        (objects([[1, 2, 0, 4]], [0]), "zero_area_box", "dropped_box", "no area"),
        (objects([[1, 2, 3]], [0]), "box_invalid", "dropped_box", "four numbers"),
        (objects([None], [0]), "box_invalid", "dropped_box", "four numbers"),
        (objects([[1, None, 3, 4]], [0]), "box_not_finite", "dropped_box", "not a finite number"),
        (objects([[1, float("nan"), 3, 4]], [0]), "box_not_finite", "dropped_box", "not a finite number"),
        (objects([[100, 100, 3, 4]], [0]), "box_outside", "dropped_box", "outside its image"),
        ([{"bbox": BOX, "category": 0}, None], "annotation_unknown_category", "dropped_box", "object 2"),
        (None, "image_unlabelled", "kept", "no box"),
        (objects([], []), "image_unlabelled", "kept", "no box"),
    ],
)
def test_what_is_wrong_with_a_row_is_told_with_its_place(
    folder: Folder, given: Any, code: str, action: str, words: str
) -> None:
    folder.add("train", "d.png", given)
    _, report = folder.read()
    assert report.ok
    defect = next(defect for defect in report.defects if defect.code == code)
    assert defect.action == action
    assert words in defect.message
    assert code == "image_unlabelled" or "train/metadata.jsonl: line 3" in defect.message
    assert set(report.defect_counts) <= {code, "image_unlabelled", "labels_unreadable"} or code.startswith(
        "annotation_unknown"
    )


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"file_name": "../../secret.png", "objects": None}, "path_escapes"),
        ({"file_name": "/etc/passwd", "objects": None}, "path_escapes"),
        ({"file_name": "a\0b", "objects": None}, "path_escapes"),
        ({"file_name": "linked.png", "objects": None}, "path_escapes"),
        ({"file_name": "gone.png", "objects": None}, "image_missing"),
        ({"file_name": "x" * 5000, "objects": None}, "image_missing"),
        ({"file_name": 7}, "image_invalid"),
        ({}, "image_invalid"),
        ("[1]", "annotation_invalid"),
        ("{broken", "annotation_invalid"),
        ("[" * 100_000, "annotation_invalid"),
    ],
)
def test_a_row_without_an_image_of_the_data_set_is_dropped_and_told(folder: Folder, row: Any, code: str) -> None:
    (folder.root.parent / "secret.png").write_bytes(png(99))
    (folder.root / "train/linked.png").symlink_to(folder.root.parent / "secret.png")
    folder.rows["train"].append(row)
    _, report = folder.read()
    assert report.ok
    assert only(report, code).action == "dropped_image"
    assert report.splits["train"].images == 2


def test_a_file_named_twice_has_the_boxes_of_both_rows(folder: Folder) -> None:
    folder.rows["train"].append({"file_name": "a.png", "objects": objects([[1, 1, 5, 5]], [1])})
    index, report = folder.read()
    assert len(index.splits["train"][0].boxes) == 2
    assert only(report, "image_listed_twice").action == "kept"


def test_an_image_that_no_row_names_is_told(folder: Folder) -> None:
    (folder.root / "train/stray.png").write_bytes(png(50))
    _, report = folder.read()
    assert only(report, "image_unlisted").file == "train/stray.png"


def test_boxes_that_can_only_be_corners_are_read_as_corners(folder: Folder) -> None:
    folder.rows = {}
    for n in range(8):
        folder.add("train", f"t{n}.png", objects([[25, 20, 38, 29]], [n % 2]))
        folder.add("validation", f"v{n}.png", objects([[25, 20, 38, 29]], [n % 2]))
    index, report = folder.read()
    assert "of 16 boxes 16 extend beyond" in only(report, "boxes_are_corners").message
    assert index.splits["train"][0].boxes == ((25, 20, 38, 29),)


def test_objects_without_a_box_have_that_around_their_outline(folder: Folder) -> None:
    square = [[5, 5, 15, 5, 15, 9, 5, 9]]
    folder.add("train", "p.png", {"segmentation": [square], "category": [0]})
    folder.add("train", "q.png", [{"segmentation": square, "bbox": [], "category": 1}])
    index, report = folder.read()
    assert report.defect_counts == {"outline_to_box": 2}
    assert [image.boxes for image in index.splits["train"][-2:]] == [((5, 5, 15, 9),)] * 2


def test_boxes_in_fractions_are_refused(folder: Folder) -> None:
    for rows in folder.rows.values():
        for row in rows:
            row["objects"]["bbox"] = [[0.1, 0.1, 0.5, 0.5]] * len(row["objects"]["bbox"])
    _, report = folder.read()
    assert not report.ok
    assert "write them in pixels" in only(report, "boxes_relative").message


# --- the card -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("front", "code"),
    [
        ("a: &x [1]\nb: *x", "card_invalid"),
        ("a: [1", "card_invalid"),
        ("[" * 50_000, "card_invalid"),
        ("configs: [{config_name: a}, {config_name: b}]", "config_ambiguous"),
    ],
)
def test_a_card_that_cannot_be_used_is_told(folder: Folder, front: str, code: str) -> None:
    folder.write()
    (folder.root / "README.md").write_text(f"---\n{front}\n---\n")
    _, report = read(folder.root)
    assert only(report, code).file == "README.md"


def test_the_card_says_which_files_are_which_split(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "hf")
    for split, file in (("train", "tables/one.parquet"), ("validation", "tables/x/two.parquet")):
        (tmp_path / "hf" / file).parent.mkdir(parents=True, exist_ok=True)
        shards.write(split, file)
    shards.write("train", "other/three.parquet")
    config = {
        "config_name": "default",
        "data_files": [
            {"split": "train", "path": "tables/*.parquet"},
            {"split": "validation", "path": ["tables/**/two.parquet"]},
        ],
    }
    front = yaml.safe_dump({"configs": [config, {"config_name": "more", "data_files": "other/*"}]})
    (tmp_path / "hf/README.md").write_text(f"---\n{front}---\n")
    _, report = read(tmp_path / "hf")
    assert report.ok
    assert {name: split.images for name, split in report.splits.items()} == {"train": 2, "val": 1}
    assert report.defect_counts == {"config_skipped": 1, "table_skipped": 1}


# --- Parquet --------------------------------------------------------------------------------------------------

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
OBJECTS = pa.struct([("bbox", pa.list_(pa.list_(pa.float32(), 4))), ("category", pa.list_(pa.int64()))])


def features(names: Any = NAMES) -> bytes:
    """As `datasets` writes it into the schema."""
    label = {"names": names, "_type": "ClassLabel"}
    inner = {"bbox": {"feature": {"dtype": "float32", "_type": "Value"}, "length": 4, "_type": "Sequence"}}
    told = {
        "image": {"_type": "Image"},
        "objects": {"feature": {**inner, "category": label}, "_type": "Sequence"},
    }
    return json.dumps({"info": {"features": told}}).encode()


class Shards:
    """The same images and boxes as Folder has, in Parquet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows: dict[str, list[dict[str, Any]]] = {
            "train": [self.row(1, objects([BOX], [0])), self.row(2, objects([BOX], [1]))],
            "validation": [self.row(3, objects([BOX, [0, 0, 40, 30]], [0, 1]))],
        }
        self.metadata: dict[bytes, bytes] | None = {b"huggingface": features()}
        self.types: dict[str, pa.DataType] = {"image": IMAGE, "objects": OBJECTS}

    @staticmethod
    def row(seed: int, objects: Any, **image: Any) -> dict[str, Any]:
        return {"image": {"bytes": png(seed), "path": f"{seed:04}.png"} | image, "objects": objects}

    def write(self, split: str, file: str | None = None, **how: Any) -> Path:
        path = self.root / (file or f"data/{split}-00000-of-00001.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        schema = pa.schema(list(self.types.items()), metadata=self.metadata)
        pq.write_table(pa.Table.from_pylist(self.rows[split], schema), path, **how)
        return path

    def read(self, **how: Any) -> tuple[Index, Report]:
        for split in self.rows:
            self.write(split)
        return read(self.root, **how)


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return Shards(tmp_path / "shards")


def test_parquet_gives_what_the_folder_gives(shards: Shards, folder: Folder) -> None:
    index, report = shards.read()
    assert report.ok, report.defects
    assert report.defect_counts == {}
    same, _ = folder.read()
    assert index.classes == same.classes
    for split, images in same.splits.items():
        found = index.splits[split]
        assert [(i.file, i.boxes, i.labels) for i in found] == [(i.file, i.boxes, i.labels) for i in images]
    assert index.splits["train"][0].name == "0001.png"


def test_several_shards_and_a_list_of_structs_are_read(shards: Shards) -> None:
    one = pa.struct([("bbox", pa.list_(pa.float64())), ("category", pa.int64())])
    shards.types["objects"] = pa.list_(one)
    for rows in shards.rows.values():
        for row in rows:
            pairs = zip(row["objects"]["bbox"], row["objects"]["category"], strict=True)
            row["objects"] = [{"bbox": box, "category": category} for box, category in pairs]
    rows, shards.rows["train"] = shards.rows["train"], shards.rows["train"][:1]
    shards.write("train", "data/train-00000-of-00002.parquet")
    shards.rows["train"] = rows[1:]
    shards.write("train", "data/train-00001-of-00002.parquet")
    shards.write("validation")
    index, report = read(shards.root)
    assert report.defect_counts == {}
    assert [image.labels for image in index.splits["train"]] == [(1,), (2,)]


def test_images_of_a_parquet_file_can_be_trained_from_in_place(shards: Shards) -> None:
    shards.read()
    index, root = open_index(shards.root)
    for image in index.splits["train"]:
        assert (root / image.file).read_bytes() in (png(1), png(2))


def test_parquet_beside_images_may_hold_the_boxes_alone(folder: Folder) -> None:
    folder.write()
    for split, rows in folder.rows.items():
        (folder.root / split / "metadata.jsonl").unlink()
        pq.write_table(pa.Table.from_pylist(rows), folder.root / split / "metadata.parquet")
    index, report = read(folder.root)
    assert (report.defect_counts, index.classes) == ({}, ("cat", "dog"))


@pytest.mark.parametrize(
    ("image", "code"),
    [
        ({"bytes": None}, "image_missing"),
        ({"bytes": None, "path": None}, "image_missing"),
        ({"bytes": None, "path": "../../secret.png"}, "path_escapes"),
        ({"bytes": b"no image"}, "image_broken"),
        ({"bytes": b""}, "image_broken"),
        ({"bytes": png(3)[:200]}, "image_broken"),
    ],
)
def test_an_image_that_cannot_be_used_is_dropped_and_told(shards: Shards, image: Any, code: str) -> None:
    shards.rows["train"].append(shards.row(9, objects([BOX], [0]), **image))
    _, report = shards.read()
    assert report.ok
    assert only(report, code).action == "dropped_image"


def test_a_path_beside_the_bytes_is_a_label_and_leads_nowhere(shards: Shards, tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    for name in ("../../../../evil.png", "/tmp/evil.png", "a\\..\\evil.png", None, "", "\x1b[31m.png", "x" * 5000):
        seed = 100 + len(shards.rows["train"])
        shards.rows["train"].append(shards.row(seed, objects([BOX], [0]), path=name))
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "shards")}
    index, report = shards.read(unpacked=unpacked)
    assert report.ok
    assert report.defect_counts == {}
    made = {p for p in tmp_path.rglob("*") if not p.is_relative_to(shards.root)} - before
    assert all(path == unpacked or path.is_relative_to(unpacked) for path in made)
    assert [image.name for image in index.splits["train"]][2:5] == ["evil.png"] * 3
    assert [image.name for image in index.splits["train"]][5:] == ["row6", "row7", "row8", "row9"]


def test_a_picture_of_too_many_pixels_is_dropped(shards: Shards) -> None:
    from PIL import Image as Pillow

    into = io.BytesIO()
    Pillow.new("1", (20_000, 20_000)).save(into, "PNG")
    shards.rows["train"].append(shards.row(9, objects([BOX], [0]), bytes=into.getvalue()))
    _, report = shards.read()
    assert only(report, "image_too_large").action == "dropped_image"


def test_same_picture_in_many_rows_takes_room_once(shards: Shards, tmp_path: Path) -> None:
    shards.rows["train"] += [shards.row(1, objects([BOX], [0])) for _ in range(50)]
    shards.read(verify="headers", unpacked=tmp_path / "unpacked")
    assert len([path for path in (tmp_path / "unpacked").rglob("*") if path.is_file()]) == 3


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.string(), "nonsense"),
        (pa.int64(), 7),
        (pa.list_(pa.int64()), [1, 2]),
        (pa.struct([("bbox", pa.string()), ("category", pa.int64())]), {"bbox": "1,2,3,4", "category": 1}),
        (pa.struct([("bbox", pa.list_(pa.float32())), ("category", pa.list_(pa.int64()))]), objects([1, 2], [0, 1])),
    ],
)
def test_columns_of_another_type_are_refused_and_told(shards: Shards, kind: Any, value: Any) -> None:
    shards.types["objects"] = kind
    for rows in shards.rows.values():
        for row in rows:
            row["objects"] = value
    _, report = shards.read()
    assert not report.ok
    told = {"annotation_invalid", "annotation_unknown_category", "box_invalid"} & set(report.defect_counts)
    assert told, report.defects


def test_nulls_at_every_depth_are_survived_and_told(shards: Shards) -> None:
    for given in (None, objects(None, None), objects([None], [0]), objects([BOX], [None])):
        shards.rows["train"].append(shards.row(100 + len(shards.rows["train"]), given))
    shards.rows["train"].append({"image": None, "objects": None})
    _, report = shards.read()
    assert report.ok
    assert report.defect_counts == {
        "annotation_unknown_category": 1, "box_invalid": 1, "image_missing": 1, "image_unlabelled": 2,
        "labels_unreadable": 2,
    }  # fmt: skip


def test_index_beyond_the_class_label_is_told(shards: Shards) -> None:
    shards.rows["train"].append(shards.row(9, objects([BOX], [2])))
    _, report = shards.read()
    assert "class 2, which is none of the 2 classes" in only(report, "annotation_unknown_category").message


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "head"])
def test_a_damaged_shard_is_refused_with_its_name(shards: Shards, damage: str) -> None:
    for split in shards.rows:
        path = shards.write(split)
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "cut": content[:-20],
            "flipped": content[:40] + bytes(b ^ 0xFF for b in content[40:400]) + content[400:],
            "text": b"PAR1 and so on",
            "head": content[:middle],
        }[damage]
    )
    _, report = read(shards.root)
    if damage != "flipped":  # may still be one, with a picture that is none
        assert only(report, "table_invalid").file == "data/validation-00000-of-00001.parquet"
    assert not report.ok


def test_a_few_pages_that_mean_more_than_memory_are_refused(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_parquet, "MAX_ANNOTATION_BYTES", 2**20)
    shards.rows["train"] = [shards.row(1, objects([BOX] * 200_000, [0] * 200_000))]
    path = shards.write("train", compression="zstd")
    assert path.stat().st_size < 200_000
    shards.write("validation")
    _, report = read(shards.root)
    assert "the annotations of 1 rows behind row 0 take" in only(report, "table_invalid").message


@pytest.mark.parametrize("told", ["image", "objects"])
def test_one_large_value_that_many_rows_name_takes_its_room_once(shards: Shards, told: str) -> None:
    """A file of a few kB: the value stands in its dictionary, and a batch of rows would hold it for each."""
    large = bytes(2**20) if told == "image" else b"PNG"
    count = 400
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), [large])
    name = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), ["x" * (2**20 if told != "image" else 9)])
    image = pa.StructArray.from_arrays([texts, pa.array([None] * count, pa.string())], ["bytes", "path"])
    path = shards.write("train")
    pq.write_table(pa.table({"image": image, "label": name}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 50_000

    pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        store = huggingface_parquet.Store(lambda: shards.root)
        rows = huggingface_parquet.Table(path).read(store, ["label"])
        assert sum(1 for _ in rows) == count
        assert pool.max_memory() < 64 * 2**20
    finally:
        pa.set_memory_pool(before)


def test_table_without_images_is_skipped(shards: Shards) -> None:
    pq.write_table(pa.table({"text": ["a"]}), (shards.root.mkdir() or shards.root) / "train-captions.parquet")
    _, report = shards.read()
    assert report.ok
    assert "its columns are text" in only(report, "table_skipped").message


def test_without_pyarrow_the_refusal_names_the_extra(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    shards.read()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet")
    with pytest.raises(DatasetError, match=r'pip install "fgd-service\[hf\]"'):
        formats.read(shards.root)


def test_many_rows_are_read_in_bounded_time(shards: Shards) -> None:
    count = 20_000
    rows = pa.table(
        {
            "image": pa.array([{"bytes": b"x", "path": None}] * count, IMAGE),
            "objects": pa.array([objects([BOX], [0])] * count, OBJECTS),
        }
    )
    (shards.root / "data").mkdir(parents=True)
    pq.write_table(rows, shards.root / "data/train-00000-of-00001.parquet")
    from fgd.data import huggingface
    from fgd.data.tree import list_tree

    began = time.process_time()
    listing = huggingface.list_images(list_tree(shards.root), Defects())
    assert len(listing.images) == count
    assert time.process_time() - began < 10


def test_two_formats_in_one_folder_must_be_told_apart(folder: Folder) -> None:
    folder.write()
    (folder.root / "data.yaml").write_text("train: train\nval: validation\nnames: [a]\n")
    with pytest.raises(DatasetError, match='"yolo" or "huggingface"'):
        formats.read(folder.root)


# --- a real set -----------------------------------------------------------------------------------------------


def test_a_real_set_has_the_same_boxes_in_every_form(shared_data: Path, tmp_path: Path) -> None:
    """rbc as its publisher has it (COCO), written as an image folder and as Parquet."""
    coco, report, _ = formats.read(shared_data / "rbc", verify="headers")
    as_folder, as_parquet = tmp_path / "folder", tmp_path / "parquet"
    (as_parquet / "data").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        source = shared_data / "rbc" / split
        content = json.loads((source / "_annotations.coco.json").read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        rows = []
        (as_folder / split).mkdir(parents=True)
        for image in sorted(content["images"], key=lambda image: image["id"]):
            (as_folder / split / image["file_name"]).write_bytes((source / image["file_name"]).read_bytes())
            own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            found = objects([a["bbox"] for a in own], [names[a["category_id"]] for a in own])
            rows.append({"file_name": image["file_name"], "objects": found})
        (as_folder / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        table = [
            {
                "image": {"bytes": (source / row["file_name"]).read_bytes(), "path": row["file_name"]},
                "objects": row["objects"],
            }
            for row in rows
        ]
        pq.write_table(pa.Table.from_pylist(table), as_parquet / f"data/{split}-00000-of-00001.parquet")
    for root in (as_folder, as_parquet):
        index, found, _ = formats.read(root, verify="headers")
        assert {name: vars(split) for name, split in found.splits.items()} == {
            name: vars(split) for name, split in report.splits.items()
        }
        assert [i.file for i in index.splits["train"]] == [i.file for i in coco.splits["train"]]
