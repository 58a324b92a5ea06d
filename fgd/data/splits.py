"""Takes a validation split out of the training images, the same one on every machine. Knows no files and no torch."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

GroupBy = Literal["none", "prefix"]

VAL_FRACTION = 0.1
_LAST_PART = re.compile(r"[._\-][^._\-]*$")


@dataclass(frozen=True)
class Carving:
    val_fraction: float | None = None
    """Share of the training images; None: `VAL_FRACTION`."""
    group_by: GroupBy = "none"

    @property
    def asked(self) -> bool:
        return self.val_fraction is not None or self.group_by != "none"

    @property
    def fraction(self) -> float:
        return VAL_FRACTION if self.val_fraction is None else self.val_fraction


@dataclass(frozen=True)
class ChosenImages:
    places: list[int]
    groups: int
    """How many groups there were to choose from."""


def prefix(file: str) -> str:
    """What the crops and copies of one photograph share: the name up to its last ".", "_" or "-".

    photo_12.jpg -> photo    photo_jpg.rf.0a1b2c.jpg (Roboflow) -> photo_jpg.rf    photo.jpg -> photo
    """
    path = PurePosixPath(file)
    return str(path.parent / _LAST_PART.sub("", path.stem))


def carve(
    files: Sequence[str], contents: Sequence[str], classes: Sequence[Set[str]], carving: Carving
) -> ChosenImages | None:
    """Places of the images that become val; None if there is no choice that leaves both splits a box.

    files: names below the innermost folder that holds the data set, so that it may lie in any.
    Groups, and images of the same content, stay together. They are taken in the order of a hash of their first name,
    until val has its share; one that holds the last box of a class in train is left there, for what is not trained
    cannot be found. The choice depends on names and contents only, not on their order.
    """
    groups = _groups(files, contents, carving.group_by)
    wanted = max(1, round(len(files) * carving.fraction))
    left = Counter(name for names in classes for name in names)
    order = sorted(groups, key=lambda members: _hash(min(files[place] for place in members)))
    # Val without any box could not be scored: the first that may be taken and has boxes goes first.
    first = next((members for members in order if _may_go(members, classes, left, len(files))), None)
    if first is None:
        return None
    order.remove(first)
    chosen: list[int] = []
    for members in [first, *order]:
        if len(chosen) >= wanted:
            break
        if chosen and len(chosen) + len(members) - wanted > wanted - len(chosen):
            continue  # too large a group: without it val is nearer to its share
        held = _held(members, classes)
        if len(chosen) + len(members) < len(files) and all(left[name] > count for name, count in held.items()):
            chosen += members
            left -= held
    return ChosenImages(sorted(chosen), len(groups))


def _held(members: Iterable[int], classes: Sequence[Set[str]]) -> Counter[str]:
    """Class -> images of these that have a box of it."""
    return Counter(name for place in members for name in classes[place])


def _may_go(members: Sequence[int], classes: Sequence[Set[str]], left: Counter[str], images: int) -> bool:
    held = _held(members, classes)
    return bool(held) and len(members) < images and all(left[name] > count for name, count in held.items())


def _groups(files: Sequence[str], contents: Sequence[str], group_by: GroupBy) -> list[list[int]]:
    """Places of images that must not be parted."""
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        while leader.setdefault(key, key) != key:
            key = leader[key]
        return key

    keys = [f"group {prefix(file)}" if group_by == "prefix" else f"file {file}" for file in files]
    for key, content in zip(keys, contents, strict=True):
        leader[find(key)] = find(f"content {content}")
    groups: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(find(key), []).append(place)
    return list(groups.values())


def _hash(name: str) -> str:
    return hashlib.sha256(unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")).hexdigest()
