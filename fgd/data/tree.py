"""The names below a data set's folder, and the split that a name means. Knows no format and no torch."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeGuard

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})
"""Of files that are taken for images where nothing else names them."""
MAX_NAME = 200
"""Characters of a class name; it becomes part of every metric's name."""
_MAX_DEPTH = 6
_SPLIT_WORDS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


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

    def images(self) -> list[str]:
        """By their suffix; sorted."""
        return sorted(file for file in self.files if suffix(file) in IMAGE_SUFFIXES)

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
    folders: list[str] = []
    files: list[str] = []
    links: list[str] = []
    for parent, subfolders, names in os.walk(root):
        here = os.path.relpath(parent, root)
        prefix = "" if here == "." else here.replace(os.sep, "/")
        folders.append(prefix)
        subfolders[:] = sorted(filter(_is_visible, subfolders))
        files.extend(below(prefix, name) for name in filter(_is_visible, names))
        links.extend(below(prefix, name) for name in subfolders if os.path.islink(os.path.join(parent, name)))
        if prefix.count("/") + 1 >= _MAX_DEPTH:
            subfolders.clear()
    return Tree(root, tuple(sorted(folders)), frozenset(files), tuple(sorted(links)), unpacked)


def _is_visible(name: str) -> bool:
    """Not hidden, and a name that JSON can hold: a file system's may be bytes that are no text."""
    return not name.startswith(".") and name.isprintable()


def below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def folder_of(file: str) -> str:
    return file.rpartition("/")[0]


def suffix(file: str) -> str:
    return PurePosixPath(file).suffix.lower()


def words_split(name: str) -> Split | None:
    """The one split that the words of a name mean; None if there is none or more than one."""
    splits = {_SPLIT_WORDS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in _SPLIT_WORDS}
    return splits.pop() if len(splits) == 1 else None


def split_of_file(file: str) -> Split | None:
    path = PurePosixPath(file)
    return words_split(path.stem) or split_of_folder(str(path.parent))


def split_of_folder(folder: str) -> Split | None:
    """By the innermost folder name that means a split."""
    for name in reversed(PurePosixPath(folder).parts):
        if split := words_split(name):
            return split
    return None


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
