"""Reads YOLO data sets: data.yaml, and one text file an image. Knows no torch.

    data.yaml             path: .    train: images/train    val: images/val    names: [cat, dog] or {0: cat, 1: dog}
    images/train/a.jpg    labels/train/a.txt    one line a box: class x_centre y_centre width height, fractions of 0..1

Paths are taken in every way people write them: below `path`, below the folder of data.yaml, and with Roboflow's "../"
in front left out; a folder, a list of folders, or a text file of image names. An image's labels are where "images" in
its path is "labels", or beside it. No file, or an empty one, means that nothing is on the image. A line of a polygon
(x y x y ...) becomes the box around it. Where EXIF turns an image, its labels are those of the turned picture, as
the tools draw them and ultralytics reads them; they are turned back to the stored pixels.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fgd.data.foreign import class_list, class_lists
from fgd.data.index import Box
from fgd.data.listing import Advice, ListedImage, Listing, Mark, Missing, NoBox, NothingFound, number
from fgd.data.numbering import beyond, shifted
from fgd.data.report import Defects
from fgd.data.texts import UnreadableText, load_yaml, read_decoded, read_text
from fgd.data.tree import IMAGE_SUFFIXES, MAX_NAME, SPLITS, Split, Tree, is_class_name, short, suffix
from fgd.data.unlabelled import report_ignored
from fgd.data.yolo_files import Labels, find_labels, image_folders, split_images

MAX_YAML_BYTES = 1 << 20
MAX_LABEL_BYTES = 16 * 2**20
_MAX_YAMLS = 20
"""data.yaml is among the first so many YAML files."""
_MAX_CLASSES = 100_000
_KEYS: Mapping[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "unlabelled": "unlabelled",
    "unlabeled": "unlabelled",
}


@dataclass(frozen=True)
class _DataYaml:
    """data.yaml, read."""

    file: str
    names: Mapping[int, str]
    splits: Mapping[Split, list[str]]
    """Image files; a split that is named and not there is left out."""
    named: Mapping[Split, Any]
    """What data.yaml says of each split."""
    lists: frozenset[str]
    """Text files of image names."""
    missing: tuple[Missing, ...]
    keypoints: bool


def looks_like(tree: Tree) -> str | None:
    """A YAML file that names classes and a split; None if there is none."""
    for file in _yaml_files(tree):
        try:
            if _is_plan(_yaml(tree, file)):
                return file
        except UnreadableText:
            continue
    return None


def list_images(tree: Tree, defects: Defects) -> Listing:
    """What the labels say. Raises DatasetError where there is no data.yaml."""
    plan = _plan(tree, defects)
    unlabelled = plan.splits.get("unlabelled", [])
    labelled = [file for split, files in plan.splits.items() if split != "unlabelled" for file in files]
    labels = find_labels(tree, labelled, plan.lists, plan.file, defects, unlabelled)
    report_ignored(labels.ignored, "files of labels", defects)
    classes = _Classes()
    images: list[ListedImage] = []
    for split in SPLITS:
        for file in plan.splits.get(split, []):
            listed = _listed(tree, split, file, plan, labels, classes, defects)
            if listed:
                images.append(listed)
    classes.check(plan, defects)
    splits: dict[Split, str] = dict.fromkeys(plan.splits, plan.file)
    advice = Advice(
        split=f"{plan.file} names no folder of images for {{split}}; add one, as in {{split}}: images/{{split}}",
        images=f"the folder that {plan.file} names for it has none",
        boxes="labels are text files in labels/ beside images/, with lines: class x_centre y_centre width height",
    )
    told = _missing(tree, plan, defects)
    names = tuple(dict.fromkeys(plan.names.values()))
    mentioned = frozenset([*labelled, *unlabelled])
    return Listing(
        "yolo",
        images,
        names,
        splits,
        advice,
        mentioned,
        told,
        layout="centre_size",
        missing=plan.missing,
        read_from=(plan.file,),
    )


def _missing(tree: Tree, plan: _DataYaml, defects: Defects) -> frozenset[Split]:
    """Report the splits that are named and not there."""
    gone = [split for split in plan.named if split not in plan.splits]
    there = image_folders(tree) if gone else ""
    for split in gone:
        message = f"names {short(plan.named[split])} for {split}, which is not in the data set: images are in {there}"
        if split in ("test", "unlabelled"):
            defects.add("split_folder_missing", plan.file, f"{message}; there will be no {split} split", "kept")
        else:
            defects.reject("split_folder_missing", plan.file, f"{message}; add it, or remove the line")
    return frozenset(gone)


# --- data.yaml ------------------------------------------------------------------------------------------------


def _yaml_files(tree: Tree) -> list[str]:
    """The shallowest first, data.yaml before others."""
    found = [file for file in tree.files if suffix(file) in (".yaml", ".yml")]
    return sorted(found, key=lambda file: (file.count("/"), PurePosixPath(file).stem != "data", file))[:_MAX_YAMLS]


def _is_plan(content: Any) -> bool:
    return isinstance(content, dict) and "names" in content and any(key in content for key in _KEYS)


def _yaml(tree: Tree, file: str) -> Any:
    return load_yaml(read_text(tree, file, MAX_YAML_BYTES))


def _plan(tree: Tree, defects: Defects) -> _DataYaml:
    plans: dict[str, dict[Any, Any]] = {}
    encodings: dict[str, str] = {}
    for file in _yaml_files(tree):
        try:
            decoded = read_decoded(tree, file, MAX_YAML_BYTES)
            content = load_yaml(decoded.text)
        except UnreadableText:
            continue  # told where no other is found
        if _is_plan(content):
            plans[file], encodings[file] = content, decoded.encoding
    if not plans:
        raise NothingFound(
            f"{tree.root}: no YOLO data.yaml found; expected one with train, val and names beside the images"
        )
    file, content = next(iter(plans.items()))
    _report_encoding(file, encodings[file], defects)
    for other in list(plans)[1:]:
        defects.add(
            "yaml_skipped", other, f"{file} is used, which is less deep or comes first; this one is not", "kept"
        )
    names = _names(file, content, defects)
    _report_class_lists(tree, file, names, defects)
    named: dict[Split, Any] = {}
    for key, split in _KEYS.items():
        entries = content.get(key)
        if entries is None or entries in ("", []):
            continue
        if split in named:
            defects.reject("split_ambiguous", file, f"{key} and another word both name the {split} split")
            continue
        named[split] = entries
    found = split_images(tree, file, content.get("path"), named, defects)
    return _DataYaml(file, names, found.splits, named, found.lists, found.missing, keypoints="kpt_shape" in content)


def _report_encoding(file: str, encoding: str, defects: Defects) -> None:
    if encoding != "utf-8":
        defects.add("encoding_guessed", file, f"not UTF-8; read as {encoding}, so check the class names", "kept")


def _names(file: str, content: dict[Any, Any], defects: Defects) -> dict[int, str]:
    """Class index -> name."""
    given = content["names"]
    pairs = (
        list(enumerate(given)) if isinstance(given, list) else list(given.items()) if isinstance(given, dict) else []
    )
    if not pairs or len(pairs) > _MAX_CLASSES:
        defects.reject("category_invalid", file, "names must be a list of class names, or index: name")
        return {}
    names: dict[int, str] = {}
    for key, value in pairs:
        index = int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 10 else key
        name = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
        if not isinstance(index, int) or isinstance(index, bool) or index < 0 or not is_class_name(name):
            hint = (
                "; YAML reads a bare yes, no, on or off as true or false: quote it" if isinstance(value, bool) else ""
            )
            defects.reject(
                "category_invalid",
                file,
                f"class {short(key)}: {short(value)} needs an index and a name of at most {MAX_NAME} characters{hint}",
            )
        else:
            names[index] = name
    count = content.get("nc")
    if count is not None and count != len(pairs):
        message = f"nc is {short(count)}, but names has {len(pairs)} classes; names are used"
        defects.add("class_count_differs", file, message, "kept")
    return names


def _report_class_lists(tree: Tree, plan: str, names: Mapping[int, str], defects: Defects) -> None:
    """Lists of classes beside data.yaml that give a number another name: one of the two is wrong."""
    for file in class_lists(tree):
        listed = class_list(tree, file) or []
        if any(names.get(number, name) != name for number, name in enumerate(listed)):
            own = ", ".join(names[number] for number in sorted(names))
            message = f"it says {short(', '.join(listed))}, and {plan} says {short(own)}; {plan} is used"
            defects.add("class_lists_differ", file, message, "kept")


# --- labels ---------------------------------------------------------------------------------------------------


class _Classes:
    """The class numbers of all labels."""

    def __init__(self) -> None:
        self.labels: Counter[int] = Counter()
        self.first: dict[int, str] = {}
        """Number -> the first file that has it."""
        self.unknown: set[str] = set()
        """Files with a number that data.yaml does not name."""

    def check(self, plan: _DataYaml, defects: Defects) -> None:
        """Refuse numbers that cannot be those of data.yaml: with shifted ones every class would be another."""
        if not plan.names:
            return
        files = len(self.unknown)
        self._check_names(plan, defects)
        reason = shifted(self.labels, plan.names, plan.file) or beyond(self.labels, plan.names, files, plan.file)
        if reason:
            first = min(self.first[number] for number in self.labels if number not in plan.names)
            message = f"{reason} ({files} files, the first {first})"
            defects.reject("class_numbers_shifted" if "counted from" in reason else "class_numbers", plan.file, message)

    def _check_names(self, plan: _DataYaml, defects: Defects) -> None:
        """Names that stand for two numbers: only what labels have can be mistaken."""
        first: dict[str, int] = {}
        for index in sorted(plan.names, key=lambda index: (index not in self.labels, index)):
            name = plan.names[index]
            other = first.setdefault(name, index)
            if other == index:
                continue
            if index in self.labels:
                message = f"class name {short(name)} is used twice, for {other} and {index}; rename or merge them"
                defects.reject("category_duplicate", plan.file, message)
            else:
                message = f"class {index} is called {short(name)} as {other} is, and no label has it; left out"
                defects.add("category_unused", plan.file, message, "kept")


def _listed(
    tree: Tree,
    split: Split,
    file: str,
    plan: _DataYaml,
    labels: Labels,
    classes: _Classes,
    defects: Defects,
) -> ListedImage | None:
    path = tree.path(file)
    if path is None or not os.path.isfile(path) or suffix(file) not in IMAGE_SUFFIXES:
        defects.add("path_escapes", file, "a link that leads out of the data set, or no image", "dropped_image")
        return None
    image = ListedImage(split, PurePosixPath(file).name, file, path, upright=True)
    if file in labels.unsure:
        could = " or ".join(labels.unsure[file].files[:3]) or "one of many files"
        message = (
            f"its labels could be {could}, which others could have too: left out, because it may not be background"
        )
        defects.add("label_ambiguous", file, message, "dropped_image")
        return None
    if split == "unlabelled" or file not in labels.of:
        return image
    label = labels.of[file]
    try:
        lines = read_text(tree, label, MAX_LABEL_BYTES).splitlines()
    except UnreadableText as error:
        defects.add("annotation_missing", file, f"{label}: {error}; the image is left out", "dropped_image")
        return None
    commas = 0
    for place, line in enumerate(lines, start=1):
        if parts := _parts(line):
            commas += "," in line or ";" in line
            where = f"{label}: line {place}"
            mark = _mark(where, parts, plan, label, classes, defects)
            if mark:
                image.marks.append(mark)
            else:
                image.unread.append(f"{where} begins with {short(parts[0])}, which is not a class in {plan.file}")
    if commas:
        defects.add(
            "label_commas", label, f"{commas} lines have commas; they are read as spaces, or as decimal points", "kept"
        )
    return image


def _parts(line: str) -> list[str]:
    """The numbers of a line. Between them are blanks, or commas; beside blanks commas are those of 0,5."""
    parts = line.split()
    if len(parts) >= 5 and all(re.fullmatch(r"[^,;]*,?[^,;]+", part) for part in parts):
        return [part.replace(",", ".") for part in parts]
    return [part for part in re.split(r"[\s,;]+", line) if part]


def _mark(
    where: str, parts: list[str], plan: _DataYaml, label: str, classes: _Classes, defects: Defects
) -> Mark | None:
    index = number(parts[0])
    whole = int(index) if index is not None and index.is_integer() and index >= 0 else None
    name = plan.names.get(whole) if whole is not None else None
    if whole is not None:
        classes.labels[whole] += 1
        classes.first.setdefault(whole, label)
    if name is None:
        if whole is not None:
            classes.unknown.add(label)
        message = f"{where} is of class {short(parts[0])}, which {plan.file} does not name (0 to {len(plan.names) - 1})"
        defects.add("annotation_unknown_category", label, message, "dropped_box")
        return None
    values = [number(part) for part in parts[1:]]
    if plan.keypoints and len(values) > 4:
        values = values[:4]  # a box, then its keypoints
    written = "[" + ", ".join(part[:12] for part in parts[1:5]) + (", ...]" if len(parts) > 5 else "]")
    outline = len(values) > 5 and len(values) % 2 == 0
    box = _around(values) if outline else _box(values)
    if outline and not isinstance(box, NoBox):
        message = f"{where} is a polygon of {len(values) // 2} points; the box around it is used"
        defects.add("polygon_to_box", label, message, "kept")
    return Mark(where, written, box, name, relative=True, outline=outline)


def _box(values: list[float | None]) -> Box | NoBox:
    """Centre and size -> xyxy, all fractions."""
    if len(values) != 4:
        return NoBox("box_invalid", f"a line of {len(values) + 1} numbers; it takes class, x, y, width, height")
    x, y, w, h = values
    if x is None or y is None or w is None or h is None:
        return NoBox("box_not_finite", "which contains something that is not a finite number")
    return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def _around(values: list[float | None]) -> Box | NoBox:
    """The box around x y x y ..."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return NoBox("box_not_finite", "a polygon that contains something that is not a finite number")
    return (min(known[::2]), min(known[1::2]), max(known[::2]), max(known[1::2]))
