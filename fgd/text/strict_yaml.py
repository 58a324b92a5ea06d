"""YAML, of which only what JSON can say is read, under the same bounds: for spec files and options, not for bodies.

Plain words mean what YAML 1.2 says: 1e-4 is a number; `no`, `on` and 2026-11-30 are text. Knows no HTTP and no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from fgd.text.strict_json import MAX_DEPTH, MAX_VALUES

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_NUMBER = re.compile(r"[-+]?(\d+|(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)")
_MAX_NUMBER = 100
"""Characters; Python reads very long numbers slowly. What is longer stays text."""


class NotYAML(ValueError):
    """`line`: from 1, where it is known. Reads on after "spec.yaml:3: ..."."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


def parse(text: str) -> Any:
    """One document. Raises NotYAML: not YAML, a key twice, an alias, a tag, too deep, or too large."""
    try:
        events = _bounded(text)
        if (first := next(events, None)) is None:
            raise NotYAML("it is empty")
        value = _value(first, events)
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                raise _refused(event, "a second document; write one in a file")
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise NotYAML(
            f"not YAML: {error.problem or error.context}", min(mark.line + 1, len(text.splitlines())) if mark else None
        ) from error
    except yaml.YAMLError as error:
        raise NotYAML(f"not YAML: {' '.join(str(error).split())}"[:300]) from error
    except UnicodeEncodeError as error:
        raise NotYAML("it holds half a surrogate pair, which is no character") from error
    return value


def _refused(event: yaml.Event, reason: str) -> NotYAML:
    return NotYAML(reason, event.start_mark.line + 1)


def _bounded(text: str) -> Iterator[yaml.Event]:
    """The parser's events, but for those about the file. Nothing is built yet when a bound is met."""
    depth = values = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.StreamStartEvent | yaml.StreamEndEvent | yaml.DocumentEndEvent):
            continue
        if isinstance(event, yaml.DocumentStartEvent) and not values:
            continue
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        values += not isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _refused(event, f"it is nested deeper than {MAX_DEPTH}")
        if values > 2 * MAX_VALUES:  # keys are among them
            raise _refused(event, f"it holds more than {MAX_VALUES} values")
        if isinstance(event, yaml.AliasEvent):
            raise _refused(event, f"*{event.anchor} is a YAML alias, which is not read; write the value out")
        if getattr(event, "tag", None) not in (None, "!"):
            raise _refused(event, f"{event.tag} is a YAML tag, which is not read; write the value alone")
        yield event


def _value(event: yaml.Event, events: Iterator[yaml.Event]) -> Any:
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event)
    if isinstance(event, yaml.SequenceStartEvent):
        return [_value(item, events) for item in _until(yaml.SequenceEndEvent, events)]
    found: dict[str, Any] = {}
    for key in _until(yaml.MappingEndEvent, events):
        if not isinstance(key, yaml.ScalarEvent):
            raise _refused(key, "a key must be one word or a text")
        if key.value in found:
            raise _refused(key, f"the key {key.value!r} stands twice in one object")
        found[key.value] = _value(next(events), events)
    return found


def _until(end: type[yaml.Event], events: Iterator[yaml.Event]) -> Iterator[yaml.Event]:
    while not isinstance(event := next(events), end):
        yield event


def _scalar(event: yaml.ScalarEvent) -> Any:
    text = event.value
    if event.style is not None and event.style != "":  # quoted, or a block
        return text
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _MAX_NUMBER or (match := _NUMBER.fullmatch(text)) is None:
        return text
    number = int(text) if match[1].isdecimal() else float(text)
    if not math.isfinite(number):
        raise _refused(event, f"{text} is too large a number")
    return number
