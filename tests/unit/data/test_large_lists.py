"""What a data set has many of costs its number, not its square: classes, folders, names, the same folder again."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgd.data import coco_files, yolo
from fgd.data.coco import _categories
from fgd.data.coco_files import Annotations
from fgd.data.huggingface_card import Card
from fgd.data.index import Index
from fgd.data.report import Defects
from fgd.data.tree import Tree
from fgd.data.yolo_files import split_images

MANY = 60_000
pytestmark = pytest.mark.timeout(20)


def test_classes_of_coco() -> None:
    table = [{"id": n, "name": f"class {n}"} for n in range(MANY)]
    assert len(_categories(Annotations("a.json", [], [], [*table, {"id": -1, "name": "class 7"}]), Defects())) == MANY


def test_classes_of_yolo() -> None:
    names = [f"class {n}" for n in range(MANY)]
    assert len(yolo._names("data.yaml", {"names": [*names, "class 7"]}, Defects())) == MANY + 1


def test_names_in_many_folders() -> None:
    folders = tuple(sorted(["", "set", *(f"set/{n}" for n in range(5000))]))
    tree = Tree(Path("/nowhere"), folders, frozenset(f"set/4321/{n}.jpg" for n in range(MANY)), ())
    known = coco_files._folders(tree)
    listed = [{"id": n, "file_name": f"{n}.jpg"} for n in range(MANY)]
    assert coco_files._image_folder(Annotations("set/a.json", listed, [], []), None, known) == ("set/4321", True, True)
    above = [{"id": n, "file_name": f"4321/{n}.jpg"} for n in range(MANY)]
    assert coco_files._image_folder(Annotations("set/a.json", above, [], []), None, known) == ("set", True, True)


def test_a_folder_named_a_thousand_times() -> None:
    tree = Tree(
        Path("/nowhere"), ("", "im", "im0"), frozenset(f"{f}/{n}.jpg" for f in ("im", "im0") for n in range(MANY)), ()
    )
    defects = Defects()
    found = split_images(tree, "data.yaml", None, {"train": ["im", "./im"] * 1000}, defects).splits["train"]
    assert found == sorted(found)
    assert {Path(file).parent.name for file in found} == {"im"}
    assert len(found) == MANY
    assert defects.report("yolo", Index(classes=(), splits={})).defect_counts == {"image_listed_twice": 1999}


def test_files_that_a_card_names_one_by_one() -> None:
    files = [(("data", f"{n}.parquet"), "train" if n % 2 else "val") for n in range(MANY)]
    card = Card((), [*files, (("data", "*"), "test")])
    assert [card.split_of(f"data/{n}.parquet") for n in range(4)] == ["val", "train", "val", "train"]
    assert sum(card.split_of(f"data/{n}.parquet") == "train" for n in range(MANY)) == MANY // 2
    assert card.split_of("data/more.parquet") == "test"


def test_patterns_of_a_card_beyond_any_use_are_not_looked_at() -> None:
    card = Card((), [*(((f"{n}*",), "train") for n in range(MANY)), (("z*",), "val")])
    assert [card.split_of(f"{n}{n}") for n in range(3)] == ["train"] * 3
    assert {card.split_of(f"z{n}") for n in range(300)} == {None}


@pytest.mark.parametrize("value", [b"[]", b"{}", b'{"a":{}}', b"[1,2,3,4]", b'""'])
def test_json_that_takes_far_more_memory_than_annotations_do(value: bytes) -> None:
    text = b"[" + (value + b",") * (30_000_000 // len(value)) + b"0]"
    taken = coco_files.memory_taken(text)
    assert taken > coco_files.MAX_JSON_TIMES * len(text)
    assert taken > 512 * 2**20


def test_json_of_the_shortest_annotations_takes_less() -> None:
    box = b'{"id":1,"image_id":1,"category_id":1,"bbox":[1,2,3,4]},'
    assert coco_files.memory_taken(box * 1000) < coco_files.MAX_JSON_TIMES * len(box) * 1000


def test_json_beyond_the_bound_is_told_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_files, "_SMALL_JSON_TAKES", 0)
    (tmp_path / "a.json").write_bytes(b'{"images": [' + b"[]," * 1000 + b"0]}")
    with pytest.raises(coco_files._Unusable, match="would take") as refused:
        coco_files._load(tmp_path, "a.json")
    assert refused.value.broken


def test_one_annotation_file_for_each_of_many_images() -> None:
    files = [f"set/{n % 300}/{n}.jpg" for n in range(MANY // 3)]
    tree = Tree(Path("/nowhere"), ("", "set", *(f"set/{n}" for n in range(300))), frozenset(files), ())
    known = coco_files._folders(tree)
    for n in range(MANY // 3):
        one = Annotations(f"json/{n}.json", [{"id": 1, "file_name": f"{n}.jpg"}], [], [])
        assert coco_files._image_folder(one, "train", known) == (f"set/{n % 300}", True, True)


def test_one_name_in_every_folder_says_nothing() -> None:
    files = frozenset([*(f"{n}/a.jpg" for n in range(2000)), "7/b.jpg"])
    tree = Tree(Path("/nowhere"), ("", *(f"{n}" for n in range(2000))), files, ())
    listed = [{"id": n, "file_name": name} for n, name in enumerate(["a.jpg", "b.jpg"])]
    one = Annotations("a.json", listed, [], [])
    assert coco_files._image_folder(one, None, coco_files._folders(tree)) == ("7", True, False)
