"""Our names and values as MLflow takes them. Knows its rules and no server.

MLflow allows letters, digits, "_", "-", ".", blanks and "/" in names, which must also be paths in their shortest form.
A name that has to change ends with a part of its own hash, so that two never become one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ADDRESS = re.compile(r"https?://[^/@?#\s]+(/[^@?#\s]*)?")
"""Of a server. An account in it would end up in logs."""
EXPERIMENT = "fgd"
"""Where runs go unless another is named."""
MAX_NAME = 250
MAX_PARAM = 500
"""Characters of a setting's value; newer servers take more."""
MAX_TAG = 5000
_ODD = re.compile(r"[^\w./ -]")


def allowed_name(name: str) -> str:
    """The name itself, or the nearest that is allowed."""
    parts = [part for part in _ODD.sub("_", name).split("/") if part.strip(". ")]
    near = "/".join(parts)
    if near == name and len(name) <= MAX_NAME:
        return name
    own = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:8]
    return f"{near[: MAX_NAME - 9]}-{own}"


def metric_name(name: str, split: str | None) -> str:
    """As in TensorBoard: of an evaluation the split stands before it, as in "val/ap"."""
    return allowed_name(name if split in (None, "train") else f"{split}/{name}")


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def flat(value: Mapping[str, Any] | Sequence[Any], begin: str = "") -> Iterator[tuple[str, str]]:
    """Every field under the path that `--set` knows it by: ("schedule.epochs", "12"). What is null is left out, and a
    list of plain values stays one."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, inner in items:
        path = f"{begin}{key}"
        if isinstance(inner, Mapping) or (isinstance(inner, list) and any(isinstance(x, dict | list) for x in inner)):
            yield from flat(inner, f"{path}.")
        elif inner is not None:
            yield path, inner if isinstance(inner, str) else json.dumps(inner)


def params(fields: Mapping[str, Any]) -> dict[str, str]:
    """Settings as MLflow keeps them."""
    return {allowed_name(path): cut(text, MAX_PARAM) for path, text in flat(fields)}
