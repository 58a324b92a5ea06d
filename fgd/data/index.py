"""The form every data set takes after import: one JSON index beside a folder of images. Knows no torch.

index.json                   {"format": "fgd-index/1", "classes": [...], "splits": {"train": [Image, ...], ...}}
images/<sha256[:2]>/<sha256>.jpg|png|...   named by content
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from fgd.data.tree import Split

DOCS = "docs/data-formats.md"
Box = tuple[float, float, float, float]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Image(_Frozen):
    id: int
    """Unique within the data set."""
    file: str
    """Relative to the folder of the index."""
    name: str
    """The file's name in the data set."""
    width: int
    height: int
    boxes: tuple[Box, ...]
    """xyxy in pixels of the stored image, inside it, of positive area."""
    labels: tuple[int, ...]
    """Index into classes, plus 1: 1..len(classes)."""
    crowd: tuple[bool, ...]
    """Crowd regions: kept for evaluation, never trained on."""


class Index(_Frozen):
    format: Literal["fgd-index/1"] = "fgd-index/1"
    classes: tuple[str, ...]
    splits: dict[Split, tuple[Image, ...]]


class Defect(_Frozen):
    """One thing that was wrong with the data, and what was done about it."""

    code: str
    """zero_area_box, box_outside, box_clipped, box_not_finite, image_missing, image_broken, ..."""
    file: str
    """Annotation or image file."""
    message: str
    action: Literal["dropped_box", "clipped_box", "dropped_image", "kept", "rejected"]
    split: Split | None = None
    n: int | None = None
    """The image that it concerns: its place in this split, from 0. null: it concerns none, or one that was left out, or
    the report is of an earlier version."""
    box: Box | None = None
    """The box that it concerns: left, top, right, bottom in pixels of the stored image, before anything was done about
    it, so that it may lie outside or have no area. null: none, or nobody can say where it is."""


class SplitCounts(_Frozen):
    images: int
    boxes: int
    empty_images: int
    boxes_per_class: dict[str, int]
    width: tuple[int, int]
    """Smallest and largest, pixels."""
    height: tuple[int, int]
    box_sizes: dict[Literal["small", "medium", "large"], int]
    """By COCO's areas: under 32^2, under 96^2, the rest."""
    box_sides: tuple[int, ...] = ()
    """Number k is of boxes whose side, the square root of the area, is from 2^k to under 2^(k+1) pixels; number 0 also
    counts smaller ones. Empty in reports of earlier versions."""


class CarvedSplit(_Frozen):
    """How the val split was taken out of train, because the data set had none."""

    val_fraction: float
    group_by: str
    images: int
    """Of val."""
    groups: int
    """How many groups there were to choose from; as many as images if nothing was grouped."""


class Report(_Frozen):
    """What the importer found. `ok` is false if the data set cannot be used for training; the defects say why."""

    ok: bool
    format: str
    classes: tuple[str, ...]
    splits: dict[str, SplitCounts]
    defect_counts: dict[str, int]
    """How many there are, by code."""
    defects: tuple[Defect, ...]
    """The first 1000."""
    carved: CarvedSplit | None = None
    """null if the data set has its own val split."""
    docs: str = DOCS
    """The page that says how data is read and what each code means."""
