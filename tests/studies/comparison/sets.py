"""The data sets of the study, made from those in ../shared/data and the demo's digits: the same files each time.

Of the real sets `test` is validation and test pooled: nothing is chosen there. `val` is for curves alone. The slice
that defaults are chosen on is a fifth of the training images; it is the `val` of its own set, and no test image is in
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fgd.data import archive, digits, formats
from fgd.data.index import Image, Index

Splits = Mapping[str, tuple[Image, ...]]


@dataclass(frozen=True)
class Source:
    """A set of the study, and the published set that it is made from."""

    folder: str
    choose: Callable[[Splits], Splits]


def spaced(images: Sequence[Image], count: int) -> tuple[Image, ...]:
    """`count` of the images, evenly spaced; all of them where there are no more."""
    count = min(count, len(images))
    return tuple(images[i * len(images) // count] for i in range(count))


def renumbered(images: Sequence[Image], first: int = 1_000_000) -> tuple[Image, ...]:
    """With ids that no other split has."""
    return tuple(image.model_copy(update={"id": first + n}) for n, image in enumerate(images))


def pooled(of: Splits) -> Splits:
    rest = [image for split in ("val", "test") for image in of.get(split, ())]
    return {"train": of["train"], "val": of["val"], "test": renumbered(rest)}


def tuning(of: Splits) -> Splits:
    """Every fifth training image is held out."""
    train = of["train"]
    return {"train": tuple(each for n, each in enumerate(train) if n % 5), "val": train[::5]}


def three_hundred(of: Splits) -> Splits:
    return {**of, "train": spaced(of["train"], 300)}


SOURCES: dict[str, Source] = {
    "bccd": Source("bccd", pooled),
    "bccd-slice": Source("bccd", tuning),
    "facemask": Source("facemask", lambda of: pooled(three_hundred(of))),
    "facemask-slice": Source("facemask", lambda of: tuning(three_hundred(of))),
    "pear": Source("pear", pooled),
}
DIGITS = "digits"


def make(name: str, published: Path, folder: Path) -> None:
    """Fill `folder` with the set, once. Raises FileNotFoundError where the published set is absent."""
    if (folder / archive.INDEX).exists() or (folder / "annotations").exists():
        return
    if name == DIGITS:
        digits.compose(folder)
        return
    source = SOURCES[name]
    if not (published / source.folder).is_dir():
        raise FileNotFoundError(f"{published / source.folder} is absent; it holds the published set")
    index, _, files = formats.read(published / source.folder)
    pack(index.model_copy(update={"splits": dict(source.choose(index.splits))}), files, folder)


def pack(index: Index, files: Mapping[str, Path], folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    tar = folder.with_suffix(".tar")
    archive.pack(index, files, tar)
    archive.unpack(tar, folder)
    tar.unlink()
