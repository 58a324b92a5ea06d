"""Which image each XML file of a Pascal VOC data set describes. Knows no torch.

The first of these that there is:

1. The image of the XML file's own name, beside it or in a folder of images beside its folder.
2. The one at the same place of a parallel structure: annotations/cam1/7.xml and images/cam1/7.jpg.
3. The one that `<path>`, `<folder>` and `<filename>` name, as `fgd.data.matching` finds it.
4. The one of its own name anywhere, in any spelling, as `fgd.data.matching.pair_companions` finds it.

Where 1 or 2 have several (7.jpg and 7.png) `<filename>` decides. An image of one XML file by 1 or 2 is not another's by
3 or 4.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

from fgd.data.matching import (
    Match,
    Several,
    WrittenName,
    companion_path,
    ends_of,
    find_files,
    normalised,
    pair_companions,
)
from fgd.data.report import Defects
from fgd.data.tree import SplitWords, Tree, below, folder_of, short
from fgd.data.voc_xml import Annotation

IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs", "img")


@dataclass(frozen=True)
class Pairs:
    image_of: Mapping[str, str]
    """XML file -> image."""
    unsure: Mapping[str, Several]
    """XML files that several images could be of."""


def pair_images(tree: Tree, xmls: Sequence[str], read: Mapping[str, Annotation | None], defects: Defects) -> Pairs:
    """read: what some of the XML files say."""
    found = _in_place(tree, xmls, read)
    unsure: dict[str, Several] = {}
    matched: dict[str, str] = {}
    words = SplitWords(xmls)
    images = cache(lambda: ends_of(tree.images()))
    for place in range(3):
        names = {
            xml: WrittenName(written[place], _near(xml), words.of_folder(folder_of(xml)), folder_of(folder_of(xml)))
            for xml in xmls
            if xml not in found and (annotation := read.get(xml)) and len(written := annotation.image_paths) > place
        }
        matches = find_files(list(names.values()), tree.files, images, taken=frozenset(found.values()))
        for xml, name in names.items():
            match = matches[name]
            if isinstance(match, Match):
                found[xml] = match.file
            elif match is not None:
                unsure[xml] = match
    lone = [xml for xml in xmls if xml not in found]
    if lone:
        free = set(tree.images()).difference(found.values(), tree.unlabelled)
        for xml, pair in pair_companions(lone, free, xmls, tree.images()).items():
            if isinstance(pair, Match):
                found[xml] = matched[xml] = pair.file
            else:
                unsure.setdefault(xml, pair)
    if matched:
        xml, image = next(iter(matched.items()))
        message = (
            f"{len(matched)} XML files have their images in another place or spelling than their own, such as "
            f"{short(xml)} for {short(image)}"
        )
        defects.add("images_matched", "", message, "kept")
    return Pairs(found, {xml: several for xml, several in unsure.items() if xml not in found})


def _in_place(tree: Tree, xmls: Sequence[str], read: Mapping[str, Annotation | None]) -> dict[str, str]:
    """By the XML file's own name, near it or at the same place."""
    by_place: dict[tuple[str, str], list[str]] = {}
    by_path: dict[str, list[str]] = {}
    for image in tree.images():
        by_place.setdefault((folder_of(image), PurePosixPath(image).stem), []).append(image)
        by_path.setdefault(companion_path(image), []).append(image)
    found: dict[str, str] = {}
    for xml in xmls:
        stem = PurePosixPath(xml).stem
        near = next((images for folder in _near(xml) if (images := by_place.get((folder, stem)))), None)
        images = near or by_path.get(companion_path(xml), [])
        annotation = read.get(xml)
        named = [image for image in images if annotation and is_called(image, annotation.image_name)]
        if named or near or len(images) == 1:
            found[xml] = (named or images)[0]
    return found


def _near(xml: str) -> tuple[str, ...]:
    home = folder_of(xml)
    return (home, *(below(folder_of(home), name) for name in IMAGE_FOLDERS))


def is_called(image: str, written: str) -> bool:
    """Whether the last part of a written name is the image's."""
    last, name = (PurePosixPath(path).name for path in (normalised(written), image))
    return unicodedata.normalize("NFC", last) == unicodedata.normalize("NFC", name)
