"""What a Hugging Face repository says of itself: class names, and which files are which split. Knows no torch.

README.md      YAML between two lines "---": dataset_info with features, configs with data_files
dataset_infos.json    the features, of older repositories
Parquet files  the features as JSON, in the schema's metadata; see fgd.data.huggingface_parquet

A feature is written in many ways; each is walked until a class label of the wanted name is found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property, lru_cache
from typing import Any

from fgd.data.report import Defects
from fgd.data.texts import UnreadableText, load_yaml, read_text
from fgd.data.tree import MAX_NAME, Split, Tree, below, depth, folder_of, is_class_name, is_text, short, words_split

CARD, INFOS = "README.md", "dataset_infos.json"
CATEGORY_KEYS = ("categories", "category", "category_id", "labels", "label", "class", "class_id")
"""Where the classes of a row's boxes are, the first that there is."""
_MAX_CARD_BYTES = 2 * 2**20
_MAX_INFOS_BYTES = 8 * 2**20
_MAX_CLASSES = 100_000
_MAX_PATTERN = 300
_MAX_PATTERNS = 1000
"""With * or ?: each file is compared with each, and with the first so many."""
_MAX_ANYWHERE = 3
"""Of ** in a pattern."""
_FRONT = re.compile(r"\A---[ \t]*\n(.*?)\n---[ \t]*(\n|\Z)", re.DOTALL)
_WORDS: Mapping[str, Split] = {"dev": "val", "eval": "test", "evaluation": "test"}
"""Words of Hugging Face's own beside those of every format."""


@dataclass(frozen=True)
class Card:
    names: Sequence[str]
    """By class index; empty where the repository does not say."""
    patterns: Sequence[tuple[Sequence[str], Split | None]]
    """Files of the configuration that is read; none: files go by their names."""
    file: str = ""
    """The card itself; "" if there is none."""

    @cached_property
    def _files(self) -> Mapping[str, Split | None]:
        """Of patterns that are the name of one file, however many."""
        plain = [("/".join(pattern), split) for pattern, split in self.patterns if not _is_wild(pattern)]
        return dict(reversed(plain))  # the first counts

    @cached_property
    def _wild(self) -> Sequence[tuple[Sequence[str], Split | None]]:
        return [(pattern, split) for pattern, split in self.patterns if _is_wild(pattern)][:_MAX_PATTERNS]

    def split_of(self, file: str, home: str = "") -> Split | None:
        """By the card, else by the innermost name that means a split; None if nothing says.

        home: a folder of all files, whose name says nothing.
        """
        if file in self._files:
            return self._files[file]
        parts = file.split("/")
        for pattern, split in self._wild:
            if _matches(parts, pattern):
                return split
        return None if self.patterns else split_of_words(file, home)


@lru_cache(1024)
def split_of_words(file: str, home: str = "") -> Split | None:
    for part in reversed(file.split("/")[depth(home) :]):
        stem = part.rpartition(".")[0] or part
        found = {_WORDS[word] for word in re.findall(r"[a-z]+", stem.lower()) if word in _WORDS}
        if split := words_split(stem) or (found.pop() if len(found) == 1 else None):
            return split
    return None


def read_card(tree: Tree, defects: Defects) -> Card:
    """The shallowest card of the folder; what cannot be read of it is reported."""
    file = next(iter(sorted((f for f in tree.files if _is(f, CARD)), key=lambda f: (f.count("/"), f))), None)
    front = _front(tree, file, defects) if file else {}
    config = _config(file or "", front, defects)
    names = next((_usable(file or "", names, defects) for names in _labels_of_card(front, config)), ())
    if not names:
        names = next((_usable(INFOS, names, defects) for names in _labels_of_infos(tree, config, defects)), ())
    return Card(names, _patterns(folder_of(file or ""), config), file or "")


def _is(file: str, name: str) -> bool:
    return file == name or file.endswith(f"/{name}")


def _front(tree: Tree, file: str, defects: Defects) -> dict[str, Any]:
    try:
        found = _FRONT.match(read_text(tree, file, _MAX_CARD_BYTES).replace("\r\n", "\n"))
        content = load_yaml(found[1]) if found else None
    except UnreadableText as error:
        defects.add("card_invalid", file, f"{error}; class names and splits in it are not known", "kept")
        return {}
    return content if isinstance(content, dict) else {}


def _config(file: str, front: dict[str, Any], defects: Defects) -> dict[str, Any]:
    """The configuration to read: the one marked, or named, default; else the only one."""
    configs = [c for c in _list(front.get("configs")) if isinstance(c, dict) and is_text(c.get("config_name"))]
    if not configs:
        return {}
    chosen = next(
        (c for c in configs if c.get("default") is True),
        next((c for c in configs if c["config_name"] == "default"), configs[0] if len(configs) == 1 else None),
    )
    if chosen is None:
        told = ", ".join(c["config_name"] for c in configs[:10])
        message = f"it has {len(configs)} configurations ({told}) and none is the default; leave only one in configs"
        defects.reject("config_ambiguous", file, message)
        return {}
    if len(configs) > 1:
        message = f"{len(configs)} configurations; {short(chosen['config_name'])} is read, the others are not"
        defects.add("config_skipped", file, message, "kept")
    return chosen


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


# --- splits ---------------------------------------------------------------------------------------------------


def _patterns(home: str, config: dict[str, Any]) -> list[tuple[Sequence[str], Split | None]]:
    given = config.get("data_files")
    pairs: list[tuple[Any, Any]] = []
    if isinstance(given, dict):
        pairs = list(given.items())
    else:
        for entry in _list(given):
            pairs.append(
                (entry.get("split", "train"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
            )
    found: list[tuple[Sequence[str], Split | None]] = []
    base = config.get("data_dir")
    if is_text(base):
        home = below(home, base.strip("./"))
    for split, paths in pairs:
        for path in _list(paths):
            if is_text(path) and len(path) <= _MAX_PATTERN:
                pattern = [part for part in below(home, path).split("/") if part not in ("", ".")]
                if pattern.count("**") <= _MAX_ANYWHERE:
                    found.append((pattern, split_of_words(str(split).lower())))
    return found


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Folder by folder; ** is any number of them. Both are short: a tree has few levels."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1)) or (
            len(pattern) == 1 and bool(parts)
        )
    return bool(parts) and _compiled(pattern[0]).match(parts[0]) is not None and _matches(parts[1:], pattern[1:])


def _is_wild(pattern: Sequence[str]) -> bool:
    return any(sign in part for part in pattern for sign in "*?[")


@lru_cache(_MAX_PATTERNS * 4)
def _compiled(pattern: str) -> re.Pattern[str]:
    """fnmatch's own cache is smaller than the number of patterns, and then compiles each again for each file."""
    return re.compile(translate(pattern))


# --- class names ----------------------------------------------------------------------------------------------


def class_names(features: Any) -> list[Any] | dict[Any, Any] | None:
    """Names of the class label that a row's boxes carry, as written; None if the features name none."""
    return next(_labels(features, None), None)


def _labels(node: Any, name: str | None, depth: int = 0) -> Iterator[list[Any] | dict[Any, Any]]:
    """Class labels below `node`. name: of the feature that it belongs to."""
    if depth > 12:
        return
    if isinstance(node, list):
        for inner in node:
            yield from _labels(inner, name, depth + 1)
    elif isinstance(node, dict):
        own = node["name"] if isinstance(node.get("name"), str) else name
        label = node if node.get("_type") == "ClassLabel" else node.get("class_label")
        names = label.get("names") if isinstance(label, dict) else None
        if isinstance(names, list | dict) and own in CATEGORY_KEYS:
            yield names
        for key, inner in node.items():
            wrapper = key in ("feature", "dtype", "sequence", "list", "struct", "class_label", "features")
            yield from _labels(inner, own if wrapper else key, depth + 1)


def usable_names(given: list[Any] | dict[Any, Any]) -> list[str] | None:
    """By index; None where they are no table of classes."""
    items = list(given.items()) if isinstance(given, dict) else list(enumerate(given))
    table: dict[int, str] = {}
    for key, value in items[:_MAX_CLASSES]:
        index = int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 10 else key
        name = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
        if not isinstance(index, int) or isinstance(index, bool) or not is_class_name(name):
            return None
        table[index] = name
    names = [table[index] for index in sorted(table)]
    complete = sorted(table) == list(range(len(items))) and len(set(names)) == len(names)
    return names if names and complete else None


def _usable(file: str, given: list[Any] | dict[Any, Any], defects: Defects) -> Sequence[str]:
    names = usable_names(given)
    if names is None:
        message = f"its class names must be 0: name, 1: name, ..., each once, of at most {MAX_NAME} characters"
        defects.reject("category_invalid", file, message)
    return names or ()


def _labels_of_card(front: dict[str, Any], config: dict[str, Any]) -> Iterator[list[Any] | dict[Any, Any]]:
    for info in _of_config(_list(front.get("dataset_info")), config):
        yield from _labels(info.get("features"), None)


def _of_config(infos: list[Any], config: dict[str, Any]) -> list[dict[Any, Any]]:
    """That of the configuration first."""
    wanted = config.get("config_name")
    known = [info for info in infos if isinstance(info, dict)]
    return sorted(known, key=lambda info: info.get("config_name") != wanted)


def _labels_of_infos(tree: Tree, config: dict[str, Any], defects: Defects) -> Iterator[list[Any] | dict[Any, Any]]:
    file = next((f for f in sorted(tree.files, key=lambda f: (f.count("/"), f)) if _is(f, INFOS)), None)
    if file is None:
        return
    try:
        content = json.loads(read_text(tree, file, _MAX_INFOS_BYTES))
    except (UnreadableText, ValueError, RecursionError) as error:
        defects.add("card_invalid", file, f"{error}; class names in it are not known", "kept")
        return
    infos = (
        [{"config_name": key, **info} for key, info in content.items() if isinstance(info, dict)]
        if isinstance(content, dict)
        else []
    )
    for info in _of_config(infos, config):
        yield from _labels(info.get("features"), None)
