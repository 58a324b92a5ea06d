"""Reads data sets as Hugging Face has them: an image folder with a table of metadata, or Parquet files. No torch.

    train/metadata.jsonl + train/a.jpg, ...     (or .csv, .parquet; or one at the root with file names train/a.jpg)
    data/train-00000-of-00002.parquet           images inside: what `datasets` pushes to the hub

A row is an image: file_name, or a column image of struct<bytes, path>; and objects, which is a struct of lists {bbox:
[[x, y, width, height], ...], category: [...]} or a list of structs, in a CSV as JSON. Boxes are in pixels of the stored
image. Classes are names, or indices into the class label that README.md, dataset_infos.json or the Parquet schema
describes.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from fgd.data import huggingface_parquet as parquet
from fgd.data.huggingface_card import CATEGORY_KEYS, Card, read_card, split_of_words, usable_names
from fgd.data.index import Box
from fgd.data.listing import Advice, ListedImage, Listing, Mark, Missing, NoBox, NothingFound, finite
from fgd.data.matching import Match, WrittenName, ends_of, find_files, leads_out
from fgd.data.numbering import flag, number_of, shifted
from fgd.data.outlines import box_around
from fgd.data.report import Defects
from fgd.data.texts import UnreadableText, place
from fgd.data.tree import (
    MAX_NAME,
    SPLITS,
    Split,
    Tree,
    below,
    common_folder,
    folder_of,
    is_class_name,
    is_text,
    short,
    suffix,
)
from fgd.data.unlabelled import report_ignored
from fgd.data.unmatched import hint, report_spellings

MAX_TABLE_BYTES = 2 * 2**30
MAX_LINE_BYTES = 16 * 2**20
"""Of one image's annotations."""
_TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_OBJECTS = ("objects", "annotations")
_BOXES = ("bbox", "bboxes", "boxes")
_CROWDS = ("iscrowd", "is_crowd")
_OUTLINES = ("segmentation", "segmentations", "polygons")
_MOST_CLASSES = 100_000
ADVICE = Advice(
    split="no images of the {split} split; put them into a folder {split}, or data/{split}-00000-of-00001.parquet",
    images="each row needs a file_name that exists, or an image with its bytes",
    boxes="each row needs objects with bbox [[x, y, width, height], ...] and as many entries of category",
)


class _BadRow(Exception):
    """A row whose boxes cannot be told; its image is left out, for without them it would pass for background."""


@dataclass(frozen=True)
class _Row:
    file: str
    """The table."""
    where: str
    values: Mapping[str, Any]
    picture: parquet.Picture | None = None


def looks_like(tree: Tree) -> str | None:
    """A table of images with boxes, or a Parquet file; None if there is none."""
    for file in _metadata(tree):
        if suffix(file) != ".parquet" and _mentions_boxes(tree.root / file):
            return file
    return next((file for file in _parquets(tree) if _starts_with(tree.root / file, b"PAR1")), None)


def _metadata(tree: Tree) -> list[str]:
    return sorted(file for file in tree.files if PurePosixPath(file).name in _TABLES)


def _parquets(tree: Tree) -> list[str]:
    return sorted(file for file in tree.files if suffix(file) == ".parquet")


def _mentions_boxes(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(1 << 16) if os.path.isfile(path) else b""
    except OSError:
        return False
    return b"file_name" in head and any(word.encode() in head for word in (*_OBJECTS, *_BOXES))


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        if not os.path.isfile(path):
            return False
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def list_images(tree: Tree, defects: Defects) -> Listing:
    """What the tables say. Images inside Parquet files become files. Raises DatasetError where there are none."""
    tables = _metadata(tree) or _parquets(tree)
    if not tables:
        raise NothingFound(
            f"{tree.root}: no Hugging Face data set found; expected train/metadata.jsonl (or .csv) beside images, "
            "or Parquet files such as data/train-00000-of-00001.parquet"
        )
    for file in sorted(set(_parquets(tree)).difference(tables)):
        defects.add("table_skipped", file, f"{tables[0]} and similar files are read instead; this one is not", "kept")
    card = read_card(tree, defects)
    if not _metadata(tree):
        tables, card = _of_card(tables, card, defects)
    reading = _Reading(tree, card, tables, defects)
    for file in tables:
        reading.table(file)
    reading.look_for_lost()
    return reading.listing()


def _of_card(tables: list[str], card: Card, defects: Defects) -> tuple[list[str], Card]:
    """The Parquet files that the card gives a split. All, by their names, where it knows none of them."""
    known = [file for file in tables if card.split_of(file)] if card.patterns else []
    if not known:
        return tables, replace(card, patterns=())
    for file in sorted(set(tables).difference(known)):
        defects.add("table_skipped", file, "the card does not name it for train, validation or test", "kept")
    return known, card


class _Reading:
    """One data set while it is read."""

    def __init__(self, tree: Tree, card: Card, tables: Sequence[str], defects: Defects) -> None:
        self._tree, self._card, self._defects = tree, card, defects
        self._files = tables
        self._home = common_folder(map(folder_of, tables))
        """Of all tables."""
        self._images: dict[str, ListedImage] = {}
        self._rows: dict[str, tuple[str, bool]] = {}
        """Image -> the table that named it first, and whether it is in it."""
        self._lost: list[tuple[_Row, str, Sequence[str]]] = []
        """Rows whose image is not where they say, with its name and those of the classes."""
        self._missing: list[Missing] = []
        self._tables: list[str] = list(card.names)
        self._seen: set[str] = set()
        """Names of classes that boxes have."""
        self._unnamed: set[str] = set()
        """Files whose classes are numbers that nothing names."""
        self._numbers: dict[str, set[int]] = {}
        """Table -> numbers of classes, where names go with them."""
        self._names_of: dict[str, int] = {}
        """Table -> how many names go with its numbers."""
        self._mentioned: set[str] = set()
        self._ignored: list[str] = []
        """Tables, once for each row of the unlabelled split that has boxes."""
        self._splits: dict[Split, str] = {}
        self._store = parquet.Store(tree.scratch)

    def table(self, file: str) -> None:
        try:
            path = place(self._tree, file)
            if suffix(file) == ".parquet":
                self._shard(file, path)
                return
            if path.stat().st_size > MAX_TABLE_BYTES:
                raise UnreadableText(f"larger than {MAX_TABLE_BYTES} bytes")
            rows = _lines(file, path, self._defects) if suffix(file) == ".jsonl" else _csv(file, path)
            for row in rows:
                self._row(row, self._card.names)
        except UnreadableText as error:
            self._defects.reject("table_invalid", file, str(error))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            if isinstance(error, OSError) and suffix(file) == ".parquet":
                raise  # of the files that are made of it: the disk is full
            self._defects.reject("table_invalid", file, f"cannot be read: {error}")

    def _shard(self, file: str, path: Path) -> None:
        table = parquet.Table(path)
        if not table.image_column and "file_name" not in table.columns:
            told = ", ".join(table.columns[:10])
            self._defects.add("table_skipped", file, f"no column of images; its columns are {told[:200]}", "kept")
            return
        names: Sequence[str] = self._card.names
        if (given := table.class_names) is not None:
            found = usable_names(given)
            if found is None:
                message = f"each class name in its schema must appear once, with at most {MAX_NAME} characters"
                self._defects.reject("category_invalid", file, message)
            names = found or ()
            self._tables += names
        for row in table.read(self._store, CATEGORY_KEYS):
            self._row(_Row(file, f"{file}: row {row.number}", row.values, row.picture), names)

    # --- images

    def _row(self, row: _Row, names: Sequence[str]) -> None:
        if split := self._card.split_of(row.file, self._home):
            self._splits.setdefault(split, row.file)
        found = self._found(row, names)
        if found is not None:
            self._add(row, names, *found)

    def _add(self, row: _Row, names: Sequence[str], file: str, name: str, path: Path) -> None:
        try:
            bare = self._card.split_of(row.file, self._home) == "unlabelled"
            marks, unread = self._marks(row, names) if not bare else ([], [])
            if bare and _first(row.values, _OBJECTS):
                self._ignored.append(row.file)
        except _BadRow as error:
            self._defects.add(
                "annotation_invalid", file, f"{row.where}: {error}; its image is left out", "dropped_image"
            )
            self._mentioned.add(file)
            return
        known = self._images.get(file)
        if known is not None:
            if row.picture is None:
                message = f"{row.where} names it again; the boxes of both rows count"
                self._defects.add("image_listed_twice", file, message, "kept")
                known.marks.extend(marks)
                known.unread.extend(unread)
                return
            file = f"{file} ({row.where.rpartition(' ')[2]})"
        declared = (row.values.get("width"), row.values.get("height"))
        self._images[file] = ListedImage("train", name, file, path, declared, marks, unread=unread)
        self._rows[file] = row.file, row.picture is not None

    def _split_of(self, file: str, home: str) -> Split | None:
        """By the card's patterns, which may speak of tables or of images; else by names. home: of all images."""
        table, inside = self._rows[file]
        if not self._card.patterns:
            said = split_of_words(table, self._home) if inside else split_of_words(folder_of(file), home)
            return said or split_of_words(folder_of(table), self._home)
        asked = table if inside else file
        return self._card.split_of(asked) or (self._card.split_of(table) if asked != table else None)

    def _found(self, row: _Row, names: Sequence[str]) -> tuple[str, str, Path] | None:
        """The image of a row: file for messages, name, and where it lies."""
        if row.picture is not None:
            shown = parquet.label(row.picture.name) or f"row{row.where.rpartition(' ')[2]}"
            file = below(row.file, shown)
            if row.picture.path is not None:
                return file, shown, row.picture.path
            if row.picture.code == "image_missing" and is_text(row.picture.name):
                return self._file(row, row.picture.name, names)
            self._defects.add(row.picture.code, file, f"{row.where}: {row.picture.why}", "dropped_image")
            return None
        name = row.values.get("file_name")
        if not is_text(name):
            self._defects.add("image_invalid", row.file, f"{row.where} needs a file_name", "dropped_image")
            return None
        return self._file(row, name, names)

    def _file(self, row: _Row, name: str, names: Sequence[str]) -> tuple[str, str, Path] | None:
        image = below(folder_of(row.file), name.removeprefix("./"))
        if image not in self._tree.files:
            self._lost.append((row, name, names))
            return None
        return self._usable(row, name, image)

    def _usable(self, row: _Row, name: str, image: str) -> tuple[str, str, Path] | None:
        path = self._tree.path(image)
        if path is None:
            message = f"{row.where} has the file name {short(name)}, which leads out of the data set"
            self._defects.add("path_escapes", row.file, message, "dropped_image")
            self._mentioned.add(image)
        elif not os.path.isfile(path):
            self._missing.append(Missing(name, image, f"named in {row.where}, not a file"))
        else:
            return image, name, path
        return None

    def look_for_lost(self) -> None:
        """Find images by the ends of their names, once all tables are read."""
        if not self._lost:
            return
        wanted: dict[str, dict[str, WrittenName]] = {}
        for row, name, _ in self._lost:
            home = folder_of(row.file)
            split = self._card.split_of(row.file, self._home)
            text = name if leads_out(name) else below(home, name)
            wanted.setdefault(row.file, {})[name] = WrittenName(text, (home, ""), split, home)
        every = [name for names in wanted.values() for name in names.values()]
        images = cache(lambda: ends_of(self._tree.images()))
        found = find_files(every, self._tree.files, images, taken=frozenset(self._images))
        for table, names in wanted.items():
            report_spellings(table, {name: found[written] for name, written in names.items()}, self._defects)
        for row, name, classes in self._lost:
            match = found[wanted[row.file][name]]
            image = match.file if isinstance(match, Match) else below(folder_of(row.file), name)
            if isinstance(match, Match):
                if usable := self._usable(row, name, image):
                    self._add(row, classes, *usable)
            elif leads_out(name):
                message = f"{row.where} has the file name {short(name)}, which leads out of the data set"
                self._defects.add("path_escapes", row.file, message, "dropped_image")
            else:
                self._missing.append(Missing(name, image, f"named in {row.where}, not found{hint(match)}"))

    # --- boxes

    def _marks(self, row: _Row, names: Sequence[str]) -> tuple[list[Mark], list[str]]:
        """The boxes, and the places of those whose class is no class at all."""
        marks: list[Mark] = []
        unread: list[str] = []
        for place_, (bbox, category, crowd, outline) in enumerate(_objects(row.values), start=1):
            where = f"{row.where}, object {place_}"
            name = self._name(row.file, category, names)
            if name is None:
                known = f"{len(names)} classes, 0 to {len(names) - 1}" if names else "names, or indices from 0"
                message = f"{where} is of class {short(category)}, which is none of the {known}"
                self._defects.add("annotation_unknown_category", row.file, message, "dropped_box")
                unread += [message] if number_of(category) is None else []
            else:
                marks.append(_mark(where, bbox, outline, name, flag(crowd)))
        return marks, unread

    def _name(self, file: str, category: Any, names: Sequence[str]) -> str | None:
        if is_class_name(category):
            self._seen.add(category)
            return category
        number = number_of(category)
        if number is None or number < 0 or number >= _MOST_CLASSES:
            return None
        if names:
            self._numbers.setdefault(file, set()).add(number)
            self._names_of[file] = len(names)
            return names[number] if number < len(names) else None
        self._unnamed.add(file)
        self._seen.add(str(number))
        return str(number)

    # --- all of it

    def listing(self) -> Listing:
        images = self._place()
        report_ignored(self._ignored, "rows", self._defects)
        if outlines := sum(mark.outline for image in images for mark in image.marks):
            message = f"{outlines} objects have no bbox: the box around their polygon or mask is taken"
            self._defects.add("outline_to_box", next(iter(self._splits.values()), ""), message, "kept", outlines)
        for file in sorted(self._unnamed):
            message = "classes are numbers, and no class label names them; the numbers are used as names"
            self._defects.add("class_names_missing", file, message, "kept")
        for file, known in self._names_of.items():
            if (reason := shifted(self._numbers.get(file, set()), range(known), "its class label")) is not None:
                self._defects.reject("class_numbers_shifted", file, reason)
        more = sorted(self._seen - set(self._tables), key=_by_number)
        return Listing(
            "huggingface",
            images,
            tuple(dict.fromkeys([*self._tables, *more])),
            self._splits,
            ADVICE,
            frozenset(self._mentioned),
            layout="corner_size",
            missing=tuple(self._missing),
            read_from=(*self._files, *([self._card.file] if self._card.file else [])),
        )

    def _place(self) -> list[ListedImage]:
        """The images with their splits. Those of no split are all train where no image has one."""
        outside = [folder_of(file) for file, (_, inside) in self._rows.items() if not inside]
        home = common_folder(outside)
        splits = {file: self._split_of(file, home) for file in self._images}
        for file, split in splits.items():
            if split:
                self._splits.setdefault(split, self._rows[file][0])
        if self._images and not self._splits.keys() - {"unlabelled"}:
            splits = {file: split or "train" for file, split in splits.items()}
            if first := next((file for file, split in splits.items() if split == "train"), None):
                self._splits["train"] = self._rows[first][0]
        for file, split in splits.items():
            if split is None:
                self._defects.add("split_unknown", file, "in no split, though others are; left out", "dropped_image")
                self._mentioned.add(file)
        return [
            replace(self._images[file], split=split) for split in SPLITS for file in splits if splits[file] == split
        ]


def _by_number(name: str) -> tuple[bool, int, str]:
    number = name.isascii() and name.isdecimal()
    return not number, int(name) if number else 0, name


# --- tables of text -------------------------------------------------------------------------------------------


def _lines(file: str, path: Path, defects: Defects) -> Iterator[_Row]:
    with path.open("rb") as lines:
        number = 0
        while line := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{file}: line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise UnreadableText(f"line {number} is longer than {MAX_LINE_BYTES} bytes")
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if not isinstance(values, dict):
                    raise ValueError("not an object")
            except (ValueError, RecursionError) as error:
                message = f"{where} is not JSON of an image: {error}; it is left out"
                defects.add("annotation_invalid", file, message, "dropped_image")
                continue
            yield _Row(file, where, values)


def _csv(file: str, path: Path) -> Iterator[_Row]:
    csv.field_size_limit(MAX_LINE_BYTES)
    with path.open(encoding="utf-8-sig", newline="") as text:
        for number, values in enumerate(csv.DictReader(text), start=2):
            yield _Row(file, f"{file}: line {number}", {key: value for key, value in values.items() if key})


# --- one row --------------------------------------------------------------------------------------------------


def _objects(values: Mapping[str, Any]) -> list[tuple[Any, Any, Any, Any]]:
    """Box, category, crowd and outline of each object. Raises _BadRow."""
    column = next((key for key in _OBJECTS if values.get(key) is not None), None)
    given = _parsed(values[column]) if column else {key: _parsed(v) for key, v in values.items()}
    if isinstance(given, list):
        return [_object(entry) for entry in given]
    if not isinstance(given, dict):
        raise _BadRow(f"{column} is {short(given)}, not lists of bbox and category")
    boxes, categories = _first(given, _BOXES), _first(given, CATEGORY_KEYS)
    outlines = _first(given, _OUTLINES)
    if boxes is None and isinstance(outlines, list):
        boxes = [None] * len(outlines)
    if boxes is None and (categories is None or not column):
        return []  # no boxes at all; a category beside the image is that of the whole picture
    crowds = _first(given, _CROWDS)
    if not isinstance(boxes, list) or not isinstance(categories, list):
        raise _BadRow(f"bbox is {short(boxes)} and category {short(categories)}; both must be lists")
    if len(boxes) != len(categories):
        raise _BadRow(f"bbox has {len(boxes)} entries and category {len(categories)}")
    if crowds is not None and (not isinstance(crowds, list) or len(crowds) != len(boxes)):
        raise _BadRow(f"bbox has {len(boxes)} entries, and iscrowd is not a list of the same length")
    crowds = crowds if crowds is not None else [0] * len(boxes)
    known = isinstance(outlines, list) and len(outlines) == len(boxes)
    return list(zip(boxes, categories, crowds, outlines if known else [None] * len(boxes), strict=True))


def _object(entry: Any) -> tuple[Any, Any, Any, Any]:
    if not isinstance(entry, dict):
        return entry, None, None, None
    return _first(entry, _BOXES), _first(entry, CATEGORY_KEYS), _first(entry, _CROWDS), _first(entry, _OUTLINES)


def _first(given: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((given[key] for key in keys if given.get(key) is not None), None)


def _parsed(value: Any) -> Any:
    """A list or object that stands in a text, as a CSV has it."""
    if not isinstance(value, str) or not re.match(r"\s*[\[{]", value):
        return value if value != "" else None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _mark(where: str, bbox: Any, outline: Any, name: str, crowd: bool) -> Mark:
    """From its box, or from its outline where that is none."""
    box = _corners(bbox)
    if isinstance(box, NoBox) and (around := box_around(outline)):
        return Mark(where, list(around), around, name, crowd, outline=True)
    return Mark(where, bbox, box, name, crowd)


def _corners(bbox: Any) -> Box | NoBox:
    """xywh -> xyxy."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return NoBox("box_invalid", "which is not a list of four numbers x, y, width, height")
    x, y, w, h = (finite(value) for value in bbox)
    if x is None or y is None or w is None or h is None:
        return NoBox("box_not_finite", "which contains something that is not a finite number of pixels")
    return (x, y, x + w, y + h)
