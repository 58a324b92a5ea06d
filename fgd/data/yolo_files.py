"""Which images the splits of a data.yaml mean, and where the labels of each lie. Knows no torch.

An entry is a folder, or a text file of image names; it is looked for below `path`, below the folder of data.yaml and
below the root, with "../" in front left out. What is not there is found by the end of its path, as any name is: see
`fgd.data.matching`. Only folders that hold images are, and it must be another one for each split.

The labels of an image lie where the last "images" of its path is "labels", or beside it; else where they are paired by
`fgd.data.matching.pair_companions`. An image whose labels could be several files, or that shares the only one, is no
background: it is left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import PurePosixPath
from typing import Any

from fgd.data.listing import Missing
from fgd.data.matching import (
    Ends,
    Match,
    Several,
    WrittenName,
    companion_path,
    ends_of,
    find_files,
    leads_out,
    normalised,
    pair_companions,
)
from fgd.data.report import Defects
from fgd.data.texts import UnreadableText, read_text
from fgd.data.tree import Split, Tree, below, depth, folder_of, is_text, means_unlabelled, short, suffix
from fgd.data.unmatched import hint, report_closest, report_spellings

_MAX_LIST_BYTES = 256 * 2**20
_SHOWN = 8
"""Folders that a message lists."""
_GLOB = re.compile(r"(/\*[^/]*)+$")
_NOT_LABELS = frozenset(
    (
        "classes.txt",
        "class_names.txt",
        "readme.txt",
        "readme.roboflow.txt",
        "readme.dataset.txt",
        "requirements.txt",
        "notes.txt",
    )
)


# --- the images of the splits ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitImages:
    splits: Mapping[Split, list[str]]
    """A split none of whose folders and lists is there is left out."""
    lists: frozenset[str]
    """Text files of image names."""
    missing: tuple[Missing, ...]
    """Names of lists that are those of no file."""


@dataclass(frozen=True)
class _Entry:
    split: Split
    text: str
    place: str
    """A folder, or a file with image names."""


def split_images(tree: Tree, plan: str, base: Any, entries: Mapping[Split, Any], defects: Defects) -> SplitImages:
    """The image files that data.yaml names for each split. plan: its file; base: its `path`."""
    places = _places(tree, plan, base, entries, defects)
    lists = {entry.place: entry.split for entry in places if entry.place in tree.files}
    lines = {file: _lines(tree, file, defects) for file in lists}
    homes = {file: tuple(dict.fromkeys([folder_of(file), "", *_bases(plan, base)])) for file in lists}
    wanted = {
        file: {line: WrittenName(line, homes[file], split, folder_of(plan)) for line in lines[file]}
        for file, split in lists.items()
    }
    every = [name for names in wanted.values() for name in names.values()]
    found = _find(tree, every)
    missing: list[Missing] = []
    members: dict[str, Sequence[str]] = {}
    for file, names in wanted.items():
        matches = {line: found[name] for line, name in names.items()}
        report_spellings(file, matches, defects)
        members[file] = [match.file for line in lines[file] if isinstance(match := matches[line], Match)]
        missing += [
            Missing(line, line, f"named in {file}, not found{hint(match)}")
            for line, match in matches.items()
            if not isinstance(match, Match)
        ]
    apart = [entry.place for entry in places if entry.split == "unlabelled" and entry.place not in lists]
    for entry in places:
        if entry.place not in lists:
            members[entry.place] = _images_below(tree, entry, apart)
    splits: dict[Split, list[str]] = {}
    for split in dict.fromkeys(entry.split for entry in places):
        splits[split] = _together(plan, [entry for entry in places if entry.split == split], members, defects)
    return SplitImages(splits, frozenset(lists), tuple(missing))


def _find(tree: Tree, names: list[WrittenName]) -> dict[WrittenName, Match | Several | None]:
    """Images of the other split's folder too, where no other list has them: an image brings its labels along."""
    images = cache(lambda: ends_of(tree.images()))
    found = find_files(names, tree.files, images)
    lost = {name: replace(name, split=None) for name, match in found.items() if match is None}
    if lost:
        taken = frozenset(match.file for match in found.values() if isinstance(match, Match))
        again = find_files(list(lost.values()), tree.files, images, taken=taken)
        found |= {name: again[other] for name, other in lost.items()}
    return found


def _together(
    plan: str, entries: Iterable[_Entry], members: Mapping[str, Sequence[str]], defects: Defects
) -> list[str]:
    """The images of one split, each once."""
    found: dict[str, None] = {}
    places: set[str] = set()
    for entry in entries:
        if entry.place in places:
            message = f"{short(entry.text)} is in the split twice; it counts once"
            defects.add("image_listed_twice", plan, message, "kept")
            continue
        places.add(entry.place)
        for file in members[entry.place]:
            if file in found:
                message = f"{short(file)} is in the split twice; it counts once"
                defects.add("image_listed_twice", plan, message, "kept")
            found[file] = None
    return list(found)


def _images_below(tree: Tree, entry: _Entry, apart: Sequence[str]) -> Sequence[str]:
    """Those of a folder, but for folders of unlabelled images in it. apart: what data.yaml names as such."""
    images = tree.images_below(entry.place)
    if entry.split == "unlabelled" or not (tree.unlabelled or apart):
        return images
    own = depth(entry.place)
    inner = tuple(f"{folder}/" for folder in apart if folder != entry.place and depth(folder) > own)
    return [
        file
        for file in images
        if not file.startswith(inner)
        and not (file in tree.unlabelled and any(map(means_unlabelled, file.split("/")[own:-1])))
    ]


def _places(tree: Tree, plan: str, base: Any, entries: Mapping[Split, Any], defects: Defects) -> list[_Entry]:
    """Where the entries lead, of those that lead anywhere; what was found otherwise than as written is reported."""
    folders = frozenset(tree.folders)
    rows = [(split, entry) for split, value in entries.items() for entry in _listed(value)]
    found: dict[tuple[Split, str], str] = {}
    lost: dict[tuple[Split, str], None] = {}
    for split, entry in rows:
        if is_text(entry) and (split, entry) not in found and (split, entry) not in lost:
            place = _as_written(tree, folders, plan, base, entry)
            if place is None:
                lost[split, entry] = None
            else:
                found[split, entry] = place
    if lost:
        taken = {place: split for (split, _), place in found.items()}
        found |= _by_end(tree, plan, base, lost, taken, defects)
    places: list[_Entry] = []
    for split, entry in rows:
        if is_text(entry) and (split, entry) in found:
            places.append(_Entry(split, entry, found[split, entry]))
        elif isinstance(entries[split], list):
            defects.add("split_folder_missing", plan, f"{short(entry)} is not in the data set; left out", "kept")
    return places


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _as_written(tree: Tree, folders: frozenset[str], plan: str, base: Any, entry: str) -> str | None:
    """The folder or file of an entry, relative to the root, without a guess."""
    home, path = folder_of(plan), _plain(entry)
    bare = normalised(path)
    for attempt in [*(below(folder, path) for folder in [*_bases(plan, base), home]), below(home, bare), bare]:
        name = os.path.normpath(attempt).replace(os.sep, "/")
        name = "" if name == "." else name
        if name in folders or name in tree.files:
            return name
    return None


def _bases(plan: str, base: Any) -> list[str]:
    """The folder that `path` names, if it may be one of the data set."""
    return [below(folder_of(plan), base.replace("\\", "/"))] if is_text(base) and not base.startswith("/") else []


def _plain(entry: str) -> str:
    """With "/" between folders, without "*.jpg" at the end."""
    return _GLOB.sub("", entry.replace("\\", "/"))


def _by_end(
    tree: Tree,
    plan: str,
    base: Any,
    lost: Iterable[tuple[Split, str]],
    taken: Mapping[str, Split],
    defects: Defects,
) -> dict[tuple[Split, str], str]:
    """Folders that hold images, and lists, by the longest end of their paths."""
    wanted: dict[tuple[Split, str], WrittenName] = {}
    for split, entry in lost:
        path = _plain(entry)
        whole = f"{base}/{path}" if is_text(base) and not leads_out(path) else path
        wanted[split, entry] = WrittenName(whole, (), split, folder_of(plan))
    holders = partial(Ends, [(folder, folder) for folder in _holders(tree)])
    lists = partial(Ends, [(file, file) for file in tree.files if suffix(file) == ".txt"])
    matches: dict[WrittenName, Match | Several | None] = {}
    for ends, are_lists in ((holders, False), (lists, True)):
        names = [name for name in wanted.values() if (suffix(name.text) == ".txt") == are_lists]
        matches |= find_files(names, frozenset(), ends, bare=False)
    found: dict[tuple[Split, str], str] = {}
    for (split, entry), name in wanted.items():
        match = matches[name]
        if isinstance(match, Match) and taken.get(match.file, split) == split:
            found[split, entry] = match.file
            message = (
                f"{split} is {short(entry)}, which is not there; {short(match.file)}, the end of it that is, is used"
            )
            defects.add("split_matched", plan, message, "kept")
    return found


def _holders(tree: Tree) -> set[str]:
    """Folders that hold images, in folders of their own too."""
    found: set[str] = set()
    for file in tree.images():
        folder = folder_of(file)
        while folder and folder not in found:
            found.add(folder)
            folder = folder_of(folder)
    return found


def image_folders(tree: Tree) -> str:
    """For people whose data.yaml names others."""
    folders = sorted({folder_of(file) or "the root" for file in tree.images()})
    return ", ".join(folders[:_SHOWN]) + (", ..." if len(folders) > _SHOWN else "") if folders else "no folder"


def _lines(tree: Tree, file: str, defects: Defects) -> list[str]:
    """The names of a list, one a line."""
    try:
        text = read_text(tree, file, _MAX_LIST_BYTES)
    except UnreadableText as error:
        defects.reject("list_invalid", file, str(error))
        return []
    return [line for line in (line.strip(" \t\r\f\v") for line in text.split("\n")) if line]


# --- the labels of the images ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labels:
    """Image -> its file of labels."""

    of: Mapping[str, str]
    unsure: Mapping[str, Several]
    """Images that cannot be told to be background, and the files that their labels may be."""
    ignored: list[str]
    """Files of labels of unlabelled images."""


def find_labels(
    tree: Tree,
    images: Iterable[str],
    lists: frozenset[str],
    plan: str,
    defects: Defects,
    unlabelled: Iterable[str] = (),
) -> Labels:
    """images: of the splits; lists: files with names of images; unlabelled: images that have no labels."""
    files = {
        file
        for file in tree.files
        if suffix(file) == ".txt" and file not in lists and PurePosixPath(file).name.lower() not in _NOT_LABELS
    }
    everywhere = {file: label for file in tree.images() if (label := _label_in_place(file, files))}
    images = list(dict.fromkeys(images))
    found = {image: label for image in images if (label := _label_in_place(image, files))}
    ignored = {label for image in unlabelled if (label := everywhere.get(image))}.difference(found.values())
    files -= ignored
    free = files.difference(everywhere.values(), found.values())
    lone = [image for image in images if image not in found]
    pairs = pair_companions(lone, free, images, files) if lone and free else {}
    homes = _label_folders(everywhere)
    pairs = {image: pair for image, pair in pairs.items() if _is_at_home(image, pair, homes)}
    matched = {image: match.file for image, match in pairs.items() if isinstance(match, Match)}
    if matched:
        image, label = next(iter(matched.items()))
        message = (
            f"{len(matched)} images have their labels in another place or spelling than their own, such as "
            f"{short(image)} in {short(label)}"
        )
        defects.add("labels_matched", plan, message, "kept")
    unsure = {image: match for image, match in pairs.items() if isinstance(match, Several)}
    labels = found | matched
    unused = files.difference(labels.values())
    owned = unused.intersection(everywhere.values())
    _report_strays(unused, owned, labels, [image for image in lone if image not in pairs], defects)
    return Labels(labels, unsure, sorted(ignored))


def _label_folders(labels: Mapping[str, str]) -> dict[str, set[str]]:
    """Folder of images -> folders where their labels are."""
    folders: dict[str, set[str]] = {}
    for image, label in labels.items():
        folders.setdefault(folder_of(image), set()).add(folder_of(label))
    return folders


def _is_at_home(image: str, pair: Match | Several, label_folders: Mapping[str, set[str]]) -> bool:
    """Labels lie where those of the images beside it are, below or above, or in a folder of labels at the same place.

    Elsewhere are texts of another kind.
    """
    homes = label_folders.get(folder_of(image))
    folders = [folder_of(file) for file in ([pair.file] if isinstance(pair, Match) else pair.files)]
    if homes is None or not folders:
        return True
    place = folder_of(companion_path(image)).casefold()
    return any(
        any(_is_related(folder, home) for home in homes)
        or folder_of(companion_path(f"{folder}/_")).casefold() == place != folder.casefold()
        for folder in folders
    )


def _is_related(folder: str, home: str) -> bool:
    outer, inner = sorted((folder, home), key=len)
    return folder == home or (outer != "" and inner.startswith(f"{outer}/"))


def _label_in_place(file: str, files: set[str]) -> str | None:
    """Where the last "images" of the path is "labels", else beside it."""
    stem = file.removesuffix(PurePosixPath(file).suffix)
    before, found, after = f"/{stem}".rpartition("/images/")
    mirrored = f"{before}/labels/{after}.txt".lstrip("/") if found else ""
    return mirrored if mirrored in files else beside if (beside := f"{stem}.txt") in files else None


def _report_strays(
    unused: Set[str], owned: Set[str], labels: Mapping[str, str], lone: list[str], defects: Defects
) -> None:
    """Label files of no image of a split, in the folders where labels are. owned: those of an image of no split."""
    folders = {folder_of(label) for label in labels.values()}
    strays = [
        file
        for file in sorted(unused)
        if folder_of(file) in folders or (file not in owned and "labels" in file.lower().split("/"))
    ]
    if strays and lone:
        what = f"{len(lone)} images have no labels, and {len(strays)} files of labels have no image"
        report_closest(what, lone, strays, defects)
    for file in strays:
        defects.add("label_without_image", file, "no image of a split belongs to it; left out", "dropped_box")
