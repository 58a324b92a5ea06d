"""The formats of data sets; each is one module here. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fgd.data import coco, huggingface, voc, yolo
from fgd.data.listing import Listing
from fgd.data.report import Defects
from fgd.data.tree import Tree


@dataclass(frozen=True)
class Format:
    title: str
    looks_like: Callable[[Tree], str | None]
    """A file that shows it is this format, found without reading all; None if there is none."""
    list_images: Callable[[Tree, Defects], Listing]


FORMATS = {
    "coco": Format("COCO", coco.looks_like, coco.list_images),
    "voc": Format("Pascal VOC", voc.looks_like, voc.list_images),
    "yolo": Format("YOLO", yolo.looks_like, yolo.list_images),
    "huggingface": Format("Hugging Face", huggingface.looks_like, huggingface.list_images),
}
"""By the name that a request gives; "auto" is found by content."""
