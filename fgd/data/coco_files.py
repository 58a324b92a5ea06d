"""Finds the COCO annotation files of a folder, the split of each and the folder of its images. Knows no torch.

By content, so that these all work, and their mixtures:

    annotations/instances_train2017.json + train2017/     annotations/custom_train.json + images/train/
    train/_annotations.coco.json (beside its images)      train.json with file names like train/0001.jpg
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fgd.data.encodings import decode
from fgd.data.foreign import json_value_kind
from fgd.data.listing import NothingFound
from fgd.data.matching import Ends, ends_of, normalised
from fgd.data.report import Defects
from fgd.data.tree import SPLITS, Split, SplitWords, Tree, folder_of, means_unlabelled

MAX_JSON_BYTES = 1 * 2**30
"""COCO's own training annotations are 450 MB."""
MAX_JSON_TAKES = 6 * 2**30
"""Bytes of memory that the values of one file may take; COCO's own take 3 GB."""
MAX_JSON_TIMES, _SMALL_JSON_TAKES = 24, 512 * 2**20
"""The same as a multiple of the text, where it is more than the second: the shortest annotations take 18 times."""
_MOST_HAVING = 1000
"""Files with one name; a name that more have says nothing about folders."""
_MOST_TOLD = 5
_SMALL_JSON_BYTES = 1 << 20
_KEYS = ("images", "annotations", "categories")
_TAKES = {b"[": 100, b"{": 160, b'"': 28, b",": 40, b":": 40}
"""Bytes that CPython 3.11 needs for what begins with such a sign, a little more than measured."""


@dataclass(frozen=True)
class Annotations:
    """One annotation file, not yet checked entry by entry."""

    file: str
    """Relative to the root."""
    images: list[Any]
    annotations: list[Any]
    categories: list[Any]
    encoding: str = "utf-8"
    """Guessed where it is another."""

    @property
    def names(self) -> list[str]:
        """File names of its images, as far as they are names."""
        return [e["file_name"] for e in self.images if isinstance(e, dict) and isinstance(e.get("file_name"), str)]

    @property
    def has_keypoints(self) -> bool:
        return any(isinstance(c, dict) and c.get("keypoints") for c in self.categories)


@dataclass(frozen=True)
class Source:
    """The annotation file of one split and the folder its file names are relative to."""

    annotations: Annotations
    folder: str
    gathered: bool
    """Whether most of the images lie there; else they lie in several folders."""
    complete: bool
    """Whether all do."""


class _Unusable(Exception):
    """`broken`: meant as annotations, as far as one can tell; else it is something else altogether."""

    def __init__(self, message: str, *, broken: bool) -> None:
        super().__init__(message)
        self.broken = broken


def looks_like(tree: Tree) -> str | None:
    """A file that holds COCO annotations, by a look that parses nothing large; None if there is none."""
    jsons = sorted(file for file in tree.files if file.lower().endswith(".json"))
    return next((file for file in jsons if _mentions(tree.root / file) and not _is_other(tree.root / file)), None)


def _mentions(path: Path) -> bool:
    """Does it hold a list of images, and annotations or categories?"""
    found: set[bytes] = set()
    before = b""
    if not os.path.isfile(path):
        return False
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                window = before + chunk
                found |= {word for word in (b'"images"', b'"annotations"', b'"categories"') if word in window}
                if b'"images"' in found and len(found) > 1:
                    return True
                before = chunk[-16:]
    except OSError:
        return False
    return False


def _is_other(path: Path) -> bool:
    """A small file that has such words and is something else: a project's settings, another tool's annotations."""
    try:
        return path.stat().st_size <= _SMALL_JSON_BYTES and not _is_coco(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return False  # cut off, perhaps: the reader reports why it cannot be read


def find_sources(tree: Tree, defects: Defects) -> tuple[dict[Split, Source], frozenset[Split | None]]:
    """Split -> annotations and image folder; and the splits of files that could not be used, None: of any.

    What is wrong goes to `defects`.

    Raises DatasetError where nothing looks like COCO annotations at all.
    """
    found: dict[Split, list[Source]] = {split: [] for split in SPLITS}
    broken: dict[Split | None, list[tuple[str, str]]] = {}
    nowhere: list[Source] = []
    readable, unreadable = _load_all(tree, defects)
    jsons = SplitWords([*unreadable, *(one.file for one in readable)])
    for file, why in unreadable.items():
        broken.setdefault(jsons.of_file(file), []).append((file, why))
    named = [jsons.of_file(one.file) for one in readable]
    known = _folders(tree)
    places = [_image_folder(one, split, known) for one, split in zip(readable, named, strict=True)]
    folders = SplitWords(f"{folder}/" for folder, _, _ in places)
    names = SplitWords(name for one in readable for name in map(normalised, one.names))
    for one, split, (folder, gathered, complete) in zip(readable, named, places, strict=True):
        split = split or folders.of_folder(folder) or _split_of_names(names, one.names)
        if split is None:
            nowhere.append(Source(one, folder, gathered, complete))
        else:
            found[split].append(Source(one, folder, gathered, complete))
    if not (any(found.values()) or broken or nowhere):
        raise NothingFound(
            f"{tree.root}: no COCO annotations found; expected JSON files with images, annotations and categories, "
            "such as annotations/instances_train.json or train/_annotations.coco.json"
        )
    labelled = [sources for split, sources in found.items() if split != "unlabelled"]
    if len(nowhere) == 1 and not (any(labelled) or broken):
        found["train"], nowhere = nowhere, []  # one file without a split: val is taken out of it
    unusable = _report_unplaced(found, broken, nowhere, defects)
    return {split: _only(split, sources, defects) for split, sources in found.items() if sources}, unusable


def _load_all(tree: Tree, defects: Defects) -> tuple[list[Annotations], dict[str, str]]:
    """What can be read, and of the files that cannot, why. What is meant for something else is reported."""
    readable: list[Annotations] = []
    unreadable: dict[str, str] = {}
    for file in sorted(f for f in tree.files if f.lower().endswith(".json")):
        try:
            one = _load(tree.root, file)
        except _Unusable as error:
            if error.broken:
                unreadable[file] = str(error)
            else:
                defects.add("json_skipped", file, f"not detection annotations: {error}; ignored", "kept")
            continue
        if one.encoding != "utf-8":
            message = f"not UTF-8; read as {one.encoding}, so check the names"
            defects.add("encoding_guessed", file, message, "kept")
        readable.append(one)
    return readable, unreadable


def _load(root: Path, file: str) -> Annotations:
    path = root / file
    if not os.path.isfile(path):
        raise _Unusable("not a file (a dangling link, a pipe)", broken=False)
    if not path.resolve().is_relative_to(root):
        raise _Unusable("a link that leads out of the data set", broken=True)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise _Unusable(f"larger than {MAX_JSON_BYTES} bytes", broken=True)
    try:
        # The standard parser, because it lets NaN and Infinity through: one bad box must not cost the whole file.
        text = path.read_bytes()
        most = min(MAX_JSON_TAKES, max(_SMALL_JSON_TAKES, MAX_JSON_TIMES * len(text)))
        if (takes := memory_taken(text)) > most:
            raise _Unusable(f"its values would take {takes} bytes of memory, more than {most}", broken=True)
        content, encoding = _parsed(text)
    except json.JSONDecodeError as error:
        message = f"invalid JSON at line {error.lineno}, column {error.colno} (byte {error.pos}): {error.msg}"
        raise _Unusable(message, broken=True) from error
    except (ValueError, RecursionError, OSError) as error:  # wrong encoding; numbers of 4300 digits; depth
        raise _Unusable(f"invalid JSON: {error}", broken=True) from error
    if (other := json_value_kind(content)) and not _is_coco(content):
        raise _Unusable(other, broken=False)
    if not isinstance(content, dict):
        raise _Unusable(f"the file contains a {type(content).__name__}, not an object", broken=True)
    return _detection_annotations(file, content, encoding)


def _is_coco(content: Any) -> bool:
    """At least in part, so that what is missing is the fault."""
    return isinstance(content, dict) and sum(isinstance(content.get(key), list) for key in _KEYS) > 1


def _parsed(text: bytes) -> tuple[Any, str]:
    """And the encoding, where it is none of those that JSON may have."""
    try:
        return json.loads(text), "utf-8"
    except UnicodeDecodeError:
        decoded = decode(text)
        return json.loads(decoded.text), decoded.encoding


def memory_taken(text: bytes) -> int:
    """At most how many bytes the values of a JSON text take once they are read: a list of lists 24 times its text.

    Counted by signs, without reading it: a list, an object, a text with its quotes, and one value more for each comma.
    """
    characters = len(text) * (1 if text.isascii() else 4)
    return len(text) + characters + sum(text.count(sign) * bytes_ for sign, bytes_ in _TAKES.items())


def _detection_annotations(file: str, content: dict[str, Any], encoding: str) -> Annotations:
    present = [key for key in _KEYS if key in content]
    if not present:
        raise _Unusable("it has none of the keys images, annotations, categories", broken=False)
    entries = content.get("annotations")
    if isinstance(entries, list) and entries and not any(map(_has_place, entries)):
        message = "none of its annotations has a bbox or a segmentation (captions, panoptic, ...)"
        raise _Unusable(message, broken=False)
    missing = [key for key in _KEYS if not isinstance(content.get(key), list)]
    if "images" not in missing and not any(key in content for key in missing) and _is_of_unlabelled(file):
        return Annotations(file, content["images"], content.get("annotations", []), [], encoding)
    if missing == ["annotations"] and "annotations" not in content:
        raise _Unusable("it lists images without annotations", broken=True)
    if missing:
        raise _Unusable(f"{' and '.join(missing)} must be a list", broken=True)
    return Annotations(file, content["images"], content["annotations"], content["categories"], encoding)


def _is_of_unlabelled(file: str) -> bool:
    return any(map(means_unlabelled, (PurePosixPath(file).stem, folder_of(file).rpartition("/")[2])))


def _has_place(entry: Any) -> bool:
    return isinstance(entry, dict) and ("bbox" in entry or bool(entry.get("segmentation")))


def _split_of_names(words: SplitWords, names: Iterable[str]) -> Split | None:
    splits = {words.of_folder(folder_of(normalised(name))) for name in names}
    return splits.pop() if len(splits) == 1 else None


@dataclass(frozen=True)
class _Folders:
    """What is asked of the folders for each annotation file, indexed once."""

    ends: Ends
    words: SplitWords
    first_of: Mapping[Split, str]
    """Split -> the first folder whose name means it."""


def _folders(tree: Tree) -> _Folders:
    words = SplitWords(tree.images())
    first_of: dict[Split, str] = {}
    for folder in tree.folders:
        if split := words.of_folder(folder):
            first_of.setdefault(split, folder)
    return _Folders(ends_of(tree.files), words, first_of)


def _image_folder(annotations: Annotations, split: Split | None, folders: _Folders) -> tuple[str, bool, bool]:
    """The folder below which most of the named files are; on a tie the split's, then the JSON's own.

    In a folder of another split half of them count: files are often numbered alike in both. And whether it has half of
    all names, or twice as many as the other folders; and whether it has all.
    """
    own = folder_of(annotations.file)
    hits = _hits(folders.ends, annotations.names)

    def rank(folder: str) -> tuple[float, bool, bool]:
        said = folders.words.of_folder(folder)
        foreign = split is not None and said not in (split, None)
        return hits[folder] / (1 + foreign), said is not None and said == split, folder == own

    usual = {own, folders.first_of.get(split, own) if split else own}
    best = max(sorted(usual | hits.keys()), key=rank)
    here, names = hits[best], len(annotations.names)
    return best, here * 2 >= names or here >= 2 * (hits.total() - here), here >= names


def _hits(ends: Ends, names: Iterable[str]) -> Counter[str]:
    """Of each folder that has any, how many of the names are files below it."""
    wanted = Counter(spelling for name in names if (path := normalised(name)) for spelling in {name, path})
    hits: Counter[str] = Counter()
    for name, count in wanted.items():
        having = ends.having(name, _MOST_HAVING)
        for file in having if len(having) <= _MOST_HAVING else ():
            hits[file.removesuffix(name).removesuffix("/")] += count
    return hits


def _only(split: Split, sources: list[Source], defects: Defects) -> Source:
    """The one source of a split. A keypoint file gives way to a file of boxes alone, as in COCO's own folder."""
    plain = [source for source in sources if not source.annotations.has_keypoints]
    if len(sources) > 1 and plain:
        for source in sources:
            if source not in plain:
                defects.add("json_skipped", source.annotations.file, "keypoints; another file has the boxes", "kept")
        sources = plain
    if len(sources) > 1:
        files = ", ".join(source.annotations.file for source in sources[:_MOST_TOLD])
        files += f" and {len(sources) - _MOST_TOLD} more" if len(sources) > _MOST_TOLD else ""
        message = f"{files} all describe the {split} split; leave only one in the folder"
        defects.reject("split_ambiguous", sources[0].annotations.file, message)
    return sources[0]


def _report_unplaced(
    found: Mapping[Split, list[Source]],
    broken: Mapping[Split | None, list[tuple[str, str]]],
    nowhere: list[Source],
    defects: Defects,
) -> frozenset[Split | None]:
    """A broken file is fatal only if it may be the one that a split lacks. Returns the splits of those that are."""
    lacking = not (found["train"] and found["val"])
    fatal: set[Split | None] = set()
    for split, files in broken.items():
        needed = lacking if split is None else split != "unlabelled" and not found[split]
        fatal.update({split} if needed else ())
        for file, message in files:
            defects.add("json_invalid", file, message, "rejected" if needed else "kept")
    for source in nowhere:
        message = "cannot tell which split it describes; put train, val or test into its name or its folder's"
        defects.add("split_unknown", source.annotations.file, message, "rejected" if lacking else "kept")
        fatal.update({None} if lacking else ())
    return frozenset(fatal)
