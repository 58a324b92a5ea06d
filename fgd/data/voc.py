"""Reads Pascal VOC data sets: one XML file an image, and ImageSets/Main for the splits. Knows no torch.

    Annotations/a.xml + JPEGImages/a.jpg + ImageSets/Main/{train,val,test,trainval}.txt, once or below each VOC20xx/
    the same lists in another folder, such as ImageSets or that of Annotations
    unlabelled.txt beside these, of images that need no XML
    train/a.xml beside train/a.jpg
    Annotations/ + images/, without a split

An image belongs to an XML file by its name without the suffix, as ImageSets does; see `fgd.data.voc_images`.

VOC counts pixels from 1 and includes the last: a box of the whole image is 1, 1, width, height, its edges are at
0, 0, width, height. So 1 is subtracted from xmin and ymin and nothing from xmax and ymax. Some converters write edges
counted from 0 instead; they give themselves away where boxes touch the left or upper border, and a set with more
zeros than ones there is read as it stands. `difficult` objects become crowd regions, which are neither trained on nor
scored: VOC's own evaluation ignores them likewise.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from fgd.data.listing import Advice, ListedImage, Listing, Mark, Missing, NoBox, NothingFound
from fgd.data.matching import Match, Several, WrittenName, ends_of, find_files, normalised
from fgd.data.report import Defects
from fgd.data.texts import UnreadableText, read_text
from fgd.data.tree import (
    IMAGE_SUFFIXES,
    MAX_NAME,
    Split,
    SplitWords,
    Tree,
    below,
    depth,
    folder_of,
    is_class_name,
    short,
    suffix,
)
from fgd.data.unlabelled import report_ignored
from fgd.data.unmatched import hint, report_spellings
from fgd.data.voc_images import IMAGE_FOLDERS, is_called, pair_images
from fgd.data.voc_xml import Annotation, read_all

_MAX_LIST_BYTES = 256 * 2**20
_LISTS: Final[Mapping[str, Split]] = {"train": "train", "val": "val", "valid": "val", "test": "test"}
_UNLABELLED = frozenset({"unlabelled", "unlabeled"})
_FLAGGED = re.compile(r"(\S.*?)[ \t]+(-1|0|1)")
ADVICE = Advice(
    split="no images of the {split} split; name them in ImageSets/Main/{split}.txt, or put them into a folder {split}",
    images="each XML file needs its image, of the same name, in JPEGImages or beside it",
    boxes="add an object with a name and a bndbox to the XML files",
)


@dataclass(frozen=True)
class _Entry:
    """An annotation file that a split wants."""

    split: Split
    xml: str


def looks_like(tree: Tree) -> str | None:
    """An XML file of annotations; None if there is none."""
    return next((file for file in _xml_files(tree) if _is_annotation(tree.root / file)), None)


def _xml_files(tree: Tree) -> list[str]:
    return sorted(file for file in tree.files if file.lower().endswith(".xml"))


def _is_annotation(path: Path) -> bool:
    try:
        if not os.path.isfile(path):
            return False
        with path.open("rb") as file:
            head = file.read(4096).replace(b"\0", b"")  # UTF-16 has zeros between
            return re.search(rb"<annotation[\s/>]", head) is not None
    except OSError:
        return False


def list_images(tree: Tree, defects: Defects) -> Listing:
    """What the annotations say. Raises DatasetError where there are none."""
    xmls = _xml_files(tree)
    if not xmls:
        raise NothingFound(
            f"{tree.root}: no Pascal VOC annotations found; expected XML files such as Annotations/a.xml"
        )
    lists = _lists(tree, xmls)
    bare = _unlabelled(tree, xmls, lists, defects)
    if lists:
        entries, splits = _by_lists(tree, xmls, lists, bare.xmls, defects)
    else:
        entries, splits = _by_folders([xml for xml in xmls if xml not in bare.xmls], defects)
    report_ignored(sorted(bare.xmls - {entry.xml for entry in entries}), "XML files", defects)
    read = read_all(tree, [entry.xml for entry in entries], defects)
    images = pair_images(tree, xmls, read, defects)
    pairs: list[tuple[_Entry, Annotation, str]] = []
    missing: dict[str, Missing] = {}
    for entry in entries:
        annotation, image = read[entry.xml], images.image_of.get(entry.xml)
        if annotation and image:
            pairs.append((entry, annotation, image))
            _compare_names(annotation, image, defects)
        elif image:
            message = f"{entry.xml} cannot be read; the image is left out"
            defects.add("annotation_missing", image, message, "dropped_image")
        elif annotation:
            missing[entry.xml] = _missing(annotation, images.unsure.get(entry.xml))
    shift = _shift([annotation for annotation in read.values() if annotation], defects)
    listed = [_listed(tree, entry, annotation, image, shift, defects) for entry, annotation, image in pairs]
    names = {mark.name for image in listed if image for mark in image.marks}
    return Listing(
        "voc",
        [*(image for image in listed if image), *bare.images],
        tuple(sorted(names)),
        splits | bare.splits,
        ADVICE,
        frozenset(images.image_of.values()),
        first_pixel=shift,
        missing=(*missing.values(), *bare.missing),
        read_from=(*xmls, *(file for file in splits.values() if file in tree.files)),
    )


# --- splits ---------------------------------------------------------------------------------------------------


def _lists(tree: Tree, xmls: list[str]) -> list[str]:
    """The lists of the splits; none: folders say which is which."""
    lists = [f for f in sorted(tree.files) if _is_in_main(f) and PurePosixPath(f).stem in (*_LISTS, "trainval")]
    if lists:
        return lists
    words = SplitWords(xmls)
    if not any(words.of_folder(folder) for folder in {folder_of(xml) for xml in xmls}):
        return _lists_elsewhere(tree, xmls)
    return []


def _is_in_main(file: str) -> bool:
    return f"/{folder_of(file)}".lower().endswith("/imagesets/main") and suffix(file) == ".txt"


def _lists_elsewhere(tree: Tree, xmls: Iterable[str]) -> list[str]:
    """train.txt and val.txt of the outermost folder that has them, if they name the XML files or their images."""
    named = [f for f in tree.files if suffix(f) == ".txt" and PurePosixPath(f).stem in (*_LISTS, "trainval")]
    home = min((folder_of(f) for f in named), key=lambda folder: (depth(folder), folder), default="")
    lists = sorted(f for f in named if folder_of(f) == home)
    if home.rpartition("/")[0].lower().endswith("imagesets"):  # ImageSets/Segmentation, Layout and others name few
        return []
    stems = {_stem(xml) for xml in xmls}
    for file in lists:
        names = _names(tree, file, stems, Defects())  # what is wrong is reported when it is used
        if not names or sum(_stem(f"{_without_suffix(name)}.xml") in stems for name in names) * 2 < len(names):
            return []
    return lists if any(PurePosixPath(file).stem in ("train", "trainval") for file in lists) else []


@dataclass(frozen=True)
class _Unlabelled:
    """What the lists of unlabelled images name."""

    images: list[ListedImage]
    splits: dict[Split, str]
    xmls: Set[str]
    """Annotations of such images."""
    missing: list[Missing]


def _unlabelled(tree: Tree, xmls: Iterable[str], lists: Iterable[str], defects: Defects) -> _Unlabelled:
    """By unlabelled.txt beside the lists of the splits, or in ImageSets/Main."""
    homes = {folder_of(file) for file in lists}
    named = [f for f in sorted(tree.files) if suffix(f) == ".txt" and PurePosixPath(f).stem in _UNLABELLED]
    found = _Unlabelled([], {}, set(), [])
    labels: set[str] = set()
    for file in (f for f in named if folder_of(f) in homes or _is_in_main(f)):
        home = _home_of_list(file)
        names = _names(tree, file, frozenset(), defects)
        images = _images_of_names(tree, home, names)
        report_spellings(file, images, defects)
        for name, match in images.items():
            path = tree.path(match.file) if isinstance(match, Match) else None
            if isinstance(match, Match) and path is not None and path.is_file():
                image = ListedImage("unlabelled", PurePosixPath(match.file).name, match.file, path)
                found.images.append(image)
                found.splits.setdefault("unlabelled", file)
            else:
                several = match if isinstance(match, Several) else None
                message = f"named in {file}, no image {short(name)[1:-1]}.jpg (or .png, ...) found{hint(several)}"
                found.missing.append(Missing(name, file, message))
        written = [_xml_name(home, name, "unlabelled") for name in names]
        matches = find_files(written, frozenset(xmls), lambda: ends_of(xmls), bare=False).values()
        labels |= {match.file for match in matches if isinstance(match, Match)}
    return replace(found, xmls=labels)


def _images_of_names(tree: Tree, home: str, names: Iterable[str]) -> dict[str, Match | Several | None]:
    """In a folder of images below `home`, else by the end of its path; names lack the suffix, by rights."""
    places = {(folder_of(image), PurePosixPath(image).stem): image for image in reversed(tree.images())}
    folders = [below(home, folder) for folder in IMAGE_FOLDERS]
    exact = {
        name: next(filter(None, (places.get((folder, _without_suffix(name))) for folder in folders)), None)
        for name in names
    }
    others = {name: WrittenName(name, (), "unlabelled", home) for name, file in exact.items() if file is None}
    found = find_files(list(others.values()), frozenset(), lambda: ends_of(tree.images()))
    return {name: Match(file, 1, 0, exact=True) if file else found[others[name]] for name, file in exact.items()}


def _by_folders(xmls: list[str], defects: Defects) -> tuple[list[_Entry], dict[Split, str]]:
    if not xmls:
        return [], {}
    words = SplitWords(xmls)
    splits = {xml: words.of_folder(folder_of(xml)) for xml in xmls}
    if not any(splits.values()):
        return [_Entry("train", xml) for xml in xmls], {"train": folder_of(xmls[0])}
    entries: list[_Entry] = []
    named: dict[Split, str] = {}
    for split in ("train", "val", "test"):
        members = [xml for xml, found in splits.items() if found == split]
        if members:
            named[split] = folder_of(members[0])
            entries += [_Entry(split, xml) for xml in members]
    for xml, found in splits.items():
        if found is None:
            message = "in no folder of a split, though others are; left out with its image"
            defects.add("split_unknown", xml, message, "dropped_image")
    return entries, named


def _by_lists(
    tree: Tree, xmls: list[str], lists: list[str], apart: Set[str], defects: Defects
) -> tuple[list[_Entry], dict[Split, str]]:
    """By ImageSets/Main; trainval counts only where its folder has no train of its own. apart: of unlabelled images."""
    chosen: list[tuple[Split, str]] = []
    for file in lists:
        stem = PurePosixPath(file).stem
        if stem in _LISTS:
            chosen.append((_LISTS[stem], file))
        elif below(folder_of(file), "train.txt") not in tree.files:
            chosen.append(("train", file))
    order: dict[Split, int] = {"train": 0, "val": 1, "test": 2}
    entries: list[_Entry] = []
    named: dict[Split, str] = {}
    known = set(xmls)
    chosen.sort(key=lambda pair: (order[pair[0]], pair[1]))
    homes = {file: _home_of_list(file) for _, file in chosen}
    stems = {_stem(xml) for xml in xmls}
    names = {file: _names(tree, file, stems, defects) for _, file in chosen}
    wanted = {file: {name: _xml_name(homes[file], name, split) for name in names[file]} for split, file in chosen}
    every = [name for of_list in wanted.values() for name in of_list.values()]
    found = find_files(every, known, lambda: ends_of(xmls), bare=False)
    for split, file in chosen:
        named.setdefault(split, file)
        matches = {name: found[wanted[file][name]] for name in names[file]}
        report_spellings(file, matches, defects)
        for name, match in matches.items():
            if isinstance(match, Match):
                entries.append(_Entry(split, match.file))
            else:
                message = f"{file} names {short(name)}, which has no Annotations/{short(name)[1:-1]}.xml{hint(match)}"
                image = below(homes[file], f"JPEGImages/{name}.jpg")
                defects.add("annotation_missing", image if image in tree.files else file, message, "dropped_image")
    listed = {entry.xml for entry in entries}
    for xml in xmls:
        if xml not in listed and xml not in apart:
            defects.add("split_unknown", xml, "in no list of a split; left out with its image", "dropped_image")
    return entries, named


def _home_of_list(file: str) -> str:
    """The folder that has ImageSets, or the list itself."""
    folder = folder_of(file)
    for part in ("main", "imagesets"):
        if folder.rpartition("/")[2].lower() == part:
            folder = folder_of(folder)
    return folder


def _stem(file: str) -> str:
    """Of two spellings of a name it is the same."""
    return unicodedata.normalize("NFC", PurePosixPath(normalised(file)).stem).casefold()


def _xml_name(home: str, name: str, split: Split) -> WrittenName:
    """A line of a list is the name of an image, by rights without its suffix."""
    return WrittenName(f"{_without_suffix(name)}.xml", (below(home, "Annotations"),), split, home)


def _without_suffix(name: str) -> str:
    return name.removesuffix(PurePosixPath(name).suffix) if suffix(name) in IMAGE_SUFFIXES else name


def _names(tree: Tree, file: str, stems: Set[str], defects: Defects) -> list[str]:
    """Image names of one list, each once.

    In the lists of one class each line ends in 1, 0 or -1, and -1 means not in it. "photo 1" is a name all the same: so
    all lines have such a number, and none is a name with it, or none has.
    """
    try:
        lines = read_text(tree, file, _MAX_LIST_BYTES).split("\n")
    except UnreadableText as error:
        defects.reject("list_invalid", file, f"cannot be read as a list of image names: {error}")
        return []
    rows = [row for row in (line.strip(" \t\r\f\v") for line in lines) if row]
    flagged = [_FLAGGED.fullmatch(row) for row in rows]
    if all(flagged) and not any(_stem(f"{row}.xml") in stems for row in rows):
        rows = [found[1] for found in flagged if found and found[2] != "-1"]
    names: dict[str, None] = {}
    for name in rows:
        if name in names:
            defects.add("image_listed_twice", file, f"names {short(name)} twice; it counts once", "kept")
        names[name] = None
    return list(names)


# --- images ---------------------------------------------------------------------------------------------------


def _missing(annotation: Annotation, several: Several | None) -> Missing:
    stem = PurePosixPath(annotation.file).stem
    message = f"no image {short(stem)[1:-1]}.jpg (or .png, ...) for it in JPEGImages or beside it{hint(several)}"
    return Missing(stem, annotation.file, message)


def _compare_names(annotation: Annotation, image: str, defects: Defects) -> None:
    if annotation.image_name and not is_called(image, annotation.image_name):
        named = annotation.image_paths[-1].replace("\\", "/").rpartition("/")[2]
        message = f"its <filename> is {short(named)}, but the image of its own name is {image}; that is used"
        defects.add("filename_differs", annotation.file, message, "kept")


# --- boxes ----------------------------------------------------------------------------------------------------


def _shift(annotations: Iterable[Annotation], defects: Defects) -> float:
    """What is subtracted from xmin and ymin: 1, or 0 for a set whose boxes begin at 0 (see the module)."""
    edges: Counter[float] = Counter()
    for annotation in annotations:
        for thing in annotation.objects:
            if not isinstance(thing.corners, NoBox) and not thing.outline:
                edges.update(thing.corners[:2])
    if edges[0.0] <= edges[1.0]:
        return 1.0
    message = (
        f"{edges[0.0]} boxes begin at pixel 0 and {edges[1.0]} at pixel 1: coordinates count from 0, not from 1 as in "
        "VOC; nothing is subtracted"
    )
    defects.add("voc_counts_from_zero", "", message, "kept")
    return 0.0


def _listed(
    tree: Tree, entry: _Entry, annotation: Annotation, image: str, shift: float, defects: Defects
) -> ListedImage | None:
    path = tree.path(image)
    if path is None or not os.path.isfile(path):
        defects.add("path_escapes", image, "a link that leads out of the data set", "dropped_image")
        return None
    marks: list[Mark] = []
    unread: list[str] = []
    outlines = sum(thing.outline for thing in annotation.objects)
    if outlines:
        message = f"{outlines} objects have no bndbox: the box around their polygon or rotated box is used"
        defects.add("outline_to_box", annotation.file, message, "kept", outlines)
    for place, thing in enumerate(annotation.objects, start=1):
        where = f"{annotation.file}: object {place}"
        if not is_class_name(thing.name):
            message = f"object {place} needs a name of at most {MAX_NAME} characters"
            defects.add("annotation_invalid", annotation.file, message, "dropped_box")
            unread.append(f"{where} has no name")
            continue
        corners = thing.corners
        if not isinstance(corners, NoBox) and not thing.outline:
            corners = (corners[0] - shift, corners[1] - shift, corners[2], corners[3])
        if thing.difficult:
            message = f"object {place} is marked difficult: neither trained on nor scored"
            defects.add("object_difficult", annotation.file, message, "kept")
        marks.append(Mark(where, thing.written, corners, thing.name, thing.difficult, outline=thing.outline))
    return ListedImage(entry.split, PurePosixPath(image).name, image, path, annotation.declared, marks, unread=unread)
