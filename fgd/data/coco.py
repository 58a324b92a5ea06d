"""Imports COCO detection data sets: finds, checks, repairs, and says what it did. Knows no torch.

Nothing a file holds raises: every fault becomes a Defect with its file and what was done about it. Only a folder
that does not exist or holds no annotations at all is an error.

Boxes are xywh in pixels of the stored image. One that reaches out of the image by at most `TOLERANCE_PX` is cut
without a word (rounding of the labelling tools); by more, it is cut and reported. One thinner than `MIN_SIDE_PX`
after that has no area: float32 arithmetic at a thousand pixels could make it empty, which detectors refuse.
An EXIF orientation is not applied (see fgd.data.images). Where the declared size is that of the *rotated* picture,
the boxes were drawn on it and cannot be used as they are: the image is dropped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

from fgd.data.coco_files import Annotations, Source, Split, find_sources, list_tree, split_of_file
from fgd.data.images import BadImage, Probe, probe
from fgd.data.index import Box, Image, Index, Report
from fgd.data.report import Defects
from fgd.errors import DatasetError

Verify = Literal["full", "headers"]

TOLERANCE_PX = 0.5
MIN_SIDE_PX = 0.1
MAX_NAME = 200
"""Characters of a class name; it becomes part of every metric's name."""
_DECODERS = 4
"""Threads; Pillow decodes without the interpreter's lock."""


@dataclass(frozen=True)
class _Listed:
    """One image that the annotations name and that exists."""

    split: Split
    key: int | str
    """The user's id."""
    name: str
    """As the annotations say it."""
    file: str
    """Relative to the data set's folder."""
    path: Path
    declared: tuple[Any, Any]
    """Width and height as the annotations say; None where they say nothing."""


@dataclass(frozen=True)
class _Boxed:
    box: Box
    name: str
    """Of the class."""
    crowd: bool


@dataclass(frozen=True)
class _Checked:
    """One usable image and its boxes; `boxes` grows while the annotations are read."""

    listed: _Listed
    probe: Probe
    boxes: list[_Boxed] = field(default_factory=list)


def read(folder: Path, verify: Verify = "full") -> tuple[Index, Report, dict[str, Path]]:
    """Read a folder of either COCO layout.

    Returns the index, what was wrong, and for each `Image.file` (named by content) the file it comes from. Image ids
    are new, 1..N through train, val, test in the order of the user's ids, because a user's are unique only in a file.
    Where the report is not ok the index holds what could be read and must not be trained on.
    verify: "full" decodes every image, "headers" only reads sizes. Raises DatasetError: see the module.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    defects = Defects()
    tree = list_tree(root)
    sources = find_sources(tree, defects)
    for link in tree.links:
        defects.add("link_not_followed", link, "a link to a folder, not followed; put the folder itself there", "kept")
    images: list[_Checked] = []
    tables: list[str] = []
    for split, source in sources.items():
        categories = _categories(source.annotations, defects)
        tables += categories.values()
        listed = _list_images(root, split, source, defects)
        usable = _probe_all([image for image in listed.values() if image], verify, defects)
        _add_boxes(source.annotations, listed, usable, categories, defects)
        images += usable.values()
    _report_repeats(images, defects)
    index = _index(images, _classes(images, tables, defects), defects)
    _require(index, sources, defects)
    return index, defects.report("coco", index), {i.probe.stored_name: i.listed.path for i in images}


# --- categories -----------------------------------------------------------------------------------------------


def _categories(annotations: Annotations, defects: Defects) -> dict[int, str]:
    """Category id -> name. Ids may be any integers."""
    names: dict[int, str] = {}
    for entry in annotations.categories:
        key, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not isinstance(key, int) or isinstance(key, bool) or not _is_text(name) or len(name) > MAX_NAME:
            message = f"category {_short(entry)} needs an integer id and a name of at most {MAX_NAME} characters"
            defects.reject("category_invalid", annotations.file, message)
        elif key in names:
            defects.reject("category_duplicate", annotations.file, f"category id {key} is used twice; number them anew")
        elif name in names.values():
            message = f"category name {_short(name)} is used twice; rename or merge them"
            defects.reject("category_duplicate", annotations.file, message)
        else:
            names[key] = name
    return names


def _classes(images: list[_Checked], tables: list[str], defects: Defects) -> tuple[str, ...]:
    """Names of the categories that have a box in train, in the order of the tables, train's first."""
    trained = {boxed.name for image in images if image.listed.split == "train" for boxed in image.boxes}
    union = tuple(dict.fromkeys(tables))
    for name in union if trained else ():  # no box at all in train is one defect, not one for each class
        if name not in trained:
            defects.add("class_unused", "", f"class {_short(name)} has no box in train; left out", "kept")
    return tuple(name for name in union if name in trained)


# --- images ---------------------------------------------------------------------------------------------------


def _list_images(root: Path, split: Split, source: Source, defects: Defects) -> dict[int | str, _Listed | None]:
    """User's id -> image; None for one that is named but cannot be used."""
    file = source.annotations.file
    listed: dict[int | str, _Listed | None] = {}
    for entry in source.annotations.images:
        key, name = (entry.get("id"), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
        if not isinstance(key, int | str) or isinstance(key, bool) or not _is_text(name):
            defects.add("image_invalid", file, f"image {_short(entry)} needs an id and a file_name", "dropped_image")
            continue
        if key in listed:
            defects.reject("image_id_duplicate", file, f"image id {_short(key)} is used twice; number them anew")
            continue
        listed[key] = None
        path = _inside(root, source.folder, name)
        if path is None:
            defects.add("path_escapes", file, f"file name {_short(name)} leads out of the data set", "dropped_image")
        elif not os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
            where = f"{source.folder}/" if source.folder else "the folder"
            message = f"named in {file}, not found in {where}"
            defects.add("image_missing", _below(source.folder, name)[:255], message, "dropped_image")
        else:
            file_of_image = _below(source.folder, name)
            listed[key] = _Listed(split, key, name, file_of_image, path, (entry.get("width"), entry.get("height")))
    return listed


def _inside(root: Path, folder: str, name: str) -> Path | None:
    """The path of an image; None if the name, or a link behind it, leads out of `root`."""
    if "\0" in name or name.startswith("/") or ".." in name.split("/"):
        return None
    path = root / folder / name
    try:
        return path if path.resolve().is_relative_to(root) else None
    except (OSError, RuntimeError):  # a loop of links, a name too long
        return None


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _probe_all(listed: list[_Listed], verify: Verify, defects: Defects) -> dict[int | str, _Checked]:
    """User's id -> usable image, in the order of the ids."""
    ordered = sorted(listed, key=lambda image: (isinstance(image.key, str), image.key))
    usable: dict[int | str, _Checked] = {}
    with ThreadPoolExecutor(_DECODERS) as pool:
        for image, result in zip(ordered, pool.map(lambda i: _try_probe(i.path, verify), ordered), strict=True):
            if isinstance(result, BadImage):
                defects.add(result.code, image.file, result.message, "dropped_image")
            elif _check_header(image, result, defects):
                usable[image.key] = _Checked(image, result)
    return usable


def _try_probe(path: Path, verify: Verify) -> Probe | BadImage:
    try:
        return probe(path, verify)
    except BadImage as error:
        return error


def _check_header(image: _Listed, found: Probe, defects: Defects) -> bool:
    """Report what is odd about a readable image; False if its boxes cannot be trusted."""
    real, declared = (found.width, found.height), image.declared
    size = f"{found.width}x{found.height}"
    if found.orientation != 1:
        if found.orientation >= 5 and declared == (found.height, found.width) != real:
            message = (
                f"EXIF orientation {found.orientation}, and the declared size is the rotated one: its boxes do not fit "
                f"the stored {size} pixels; rotate the file for good (exiftran, mogrify -auto-orient)"
            )
            defects.add("exif_rotated", image.file, message, "dropped_image")
            return False
        message = f"EXIF orientation {found.orientation} is not applied; boxes are taken in the stored {size} pixels"
        defects.add("exif_rotated", image.file, message, "kept")
    if declared not in (real, (None, None)):
        message = f"declared {_short(declared[0])}x{_short(declared[1])}, is {size}; the real size is used"
        defects.add("size_differs", image.file, message, "kept")
    if found.mode != "RGB":
        defects.add("colour_converted", image.file, f"{found.mode} is converted to RGB when read", "kept")
    return True


def _report_repeats(images: list[_Checked], defects: Defects) -> None:
    """The same bytes twice: between splits they flatter the result, inside one they count double."""
    first: dict[str, _Listed] = {}
    for image in images:
        listed = image.listed
        other = first.setdefault(image.probe.sha256, listed)
        if other is listed:
            continue
        if other.split == listed.split:
            message = f"same content as {other.file} in {listed.split}; it counts twice"
            defects.add("image_repeated", listed.file, message, "kept")
        else:
            message = f"in {listed.split}, same content as {other.file} in {other.split}; results there are flattered"
            defects.add("image_in_two_splits", listed.file, message, "kept")


# --- boxes ----------------------------------------------------------------------------------------------------


def _add_boxes(
    annotations: Annotations,
    listed: Mapping[int | str, _Listed | None],
    usable: Mapping[int | str, _Checked],
    categories: Mapping[int, str],
    defects: Defects,
) -> None:
    """Give each usable image its boxes, in the order of the file."""
    seen: set[int | str] = set()
    for entry in annotations.annotations:
        if not isinstance(entry, dict):
            defects.add("annotation_invalid", annotations.file, f"{_short(entry)} is not an object", "dropped_box")
            continue
        who, key, category = entry.get("id"), entry.get("image_id"), entry.get("category_id")
        label = f"annotation {_short(who)}"
        if isinstance(who, int | str):
            if who in seen:
                defects.add("annotation_id_duplicate", annotations.file, f"{label}: its id is used twice", "kept")
            seen.add(who)
        if not isinstance(key, int | str) or isinstance(key, bool) or key not in listed:
            message = f"{label} is of image {_short(key)}, which the file does not list"
            defects.add("annotation_unknown_image", annotations.file, message, "dropped_box")
        elif not isinstance(category, int) or isinstance(category, bool) or category not in categories:
            message = f"{label} is of category {_short(category)}, which the file does not list"
            defects.add("annotation_unknown_category", annotations.file, message, "dropped_box")
        elif key in usable:  # the boxes of a dropped image went with it
            image = usable[key]
            box = _checked_box(entry.get("bbox"), image, f"{annotations.file}: {label}", defects)
            if box:
                image.boxes.append(_Boxed(box, categories[category], bool(entry.get("iscrowd", 0))))


def _checked_box(bbox: Any, image: _Checked, label: str, defects: Defects) -> Box | None:
    """xywh as the user wrote it -> xyxy inside the image; None if nothing is left of it."""
    width, height = image.probe.width, image.probe.height
    found = _clip(bbox, width, height)
    if isinstance(found, _NoBox):
        message = f"{label} has box {_short(bbox)}, {found.reason}"
        defects.add(found.code, image.listed.file, message, "dropped_box")
        return None
    if found.overhang > TOLERANCE_PX:
        message = f"{label} has box {_short(bbox)}, which reaches out of its image of {width}x{height}"
        defects.add("box_clipped", image.listed.file, message, "clipped_box")
    return found.box


@dataclass(frozen=True)
class _NoBox:
    code: str
    reason: str


@dataclass(frozen=True)
class _Clipped:
    box: Box
    overhang: float
    """How far the box reached out of its image, pixels; 0 or less if it did not."""


def _clip(bbox: Any, width: int, height: int) -> _Clipped | _NoBox:
    """xywh -> xyxy inside the image."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return _NoBox("box_invalid", "which is not a list of four numbers x, y, width, height")
    x, y, w, h = (_finite(value) for value in bbox)
    if x is None or y is None or w is None or h is None:
        return _NoBox("box_not_finite", "which holds something that is not a finite number of pixels")
    if w <= 0 or h <= 0:
        return _NoBox("zero_area_box", "which has no area")
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return _NoBox("box_outside", f"which is outside its image of {width}x{height}")
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    if x2 - x1 < MIN_SIDE_PX or y2 - y1 < MIN_SIDE_PX:
        return _NoBox("zero_area_box", f"which is thinner than {MIN_SIDE_PX} px inside its image of {width}x{height}")
    return _Clipped((x1, y1, x2, y2), max(-x, -y, x + w - width, y + h - height))


def _finite(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    # Beyond 1e9 px a sum like x + w loses the pixels; such a number is not a coordinate.
    return number if math.isfinite(number) and abs(number) < 1e9 else None


# --- the index ------------------------------------------------------------------------------------------------


def _index(images: list[_Checked], classes: tuple[str, ...], defects: Defects) -> Index:
    labels = {name: label for label, name in enumerate(classes, start=1)}
    splits: dict[Split, list[Image]] = {}
    for number, image in enumerate(images, start=1):
        known = [boxed for boxed in image.boxes if boxed.name in labels]
        for boxed in image.boxes if classes else ():  # no class at all is one defect, not one for each box
            if boxed.name not in labels:
                message = f"a box of class {_short(boxed.name)}, which has none in train"
                defects.add("class_not_in_train", image.listed.file, message, "dropped_box")
        splits.setdefault(image.listed.split, []).append(
            Image(
                id=number,
                file=image.probe.stored_name,
                name=image.listed.name,
                width=image.probe.width,
                height=image.probe.height,
                boxes=tuple(boxed.box for boxed in known),
                labels=tuple(labels[boxed.name] for boxed in known),
                crowd=tuple(boxed.crowd for boxed in known),
            )
        )
    return Index(classes=classes, splits={split: tuple(members) for split, members in splits.items()})


def _require(index: Index, sources: Mapping[Split, Source], defects: Defects) -> None:
    """Reject what cannot be trained or evaluated."""
    unusable = defects.files("json_invalid", "split_unknown")
    for split in ("train", "val"):
        images = index.splits.get(split, ())
        if split not in sources:
            if any(split_of_file(file) in (split, None) for file in unusable):
                continue  # its annotations are there, and could not be used: that has been told
            message = f"no annotations of the {split} split; add one such as annotations/instances_{split}.json"
            defects.reject("split_missing", "", message)
        elif not images:
            message = f"no usable image in {split}; each entry of images needs a file in the folder"
            defects.reject("no_images", sources[split].annotations.file, message)
        elif split == "val" and not index.classes:
            continue  # its boxes went with train's classes; train's defect says what to do
        elif not any(crowd is False for image in images for crowd in image.crowd):
            message = f"no usable box in {split}; add annotations with a bbox [x, y, width, height] and iscrowd 0"
            defects.reject("no_boxes", sources[split].annotations.file, message)


def _is_text(value: Any) -> TypeGuard[str]:
    """Not blank, and storable: JSON's escapes can spell half a character, which no file or database takes."""
    try:
        return isinstance(value, str) and bool(value.strip()) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def _short(value: Any) -> str:
    """A user's value as a piece of a message: printable, of bounded length."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
