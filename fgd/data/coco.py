"""Reads COCO detection data sets: finds the files, and lists what they say. Knows no torch.

Nothing a file holds raises: every fault becomes a Defect with its file and what was done about it. Only a folder
that does not exist or holds no annotations at all is an error. Boxes are xywh in pixels of the stored image.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from fgd.data.checking import Sources, Verify, check
from fgd.data.coco_files import Annotations, Source, find_sources, looks_like
from fgd.data.index import Box, Index, Report
from fgd.data.listing import Advice, ListedImage, Listing, Mark, Missing, NoBox, finite
from fgd.data.matching import Match, Several, WrittenName, ends_of, find_files, leads_out, normalised
from fgd.data.numbering import Ids, flag, number_of, shifted
from fgd.data.numbering import key as key_of
from fgd.data.outlines import box_around
from fgd.data.report import Defects
from fgd.data.splits import Carving
from fgd.data.tree import MAX_NAME, Split, Tree, below, folder_of, is_class_name, is_text, list_tree, short
from fgd.data.unlabelled import report_ignored
from fgd.data.unmatched import hint, report_spellings
from fgd.errors import DatasetError

__all__ = ["list_images", "looks_like", "read"]

_MOST_ALIKE = 3
"""Files that may be meant by one name, to be shown."""
ADVICE = Advice(
    split="no annotations of the {split} split; add one, such as annotations/instances_{split}.json",
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
    sources, unusable = find_sources(tree, defects)
    images: list[ListedImage] = []
    tables: list[str] = []
    mentioned: set[str] = set()
    missing: list[Missing] = []
    places = _find_images(tree, sources)
    for split, source in sources.items():
        if split == "unlabelled":
            source = _bare(source, defects)
        categories = _categories(source.annotations, defects)
        tables += categories.values()
        found = places[split]
        report_spellings(source.annotations.file, found, defects)
        listed = _list_images(tree, split, source, found, missing, defects)
        _add_marks(source.annotations, listed, categories, defects)
        mentioned |= {match.file for match in found.values() if isinstance(match, Match)}
        known = {key: image for key, image in listed.items() if image}
        images += [known[key] for key in sorted(known, key=lambda key: (isinstance(key, str), key))]
    splits: tuple[Split, ...] = ("train", "val")
    return Listing(
        format="coco",
        images=images,
        classes=tuple(dict.fromkeys(tables)),
        splits={split: source.annotations.file for split, source in sources.items()},
        advice=ADVICE,
        mentioned=frozenset(mentioned),
        missing=tuple(missing),
        read_from=tuple(source.annotations.file for source in sources.values()),
        told=frozenset(split for split in splits if unusable & {split, None}),
        layout="corner_size",
    )


def _bare(source: Source, defects: Defects) -> Source:
    """A list of images alone."""
    file, ignored = source.annotations.file, len(source.annotations.annotations)
    report_ignored([file] if ignored else [], "annotations", defects, ignored)
    return replace(source, annotations=replace(source.annotations, annotations=[], categories=[]))


# --- categories -----------------------------------------------------------------------------------------------


def _categories(annotations: Annotations, defects: Defects) -> dict[int, str]:
    """Category id -> name, in the file's order. Ids may be any integers.

    Tools put roots into the list that nothing is labelled with and call them like a class: labelled ones go first.
    """
    file = annotations.file
    used = {number_of(entry.get("category_id")) for entry in annotations.annotations if isinstance(entry, dict)}
    names: dict[int, str] = {}
    keys: dict[str, int] = {}
    for entry in sorted(annotations.categories, key=lambda entry: _category(entry)[0] not in used):
        key, name = _category(entry)
        fault = f"category {short(entry)} needs an integer id and a name of at most {MAX_NAME} characters"
        if key is None:
            defects.reject("category_invalid", file, fault)
        elif name is not None and names.get(key) == name:
            defects.add("category_repeated", file, f"category {short(key)}, {short(name)}, is listed twice", "kept")
        elif key not in used and (key in names or name is None or name in keys):
            message = f"category {short(entry)} has no annotation, and no usable name or another's; left out"
            defects.add("category_unused", file, message, "kept")
        elif name is None:
            defects.reject("category_invalid", file, fault)
        elif key in names:
            defects.reject("category_duplicate", file, f"category id {short(key)} is used twice; give each its own")
        elif name in keys:
            ids = f"{short(keys[name])} and {short(key)}"
            message = f"category name {short(name)} is used twice, with the ids {ids}; rename or merge them"
            defects.reject("category_duplicate", file, message)
        else:
            names[key] = name
            keys[name] = key
    order = [_category(entry)[0] for entry in annotations.categories]
    return {key: names[key] for key in dict.fromkeys(order) if key is not None and key in names}


def _category(entry: Any) -> tuple[int | None, str | None]:
    """Id and name, each None if it is none."""
    key, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
    return number_of(key), name if is_class_name(name) else None


# --- images ---------------------------------------------------------------------------------------------------


def _find_images(tree: Tree, sources: Mapping[Split, Source]) -> dict[Split, dict[str, Match | Several | None]]:
    """Of each annotation file, its file names and the files that they mean."""
    images = cache(lambda: ends_of(tree.images()))
    scattered = len({folder_of(file) for file in tree.images()}) > 1
    wanted: dict[Split, dict[str, WrittenName]] = {}
    several: dict[Split, dict[str, Match | Several | None]] = {}
    for split, source in sources.items():
        counts = Counter(filter(is_text, source.annotations.names))
        near = folder_of(source.annotations.file)
        wanted[split], several[split] = {}, {}
        for name, count in counts.items():
            path = normalised(name)
            if count > 1 and path not in tree.files:
                having = images().having(path, _MOST_ALIKE)
                if len(having) > 1 or (scattered and not source.complete):  # of which of the images is it the name?
                    several[split][name] = Several(tuple(having))
                    continue
            homes = (source.folder,) if source.gathered else ("",) if "/" in path else ()
            wanted[split][name] = WrittenName(name, homes, split, near)
    found = find_files([name for names in wanted.values() for name in names.values()], tree.files, images)
    return {
        split: several[split] | {text: found[name] for text, name in names.items()} for split, names in wanted.items()
    }


def _list_images(
    tree: Tree,
    split: Split,
    source: Source,
    found: Mapping[str, Match | Several | None],
    missing: list[Missing],
    defects: Defects,
) -> dict[int | str, ListedImage | None]:
    """User's id -> image; None for one that is named but cannot be used."""
    file = source.annotations.file
    listed: dict[int | str, ListedImage | None] = {}
    for entry in source.annotations.images:
        given, name = (entry.get("id"), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
        key = key_of(given)
        if key is None or not is_text(name):
            defects.add("image_invalid", file, f"image {short(entry)} needs an id and a file_name", "dropped_image")
            continue
        if key in listed:
            defects.reject("image_id_duplicate", file, f"image id {short(key)} is used twice; give each its own")
            continue
        listed[key] = None
        match = found[name]
        image = match.file if isinstance(match, Match) else below(source.folder, name)
        path = tree.path(image) if isinstance(match, Match) or not leads_out(name) else None
        if path is None:
            defects.add("path_escapes", file, f"file name {short(name)} leads out of the data set", "dropped_image")
        elif not isinstance(match, Match):
            where = f"{source.folder}/" if source.folder else "the folder"
            message = f"named in {file}, not found in {where}{hint(match)}"
            missing.append(Missing(name, image, message))
        elif not os.path.isfile(path):
            missing.append(Missing(name, image, f"named in {file}, not a file"))
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
    file = annotations.file
    ids = Ids(listed)
    seen: set[int | str] = set()
    used: Counter[int] = Counter()
    outlines = 0
    for entry in annotations.annotations:
        if not isinstance(entry, dict):
            defects.add("annotation_invalid", file, f"{short(entry)} is not an object", "dropped_box")
            continue
        who, key, category = entry.get("id"), ids.of(entry.get("image_id")), number_of(entry.get("category_id"))
        label = f"annotation {short(who)}"
        if (own := key_of(who)) is not None:
            if own in seen:
                defects.add("annotation_id_duplicate", file, f"{label}: its id is used twice", "kept")
            seen.add(own)
        if category is not None:
            used[category] += 1
        if key is None:
            message = f"{label} is of image {short(entry.get('image_id'))}, which the file does not list"
            defects.add("annotation_unknown_image", file, message, "dropped_box")
        elif category is None or category not in categories:
            message = f"{label} is of category {short(entry.get('category_id'))}, which the file does not list"
            defects.add("annotation_unknown_category", file, message, "dropped_box")
        elif (image := listed[key]) is not None:  # the boxes of an unusable image go with it
            mark = _mark(f"{file}: {label}", entry, categories[category])
            image.marks.append(mark)
            outlines += mark.outline
    if outlines:
        message = f"{outlines} annotations have no bbox: the box around their polygon or mask is used"
        defects.add("outline_to_box", file, message, "kept", outlines)
    if (shift := shifted(used, categories, file)) is not None:
        defects.reject("class_numbers_shifted", file, shift)


def _mark(where: str, entry: Mapping[str, Any], name: str) -> Mark:
    """From its bbox, or from its outline where that is none."""
    bbox, crowd = entry.get("bbox"), flag(entry.get("iscrowd", 0))
    box = _corners(bbox)
    if (isinstance(box, NoBox) or not any(box)) and (around := box_around(entry.get("segmentation"))):
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
