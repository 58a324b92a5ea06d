"""Reads the XML files of a Pascal VOC data set: image name, size and objects. Knows no torch.

What is not declared is found out for all files together: their encoding is the one that decodes each of them. Objects
without a bndbox that have a polygon, or a box with an angle, become the box around it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from xml.etree import ElementTree

from fgd.data.encodings import decodes, guess, known, marked, surely_utf8
from fgd.data.foreign import xml_kind
from fgd.data.index import Box
from fgd.data.listing import NoBox, number
from fgd.data.numbering import flag
from fgd.data.outlines import MAX_POINTS, around
from fgd.data.report import Defects
from fgd.data.tree import Tree, short

MAX_XML_BYTES = 16 * 2**20
"""Of one image's annotations."""
_HEAD = 1 << 16
_GUESSED_FROM = 64 * 2**20
"""Bytes looked at to find an encoding."""
_DECLARATION = re.compile(rb"(?:\xef\xbb\xbf)?\s*<\?xml[^>]{0,100}?encoding\s*=\s*[\"']([A-Za-z0-9._:-]{1,40})[\"']")


class _UnreadableAnnotation(Exception):
    """An XML file that cannot be used."""


@dataclass(frozen=True)
class Object:
    """One object of an XML file, its numbers not yet shifted to the image's edges."""

    name: str
    corners: Box | NoBox
    written: str
    difficult: bool
    outline: bool
    """The corners are those of the box around a polygon."""


@dataclass(frozen=True)
class Annotation:
    """One XML file that could be parsed."""

    file: str
    image_name: str
    image_paths: tuple[str, ...]
    """What it says of its image's place, most first; the last is the name alone."""
    declared: tuple[float | None, float | None]
    objects: list[Object]


def read_all(tree: Tree, files: Iterable[str], defects: Defects) -> dict[str, Annotation | None]:
    """Each file once; None for one that cannot be read, which is reported."""
    found: dict[str, Annotation | None] = dict.fromkeys(files)
    silent: list[str] = []
    for file in found:
        content = _content(tree, file, defects)
        if content is not None and _claimed(content) is None and not surely_utf8(content):
            silent.append(file)  # it may be in UTF-8 by chance: all of them decide
        elif content is not None:
            found[file] = _read(file, content, "utf-8", defects)
    encoding = _common_encoding(tree, silent, defects)
    for file in silent:
        content = _content(tree, file, defects)
        found[file] = _read(file, content, encoding, defects) if content is not None else None
    return found


def _common_encoding(tree: Tree, files: list[str], defects: Defects) -> str:
    """The one that decodes all of these. They claim none, or UTF-8, which some wrongly do."""
    looked_at: list[bytes] = []
    others: list[str] = []
    room = _GUESSED_FROM
    for file in files:
        content = _content(tree, file, defects) or b""
        others += [] if decodes(content, "utf-8") else [file]
        if len(content) <= room:
            looked_at.append(content)
            room -= len(content)
    if not others:
        return "utf-8"
    encoding = guess(looked_at)
    if encoding in (None, "utf-8"):
        return "utf-8"  # each of the others tells what is wrong with it
    message = (
        f"{len(others)} of {len(files)} files with other letters than those of ASCII are not in UTF-8: all are read as "
        f"{encoding}, which decodes each of them; look at the class names"
    )
    defects.add("encoding_guessed", others[0], message, "kept")
    return str(encoding)


def _content(tree: Tree, file: str, defects: Defects) -> bytes | None:
    path = tree.path(file)
    why = f"larger than {MAX_XML_BYTES} bytes"
    try:
        if path is None or not os.path.isfile(path):
            why = "a link that leads out of the data set, or not a file"
        elif path.stat().st_size <= MAX_XML_BYTES:
            return path.read_bytes()
    except OSError as error:
        why = f"cannot be read: {error}"
    defects.add("xml_invalid", file, f"{why}; its image is left out", "dropped_image")
    return None


def _claimed(content: bytes) -> str | None:
    """The encoding that a file is marked with by its first bytes, or declares; None for UTF-8 too."""
    found = _DECLARATION.match(content)
    named = found[1].decode() if found else None
    return marked(content) or (named if named and known(named) != "utf-8" else None)


def _read(file: str, content: bytes, encoding: str, defects: Defects) -> Annotation | None:
    """encoding: of what claims none."""
    try:
        root = _parsed(content, encoding)
    except _UnreadableAnnotation as error:
        defects.add("xml_invalid", file, f"{error}; its image is left out", "dropped_image")
        return None
    size = root.find("size")
    name, folder, path = (_text(root, tag) or "" for tag in ("filename", "folder", "path"))
    width, height = (number(_text(size, side)) for side in ("width", "height"))
    return Annotation(
        file=file,
        image_name=name,
        image_paths=_image_paths(name, folder, path),
        declared=(width or None, height or None),  # many tools write 0 where they do not know
        objects=[_object(element) for element in root.findall("object")],
    )


def _image_paths(name: str, folder: str, path: str) -> tuple[str, ...]:
    """From the longest to the name alone. A path that ends in another name is that of before the file was renamed."""
    told = [path] if path and (not name or path.replace("\\", "/").endswith(f"/{name}")) else []
    return (*told, *([f"{folder}/{name}"] if folder and name else []), *([name] if name else []))


def _parsed(content: bytes, encoding: str) -> ElementTree.Element:
    """The root of the document. No DOCTYPE, so no entities: neither files of this machine nor bombs."""
    claimed = _claimed(content)
    if claimed and not known(claimed) and claimed not in ("utf-8-sig", "utf-32"):
        raise _UnreadableAnnotation(f"unknown encoding {short(claimed)}")
    try:
        text = content.decode((known(claimed) or claimed) if claimed else encoding)
        if "<!DOCTYPE" in text.upper():
            raise _UnreadableAnnotation("it has a DOCTYPE, which annotations do not need and which is not read")
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise _UnreadableAnnotation(f"invalid XML: {error}") from error
    except ValueError as error:
        raise _UnreadableAnnotation(f"cannot be read: {error}") from error
    if root.tag != "annotation":
        raise _UnreadableAnnotation(xml_kind(text[:_HEAD].encode()) or f"its root is <{root.tag[:80]}>")
    return root


# --- one object -----------------------------------------------------------------------------------------------


def _object(element: ElementTree.Element) -> Object:
    bounds = element.find("bndbox")
    texts = [_text(bounds, side) for side in ("xmin", "ymin", "xmax", "ymax")]
    outline = _around(element) if any(text is None for text in texts) else None
    return Object(
        name=_text(element, "name") or "",
        corners=_corners(texts) if outline is None else outline,
        written=f"[{', '.join('?' if text is None else text[:20] for text in texts)}]",
        difficult=flag(_text(element, "difficult") or "0"),
        outline=outline is not None,
    )


def _corners(texts: list[str | None]) -> Box | NoBox:
    if any(text is None for text in texts):
        return NoBox("box_invalid", "which is not a bndbox with xmin, ymin, xmax and ymax")
    x1, y1, x2, y2 = (number(text) for text in texts)
    if x1 is None or y1 is None or x2 is None or y2 is None:
        return NoBox("box_not_finite", "which contains something that is not a finite number of pixels")
    return (x1, y1, x2, y2)


def _around(element: ElementTree.Element) -> Box | None:
    """The box around a <polygon>, of <pt> with <x> and <y> or of <x1>, <y1>, <x2>, ..., or around a <robndbox>."""
    polygon = element.find("polygon")
    if polygon is not None and len(polygon) <= MAX_POINTS:
        return _around_polygon(polygon)
    rotated = element.find("robndbox")
    if rotated is None:
        return None
    cx, cy, w, h, angle = (number(_text(rotated, tag)) for tag in ("cx", "cy", "w", "h", "angle"))
    if cx is None or cy is None or w is None or h is None or angle is None:
        return None
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    x, y = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
    return (cx - x, cy - y, cx + x, cy + y)


def _around_polygon(polygon: ElementTree.Element) -> Box | None:
    points = polygon.findall("pt") or polygon.findall("point")
    if points:
        pairs = [(number(_text(point, "x")), number(_text(point, "y"))) for point in points]
    else:
        sides = {child.tag.lower(): number(child.text) for child in polygon}
        pairs = [(value, sides.get(f"y{tag[1:]}")) for tag, value in sides.items() if re.fullmatch(r"x\d+", tag)]
    known_pairs = [(x, y) for x, y in pairs if x is not None and y is not None]
    return around(known_pairs) if len(known_pairs) == len(pairs) >= 3 else None


def _text(element: ElementTree.Element | None, name: str) -> str | None:
    found = element.find(name) if element is not None else None
    text = (found.text or "").strip() if found is not None else ""
    return text or None
