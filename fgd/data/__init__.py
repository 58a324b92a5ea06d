"""Data sets: formats in, one index, batches out. Importing this package loads no torch."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from fgd.data import formats
from fgd.data.index import Index
from fgd.errors import DatasetError

INDEX = "index.json"
_TOLD = 5
"""Defects told in an error."""


def open_index(folder: Path) -> tuple[Index, Path]:
    """An index, and the root that its file names are relative to.

    folder: what `fgd.data.archive.unpack` made, or a folder of any format, which is read and fully verified in place.
    Raises DatasetError where there is nothing that can be trained from.
    """
    if (folder / INDEX).is_file():
        return read_index(folder / INDEX), folder
    index, report, sources = formats.read(folder)
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
        raise DatasetError(f"{path}: not an index of this program: {error}") from error
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
