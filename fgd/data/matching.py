"""Finds the files that a data set's annotations mean by their names. One rule for every format. Knows no torch.

How a written name becomes a file:

1. As it is written, relative to the folder that the format says: the file of exactly that name.
2. The same with the path normalised: "\\" is "/"; a drive ("D:"), a scheme ("file://"), empty parts and "." are left
   out; ".." takes back the part before it, and is left out where there is none, so no name leads out of the folder.
3. By the longest end of the path that a file of the data set has: of "/home/me/cats/images/a.jpg" that is
   "images/a.jpg", or "a.jpg" if no folder "images" has it. It counts only if one file alone has this end. The ends are
   compared as written first; then with accents composed (NFC); then with %20 and the like decoded; then without regard
   to capitals; then with all kinds of spaces, "+" and "_" alike, ".jpeg" and ".jpg" alike, and without Label Studio's
   "1f2e3d4c-" in front. The strictest of these counts in which there is such a file. Of several files with this end the
   one below the folder of the list itself is meant, if that is one. A name without a suffix of images is compared with
   the files' names without theirs.

The folder of step 1 is for COCO the one that has most of the names (if it has half of them, or twice as many as all
others; else the images lie in several, and only step 3 counts), for Hugging Face that of the table, for lists of YOLO
that of the list, the root or `path`, for VOC Annotations.

A file that only ends alike is not taken

- if another name means it exactly, or if two names would mean it with ends of the same length;
- if what is left of both paths speaks of two splits: "train/a.jpg" is never "val/a.jpg". A folder in which all names,
  or all files, lie says nothing about splits;
- if it lies in a folder of its own, and a folder that is written is there too: of "cam1/a.jpg", where "cam1" holds
  images, "cam2/a.jpg" is not the file. Of folders that are written in front of all names, only the last counts. Nor
  are labels in "cam2" those of an image in "cam1", where "cam2" holds images too.

Labels and XML files belong to images in the same way, by their paths without suffix and without the parts that say
what a folder holds ("images", "labels", "Annotations", ...): see `companion_path`.

Everything is indexed once: a name costs a few bisections, however many files and folders there are.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from urllib.parse import unquote

from fgd.data.tree import (
    IMAGE_SUFFIXES,
    JPEG_SUFFIXES,
    Split,
    below,
    common_folder,
    depth,
    folder_of,
    suffix,
    words_split,
)

_MOST_ALIKE = 8
"""Files with the same end that are looked at; of more, none is the one."""
_STEPS = 6
"""Parts by which an end is shortened where something speaks against the files that have it."""
_DRIVE = re.compile(r"^/*[A-Za-z]:(?=/)")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_LOCAL_FILES = "?d="
"""Label Studio: /data/local-files/?d=images/a.jpg."""
_UPLOAD_HASH = re.compile(r"(^|/)[0-9a-f]{8}-(?=[^/]+$)")
_BLANKS = re.compile(r"[\s+_]+")
_KINDS = frozenset(
    (
        *("images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "pics"),
        *(
            "labels",
            "label",
            "annotations",
            "annotation",
            "annots",
            "annot",
            "anns",
            "ann",
            "xmls",
            "xml",
            "txts",
            "txt",
        ),
    )
)
"""Folders that say what is in them, not of which images."""


def normalised(written: str) -> str:
    """A path below the data set's folder, "" if nothing is left of it. It has no part ".." or "."."""
    text = written.strip(" \t\r\n").replace("\\", "/").rpartition(_LOCAL_FILES)[2]
    text = _DRIVE.sub("", _SCHEME.sub("", text, count=1), count=1)
    parts: list[str] = []
    for part in text.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "" if "\0" in text else "/".join(parts)


def companion_path(file: str) -> str:
    """What an image and the file of its labels have alike: "images/train/a.jpg" and "labels/train/a.txt" "train/a"."""
    *folders, name = _stem(file).split("/")
    return "/".join([*(folder for folder in folders if folder.casefold() not in _KINDS), name])


def _stem(path: str) -> str:
    return path.removesuffix(PurePosixPath(path).suffix)


# --- spellings ------------------------------------------------------------------------------------------------


def _composed(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _decoded(path: str) -> str:
    return _composed(unquote(unquote(path)) if "%" in path else path)


def _lowered(path: str) -> str:
    return _composed(_decoded(path).casefold())


def _loose(path: str) -> str:
    text = unicodedata.normalize("NFKC", _lowered(path)).casefold().partition("?")[0].strip()
    if (ending := suffix(text)) in JPEG_SUFFIXES:
        text = text.removesuffix(ending) + ".jpg"
    return _BLANKS.sub("_", _UPLOAD_HASH.sub(r"\1", text))


_SPELLINGS: tuple[Callable[[str], str], ...] = (lambda path: path, _composed, _decoded, _lowered, _loose)
"""From the strictest to the loosest."""


def _parts(path: str, spelling: int) -> list[str]:
    """From the last to the first."""
    return _SPELLINGS[spelling](path).split("/")[::-1]


def _key(path: str, spelling: int) -> str:
    """Such that paths with the same end are neighbours when sorted."""
    return "".join(f"{part}\0" for part in _parts(path, spelling))


# --- ends -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    file: str
    shared: int
    """Parts at the end that both paths have."""
    spelling: int
    """0: letter by letter."""
    exact: bool = False
    """Where the name says, and as it says but for "." and empty parts."""

    @property
    def worth(self) -> tuple[int, int]:
        return self.shared, -self.spelling


@dataclass(frozen=True)
class Several:
    """Files that a name may mean; one too many."""

    files: tuple[str, ...]


class Ends:
    """Files by the ends of their paths."""

    def __init__(
        self,
        files: Iterable[tuple[str, str]],
        folders: Iterable[str] = (),
        home: str | None = None,
        asking: Iterable[str] = (),
    ) -> None:
        """files: path to compare, and the file it stands for. folders: more that are there, besides those of the files.

        home: a folder of all paths, of which the name says nothing; None: the innermost of the files. asking: folders
        of the paths that will be looked for, where these are of files that are there too.
        """
        self._files = sorted(files)
        self._sorted: dict[int, tuple[list[str], list[tuple[str, str]]]] = {}
        paths = {folder_of(path) for path, _ in self._files}
        self._home = depth(common_folder(paths) if home is None else home)
        self._folders = {part for path in paths.union(folders) for part in _lowered(path).split("/")}
        self._asking = {part for path in asking for part in _lowered(path).split("/")}

    def find(self, path: str, split: Split | None = None, near: str = "", home: int = 0) -> Match | Several | None:
        """The file that a normalised path means.

        split: of the list that names it; near: a folder to be looked in first; home: parts at the path's beginning that
        say nothing.
        """
        several: Several | None = None
        least = 1
        for spelling in range(len(_SPELLINGS)):
            longest = self._longest(path, spelling)
            for shared in range(longest, max(least - 1, longest - _STEPS), -1):
                found = self._fitting(path, shared, spelling, split, near, home)
                if isinstance(found, Match):
                    return found
                if found is not None:
                    several, least = several or found, shared + 1  # a looser spelling may have a longer end
                    break
            if longest == depth(path) and several:
                break
        return several

    @cached_property
    def without_suffixes(self) -> Ends:
        return Ends(((_stem(path), file) for path, file in self._files), self._folders)

    def having(self, path: str, most: int) -> list[str]:
        """Files that have the whole path as their end, letter by letter; one more than `most` at most."""
        keys, files = self._index(0)
        key = _key(path, 0)
        first, last = bisect_left(keys, key), bisect_left(keys, _behind(key))
        return [file for _, file in files[first : min(last, first + most + 1)]]

    def _index(self, spelling: int) -> tuple[list[str], list[tuple[str, str]]]:
        if spelling not in self._sorted:
            pairs = sorted((_key(path, spelling), (path, file)) for path, file in self._files)
            self._sorted[spelling] = [key for key, _ in pairs], [pair for _, pair in pairs]
        return self._sorted[spelling]

    def _longest(self, path: str, spelling: int) -> int:
        """Parts of the longest end that some file has."""
        keys, _ = self._index(spelling)
        key = _key(path, spelling)
        place = bisect_left(keys, key)
        return max((_shared(key, other) for other in keys[max(0, place - 1) : place + 1]), default=0)

    def _fitting(
        self, path: str, shared: int, spelling: int, split: Split | None, near: str, home: int
    ) -> Match | Several | None:
        """The file with this end that nothing speaks against; None if there is none."""
        alike = self._alike(path, shared, spelling)
        if len(alike) > _MOST_ALIKE:
            return Several(())
        rest = _parts(path, spelling)[shared:]
        alike = [pair for pair in alike if not self._speaks_against(rest, shared, pair[0], split, home)]
        whole = [pair for pair in alike if self._asking and depth(pair[0]) == shared]  # nothing is left of it
        fitting = [file for _, file in whole or alike]
        chosen = [file for file in fitting if file.startswith(f"{near}/")] if near else fitting
        chosen = list(dict.fromkeys(chosen or fitting))
        if len(chosen) == 1:
            return Match(chosen[0], shared, spelling)
        return Several(tuple(chosen)) if chosen else None

    def _alike(self, path: str, shared: int, spelling: int) -> list[tuple[str, str]]:
        """Paths and files with this end, one more than are of use at most."""
        keys, files = self._index(spelling)
        end = "".join(f"{part}\0" for part in _parts(path, spelling)[:shared])
        first, last = bisect_left(keys, end), bisect_left(keys, _behind(end))
        return files[first : min(last, first + _MOST_ALIKE + 1)]

    def _speaks_against(self, rest: Sequence[str], shared: int, other: str, split: Split | None, home: int) -> bool:
        """rest: the written parts before the shared end, from the innermost."""
        before = other.split("/")[:-shared]
        telling = rest[: max(0, len(rest) - home)]
        said = next(filter(None, map(words_split, telling)), None)
        there = next(filter(None, map(words_split, reversed(before[self._home :]))), None)
        if said and not there:
            there = next(filter(None, map(_whole_split_word, reversed(before[: self._home]))), None)
        if (said or split) and there and (said or split) != there:
            return True
        if not before[self._home :]:
            return False
        written, own = set(map(_lowered, rest)), set(map(_lowered, before[self._home :]))
        if written and not own.intersection(self._asking) <= written:
            return True
        known = self._folders.intersection(map(_lowered, {*telling, *rest[:1]}))
        return not known <= set(map(_lowered, before))


def _whole_split_word(part: str) -> Split | None:
    """Of a folder that is called nothing but "train", "val2017" and the like."""
    return words_split(part) if re.fullmatch(r"[A-Za-z]+\d*", part) else None


def _behind(key: str) -> str:
    """What comes next, in order, to all keys that begin with this one, which ends in a NUL."""
    return f"{key[:-1]}\1"


def _shared(key: str, other: str) -> int:
    count = 0
    for part, same in zip(key.split("\0")[:-1], other.split("\0")[:-1], strict=False):
        if part != same:
            break
        count += 1
    return count


# --- names that lists write -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class WrittenName:
    """A file name as an annotation file has it."""

    text: str
    homes: tuple[str, ...] = ()
    """Folders that it may be relative to; the first that has it counts. None: only by its end."""
    split: Split | None = None
    """Of the file that names it, if that is known."""
    near: str = ""
    """A folder whose files come first."""


def find_files(
    wanted: Collection[WrittenName],
    files: Set[str],
    images: Callable[[], Ends],
    *,
    bare: bool = True,
    taken: Set[str] = frozenset(),
) -> dict[WrittenName, Match | Several | None]:
    """The file of each name. files: all that there are; images: those that may be meant by their ends.

    bare: whether names without a suffix may be those of images. taken: files that are none of these names'.
    """
    found: dict[WrittenName, Match | Several | None] = {}
    paths = {name: normalised(name.text) for name in wanted}
    others: list[WrittenName] = []
    for name, path in paths.items():
        exact = _exact(name, path, files)
        if exact is None or exact.file in taken:
            others.append(name)
        else:
            found[name] = exact
    if not others:
        return found
    taken = taken | {match.file for match in found.values() if isinstance(match, Match)}
    ends = images()
    home = depth(common_folder({folder_of(path) for path in paths.values()}))
    claims: dict[str, dict[str, Match]] = {}
    for name in others:
        path = paths[name]
        whole = not bare or suffix(path.partition("?")[0]) in IMAGE_SUFFIXES
        among = ends if whole else ends.without_suffixes
        match = among.find(path, name.split, name.near, home) if path else None
        found[name] = None if isinstance(match, Match) and match.file in taken else match
        if isinstance(match, Match):
            claims.setdefault(match.file, {})[path] = match
    best = {file: _best(matches) for file, matches in claims.items()}
    for name in others:
        match = found[name]
        if isinstance(match, Match) and best[match.file] != paths[name]:
            found[name] = None
    return found


def _best(claims: Mapping[str, Match]) -> str | None:
    """The path that has the most in common with the file it claims; None if several have as much."""
    order = sorted(claims, key=lambda path: claims[path].worth, reverse=True)
    return order[0] if len(order) == 1 or claims[order[0]].worth > claims[order[1]].worth else None


def _exact(name: WrittenName, path: str, files: Set[str]) -> Match | None:
    for home in name.homes:
        if name.text and below(home, name.text) in files:
            return Match(below(home, name.text), depth(name.text), 0, exact=True)
        if path and below(home, path) in files:
            return Match(below(home, path), depth(path), 0, exact="\\" not in name.text)
    return None


def leads_out(written: str) -> bool:
    """Whether a name, taken by the word, is that of a file outside."""
    parts = written.replace("\\", "/").split("/")
    return "\0" in written or parts[0] == "" or ".." in parts or bool(_DRIVE.match(written.replace("\\", "/")))


def ends_of(images: Iterable[str]) -> Ends:
    return Ends((image, image) for image in images)


# --- files that belong to images ------------------------------------------------------------------------------


def pair_companions(
    wanting: Iterable[str], free: Iterable[str], all_wanting: Iterable[str], all_free: Iterable[str]
) -> dict[str, Match | Several]:
    """File -> the one of `free` that belongs to it, by their companion paths; "a.jpg.txt" is a label of a.jpg too.

    wanting, free: images and labels, or the other way round, that are not paired yet; all_...: those that are, too. A
    file that several could have as well belongs to none of them.
    """
    folders, asking = ({folder_of(companion_path(file)) for file in files} for files in (all_free, all_wanting))
    home = common_folder(folders | asking)
    pairs: list[tuple[str, str]] = []
    for file in free:
        path = companion_path(file)
        pairs.append((path, file))
        if suffix(path) in IMAGE_SUFFIXES:
            pairs.append((_stem(path), file))
    ends = Ends(pairs, folders, home, asking)
    found: dict[str, Match | Several] = {}
    claims: dict[str, dict[str, Match]] = {}
    for file in wanting:
        path = companion_path(file)
        match = ends.find(path, home=depth(home))
        if match is None and suffix(path) in IMAGE_SUFFIXES:
            match = ends.find(_stem(path), home=depth(home))
        if match is not None:
            found[file] = match
        if isinstance(match, Match):
            claims.setdefault(match.file, {})[path] = match
    best = {file: _best(matches) for file, matches in claims.items()}
    for file, match in list(found.items()):
        if isinstance(match, Match) and best[match.file] != companion_path(file):
            if best[match.file] is None:
                found[file] = Several((match.file,))
            else:
                del found[file]
    return found
