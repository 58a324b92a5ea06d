"""Are the boxes written as their format has them? One look at the whole set, for every format alike.

A format says what four numbers are: x, y, width, height in COCO, corners in VOC, fractions of centre and size in YOLO.
People write others, and single boxes seldom show it: half of all corners make good widths. So the whole set is looked
at. Where many boxes do not fit their images, and nearly all of them do when they are read in another way, that is the
way they were written. Corners in place of x, y, width, height are read as such; everything else is refused by name.
A set whose boxes fit is never refused, nor is one in which no other way fits better: people do draw boxes beyond the
edge. Knows no format and no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from fgd.data.frames import Size
from fgd.data.index import Box
from fgd.data.listing import Layout
from fgd.data.report import Defects
from fgd.data.tree import SPLITS, Split

Unit = Literal["pixels", "fractions", "percent", "thousandths"]
OtherLayout = Layout | Literal["top_first", "top_first_size", "opposite_corners"]
"""No format has the last three, but people's converters do."""
Numbers = tuple[float, float, float, float]

REJECTIONS = ("boxes_relative", "boxes_convention", "boxes_misplaced")

_FEW, _SOME = 4, 10
"""Fewer boxes say nothing of a set, of one of its splits."""
_MISFITS = 0.2
"""The share of boxes that do not fit from which another way of reading them is tried."""
_FITS = 0.98
_BEYOND = 0.05
"""Sides of the image by which half of the misfits must miss it: people do draw boxes a little beyond the edge."""
_LOST = 0.5
_LOOKED_AT = 20_000
"""Boxes tried in other ways."""
_SLACK_PX, _SLACK = 1.0, 0.01
_OVER = 0.05
_FILLED = 0.8
_PERCENT_BOXES = 20
_LAYOUTS: dict[OtherLayout, str] = {
    "corners": "left, top, right, bottom",
    "corner_size": "x, y, width, height from the upper left corner",
    "centre_size": "x, y of the centre, width, height",
    "top_first": "top, left, bottom, right",
    "top_first_size": "y, x, height, width from the upper left corner",
    "opposite_corners": "two opposite corners in any order",
}
_UNITS: dict[Unit, str] = {
    "pixels": "in pixels",
    "fractions": "as fractions of the image",
    "percent": "in percent of the image",
    "thousandths": "in thousandths of the image",
}
_PARTS: dict[Unit, float] = {"fractions": 1, "percent": 100, "thousandths": 1000}
_USUAL = frozenset({"corners", "corner_size", "centre_size"})
_DRAW: dict[OtherLayout, Callable[[Numbers], Box]] = {
    "corners": lambda n: n,
    "corner_size": lambda n: (n[0], n[1], n[0] + n[2], n[1] + n[3]),
    "centre_size": lambda n: (n[0] - n[2] / 2, n[1] - n[3] / 2, n[0] + n[2] / 2, n[1] + n[3] / 2),
    "top_first": lambda n: (n[1], n[0], n[3], n[2]),
    "top_first_size": lambda n: (n[1], n[0], n[1] + n[3], n[0] + n[2]),
    "opposite_corners": lambda n: (min(n[0], n[2]), min(n[1], n[3]), max(n[0], n[2]), max(n[1], n[3])),
}


@dataclass(frozen=True)
class Convention:
    layout: OtherLayout
    unit: Unit = "pixels"
    first_pixel: float = 0.0
    """The number of the first pixel, which has been subtracted from left and top."""

    def __str__(self) -> str:
        return f"{_LAYOUTS[self.layout]} {_UNITS[self.unit]}"


@dataclass(frozen=True, slots=True)
class WrittenBox:
    """A box that was written as four numbers, in the unit of its format."""

    box: Box
    size: Size
    """Pixels of the frame it was drawn in."""
    file: str
    """Of its image."""
    split: Split = "train"


def numbers(box: Box, convention: Convention) -> Numbers:
    """What was written."""
    x1, y1, x2, y2 = box
    if convention.layout == "corner_size":
        return (x1, y1, x2 - x1, y2 - y1)
    if convention.layout == "centre_size":
        return ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
    return (x1 + convention.first_pixel, y1 + convention.first_pixel, x2, y2)


def redrawn(box: Box, own: Convention, other: Convention) -> Box:
    """The box that the same numbers are in another way of reading them."""
    return _DRAW[other.layout](numbers(box, own))


def are_fractions(written: Numbers) -> bool:
    """Numbers that no box in pixels has."""
    return _are_small(written) and any(not float(value).is_integer() for value in written)


def _are_small(written: Numbers) -> bool:
    return max(written) <= 1 + _OVER and min(written) >= -_OVER


def check_splits(boxes: Sequence[WrittenBox], own: Convention, defects: Defects) -> dict[Split, Convention]:
    """How the boxes of each split are to be read: as the whole set says, else as a split with many boxes says."""
    whole = check(boxes, own, defects)
    if whole != own or defects.files(*REJECTIONS):
        return dict.fromkeys(SPLITS, whole)
    parts = {split: [written for written in boxes if written.split == split] for split in SPLITS}
    for part in parts.values():
        if part and len(part) < _SOME and own.unit == "pixels":
            _reject_parts(part, own, defects)
    return {split: check(part, own, defects) if len(part) >= _SOME else own for split, part in parts.items()}


def check(boxes: Sequence[WrittenBox], own: Convention, defects: Defects) -> Convention:
    """How the boxes of the set are to be read. What is odd is reported; what cannot be used is rejected."""
    used = [written for written in boxes if not _is_flat(written.box)]
    if not used:
        return own
    if own.unit == "pixels" and _reject_parts(used, own, defects):
        return own
    misfits = [written for written in used if not _fits(written.box, own.unit, written.size)]
    if len(used) < _FEW or len(misfits) < 2 or len(misfits) <= _MISFITS * len(used):
        return own
    if median(_beyond(written.box, _frame(own.unit, written.size)) for written in misfits) < _BEYOND:
        return own
    looked_at = used[:: max(1, len(used) // _LOOKED_AT)]
    fitting = [other for other in _others(own) if _share(looked_at, own, other) >= _FITS]
    if fitting:
        return _judged(used, misfits, own, fitting, defects)
    lost = sum(_inside(written.box, _frame(own.unit, written.size)) < _LOST for written in used)
    if lost > _LOST * len(used):
        message = (
            f"of {len(used)} boxes {lost} lie outside their images, mostly or altogether, or are reversed, as {own}, "
            f"the first in {misfits[0].file}; they belong to images of another size, or are written in another way"
        )
        defects.reject("boxes_misplaced", misfits[0].file, message)
    return own


def _judged(
    used: Sequence[WrittenBox],
    misfits: Sequence[WrittenBox],
    own: Convention,
    fitting: Sequence[Convention],
    defects: Defects,
) -> Convention:
    usual = [other for other in fitting if other.unit == fitting[0].unit and other.layout in _USUAL]
    likely = usual or fitting[:1]
    corners = Convention("corners")
    if own == Convention("corner_size") and likely == [corners]:
        message = (
            f"of {len(used)} boxes {len(misfits)} extend beyond their images as x, y, width, height, but as left, top, "
            "right, bottom almost none does: all are read as corners"
        )
        defects.add("boxes_are_corners", "", message, "kept")
        return corners
    told = " or ".join(str(other) for other in likely)
    message = (
        f"of {len(used)} boxes {len(misfits)} do not fit their images as {own}, the first in {misfits[0].file}; they "
        f"look like {told}; write them as {own}"
    )
    defects.reject("boxes_convention", misfits[0].file, message)
    return own


def _reject_parts(used: Sequence[WrittenBox], own: Convention, defects: Defects) -> bool:
    """Boxes in pixels that are fractions, percent or thousandths of their images, whether they fit or not."""
    small = [written for written in used if _are_small(numbers(written.box, own))]
    if len(small) > _LOST * len(used):
        told = _layouts_that_fit(small, own, "fractions")
        message = (
            f"{'all' if len(small) == len(used) else len(small)} of {len(used)} boxes have numbers of at most 1: "
            f"fractions of the image{told}; write them in pixels, as {_LAYOUTS[own.layout]}"
        )
        defects.reject("boxes_relative", small[0].file, message)
        return True
    unit = _confined(used)
    if unit:
        message = (
            f"all of {len(used)} boxes lie within the first {_PARTS[unit]:g} pixels of images that are much larger: "
            f"they look like {_UNITS[unit].removeprefix('in ')}{_layouts_that_fit(used, own, unit)}; write them in "
            f"pixels, as {_LAYOUTS[own.layout]}"
        )
        defects.reject("boxes_relative", used[0].file, message)
    return unit is not None


def _confined(used: Sequence[WrittenBox]) -> Unit | None:
    """Boxes that fill a square of 100, or of 1000, of images of at least twice that size, and are never beyond it."""
    if len(used) < _PERCENT_BOXES:
        return None
    left, top = (min(written.box[side] for written in used) for side in (0, 1))
    right, bottom = (max(written.box[side] for written in used) for side in (2, 3))
    units: tuple[Unit, ...] = ("percent", "thousandths")
    for unit in units:
        parts = _PARTS[unit]
        full = left < 0.1 * parts and top < 0.1 * parts and 0.9 * parts < min(right, bottom)
        full = full and max(right, bottom) <= 1.005 * parts
        if full and all(min(written.size) >= 2 * parts for written in used):
            return unit
    return None


def _layouts_that_fit(boxes: Sequence[WrittenBox], own: Convention, unit: Unit) -> str:
    layouts: tuple[OtherLayout, ...] = (own.layout, "corner_size", "corners", "centre_size")
    looked_at = boxes[:: max(1, len(boxes) // _LOOKED_AT)]
    fitting = [
        _LAYOUTS[layout]
        for layout in dict.fromkeys(layouts)
        if _share(looked_at, own, Convention(layout, unit)) >= _FITS
    ]
    return f" ({' or '.join(fitting)})" if fitting else ""


def _others(own: Convention) -> list[Convention]:
    """Every other way, the likeliest first: the same unit before others."""
    usual: tuple[OtherLayout, ...] = ("corners", "corner_size", "centre_size")
    swapped: tuple[OtherLayout, ...] = ("top_first", "top_first_size")
    # All numbers inside the image are two corners of it: that says something only where corners were asked for.
    rest = (*swapped, "opposite_corners") if own.layout == "corners" else swapped
    units = [unit for unit in _UNITS if unit != own.unit]
    ways = [Convention(layout, own.unit) for layout in (*usual, *rest)]
    ways += [Convention(layout, unit) for unit in units for layout in usual]
    return [way for way in ways if (way.layout, way.unit) != (own.layout, own.unit)]


def _share(boxes: Sequence[WrittenBox], own: Convention, other: Convention) -> float:
    """Of the boxes that fit if their numbers are read in another way; 0 where they do not fill the image then."""
    drawn = [redrawn(written.box, own, other) for written in boxes]
    parts = _PARTS.get(other.unit) if other.unit != own.unit else None
    if parts and any(max(box[side] for box in drawn) < _FILLED * parts for side in (2, 3)):
        return 0.0  # boxes in pixels of smaller images would fit, but in a corner
    fitting = (_fits(box, other.unit, written.size) for box, written in zip(drawn, boxes, strict=True))
    return sum(fitting) / len(boxes)


def _fits(box: Box, unit: Unit, size: Size) -> bool:
    """Inside its image, but for what rounding does."""
    x1, y1, x2, y2 = box
    width, height = _frame(unit, size)
    slack = _SLACK_PX if unit == "pixels" else 0.0
    x_slack, y_slack = slack + width * _SLACK, slack + height * _SLACK
    return -x_slack <= x1 < x2 <= width + x_slack and -y_slack <= y1 < y2 <= height + y_slack


def _frame(unit: Unit, size: Size) -> Size:
    parts = _PARTS.get(unit)
    return size if parts is None else (parts, parts)


def _beyond(box: Box, frame: Size) -> float:
    """How far a box reaches out of its image, in sides of it; infinite for a reversed one."""
    x1, y1, x2, y2 = box
    if x1 > x2 or y1 > y2:
        return math.inf
    width, height = frame
    return max(-x1 / width, -y1 / height, x2 / width - 1, y2 / height - 1)


def _is_flat(box: Box) -> bool:
    return box[0] == box[2] or box[1] == box[3]


def _inside(box: Box, frame: Size) -> float:
    """The share of a box that lies in its image; of a reversed one nothing."""
    x1, y1, x2, y2 = box
    width, height = min(x2, frame[0]) - max(x1, 0), min(y2, frame[1]) - max(y1, 0)
    inside = x1 < x2 and y1 < y2 and width > 0 and height > 0
    return width * height / ((x2 - x1) * (y2 - y1)) if inside else 0.0
