"""JSON as everyone reads it the same: what one reader takes one way and the next another is refused.

For the service's bodies, and for spec files. Knows no HTTP and no torch.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_DEPTH = 32
MAX_VALUES = 12_000
"""The largest honest document is a model with 10 000 classes. What is wrong with a document is found value by value, so
the number of its values bounds what it may cost."""
_STRING_OR_MARK = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{},]', re.DOTALL)
"""Possessive, and a string may lack its end: whatever it meets, it never goes back, so time is linear in the text."""


class NotJSON(ValueError):
    """Reads on after "the body is ..." or "spec.json: ..."."""


def parse(document: bytes | str) -> Any:
    """One JSON value. Raises NotJSON for everything JSON forbids, and for what two readers would read differently:
    a key twice, NaN, half a surrogate pair."""
    try:
        text = document.decode("utf-8") if isinstance(document, bytes) else document
        _check_shape(text)
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise NotJSON("not UTF-8") from error
    except UnicodeEncodeError as error:
        raise NotJSON("not JSON that can be read: it holds half a surrogate pair, which is no character") from error
    except json.JSONDecodeError as error:
        reason = "it is empty" if not document else f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise NotJSON(f"not JSON: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise NotJSON(f"not JSON that can be read: {error}"[:500]) from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return value


def _constant(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON number")


def _check_shape(text: str) -> None:
    """Before parsing: the parser would recurse as deep as the text says, and build all that it holds."""
    depth = values = 0
    for found in _STRING_OR_MARK.finditer(text):
        if (mark := found[0]) in ("[", "{"):
            depth += 1
        elif mark in ("]", "}"):
            depth -= 1
        elif mark != ",":
            continue
        values += mark == "," or mark in ("[", "{")
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH}")
        if values > MAX_VALUES:
            raise ValueError(f"it holds more than {MAX_VALUES} values")
