"""The formats of data sets, each listed once: requests, command line, catalogue, zips and readers follow this list.

Light, so that `fgd --help` answers at once: a format's own module is imported when a folder is read. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal, Protocol

from fgd.data.tree import IMAGE_SUFFIXES, Tree

if TYPE_CHECKING:
    from fgd.data.listing import Listing
    from fgd.data.report import Defects


class Reader(Protocol):
    """What a format's module has."""

    def looks_like(self, tree: Tree) -> str | None:
        """A file that shows it is this format, found without reading all; None if there is none."""

    def list_images(self, tree: Tree, defects: Defects) -> Listing:
        """What the files say. Raises DatasetError where there is nothing of this format."""


@dataclass(frozen=True)
class Format:
    title: str
    summary: str
    """For people who choose one."""
    sign: str
    """What shows it, for people whose folder is none: goes on after "expected"."""
    reader: Callable[[], Reader]
    """Imports its module."""
    suffixes: frozenset[str]
    """Of its files besides images; others of a zip are left out."""
    names: frozenset[str] = frozenset()
    """Of its files whose suffix is not among them."""
    needs: str = ""
    """On the worker, besides ourselves."""


def _coco() -> Reader:
    from fgd.data import coco

    return coco


def _voc() -> Reader:
    from fgd.data import voc

    return voc


def _yolo() -> Reader:
    from fgd.data import yolo

    return yolo


def _huggingface() -> Reader:
    from fgd.data import huggingface

    return huggingface


FORMATS = {
    "coco": Format(
        title="COCO",
        summary="COCO detection: JSON annotations and images, an annotations folder beside image folders or one JSON "
        "in each split's folder.",
        sign="COCO annotations (JSON with images, annotations and categories)",
        reader=_coco,
        suffixes=frozenset({".json"}),
    ),
    "voc": Format(
        title="Pascal VOC",
        summary="Pascal VOC: one XML file per image in Annotations, or beside the images; ImageSets/Main or folders "
        "for splits. Pixels count from 1; difficult objects are neither trained on nor scored.",
        sign="Pascal VOC (Annotations/*.xml)",
        reader=_voc,
        suffixes=frozenset({".xml", ".txt"}),
    ),
    "yolo": Format(
        title="YOLO",
        summary="YOLO: data.yaml with names and the folders of train, val and test; one text file per image in "
        "labels beside images. Polygons become the boxes around them.",
        sign="YOLO (data.yaml with train, val and names)",
        reader=_yolo,
        suffixes=frozenset({".yaml", ".yml", ".txt"}),
    ),
    "huggingface": Format(
        title="Hugging Face",
        summary="Hugging Face: metadata.jsonl, .csv or .parquet beside images, with file_name and objects {bbox: "
        "[[x, y, width, height]], category: [...]}; or Parquet files with the images inside, as on the hub.",
        sign="Hugging Face (metadata.jsonl with file_name and objects beside images, or Parquet files)",
        reader=_huggingface,
        suffixes=frozenset({".jsonl", ".csv", ".parquet", ".json"}),
        names=frozenset({"README.md"}),  # the card, which has the class names in it
        needs='Parquet needs pyarrow on the worker: pip install "fgd-service[hf]"',
    ),
}
"""By the name that a request gives; "auto" is found by content."""

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal["auto", *FORMATS]

SUFFIXES = IMAGE_SUFFIXES.union(*(format.suffixes for format in FORMATS.values()))
NAMES = frozenset().union(*(format.names for format in FORMATS.values()))
"""A data set consists of files with one of these suffixes or names."""


def is_wanted(file: str) -> bool:
    """Whether a file may be part of a data set, by its name."""
    path = PurePosixPath(file)
    return not is_hidden(file) and (path.suffix.lower() in SUFFIXES or path.name in NAMES)


def is_hidden(file: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(file).parts)


def either(texts: Sequence[str]) -> str:
    """ "a, b or c"."""
    return " or ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else texts[0]


TITLES = either([format.title for format in FORMATS.values()])
