"""Text and YAML files that strangers made: bounded, and inside the data set. Knows no format and no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from fgd.data.encodings import Decoded, decode
from fgd.data.tree import Tree

_MAX_DEPTH = 16
_MAX_NUMBER = 100
"""Characters. Python refuses to write a number of thousands of digits, and to read 1:1:1:... costs the square."""


class UnreadableText(Exception):
    """A file that cannot be used."""


def place(tree: Tree, file: str) -> Path:
    """Where a file of the data set lies. Raises UnreadableText for one that is none, or that a link puts elsewhere."""
    path = tree.path(file)
    if path is None or not os.path.isfile(path):
        raise UnreadableText("a link that leads out of the data set, or not a file")
    return path


def read_text(tree: Tree, file: str, most: int) -> str:
    return read_decoded(tree, file, most).text


def read_decoded(tree: Tree, file: str, most: int) -> Decoded:
    """The text, and the encoding that it seems to be in. Raises UnreadableText."""
    path = place(tree, file)
    try:
        if path.stat().st_size > most:
            raise UnreadableText(f"larger than {most} bytes")
        return decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UnreadableText(f"cannot be read as text: {error}") from error


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml's is ten times faster
    """What is too long to be meant as a number stays text."""


def _number(loader: _Loader, node: yaml.ScalarNode) -> int | float | str:
    if len(text := str(loader.construct_scalar(node))) > _MAX_NUMBER:
        return text
    read = loader.construct_yaml_float if node.tag.endswith("float") else loader.construct_yaml_int
    found: int | float = read(node)
    return found


for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    _Loader.add_constructor(_tag, _number)


def load_yaml(text: str) -> Any:
    """Plain values only. Raises UnreadableText, whatever the parser stumbles over."""
    try:
        _refuse_bombs(text)
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UnreadableText(f"invalid YAML: {_told(error)}"[:300]) from error
    except UnreadableText:
        raise
    except Exception as error:  # a date that does not exist, a !!timestamp that is none: not all is a YAMLError
        raise UnreadableText(f"invalid YAML: {error}"[:300]) from error


def _told(error: Exception) -> str:
    """The parser's words in one line, without its name for a text that is no file."""
    return " ".join(str(error).replace('in "<unicode string>", ', "at ").split())


def _refuse_bombs(text: str) -> None:
    """Aliases make a few lines mean more than any memory holds, and depth costs the parser its square."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise UnreadableText(f"invalid YAML for this purpose: nested deeper than {_MAX_DEPTH}")
        if isinstance(event, yaml.AliasEvent):
            raise UnreadableText("it has YAML aliases (*name), which are not read; write the values out")
