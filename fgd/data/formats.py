"""Reads a folder of any format: found by content, or as asked. A format is one module here. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fgd.data import coco, huggingface, voc, yolo
from fgd.data.checking import Sources, Verify, check
from fgd.data.index import Index, Report
from fgd.data.listing import Listing
from fgd.data.report import Defects
from fgd.data.splits import Carving
from fgd.data.tree import Tree, list_tree
from fgd.errors import DatasetError


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


def read(
    folder: Path,
    format: str = "auto",
    verify: Verify = "full",
    carving: Carving | None = None,
    defects: Defects | None = None,
    unpacked: Path | None = None,
) -> tuple[Index, Report, Sources]:
    """The index, what was wrong, and for each `Image.file` (named by content) the file it comes from.

    defects: where what is wrong goes, if some is known already. unpacked: a folder for images that lie inside other
    files; None: one that goes with this process. Where the report is not ok the index holds what could
    be read and must not be trained on. Raises DatasetError for a folder that does not exist, holds no data set, or
    looks like several.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    tree = list_tree(root, unpacked)
    defects = Defects() if defects is None else defects
    listing = FORMATS[recognised(tree) if format == "auto" else format].list_images(tree, defects)
    return check(tree, listing, defects, verify, carving)


def recognised(tree: Tree) -> str:
    """The format that the files speak of. Raises DatasetError if that is none or several."""
    found = {name: sign for name, format in FORMATS.items() if (sign := format.looks_like(tree))}
    if len(found) == 1:
        return next(iter(found))
    if found:
        signs = " and ".join(f"{FORMATS[name].title} ({sign})" for name, sign in found.items())
        choices = " or ".join(f'"{name}"' for name in found)
        raise DatasetError(f"{tree.root}: it looks like {signs}; name the format to read: {choices}")
    if any(file.lower().endswith(".json") for file in tree.files):
        return "coco"  # whose reader says of each JSON file what is wrong with it
    raise DatasetError(
        f"{tree.root}: no data set found; expected COCO annotations (JSON with images, annotations and categories), "
        "Pascal VOC (Annotations/*.xml), YOLO (data.yaml with train, val and names) or Hugging Face (metadata.jsonl "
        "with file_name and objects beside images, or Parquet files)"
    )
