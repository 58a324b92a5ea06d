"""One image out of an index, as the whole index has it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from api.core import index_pieces
from fgd.data.index import Image, Index

NASTY = ('{"id":1', '"train":[', '],"splits":{', ',"boxes":[[1,2,3,4]]', "a\\", 'ä"b', "]", "", '"}],"val":[{"id":')


def image(n: int, boxes: int, name: str = "a.jpg") -> Image:
    chosen = random.Random(n)
    return Image(
        id=n,
        file=f"images/aa/{n:064x}.jpg",
        name=name,
        width=640,
        height=480,
        boxes=tuple((chosen.uniform(0, 300), 0.0, 301.5, 1e-5) for _ in range(boxes)),
        labels=tuple(chosen.randint(1, 2) for _ in range(boxes)),
        crowd=tuple(chosen.random() < 0.5 for _ in range(boxes)),
    )


INDEX = Index(
    classes=NASTY,
    splits={
        "train": tuple(image(n, n % 4, NASTY[n % len(NASTY)]) for n in range(40)),
        "val": (),
        "test": (image(100, 1),),
        "unlabelled": (image(101, 0), image(102, 0)),
    },
)


def chunks(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 9, 13, 14, 64, 1000, 10**6])
def test_every_image_is_found_however_the_bytes_come(size: int) -> None:
    data = INDEX.model_dump_json().encode()
    found = index_pieces.contents(chunks(data, size))
    assert found.classes == INDEX.classes
    for split, images in INDEX.splits.items():
        assert found.ids[split].tolist() == [each.id for each in images]
        for n, expected in enumerate(images):
            at, length = found.piece(split, n) or (0, 0)
            one = index_pieces.image_of(data[at : at + length], 0, 100)
            assert (one.file, one.name, one.width, one.height) == (expected.file, expected.name, 640, 480)
            assert one.boxes == tuple(zip(expected.boxes, expected.labels, expected.crowd, strict=True))
            assert one.box_count == len(expected.boxes)
        assert found.piece(split, len(images)) is None
        assert found.piece(split, -1) is None
    assert found.piece("other", 0) is None


@pytest.mark.parametrize("size", [1, 3, 64, 1000, 10**6])
def test_every_name_is_read_however_the_bytes_come(size: int) -> None:
    told = list(index_pieces.names(chunks(INDEX.model_dump_json().encode(), size)))
    assert told == [(split, n, each.name) for split, found in INDEX.splits.items() for n, each in enumerate(found)]


@pytest.mark.parametrize(("after", "limit"), [(0, 0), (0, 3), (3, 4), (9, 5), (10, 1), (99, 5)])
def test_boxes_come_in_pages(after: int, limit: int) -> None:
    whole = image(1, 10)
    data = Index(classes=("a", "b"), splits={"val": (whole,)}).model_dump_json().encode()
    at, length = index_pieces.contents([data]).piece("val", 0) or (0, 0)
    page = index_pieces.image_of(data[at : at + length], after, limit)
    assert page.box_count == 10
    assert page.boxes == tuple(zip(whole.boxes, whole.labels, whole.crowd, strict=True))[after : after + limit]


@pytest.mark.parametrize("splits", [{}, {"train": ()}])
def test_an_index_without_images_has_none(splits: Any) -> None:
    found = index_pieces.contents([Index(classes=("a",), splits=splits).model_dump_json().encode()])
    assert found.classes == ("a",)
    assert found.piece("train", 0) is None


def test_what_is_kept_of_an_index_does_not_grow_with_its_boxes() -> None:
    few, many = (Index(classes=("a", "b"), splits={"train": (image(1, boxes),)}) for boxes in (1, 5000))
    kept = [index_pieces.contents([index.model_dump_json().encode()]) for index in (few, many)]
    assert [len(each.splits["train"]) for each in kept] == [2, 2]
