"""Reads Pascal VOC data sets: one XML file an image, and ImageSets/Main for the splits. Knows no torch.

    Annotations/a.xml + JPEGImages/a.jpg + ImageSets/Main/{train,val,test,trainval}.txt, once or below each VOC20xx/
    train/a.xml beside train/a.jpg
    Annotations/ + images/, without a split

An image belongs to an XML file by its name without the suffix, as ImageSets does; `<filename>` is asked second.

VOC counts pixels from 1 and includes the last: a box of the whole image is 1, 1, width, height, its edges are at
0, 0, width, height. So 1 is subtracted from xmin and ymin and nothing from xmax and ymax. Some converters write edges
counted from 0 instead; they give themselves away where boxes touch the left or upper border, and a set with more
zeros than ones there is read as it stands. `difficult` objects become crowd regions, which are neither trained on nor
scored: VOC's own evaluation ignores them likewise.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from fgd.data.listing import Advice, ListedImage, Listing, Mark, NoBox, NothingFound
from fgd.data.report import Defects
from fgd.data.texts import UnreadableText, read_text
from fgd.data.tree import MAX_NAME, Split, SplitWords, Tree, below, folder_of, is_class_name, short
from fgd.data.voc_xml import Annotation, read_all

_MAX_LIST_BYTES = 256 * 2**20
_LISTS: Final[Mapping[str, Split]] = {"train": "train", "val": "val", "valid": "val", "test": "test"}
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs", "img")
_FLAGGED = re.compile(r"(\S.*?)\s+(-1|0|1)")
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
    entries, splits = _entries(tree, xmls, defects)
    images = _Images(tree)
    read = read_all(tree, [entry.xml for entry in entries], defects)
    pairs: list[tuple[_Entry, Annotation, str]] = []
    mentioned = {image for xml in xmls if (image := images.beside(xml))}
    for entry in entries:
        annotation = read[entry.xml]
        image = _image_of(annotation, images, defects) if annotation else images.beside(entry.xml)
        if image:
            mentioned.add(image)
        if annotation and image:
            pairs.append((entry, annotation, image))
        elif image:
            defects.add(
                "annotation_missing", image, f"{entry.xml} cannot be read; the image is left out", "dropped_image"
            )
    shift = _shift([annotation for annotation in read.values() if annotation], defects)
    listed = [_listed(tree, entry, annotation, image, shift, defects) for entry, annotation, image in pairs]
    names = {mark.name for image in listed if image for mark in image.marks}
    return Listing(
        "voc",
        [image for image in listed if image],
        tuple(sorted(names)),
        splits,
        ADVICE,
        frozenset(mentioned),
        first_pixel=shift,
    )


# --- splits ---------------------------------------------------------------------------------------------------


def _entries(tree: Tree, xmls: list[str], defects: Defects) -> tuple[list[_Entry], dict[Split, str]]:
    """Which annotation files each split wants, in order, and the file or folder that says so."""
    lists = [
        f for f in sorted(tree.files) if f"/{f}".rpartition("/")[0].endswith("/ImageSets/Main") and f.endswith(".txt")
    ]
    lists = [f for f in lists if PurePosixPath(f).stem in (*_LISTS, "trainval")]
    if lists:
        return _by_lists(tree, xmls, lists, defects)
    return _by_folders(xmls, defects)


def _by_folders(xmls: list[str], defects: Defects) -> tuple[list[_Entry], dict[Split, str]]:
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


def _by_lists(tree: Tree, xmls: list[str], lists: list[str], defects: Defects) -> tuple[list[_Entry], dict[Split, str]]:
    """By ImageSets/Main; trainval counts only where its folder has no train of its own."""
    chosen: list[tuple[Split, str]] = []
    for file in lists:
        stem = PurePosixPath(file).stem
        if stem in _LISTS:
            chosen.append((_LISTS[stem], file))
        elif below(folder_of(file), "train.txt") not in lists:
            chosen.append(("train", file))
    order: dict[Split, int] = {"train": 0, "val": 1, "test": 2}
    entries: list[_Entry] = []
    named: dict[Split, str] = {}
    known = set(xmls)
    for split, file in sorted(chosen, key=lambda pair: (order[pair[0]], pair[1])):
        named.setdefault(split, file)
        home = folder_of(folder_of(folder_of(file)))
        for name in _names(tree, file, home, known, defects):
            xml = _xml(home, name)
            if xml in known:
                entries.append(_Entry(split, xml))
            else:
                message = f"{file} names {short(name)}, which has no Annotations/{short(name)[1:-1]}.xml"
                image = below(home, f"JPEGImages/{name}.jpg")
                defects.add("annotation_missing", image if image in tree.files else file, message, "dropped_image")
    listed = {entry.xml for entry in entries}
    for xml in xmls:
        if xml not in listed:
            defects.add("split_unknown", xml, "in no list of ImageSets/Main; left out with its image", "dropped_image")
    return entries, named


def _xml(home: str, name: str) -> str:
    return below(home, f"Annotations/{name}.xml")


def _names(tree: Tree, file: str, home: str, xmls: Set[str], defects: Defects) -> list[str]:
    """Image names of one list, each once.

    In the lists of one class each line ends in 1, 0 or -1, and -1 means not in it. "photo 1" is a name all the same: so
    all lines have such a number, and none is a name with it, or none has.
    """
    try:
        lines = read_text(tree, file, _MAX_LIST_BYTES).splitlines()
    except UnreadableText as error:
        defects.reject("list_invalid", file, f"cannot be read as a list of image names: {error}")
        return []
    rows = [line.strip() for line in lines if line.strip()]
    flagged = [_FLAGGED.fullmatch(row) for row in rows]
    if all(flagged) and not any(_xml(home, row) in xmls for row in rows):
        rows = [found[1] for found in flagged if found and found[2] != "-1"]
    names: dict[str, None] = {}
    for name in rows:
        if name in names:
            defects.add("image_listed_twice", file, f"names {short(name)} twice; it counts once", "kept")
        names[name] = None
    return list(names)


# --- images ---------------------------------------------------------------------------------------------------


class _Images:
    """Image files by name without suffix."""

    def __init__(self, tree: Tree) -> None:
        self._by_stem: dict[str, list[str]] = {}
        self._all = frozenset(tree.images())
        for file in tree.images():
            self._by_stem.setdefault(PurePosixPath(file).stem, []).append(file)

    def beside(self, xml: str) -> str | None:
        """The image of the same name: in the same folder, in an image folder beside it, or the only one anywhere."""
        return self._nearest(xml, self._by_stem.get(PurePosixPath(xml).stem, []))

    def called(self, xml: str, name: str) -> str | None:
        """The image that the XML file names."""
        stem = PurePosixPath(name.replace("\\", "/")).name
        return self._nearest(xml, [f for f in self._by_stem.get(PurePosixPath(stem).stem, []) if f.endswith(stem)])

    def _nearest(self, xml: str, candidates: list[str]) -> str | None:
        home = folder_of(xml)
        near = [home, *(below(folder_of(home), name) for name in _IMAGE_FOLDERS)]
        for folder in near:
            for file in candidates:
                if folder_of(file) == folder:
                    return file
        return candidates[0] if len(candidates) == 1 else None


def _image_of(annotation: Annotation, images: _Images, defects: Defects) -> str | None:
    own = images.beside(annotation.file)
    if own is None and annotation.image_name:
        own = images.called(annotation.file, annotation.image_name)
    if own is None:
        stem = PurePosixPath(annotation.file).stem
        message = f"no image {short(stem)[1:-1]}.jpg (or .png, ...) for it in JPEGImages or beside it"
        defects.add("image_missing", annotation.file, message, "dropped_image")
        return None
    named = PurePosixPath(annotation.image_name.replace("\\", "/")).name
    if named and named != PurePosixPath(own).name:
        message = f"its <filename> is {short(named)}, but the image of its own name is {own}; that is used"
        defects.add("filename_differs", annotation.file, message, "kept")
    return own


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
        "VOC; nothing is subtracted from them"
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
        message = f"{outlines} objects have no bndbox: the box around their polygon or rotated box is taken"
        defects.add("outline_to_box", annotation.file, message, "kept", outlines)
    for place, thing in enumerate(annotation.objects, start=1):
        where = f"{annotation.file}: object {place}"
        if not is_class_name(thing.name):
            message = f"object {place} needs a name of at most {MAX_NAME} characters"
            defects.add("annotation_invalid", annotation.file, message, "dropped_box")
            unread.append(where)
            continue
        corners = thing.corners
        if not isinstance(corners, NoBox) and not thing.outline:
            corners = (corners[0] - shift, corners[1] - shift, corners[2], corners[3])
        if thing.difficult:
            message = f"object {place} is marked difficult: neither trained on nor scored"
            defects.add("object_difficult", annotation.file, message, "kept")
        marks.append(Mark(where, thing.written, corners, thing.name, thing.difficult, outline=thing.outline))
    return ListedImage(entry.split, PurePosixPath(image).name, image, path, annotation.declared, marks, unread=unread)
