"""In which picture the boxes of an image were drawn, and how they get to its stored pixels. One rule for all formats.

A box's numbers are counted in a frame: the stored pixels, the picture as EXIF turns it, or a copy of another size. The
declared size shows which:

    that of the stored pixels, or none    the stored pixels
    that of the turned picture            the turned picture; the boxes are turned back
    another one of the same ratio         a copy, if the boxes of the whole set lie better in it; they are scaled
    one of another ratio                  nobody knows: left out, unless the boxes fit the stored pixels only

Where the size says nothing of a turn (a half turn, a mirrored or square picture, no declared size), the other turned
pictures of the set decide. Fractions need no size: whether they follow the turned picture is the format's word.
Knows no format and no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fgd.data.images import Probe
from fgd.data.index import Box
from fgd.data.listing import ListedImage, NoBox, finite, number
from fgd.data.report import Defects
from fgd.data.tree import short

_ROUNDING_PX = 1.0
"""Sizes that differ by less are the same; ratios too."""
_RATIO = 0.01
"""Ratios that differ by less are the same: a box is off by a hundredth of the image at most."""
_FAR_PX = 1.0
_DOUBT = math.log(50)
"""What the declared size weighs against boxes that all lie in a smaller frame: about as much as three at half size."""

_TURNS: Mapping[int, Callable[[float, float], tuple[float, float]]] = {
    2: lambda x, y: (1 - x, y),
    3: lambda x, y: (1 - x, 1 - y),
    4: lambda x, y: (x, 1 - y),
    5: lambda x, y: (y, x),
    6: lambda x, y: (y, 1 - x),
    7: lambda x, y: (1 - y, 1 - x),
    8: lambda x, y: (1 - y, x),
}
"""EXIF orientation -> where a point of the upright picture lies in the stored one, in fractions of each."""

Size = tuple[float, float]
_Kind = Literal["unknown", "stored", "turned", "copy", "turned_copy", "other"]


class Found(Protocol):
    """An image that can be read, and what its annotations say."""

    @property
    def listed(self) -> ListedImage: ...
    @property
    def probe(self) -> Probe: ...


@dataclass(frozen=True)
class Frame:
    """The picture that an image's boxes were drawn in."""

    size: Size
    orientation: int = 1
    """EXIF's, where the boxes follow the picture that it turns."""

    def stored(self, box: Box, stored: Size) -> Box:
        """A box of this frame in stored pixels; of no area, or reversed, it stays so where it can."""
        if self.size == stored and self.orientation == 1:
            return box
        width, height = self.size
        x1, y1, x2, y2 = turned_back((box[0] / width, box[1] / height, box[2] / width, box[3] / height), self)
        return (x1 * stored[0], y1 * stored[1], x2 * stored[0], y2 * stored[1])


def turned_back(box: Box, frame: Frame) -> Box:
    """Fractions of a frame -> fractions of the stored pixels. One of no area stays one."""
    if frame.orientation not in _TURNS or box[2] <= box[0] or box[3] <= box[1]:
        return box
    turn = _TURNS[frame.orientation]
    (ax, ay), (bx, by) = turn(box[0], box[1]), turn(box[2], box[3])
    return (min(ax, bx), min(ay, by), max(ax, bx), max(ay, by))


def find(images: Sequence[Found], defects: Defects) -> list[Frame | None]:
    """The frame of each image; None for one whose boxes cannot be placed, which is left out."""
    kinds = _kinds(images)
    turned = _turned(images, kinds)
    copies = _are_copies([image for image, kind in zip(images, kinds, strict=True) if kind in ("copy", "turned_copy")])
    odd = _stored_fits_better([image for image, kind in zip(images, kinds, strict=True) if kind == "other"])
    return [_frame(image, kind, turned, copies, odd, defects) for image, kind in zip(images, kinds, strict=True)]


def _kinds(images: Sequence[Found]) -> list[_Kind]:
    """What each declared size is; that of the turned picture is wrong where the boxes fit the stored pixels alone."""
    kinds = [_kind(image) for image in images]
    turned = [image for image, kind in zip(images, kinds, strict=True) if kind == "turned"]
    if not _stored_fits_better(turned):
        return kinds
    return ["other" if kind == "turned" else kind for kind in kinds]


# --- one image ------------------------------------------------------------------------------------------------


def _frame(image: Found, kind: _Kind, turned: bool, copies: bool, odd: bool, defects: Defects) -> Frame | None:
    listed, real, upright = image.listed, _stored(image.probe), _upright(image.probe)
    orientation = image.probe.orientation
    follows = orientation != 1 and (
        listed.upright
        or kind in ("turned", "turned_copy")
        or (turned and (kind == "unknown" or (kind == "copy" and orientation < 5)))
    )
    frame = Frame(upright, orientation) if follows else Frame(real)
    declared = _declared(listed)
    size = f"{image.probe.width}x{image.probe.height}"
    if kind == "other" and not odd:
        message = (
            f"declared {_told(listed)}, is {size}: another ratio, so its boxes cannot be placed; "
            "write the size that the boxes were drawn in, or label the image again; left out"
        )
        defects.add("size_contradicts", listed.file, message, "dropped_image")
        return None
    if kind in ("copy", "turned_copy") and copies and declared:
        frame = Frame(declared, frame.orientation)
        message = f"declared {_told(listed)}, is {size}, of the same ratio: its boxes are scaled to the real size"
        defects.add("boxes_scaled", listed.file, message, "kept")
    elif (declared or listed.declared) not in (real, (None, None)) and kind != "turned":
        message = f"declared {_told(listed)}, is {size}; the real size is used"
        defects.add("size_differs", listed.file, message, "kept")
    if orientation != 1:
        done = (
            f"follow the turned picture of {upright[0]:g}x{upright[1]:g} and are turned back to"
            if follows
            else "are taken in"
        )
        message = f"EXIF orientation {orientation} is not applied; boxes {done} the stored {size} pixels"
        defects.add("exif_rotated", listed.file, message, "kept")
    return frame


def _told(listed: ListedImage) -> str:
    return "x".join(f"{v:g}" if isinstance(v, float) else short(v) for v in listed.declared)


def _stored(probe: Probe) -> Size:
    return (float(probe.width), float(probe.height))


def _upright(probe: Probe) -> Size:
    """The size of the picture as EXIF turns it."""
    width, height = _stored(probe)
    return (height, width) if probe.orientation >= 5 else (width, height)


def _declared(listed: ListedImage) -> Size | None:
    """None where it says nothing that could be a size."""
    values = [number(v) if isinstance(v, str) else finite(v) for v in listed.declared]
    width, height = values
    return (width, height) if width and height and width > 0 and height > 0 else None


def _kind(image: Found) -> _Kind:
    declared, real, upright = _declared(image.listed), _stored(image.probe), _upright(image.probe)
    marks = image.listed.marks
    if declared is None or (marks and all(mark.relative for mark in marks)):
        return "unknown"
    if _same(declared, real):
        return "unknown" if image.probe.orientation != 1 and _same(declared, upright) else "stored"
    if _same(declared, upright):
        return "turned"
    if not marks:
        return "unknown"  # nothing that could be in the wrong place
    alike = [size for size in (real, upright) if _same_ratio(declared, size)]
    if not alike:
        return "other"
    return "copy" if min(alike, key=lambda size: _ratio_apart(declared, size)) == real else "turned_copy"


def _same(a: Size, b: Size) -> bool:
    return abs(a[0] - b[0]) <= _ROUNDING_PX and abs(a[1] - b[1]) <= _ROUNDING_PX


def _same_ratio(a: Size, b: Size) -> bool:
    """Up to what rounding does to the smaller one."""
    small, large = sorted((a, b), key=lambda size: size[0] * size[1])
    scale = max(small) / max(large)
    near = all(abs(s - scale * big) <= _ROUNDING_PX for s, big in zip(small, large, strict=True))
    return near or _ratio_apart(a, b) <= _RATIO


def _ratio_apart(a: Size, b: Size) -> float:
    return abs(a[0] * b[1] / (a[1] * b[0]) - 1)


# --- the whole set --------------------------------------------------------------------------------------------


def _turned(images: Sequence[Found], kinds: Sequence[_Kind]) -> bool:
    """Do the boxes follow the turned pictures, as far as the images say whose size, or whose boxes, can tell?"""
    pairs = [
        (image, kind)
        for image, kind in zip(images, kinds, strict=True)
        if _stored(image.probe) != _upright(image.probe)
    ]
    yes = sum(kind in ("turned", "turned_copy") for _, kind in pairs)
    no = sum(kind in ("stored", "copy") for _, kind in pairs)
    if yes or no:
        return yes > no
    silent = [image for image, kind in pairs if kind == "unknown"]
    beyond = [(_beyond(image, _upright(image.probe)), _beyond(image, _stored(image.probe))) for image in silent]
    return sum(upright for upright, _ in beyond) < sum(stored for _, stored in beyond)


def _are_copies(images: Sequence[Found]) -> bool:
    """Were boxes drawn in the declared sizes? Those that reach out of one frame tell, else how small each frame is."""
    beyond_real = beyond_declared = 0
    score = _DOUBT
    for image in images:
        declared = _declared(image.listed)
        if declared is None:
            continue
        real = _upright(image.probe) if _kind(image) == "turned_copy" else _stored(image.probe)
        beyond_real += _beyond(image, real)
        beyond_declared += _beyond(image, declared)
        score += len(image.listed.marks) * math.log(real[0] * real[1] / (declared[0] * declared[1]))
    if beyond_real != beyond_declared:
        return beyond_real > beyond_declared
    return score > 0


def _stored_fits_better(images: Sequence[Found]) -> bool:
    """Do the boxes of images with a size of another ratio prove that it is only the size that is wrong?"""
    sizes = [(image, declared) for image in images if (declared := _declared(image.listed))]
    return any(_beyond(image, declared) for image, declared in sizes) and not any(
        _beyond(image, _stored(image.probe)) for image, _ in sizes
    )


def _beyond(image: Found, size: Size) -> int:
    """Boxes that reach out of a frame, beyond what rounding does."""
    return sum(_reaches_out(box, size) for box in _pixel_boxes(image.listed))


def _pixel_boxes(listed: ListedImage) -> Iterable[Box]:
    return (mark.box for mark in listed.marks if not isinstance(mark.box, NoBox) and not mark.relative)


def _reaches_out(box: Box, size: Size) -> bool:
    return box[2] > size[0] + _FAR_PX + size[0] * _RATIO or box[3] > size[1] + _FAR_PX + size[1] * _RATIO
