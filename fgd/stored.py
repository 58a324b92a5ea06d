"""Specs and recipes as this or an earlier version wrote them: fields that were retired since (`Spec.retired`) are left
out.

A request is read by `JobSpec` itself, which refuses such a field. Knows no torch, no HTTP, no SQL.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args

from fgd.recipe import Recipe
from fgd.spec import JobSpec
from fgd.spec_fields import Spec
from fgd.text import strict_json


def stored_spec(document: Mapping[str, Any]) -> JobSpec:
    """The spec that a row or a file holds."""
    return JobSpec.model_validate(without_retired(document))


def stored_recipe(document: bytes | Mapping[str, Any]) -> Recipe:
    """The recipe that a row, a checkpoint or a file (its bytes) holds. Raises ValueError."""
    value = strict_json.parse(document) if isinstance(document, bytes) else document
    return Recipe.model_validate(without_retired(value, (Recipe,)) if isinstance(value, Mapping) else value)


def without_retired(document: Mapping[str, Any], kinds: tuple[type[Spec], ...] = (JobSpec,)) -> dict[str, Any]:
    """A copy that can be shown, and sent again. Nothing else is checked or changed.

    kinds: what the document is one of.
    """
    likely = [kind for kind in kinds if _may_be(document, kind)]
    return {
        name: _inside(value, tuple(part for kind in likely for part in _parts(kind, name)))
        for name, value in document.items()
        if not any(name in kind.retired for kind in likely)
    }


def text_without_retired(document: str, kind: type[Spec] = JobSpec) -> str:
    """The same of JSON text. Most of it names nothing that was retired, and is passed on as it is."""
    if not any(f'"{name}"' in document for name in _retired(kind)):
        return document
    return json.dumps(without_retired(json.loads(document), (kind,)))


@cache
def _retired(kind: type[Spec]) -> frozenset[str]:
    """Whatever name was retired anywhere in it."""
    found, ahead = set[type[Spec]](), [kind]
    while ahead:
        kind = ahead.pop()
        if kind not in found:
            found.add(kind)
            ahead += [part for field in kind.model_fields.values() for part in _specs(field.annotation)]
    return frozenset(name for kind in found for name in kind.retired)


def _inside(value: Any, kinds: tuple[type[Spec], ...]) -> Any:
    if kinds and isinstance(value, list):
        return [_inside(each, kinds) for each in value]
    return without_retired(value, kinds) if kinds and isinstance(value, dict) else value


def _may_be(document: Mapping[str, Any], kind: type[Spec]) -> bool:
    own = kind.model_fields.get("kind")
    return own is None or document.get("kind", own.default) == own.default


@cache
def _parts(kind: type[Spec], sent: str) -> tuple[type[Spec], ...]:
    """What a field may hold, by its name in a document."""
    fields = kind.model_fields.items()
    return tuple(each for name, field in fields if sent == (field.alias or name) for each in _specs(field.annotation))


def _specs(annotation: Any) -> Iterator[type[Spec]]:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        yield annotation
    for inner in get_args(annotation):
        yield from _specs(inner)
