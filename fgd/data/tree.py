"""The names below a data set's folder, and the split that a name means. Knows no format and no torch."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeGuard

Split = Literal["train", "val", "test", "unlabelled"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "unlabelled")

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp"})
IMAGE_SUFFIXES = JPEG_SUFFIXES | {".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"}
"""Of files that are taken for images where nothing else names them."""
MAX_NAME = 200
"""Characters of a class name; it becomes part of every metric's name."""
MAX_PATH_BYTES = 1024
"""Of a file's name with its folders, below the data set's folder."""
_SPLIT_WORDS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_UNLABELLED = re.compile(r"(image_info_|instances_)?unlabell?ed(\d{4}|-\d+-of-\d+)?")
"""A whole name, as of COCO's unlabeled2017: others with such a word in them mean what their other words mean."""
_OF_LABELS = frozenset({".xml", ".json", ".jsonl", ".csv", ".txt"})


@dataclass(frozen=True)
class Tree:
    """Names below a folder, hidden ones left out, links to folders not followed."""

    root: Path
    folders: tuple[str, ...]
    """Relative, "" is the root itself; sorted."""
    files: frozenset[str]
    links: tuple[str, ...]
    """Folders that are links."""
    unpacked: Path | None = None
    """Where a reader puts images that lie inside other files; None: a folder that goes with this process."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Files and folders that are not used, by names as they can be shown, and why."""
    skipped: tuple[str, ...] = ()
    """Members of the zip that were not unpacked, for no data set has files of their kind."""
    unlabelled: frozenset[str] = frozenset()
    """Images in folders that are called unlabelled."""
    set_aside: tuple[str, ...] = ()
    """Annotations in such folders: nobody reads them, so they are not among the files."""

    def images(self) -> tuple[str, ...]:
        """By their suffix; sorted."""
        return self._images

    @cached_property
    def _images(self) -> tuple[str, ...]:
        return tuple(sorted(file for file in self.files if suffix(file) in IMAGE_SUFFIXES))

    def images_below(self, folder: str) -> tuple[str, ...]:
        """Those of a folder and the folders in it; "" is the root."""
        if not folder:
            return self._images
        first, end = (bisect_left(self._images, f"{folder}{mark}") for mark in ("/", chr(ord("/") + 1)))
        return self._images[first:end]

    def scratch(self) -> Path:
        """A folder for images that lie inside other files."""
        if self.unpacked is None:
            return _scratch_of_this_process()
        self.unpacked.mkdir(parents=True, exist_ok=True)
        return self.unpacked

    def path(self, file: str) -> Path | None:
        """Where a name leads; None if it, or a link behind it, leads out of the folder."""
        if "\0" in file or file.startswith("/") or ".." in file.split("/"):
            return None
        path = self.root / file
        try:
            return path if path.resolve().is_relative_to(self.root) else None
        except (OSError, RuntimeError):  # a loop of links, a name too long
            return None


@cache
def _scratch_of_this_process() -> Path:
    made = Path(tempfile.mkdtemp(prefix="fgd-images-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def list_tree(root: Path, unpacked: Path | None = None) -> Tree:
    """All that can be seen below a folder, to any depth that a name of `MAX_PATH_BYTES` reaches."""
    folders: list[str] = []
    files: list[str] = []
    links: list[str] = []
    left_out: list[tuple[str, str]] = []

    def usable(folder: str, names: list[str], kind: str) -> list[str]:
        kept: list[str] = []
        for name in sorted(name for name in names if not name.startswith(".")):
            fault = fault_of_name(below(folder, name))
            if fault:
                left_out.append((_shown(below(folder, name)), f"{kind} {fault}; it is not used"))
            else:
                kept.append(name)
        return kept

    def unreadable(error: OSError) -> None:
        folder = os.path.relpath(os.fsdecode(error.filename or root), root)
        left_out.append((_shown(folder), f"the folder cannot be read: {error.strerror}"))

    for parent, subfolders, names in os.walk(root, onerror=unreadable):
        here = os.path.relpath(parent, root)
        prefix = "" if here == "." else here.replace(os.sep, "/")
        folders.append(prefix)
        subfolders[:] = usable(prefix, subfolders, "the folder")
        files.extend(below(prefix, name) for name in usable(prefix, names, "the file"))
        links.extend(below(prefix, name) for name in subfolders if os.path.islink(os.path.join(parent, name)))
    tree = Tree(root, tuple(sorted(folders)), frozenset(files), tuple(sorted(links)), unpacked, tuple(sorted(left_out)))
    return _without_labels_of_unlabelled(tree)


def _without_labels_of_unlabelled(tree: Tree) -> Tree:
    """The tree that knows its unlabelled images, and lacks what seems to label them."""
    if not any(map(means_unlabelled, {part for folder in tree.folders for part in folder.split("/")})):
        return tree
    words = SplitWords(tree.images())
    unlabelled = frozenset(image for image in tree.images() if words.of_folder(folder_of(image)) == "unlabelled")
    if not unlabelled:
        return tree
    others = (file for file in tree.files if suffix(file) in _OF_LABELS or is_table_of_parquet(file))
    aside = frozenset(file for file in others if words.of_folder(folder_of(file)) == "unlabelled")
    return replace(tree, files=tree.files - aside, unlabelled=unlabelled, set_aside=tuple(sorted(aside)))


def is_table_of_parquet(file: str) -> bool:
    """Without images inside, unlike others of its kind."""
    return file.rpartition("/")[2] == "metadata.parquet"


def fault_of_name(name: str) -> str | None:
    """Why a name is none that JSON, a terminal and a list of names can hold. Spaces of every kind are names."""
    kinds = {unicodedata.category(character) for character in name} if not name.isprintable() else set()
    if "Cs" in kinds:
        return "has a name that is not valid UTF-8"
    if "Cc" in kinds:
        return "has a control character in its name"
    if len(name.encode()) > MAX_PATH_BYTES:
        return f"has a name that is, with its folders, longer than {MAX_PATH_BYTES} bytes"
    return None


def _shown(name: str) -> str:
    """A name that may hold anything, as a report can show it."""
    text = name.encode("utf-8", "backslashreplace").decode() if not name.isprintable() else name
    text = "".join(c if unicodedata.category(c) != "Cc" else repr(c)[1:-1] for c in text)
    return text if len(text) <= 255 else f"{text[:252]}..."


def below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def folder_of(file: str) -> str:
    return file.rpartition("/")[0]


def suffix(file: str) -> str:
    return PurePosixPath(file).suffix.lower()


def depth(path: str) -> int:
    """Parts of a path."""
    return path.count("/") + 1 if path else 0


def common_folder(folders: Iterable[str]) -> str:
    """The innermost folder in which all of these lie; "" is the root."""
    common: list[str] | None = None
    for folder in folders:
        parts = folder.split("/") if folder else []
        if common is None:
            common = parts
        while common != parts[: len(common)]:
            common = common[:-1]
    return "/".join(common or [])


@lru_cache(1 << 14)
def words_split(name: str) -> Split | None:
    """The one split that the words of a name mean; None if there is none or more than one."""
    if means_unlabelled(name):
        return "unlabelled"
    splits = _splits_in(name)
    return next(iter(splits)) if len(splits) == 1 else None


def means_unlabelled(name: str) -> bool:
    """Of a file without its suffix, or a folder."""
    return _UNLABELLED.fullmatch(name.lower()) is not None


def _splits_in(name: str) -> Set[Split]:
    return {_SPLIT_WORDS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in _SPLIT_WORDS}


class SplitWords:
    """Which split the names of files mean. What all of them share says nothing.

    That is a folder in which all of them lie, and a word that all names beside one another have where each has one
    more: "train_test_project" and "val_test_project" are train and val.
    """

    def __init__(self, files: Iterable[str]) -> None:
        names = set(files)
        folders = {folder_of(file) for file in names}
        self.home = common_folder(folders)
        self._files = _split_of_names({PurePosixPath(name).stem for name in names})
        levels = zip_longest(*(folder.split("/")[depth(self.home) :] for folder in folders))
        self._folders = [_split_of_names({name for name in level if name}) for level in levels]

    def of_file(self, file: str) -> Split | None:
        stem = PurePosixPath(file).stem
        return self._files.get(stem) or words_split(stem) or self.of_folder(folder_of(file))

    def of_folder(self, folder: str) -> Split | None:
        """By the innermost folder name that means a split."""
        names = folder.split("/")[depth(self.home) :]
        for place, name in reversed([*enumerate(names)]):
            known = self._folders[place] if place < len(self._folders) else {}
            if split := known.get(name) or words_split(name):
                return split
        return None


def _split_of_names(names: Set[str]) -> dict[str, Split]:
    """Of names that mean one split each, but for a word that all of them have; else of none."""
    meant = {name: splits for name in names if (splits := _splits_in(name))}
    shared = set.intersection(*map(set, meant.values())) if len(meant) > 1 else set()
    if not shared or any(len(splits) != len(shared) + 1 for splits in meant.values()):
        return {}
    return {name: next(iter(splits - shared)) for name, splits in meant.items()}


def is_text(value: Any) -> TypeGuard[str]:
    """Not blank, and storable: JSON's escapes can spell half a character, which no file or database takes."""
    try:
        return isinstance(value, str) and bool(value.strip()) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def is_class_name(value: Any) -> TypeGuard[str]:
    return is_text(value) and len(value) <= MAX_NAME


def short(value: Any) -> str:
    """A user's value as a piece of a message: printable, of bounded length. Never raises."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python writes, a list that holds itself
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 80 else text[:77] + "..."
