"""Spec files, as YAML or JSON: a file's name says which, and what has no name that says it is looked at."""

from __future__ import annotations

from typing import Any

from fgd.text import strict_json, strict_yaml

MAX_BYTES = 4 * 2**20
"""A spec of a thousand classes has some 50 kB."""


class Unreadable(ValueError):
    """Names the file, and the line if it is known: "spec.yaml:3: ..."."""


def parse(document: bytes, name: str) -> Any:
    """Raises Unreadable."""
    if len(document) > MAX_BYTES:
        raise Unreadable(f"{name}: larger than {MAX_BYTES // 2**20} MiB, which no spec is")
    try:
        text = document.decode("utf-8")
    except UnicodeError as error:
        raise Unreadable(f"{name}: not UTF-8") from error
    try:
        return strict_yaml.parse(text) if _is_yaml(text, name) else strict_json.parse(text)
    except strict_json.NotJSON as error:
        raise Unreadable(f"{name}: {error}") from error
    except strict_yaml.NotYAML as error:
        raise Unreadable(f"{name}{f':{error.line}' if error.line else ''}: {error}") from error


def _is_yaml(text: str, name: str) -> bool:
    if name.lower().endswith((".yaml", ".yml")):
        return True
    return not name.lower().endswith(".json") and text.strip() != "" and text.lstrip()[0] not in "{["
