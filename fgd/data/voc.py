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
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final
from xml.etree import ElementTree

from fgd.data.index import Box
from fgd.data.listing import Advice, ListedImage, Listing, Mark, NoBox, number
from fgd.data.report import Defects
from fgd.data.tree import MAX_NAME, Split, Tree, below, folder_of, is_class_name, short, split_of_folder
from fgd.errors import DatasetError

MAX_XML_BYTES = 16 * 2**20
"""Of one image's annotations."""
_MAX_LIST_BYTES = 256 * 2**20
_LISTS: Final[Mapping[str, Split]] = {"train": "train", "val": "val", "valid": "val", "test": "test"}
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs", "img")
ADVICE = Advice(
    split="no images of the {split} split; name them in ImageSets/Main/{split}.txt, or put them into a folder {split}",
    images="each XML file needs its image, of the same name, in JPEGImages or beside it",
    boxes="add an object with a name and a bndbox to the XML files",
)


class _UnreadableAnnotation(Exception):
    """An XML file that cannot be used."""


@dataclass(frozen=True)
class _Object:
    """One object of an XML file, its numbers not yet shifted to the image's edges."""

    name: str
    corners: Box | NoBox
    written: str
    difficult: bool


@dataclass(frozen=True)
class _Annotation:
    """One XML file that could be parsed."""

    file: str
    image_name: str
    declared: tuple[float | None, float | None]
    objects: list[_Object]


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
            return b"<annotation" in file.read(4096)
    except OSError:
        return False


def list_images(tree: Tree, defects: Defects) -> Listing:
    """What the annotations say. Raises DatasetError where there are none."""
    xmls = _xml_files(tree)
    if not xmls:
        raise DatasetError(
            f"{tree.root}: no Pascal VOC annotations found; expected XML files such as Annotations/a.xml"
        )
    entries, splits = _entries(tree, xmls, defects)
    images = _Images(tree)
    read: dict[str, _Annotation | None] = {}
    pairs: list[tuple[_Entry, _Annotation, str]] = []
    mentioned = {image for xml in xmls if (image := images.beside(xml))}
    for entry in entries:
        if entry.xml not in read:
            read[entry.xml] = _read(tree, entry.xml, defects)
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
    splits = {xml: split_of_folder(folder_of(xml)) for xml in xmls}
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
        for name in _names(tree, file, defects):
            xml = below(home, f"Annotations/{name}.xml")
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


def _names(tree: Tree, file: str, defects: Defects) -> list[str]:
    """Image names of one list, each once. A line may end in 1 or -1, as the lists of one class do."""
    path = tree.path(file)
    try:
        if path is None or not os.path.isfile(path) or path.stat().st_size > _MAX_LIST_BYTES:
            raise OSError("a link out of the data set, no file, or too large")
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        defects.reject("list_invalid", file, f"cannot be read as a list of image names: {error}")
        return []
    names: dict[str, None] = {}
    for line in lines:
        parts = line.split()
        if len(parts) == 2 and parts[1] == "-1":
            continue
        name = line.strip() if not (len(parts) == 2 and parts[1] in ("0", "1")) else parts[0]
        if not name:
            continue
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


def _image_of(annotation: _Annotation, images: _Images, defects: Defects) -> str | None:
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


# --- one file -------------------------------------------------------------------------------------------------


def _read(tree: Tree, file: str, defects: Defects) -> _Annotation | None:
    try:
        root = _parsed(tree, file)
    except _UnreadableAnnotation as error:
        defects.add("xml_invalid", file, f"{error}; its image is left out", "dropped_image")
        return None
    size = root.find("size")
    width, height = (number(_text(size, side)) for side in ("width", "height"))
    return _Annotation(
        file=file,
        image_name=_text(root, "filename") or "",
        declared=(width or None, height or None),  # many tools write 0 where they do not know
        objects=[_object(element) for element in root.findall("object")],
    )


def _parsed(tree: Tree, file: str) -> ElementTree.Element:
    """The root of the document. No DOCTYPE, so no entities: neither files of this machine nor bombs."""
    path = tree.path(file)
    if path is None or not os.path.isfile(path):
        raise _UnreadableAnnotation("a link that leads out of the data set, or not a file")
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise _UnreadableAnnotation(f"larger than {MAX_XML_BYTES} bytes")
        content = path.read_bytes()
        if b"\0" in content:  # UTF-16, in which a DOCTYPE would not be seen
            raise _UnreadableAnnotation("not XML in UTF-8 or another encoding that contains ASCII")
        if b"<!DOCTYPE" in content.upper():
            raise _UnreadableAnnotation("it has a DOCTYPE, which annotations do not need and which is not read")
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise _UnreadableAnnotation(f"invalid XML: {error}") from error
    except (OSError, ValueError, LookupError) as error:
        raise _UnreadableAnnotation(f"cannot be read: {error}") from error
    if root.tag != "annotation":
        raise _UnreadableAnnotation(f"its root is <{root.tag[:80]}>, not <annotation>")
    return root


def _object(element: ElementTree.Element) -> _Object:
    bounds = element.find("bndbox")
    texts = [_text(bounds, side) for side in ("xmin", "ymin", "xmax", "ymax")]
    values = [number(text) for text in texts]
    corners: Box | NoBox
    if any(text is None for text in texts):
        corners = NoBox("box_invalid", "which is not a bndbox with xmin, ymin, xmax and ymax")
    elif any(value is None for value in values):
        corners = NoBox("box_not_finite", "which holds something that is not a finite number of pixels")
    else:
        x1, y1, x2, y2 = (value for value in values if value is not None)
        corners = (x1, y1, x2, y2)
    written = f"[{', '.join('?' if text is None else text[:20] for text in texts)}]"
    difficult = _text(element, "difficult") not in (None, "0")
    return _Object(_text(element, "name") or "", corners, written, difficult)


def _text(element: ElementTree.Element | None, name: str) -> str | None:
    found = element.find(name) if element is not None else None
    text = (found.text or "").strip() if found is not None else ""
    return text or None


def _shift(annotations: Iterable[_Annotation], defects: Defects) -> float:
    """What is subtracted from xmin and ymin: 1, or 0 for a set whose boxes begin at 0 (see the module)."""
    edges: Counter[float] = Counter()
    for annotation in annotations:
        for thing in annotation.objects:
            if not isinstance(thing.corners, NoBox):
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
    tree: Tree, entry: _Entry, annotation: _Annotation, image: str, shift: float, defects: Defects
) -> ListedImage | None:
    path = tree.path(image)
    if path is None or not os.path.isfile(path):
        defects.add("path_escapes", image, "a link that leads out of the data set", "dropped_image")
        return None
    marks: list[Mark] = []
    unread: list[str] = []
    for place, thing in enumerate(annotation.objects, start=1):
        where = f"{annotation.file}: object {place}"
        if not is_class_name(thing.name):
            message = f"object {place} needs a name of at most {MAX_NAME} characters"
            defects.add("annotation_invalid", annotation.file, message, "dropped_box")
            unread.append(where)
            continue
        corners = thing.corners
        if not isinstance(corners, NoBox):
            corners = (corners[0] - shift, corners[1] - shift, corners[2], corners[3])
        if thing.difficult:
            message = f"object {place} is marked difficult: neither trained on nor scored"
            defects.add("object_difficult", annotation.file, message, "kept")
        marks.append(Mark(where, thing.written, corners, thing.name, crowd=thing.difficult))
    return ListedImage(entry.split, PurePosixPath(image).name, image, path, annotation.declared, marks, unread=unread)
