"""What the reader of a format yields: images as the user's annotations name them, boxes as they are written.

Nothing here has been compared with an image file yet; `fgd.data.checking` does that, for every format alike.
Knows no format and no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fgd.data.index import Box
from fgd.data.tree import Split
from fgd.errors import DatasetError

Layout = Literal["corner_size", "corners", "centre_size"]
"""What four numbers are: x, y, width, height from a corner; left, top, right, bottom; x, y of the centre and size."""


class NothingFound(DatasetError):
    """A folder has nothing of a format."""


@dataclass(frozen=True)
class NoBox:
    """Why there is no box: the code of the defect, and the end of a sentence that begins with the box."""

    code: str
    reason: str
    box: Box | None = None
    """Where it would be, as far as that is known: left, top, right, bottom."""


@dataclass(frozen=True)
class Mark:
    """One box as the annotations have it."""

    where: str
    """File and place in it, to begin a message with."""
    written: Any
    """The user's own numbers, for messages."""
    box: Box | NoBox
    """xyxy."""
    name: str
    """Of its class."""
    crowd: bool = False
    relative: bool = False
    """The numbers are fractions of the image's width and height."""
    outline: bool = False
    """The box is that around a polygon or a mask; it was not written as four numbers."""


@dataclass(frozen=True)
class ListedImage:
    """One image that the annotations name and that exists."""

    split: Split
    name: str
    """As the annotations say it."""
    file: str
    """Relative to the data set's folder."""
    path: Path
    declared: tuple[Any, Any] = (None, None)
    """Width and height as the annotations say; None where they say nothing."""
    marks: list[Mark] = field(default_factory=list)
    upright: bool = False
    """The boxes are fractions of the picture as EXIF turns it, not of the stored pixels."""
    unread: list[str] = field(default_factory=list)
    """Why lines or objects could not be read. Without any other the image is no background."""


@dataclass(frozen=True)
class Missing:
    """An image that the annotations name and that is not there."""

    name: str
    """As the annotations say it."""
    file: str
    """Where it was looked for, or the file that names it."""
    message: str


@dataclass(frozen=True)
class Advice:
    """What a format's user is told to do about a split; `{split}` is filled in."""

    split: str
    images: str
    boxes: str


@dataclass(frozen=True)
class Listing:
    format: str
    images: list[ListedImage]
    """Train, val, test; in the user's order."""
    classes: tuple[str, ...]
    """In the user's order, those without boxes included."""
    splits: Mapping[Split, str]
    """The splits that there are, and the file to be named where one has no usable image or box."""
    advice: Advice
    mentioned: frozenset[str] = frozenset()
    """Image files that the annotations name and that cannot be used; the defects say why."""
    told: frozenset[Split] = frozenset()
    """Splits that are there and could not be read; the defects say so already."""
    layout: Layout = "corners"
    """How the format writes a box."""
    first_pixel: float = 0.0
    """The number of the first pixel; it has been subtracted from left and top."""
    missing: tuple[Missing, ...] = ()
    read_from: tuple[str, ...] = ()
    """Files that say all this."""


def finite(value: Any) -> float | None:
    """A number as a coordinate, None if it can be none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    # Beyond 1e9 px a sum like x + w loses the pixels; such a number is not a coordinate.
    return number if math.isfinite(number) and abs(number) < 1e9 else None


def number(text: str | None) -> float | None:
    """The same for a number that is written in a text file."""
    if text is None or "_" in text:  # Python's own 1_000
        return None
    try:
        return finite(float(text))
    except ValueError:
        return None
