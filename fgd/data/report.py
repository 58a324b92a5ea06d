"""Collects what was wrong with a data set and counts what is left of it. Knows no format and no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from fgd.data.index import Box, CarvedSplit, Defect, Image, Index, Report, SplitCounts
from fgd.data.tree import Split
from fgd.text.cut import MAX_FILE, cut

Action = Literal["dropped_box", "clipped_box", "dropped_image", "kept", "rejected"]

SHOWN = 1000
"""Defects told one by one; of the rest only the number is kept."""
MAX_MESSAGE = 2000
"""Characters."""
_SMALL_PX2 = 32**2
_MEDIUM_PX2 = 96**2


class Defects:
    """Grows while a data set is read. Rejections are never crowded out by lesser defects."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._rejections: list[Defect] = []
        self._others: list[Defect] = []

    def add(self, code: str, file: str, message: str, action: Action, count: int = 1, box: Box | None = None) -> None:
        """count: how many there are of it, where one line tells of all. box: that it concerns, in pixels as stored."""
        self._counts[code] += count
        kind = self._rejections if action == "rejected" else self._others
        if len(kind) < SHOWN:
            drawn = box if box is not None and all(map(math.isfinite, box)) else None
            kind.append(Defect(code=code, file=file, message=cut(message, MAX_MESSAGE), action=action, box=drawn))

    def reject(self, code: str, file: str, message: str) -> None:
        self.add(code, file, message, "rejected")

    def files(self, *codes: str) -> list[str]:
        """The files that a data set is rejected for, by kinds of defect."""
        return [defect.file for defect in self._rejections if defect.code in codes]

    def most_dropped(self) -> tuple[int, Defect] | None:
        """The commonest reason for which images were left out, as far as they are kept: how many, and the first."""
        dropped = [defect for defect in self._others if defect.action == "dropped_image"]
        if not dropped:
            return None
        code, _ = Counter(defect.code for defect in dropped).most_common(1)[0]
        return self._counts[code], next(defect for defect in dropped if defect.code == code)

    @property
    def rejected(self) -> bool:
        return bool(self._rejections)

    def report(
        self,
        format_name: str,
        index: Index,
        carved: CarvedSplit | None = None,
        places: Mapping[str, tuple[Split, int]] | None = None,
    ) -> Report:
        """places: by an image's file, where it stands in the index."""
        return Report(
            ok=not self.rejected,
            format=format_name,
            classes=index.classes,
            splits={name: count(images, index.classes) for name, images in index.splits.items()},
            defect_counts=dict(sorted(self._counts.items())),
            defects=tuple(_told(each, places or {}) for each in (self._rejections + self._others)[:SHOWN]),
            carved=carved,
        )


def _told(defect: Defect, places: Mapping[str, tuple[Split, int]]) -> Defect:
    split, n = places.get(defect.file, (None, None))
    return defect.model_copy(update={"file": cut(defect.file, MAX_FILE), "split": split, "n": n})


def unread(format_name: str, why: str) -> Report:
    """Of a data set of which nothing could be read."""
    defects = Defects()
    defects.reject("unreadable", "", why)
    return defects.report(format_name, Index(classes=(), splits={}))


def count(images: Sequence[Image], classes: Sequence[str]) -> SplitCounts:
    """Numbers of one split, crowd boxes included."""
    labels = Counter(label for image in images for label in image.labels)
    areas = [(x2 - x1) * (y2 - y1) for image in images for x1, y1, x2, y2 in image.boxes]
    small = sum(area < _SMALL_PX2 for area in areas)
    large = sum(area >= _MEDIUM_PX2 for area in areas)
    return SplitCounts(
        images=len(images),
        boxes=len(areas),
        empty_images=sum(not image.boxes for image in images),
        boxes_per_class={name: labels[label] for label, name in enumerate(classes, start=1)},
        width=_range(image.width for image in images),
        height=_range(image.height for image in images),
        box_sizes={"small": small, "medium": len(areas) - small - large, "large": large},
        box_sides=_by_side(areas),
    )


def _by_side(areas: Sequence[float]) -> tuple[int, ...]:
    found = Counter(max(0, math.frexp(area)[1] - 1) // 2 for area in areas)  # exact: no root, no logarithm
    return tuple(found[k] for k in range(max(found, default=-1) + 1))


def _range(sizes: Iterable[int]) -> tuple[int, int]:
    ordered = sorted(sizes)
    return (ordered[0], ordered[-1]) if ordered else (0, 0)
