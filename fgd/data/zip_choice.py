"""Which files of a folder are sent as a data set, and which are not and why. Knows no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fgd.data.foreign import ARCHIVES, PICTURES
from fgd.data.format_list import is_hidden, is_wanted
from fgd.data.tree import fault_of_name, suffix

_LINK = "links, which are not followed; copy the files they lead to (cp -rL)"
_INNER = "archives, which are not unpacked; unpack them into the folder"
_OTHER = "files of kinds that no data set needs"
_HIDDEN = "hidden files and folders"
_NAMELESS = "files or folders whose names are not text, have control characters or are too long; rename them"
_PIPE = "pipes, devices and the like"


@dataclass(frozen=True)
class LeftOut:
    """What is left out for one reason."""

    count: int
    first: str
    why: str

    def __str__(self) -> str:
        return f"not sent: {self.count} {self.why}: {self.first}{', ...' if self.count > 1 else ''}"


@dataclass(frozen=True)
class Choice:
    files: Sequence[str]
    """Relative to the folder; sorted."""
    left_out: Sequence[LeftOut]


def choose(folder: Path, links_into: Path | None = None) -> Choice:
    """Links are not followed, but those to files below `links_into`."""
    files: list[str] = []
    left_out: dict[str, list[str]] = {}
    for name, is_folder in sorted(_walk(folder)):
        why = _fault(folder, name, is_folder, links_into)
        if why:
            left_out.setdefault(why, []).append(name)
        elif not is_folder:
            files.append(name)
    reasons = [LeftOut(len(names), _shown(names[0]), why) for why, names in sorted(left_out.items())]
    return Choice(files, reasons)


def _walk(folder: Path) -> Iterator[tuple[str, bool]]:
    """All files, and of folders those that are not walked through, with their names below the folder."""
    for parent, folders, names in os.walk(folder):
        here = os.path.relpath(parent, folder)
        prefix = "" if here == "." else f"{here}/"
        for name in folders:
            if _is_closed(prefix + name, os.path.join(parent, name)):
                yield prefix + name, True
        folders[:] = [name for name in folders if not _is_closed(prefix + name, os.path.join(parent, name))]
        for name in names:
            yield prefix + name, False


def _is_closed(name: str, path: str) -> bool:
    return is_hidden(name) or os.path.islink(path) or fault_of_name(name) is not None


def _fault(folder: Path, name: str, is_folder: bool, links_into: Path | None) -> str | None:
    path = folder / name
    if is_hidden(name):
        return _HIDDEN
    if fault_of_name(name):
        return _NAMELESS
    if path.is_symlink() and (is_folder or not _leads_into(path, links_into)):
        return _LINK
    if not is_wanted(name):
        kind = suffix(name)
        return PICTURES.get(kind) or (_INNER if kind in ARCHIVES else _OTHER)
    return None if path.is_file() else _PIPE


def _leads_into(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.resolve().is_relative_to(folder.resolve())


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
