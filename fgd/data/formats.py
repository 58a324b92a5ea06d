"""A data set's folder to its index: of any format, found by content or as asked, or unpacked by us. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from fgd.data.checking import Sources, Verify, check
from fgd.data.foreign import explained
from fgd.data.format_list import FORMATS, either
from fgd.data.index import Index, Report
from fgd.data.listing import NothingFound
from fgd.data.report import Defects
from fgd.data.splits import Carving
from fgd.data.tree import Tree, list_tree
from fgd.errors import DatasetError

INDEX = "index.json"
_TOLD = 5
"""Defects told in an error."""


def read(
    folder: Path,
    format: str = "auto",
    verify: Verify = "full",
    carving: Carving | None = None,
    defects: Defects | None = None,
    unpacked: Path | None = None,
    skipped: Sequence[str] = (),
) -> tuple[Index, Report, Sources]:
    """The index, what was wrong, and for each `Image.file` (named by content) the file it comes from.

    defects: where what is wrong goes, if some is known already. unpacked: a folder for images that lie inside other
    files; None: one that goes with this process. skipped: members of a zip that are not in the folder. Where the report
    is not ok the index holds what could be read and must not be trained on. Raises DatasetError for a folder that does
    not exist, holds no data set, or looks like several.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    tree = replace(list_tree(root, unpacked), skipped=tuple(skipped))
    defects = Defects() if defects is None else defects
    reader = FORMATS[recognised(tree) if format == "auto" else format].reader()
    try:
        listing = reader.list_images(tree, defects)
    except NothingFound as error:
        raise DatasetError(explained(tree, str(error))) from error
    return check(tree, listing, defects, verify, carving)


def recognised(tree: Tree) -> str:
    """The format that the files speak of. Raises DatasetError if that is none or several."""
    found = {name: sign for name, format in FORMATS.items() if (sign := format.reader().looks_like(tree))}
    if len(found) == 1:
        return next(iter(found))
    if found:
        signs = " and ".join(f"{FORMATS[name].title} ({sign})" for name, sign in found.items())
        choices = " or ".join(f'"{name}"' for name in found)
        raise DatasetError(f"{tree.root}: it looks like {signs}; name the format to read: {choices}")
    expected = either([format.sign for format in FORMATS.values()])
    raise DatasetError(explained(tree, f"{tree.root}: no data set found; expected {expected}"))


def open_index(folder: Path) -> tuple[Index, Path]:
    """An index, and the root that its file names are relative to.

    folder: what `fgd.data.archive.unpack` made, or a folder of any format, which is read and fully verified in place.
    Raises DatasetError where there is nothing that can be trained from.
    """
    if (folder / INDEX).is_file():
        return read_index(folder / INDEX), folder
    index, report, sources = read(folder)
    if not report.ok:
        told = [f"{defect.file or folder}: {defect.message}" for defect in report.defects[:_TOLD]]
        raise DatasetError(f"{folder} cannot be used: " + "; ".join(told))
    root = folder.resolve()
    splits = {
        name: tuple(image.model_copy(update={"file": _below(root, sources[image.file])}) for image in images)
        for name, images in index.splits.items()
    }
    return index.model_copy(update={"splits": splits}), root


def _below(root: Path, file: Path) -> str:
    """Relative to the root; whole where it was unpacked elsewhere."""
    return (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()


def read_index(path: Path) -> Index:
    """Parse and check an index file. Raises DatasetError."""
    try:
        index = Index.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise DatasetError(f"{path}: not a valid index: {error}") from error
    ids: set[int] = set()
    for image in (image for images in index.splits.values() for image in images):
        name = PurePosixPath(image.file)
        if name.is_absolute() or ".." in name.parts or "\0" in image.file:
            raise DatasetError(f"{path}: image {image.id} has a file name that leads out of the folder: {image.file!r}")
        if not len(image.boxes) == len(image.labels) == len(image.crowd):
            raise DatasetError(f"{path}: image {image.id} has unequal numbers of boxes, labels and crowd flags")
        if any(not 1 <= label <= len(index.classes) for label in image.labels):
            raise DatasetError(f"{path}: image {image.id} has a label that is not in 1..{len(index.classes)}")
        if any(not (0 <= x1 < x2 <= image.width and 0 <= y1 < y2 <= image.height) for x1, y1, x2, y2 in image.boxes):
            raise DatasetError(f"{path}: image {image.id} has a box outside its {image.width}x{image.height} pixels")
        if image.id in ids:
            raise DatasetError(f"{path}: image id {image.id} is used twice")
        ids.add(image.id)
    return index
