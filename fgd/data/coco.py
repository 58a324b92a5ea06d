"""Reads COCO detection data sets: finds the files, and lists what they say. Knows no torch.

Nothing a file holds raises: every fault becomes a Defect with its file and what was done about it. Only a folder
that does not exist or holds no annotations at all is an error. Boxes are xywh in pixels of the stored image.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgd.data.checking import Sources, Verify, check
from fgd.data.coco_files import Annotations, Source, find_sources, looks_like
from fgd.data.index import Box, Index, Report
from fgd.data.listing import Advice, ListedImage, Listing, Mark, NoBox, finite
from fgd.data.report import Defects
from fgd.data.splits import Carving
from fgd.data.tree import MAX_NAME, Split, Tree, below, is_class_name, is_text, list_tree, short, split_of_file
from fgd.errors import DatasetError

__all__ = ["list_images", "looks_like", "read"]

ADVICE = Advice(
    split="no annotations of the {split} split; add one such as annotations/instances_{split}.json",
    images="each entry of images needs a file in the folder",
    boxes="add annotations with a bbox [x, y, width, height] and iscrowd 0",
)


def read(folder: Path, verify: Verify = "full", carving: Carving | None = None) -> tuple[Index, Report, Sources]:
    """Read a folder of either COCO layout: `fgd.data.formats.read` with format "coco"."""
    root = folder.resolve()
    if not root.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    tree, defects = list_tree(root), Defects()
    return check(tree, list_images(tree, defects), defects, verify, carving)


def list_images(tree: Tree, defects: Defects) -> Listing:
    """What the annotations say. Raises DatasetError: see the module."""
    sources = find_sources(tree, defects)
    images: list[ListedImage] = []
    tables: list[str] = []
    mentioned: set[str] = set()
    for split, source in sources.items():
        categories = _categories(source.annotations, defects)
        tables += categories.values()
        listed = _list_images(tree, split, source, defects)
        _add_marks(source.annotations, listed, categories, defects)
        mentioned |= {below(source.folder, name) for name in source.annotations.names}
        known = {key: image for key, image in listed.items() if image}
        images += [known[key] for key in sorted(known, key=lambda key: (isinstance(key, str), key))]
    unusable = defects.files("json_invalid", "split_unknown")
    splits: tuple[Split, ...] = ("train", "val")
    return Listing(
        format="coco",
        images=images,
        classes=tuple(dict.fromkeys(tables)),
        splits={split: source.annotations.file for split, source in sources.items()},
        advice=ADVICE,
        mentioned=frozenset(mentioned),
        told=frozenset(split for split in splits if any(split_of_file(file) in (split, None) for file in unusable)),
    )


# --- categories -----------------------------------------------------------------------------------------------


def _categories(annotations: Annotations, defects: Defects) -> dict[int, str]:
    """Category id -> name. Ids may be any integers."""
    names: dict[int, str] = {}
    known: set[str] = set()
    for entry in annotations.categories:
        key, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not isinstance(key, int) or isinstance(key, bool) or not is_class_name(name):
            message = f"category {short(entry)} needs an integer id and a name of at most {MAX_NAME} characters"
            defects.reject("category_invalid", annotations.file, message)
        elif key in names:
            defects.reject(
                "category_duplicate", annotations.file, f"category id {short(key)} is used twice; number them anew"
            )
        elif name in known:
            message = f"category name {short(name)} is used twice; rename or merge them"
            defects.reject("category_duplicate", annotations.file, message)
        else:
            names[key] = name
            known.add(name)
    return names


# --- images ---------------------------------------------------------------------------------------------------


def _list_images(tree: Tree, split: Split, source: Source, defects: Defects) -> dict[int | str, ListedImage | None]:
    """User's id -> image; None for one that is named but cannot be used."""
    file = source.annotations.file
    listed: dict[int | str, ListedImage | None] = {}
    for entry in source.annotations.images:
        key, name = (entry.get("id"), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
        if not isinstance(key, int | str) or isinstance(key, bool) or not is_text(name):
            defects.add("image_invalid", file, f"image {short(entry)} needs an id and a file_name", "dropped_image")
            continue
        if key in listed:
            defects.reject("image_id_duplicate", file, f"image id {short(key)} is used twice; number them anew")
            continue
        listed[key] = None
        image = below(source.folder, name)
        path = tree.path(image) if not name.startswith("/") else None
        if path is None:
            defects.add("path_escapes", file, f"file name {short(name)} leads out of the data set", "dropped_image")
        elif not os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
            where = f"{source.folder}/" if source.folder else "the folder"
            defects.add("image_missing", image[:255], f"named in {file}, not found in {where}", "dropped_image")
        else:
            listed[key] = ListedImage(split, name, image, path, (entry.get("width"), entry.get("height")))
    return listed


# --- boxes ----------------------------------------------------------------------------------------------------


def _add_marks(
    annotations: Annotations,
    listed: Mapping[int | str, ListedImage | None],
    categories: Mapping[int, str],
    defects: Defects,
) -> None:
    """Give each image its boxes, in the order of the file."""
    seen: set[int | str] = set()
    for entry in annotations.annotations:
        if not isinstance(entry, dict):
            defects.add("annotation_invalid", annotations.file, f"{short(entry)} is not an object", "dropped_box")
            continue
        who, key, category = entry.get("id"), entry.get("image_id"), entry.get("category_id")
        label = f"annotation {short(who)}"
        if isinstance(who, int | str):
            if who in seen:
                defects.add("annotation_id_duplicate", annotations.file, f"{label}: its id is used twice", "kept")
            seen.add(who)
        if not isinstance(key, int | str) or isinstance(key, bool) or key not in listed:
            message = f"{label} is of image {short(key)}, which the file does not list"
            defects.add("annotation_unknown_image", annotations.file, message, "dropped_box")
        elif not isinstance(category, int) or isinstance(category, bool) or category not in categories:
            message = f"{label} is of category {short(category)}, which the file does not list"
            defects.add("annotation_unknown_category", annotations.file, message, "dropped_box")
        elif (image := listed[key]) is not None:  # the boxes of an unusable image go with it
            bbox = entry.get("bbox")
            where, crowd = f"{annotations.file}: {label}", bool(entry.get("iscrowd", 0))
            image.marks.append(Mark(where, bbox, _corners(bbox), categories[category], crowd))


def _corners(bbox: Any) -> Box | NoBox:
    """xywh -> xyxy."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return NoBox("box_invalid", "which is not a list of four numbers x, y, width, height")
    x, y, w, h = (finite(value) for value in bbox)
    if x is None or y is None or w is None or h is None:
        return NoBox("box_not_finite", "which holds something that is not a finite number of pixels")
    return (x, y, x + w, y + h)
