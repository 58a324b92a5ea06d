"""Where in the user's body a fault lies: pydantic's locations as JSON pointers (RFC 6901).

A location also names the member of a union that was tried ("/methods/0/fgd/alpha"); the body has no such step, so it
is left out. Of the members of an untagged union only the one that the user most likely meant is named.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fgd.text.pydantic_messages import MAX_DETAIL, sentence

Part = str | int
MAX_FAULTS = 100
MAX_LOOKED_AT = 1000
"""Of pydantic's errors the first ones say enough; each that is looked at takes time."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a request: `pointer` is a JSON pointer into its body, "" for the whole of it;
    `parameter` names the query parameter, path segment or header at fault instead."""

    pointer: str
    code: str
    detail: str
    parameter: str | None = None


_SHAPE = {"missing", "extra_forbidden"}
"""Other fields than that kind of thing has."""


class Place:
    """`parts`: the path through the body; `tags`: union members left out, each with how deep it stood."""

    def __init__(self, parts: tuple[Part, ...], tags: tuple[tuple[int, str], ...], whole: bool) -> None:
        self.parts = parts
        self.tags = tags
        self.whole = whole
        """The last step of the location is the last step of the path."""

    def pointer(self) -> str:
        return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in self.parts)


def faults(errors: Sequence[Mapping[str, Any]], body: Any) -> list[Fault]:
    """What a user reads of pydantic's errors about a request, each fault once, the first hundred."""
    errors = errors[:MAX_LOOKED_AT]
    in_body = [(error, locate(body, error["loc"][1:], error["type"])) for error in errors if error["loc"][0] == "body"]
    told = [_of_body(error, place) for error, place in _likeliest(in_body)]
    told += [_of_parameter(error) for error in errors if error["loc"][0] != "body"]
    return list(dict.fromkeys(told))[:MAX_FAULTS]


def faults_of_spec(errors: Sequence[Mapping[str, Any]], spec: Any) -> list[Fault]:
    """The same of a spec that came from a file."""
    return faults([{**error, "loc": ("body", *error["loc"])} for error in errors], spec)


def locate(body: Any, loc: Sequence[Part], type: str) -> Place:
    return _walk(body, tuple(loc), type, 0)


def _walk(value: Any, loc: tuple[Part, ...], type: str, depth: int) -> Place:
    if not loc:
        return Place((), (), True)
    head, rest = loc[0], loc[1:]
    options = []
    if _has(value, head):
        inner = _walk(value[head], rest, type, depth + 1)
        options.append(Place((head, *inner.parts), inner.tags, inner.whole))
    elif type == "missing" and not rest and isinstance(value, dict if isinstance(head, str) else list):
        options.append(Place((head,), (), True))
    if isinstance(head, str):
        inner = _walk(value, rest, type, depth)
        options.append(Place(inner.parts, ((depth, head), *inner.tags), inner.whole and bool(rest)))
    return max(options, key=lambda place: (place.whole, len(place.parts)), default=Place((), (), False))


def _has(value: Any, step: Part) -> bool:
    if isinstance(value, dict):
        return step in value
    return isinstance(value, list) and isinstance(step, int) and step < len(value)


def _likeliest(found: list[tuple[Mapping[str, Any], Place]]) -> list[tuple[Mapping[str, Any], Place]]:
    """Leave out the errors of union members that fit worse than another member does."""
    unions: dict[tuple[object, ...], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for error, place in found:
        for union, depth, tag in _choices(place):
            unions[union][tag] += _misfit(error["type"], at_root=len(place.parts) == depth)

    def fits(place: Place) -> bool:
        return all(unions[union][tag] == min(unions[union].values()) for union, _, tag in _choices(place))

    return [(error, place) for error, place in found if fits(place)]


def _choices(place: Place) -> list[tuple[tuple[object, ...], int, str]]:
    """Each union on the way, from the outermost in: which it is, how deep it stands, the member that was tried."""
    return [((place.parts[:depth], place.tags[:n]), depth, tag) for n, (depth, tag) in enumerate(place.tags)]


def _misfit(type: str, at_root: bool) -> int:
    """How much an error says "this is not that kind of thing at all" rather than "this is one, with a mistake"."""
    if at_root and type.endswith("_type"):
        return 10  # text where an object belongs, or the other way round
    return 1 if type in _SHAPE else 0


def _of_body(error: Mapping[str, Any], place: Place) -> Fault:
    pointer = place.pointer()
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        pointer += "/" + error["ctx"]["discriminator"].strip("'")
    if "at" in error.get("ctx", {}):  # one of our own, of a field inside what was looked at
        pointer += "/" + error["ctx"]["at"]
    return Fault(pointer, error["type"], sentence(error, str(place.parts[-1]) if place.parts else ""))


def _of_parameter(error: Mapping[str, Any]) -> Fault:
    where, *name = error["loc"]
    parameter = ".".join(part for part in name if isinstance(part, str)) or str(where)  # not the place in a list
    detail = f"{where} parameter {parameter}: {sentence(error, parameter)}"[:MAX_DETAIL]
    return Fault("", error["type"], detail, parameter)
