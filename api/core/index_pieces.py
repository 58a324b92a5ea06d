"""An index as bytes, of which one image is read without the others: a data set may have millions of boxes.

The importer wrote it with `Index.model_dump_json`, so an image begins with `{"id":` and a split with `"train":[`.
Neither can stand in a text of JSON, where quotes are escaped. Knows fgd.data.index and bytes. Knows no store.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from fgd.data.index import Box

_MARK = re.compile(rb'\{"id":(-?\d{1,20}),|"(train|val|test|unlabelled)":\[')
_LONGEST_MARK = len(b'{"id":-12345678901234567890,')
_NAME = re.compile(rb'\{"id":-?\d{1,20},"file":"[^"\\]*","name":("(?:[^"\\]|\\.)*")|"(train|val|test|unlabelled)":\[')
_LONGEST_NAME = 64 * 1024
"""Bytes, from the beginning of an image to the end of its name."""
_BOXES, _LABELS, _CROWD = b',"boxes":[', b'],"labels":[', b'],"crowd":['
_BOX = re.compile(rb"\[([^\[\]]*)\]")
_LABEL = re.compile(rb"\d+")
_FLAG = re.compile(rb"true|false")


@dataclass(frozen=True)
class Contents:
    """Where things lie in an index."""

    classes: tuple[str, ...]
    splits: Mapping[str, array[int]]
    """Where each image begins, and at last where the split ends."""
    ids: Mapping[str, array[int]]
    """Of the images."""

    def piece(self, split: str, n: int) -> tuple[int, int] | None:
        """Where image n of a split begins, and its length; None: there is none."""
        begins = self.splits.get(split, array("Q"))
        return (begins[n], begins[n + 1] - begins[n]) if 0 <= n < len(begins) - 1 else None


@dataclass(frozen=True)
class ImagePiece:
    """One image, and some of its boxes."""

    file: str
    name: str
    width: int
    height: int
    box_count: int
    """All of them."""
    boxes: tuple[tuple[Box, int, bool], ...]
    """Box, label, crowd."""


def contents(chunks: Iterable[bytes]) -> Contents:
    """One pass over the bytes, of which only the places of images are kept."""
    head, buffer, at = b"", b"", 0
    splits: dict[str, array[int]] = {}
    ids: dict[str, array[int]] = {}
    begins, numbers = array("Q"), array("q")
    for chunk in chunks:
        buffer += chunk
        done = 0
        for mark in _MARK.finditer(buffer):
            done = mark.end()
            begins.append(at + mark.start())
            if mark[2] is not None:
                splits[mark[2].decode()] = begins = array("Q")
                ids[mark[2].decode()] = numbers = array("q")
            else:
                numbers.append(int(mark[1]))
        if not splits:
            continue  # classes come first; they are few
        head = head or buffer
        done = max(done, len(buffer) - _LONGEST_MARK + 1)
        buffer, at = buffer[done:], at + done
    begins.append(at + len(buffer))
    return Contents(_classes(head or buffer), splits, ids)


def names(chunks: Iterable[bytes]) -> Iterator[tuple[str, int, str]]:
    """Split, place in it and name of every image. One pass over the bytes, of which little is held."""
    buffer, split, n = b"", "", 0
    for chunk in chunks:
        buffer += chunk
        done = 0
        for mark in _NAME.finditer(buffer):
            done = mark.end()
            if mark[2] is not None:
                split, n = mark[2].decode(), 0
            else:
                yield split, n, json.loads(mark[1])
                n += 1
        buffer = buffer[max(done, len(buffer) - _LONGEST_NAME) :]


def _classes(head: bytes) -> tuple[str, ...]:
    end = head.index(b'],"splits":{') + 1
    return tuple(json.loads(head[:end] + b"}")["classes"])


def image_of(piece: bytes, after: int, limit: int) -> ImagePiece:
    """The image that begins the piece, with up to `limit` of its boxes from box `after` on."""
    boxes = piece.index(_BOXES)
    labels = piece.index(_LABELS, boxes)
    crowd = piece.index(_CROWD, labels)
    end = piece.index(b"]", crowd + len(_CROWD))
    told: dict[str, Any] = json.loads(piece[:boxes] + b"}")

    def some(pattern: re.Pattern[bytes], start: int, stop: int) -> Iterable[re.Match[bytes]]:
        return islice(pattern.finditer(piece, start, stop), after, after + limit)

    coordinates = (json.loads(found[0]) for found in some(_BOX, boxes + len(_BOXES), labels))
    numbers = (int(found[0]) for found in some(_LABEL, labels + len(_LABELS), crowd))
    flags = (found[0] == b"true" for found in some(_FLAG, crowd + len(_CROWD), end))
    listed = piece[labels + len(_LABELS) : crowd]
    return ImagePiece(
        file=told["file"],
        name=told["name"],
        width=told["width"],
        height=told["height"],
        box_count=listed.count(b",") + 1 if listed else 0,
        boxes=tuple(zip(map(tuple, coordinates), numbers, flags, strict=True)),
    )
