"""`--set PATH=VALUE`: fields of a spec, typed as options. Knows the fields; the service checks their values."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]
"""JSON Schema, as pydantic writes it."""


class WrongSetting(ValueError):
    """Reads on after "--set schedule.epoch=3: ..."."""


def settle(body: Mapping[str, Any], settings: Iterable[str], schema: Schema) -> dict[str, Any]:
    """The body with each setting in it, in turn. Raises WrongSetting, which begins with the option."""
    changed = copy.deepcopy(dict(body))
    for text in settings:
        try:
            _set(changed, text, schema)
        except WrongSetting as error:
            raise WrongSetting(f"--set {text}: {error}") from error
    return changed


def _set(body: dict[str, Any], text: str, schema: Schema) -> None:
    from fgd.text import strict_yaml

    path, equals, typed = text.partition("=")
    steps = path.split(".")
    if not equals or not all(steps):
        raise WrongSetting("write PATH=VALUE, as in --set schedule.epochs=24")
    try:
        value = strict_yaml.parse(typed) if typed.strip() else None
    except strict_yaml.NotYAML as error:
        raise WrongSetting(f"the value is {error}; a text with such characters goes in quotes") from error
    holder: Any = {"": body}
    key: str | int = ""
    place: list[Schema] = [schema]
    for depth, step in enumerate(steps):
        inside = holder[key]
        place = _likely(place, inside, schema)
        if inside is None or (inside == [] and not step.isdecimal()):
            inside = holder[key] = [] if _lists(place) and not _objects(place) else {}
        holder, key = inside, _key(inside, step, steps[:depth])
        place = _below(place, step, ".".join(steps[:depth]), schema)
        if isinstance(holder, list) and key == len(holder):
            holder.append(None)
        elif isinstance(holder, dict):
            holder.setdefault(key, None)
    holder[key] = value


def _key(inside: Any, step: str, before: Sequence[str]) -> str | int:
    name = ".".join(before)
    if isinstance(inside, dict):
        return step
    if not isinstance(inside, list):
        raise WrongSetting(f"{name} is {inside!r}, which has no fields")
    if not step.isdecimal() or len(step) > 6 or int(step) > len(inside):
        last = f"to {name}.{len(inside)}, which adds one" if inside else "which is the first"
        raise WrongSetting(f"{name} is a list of {len(inside)}: write {name}.0 {last}".replace(".0 which", ".0, which"))
    return int(step)


def _below(place: Sequence[Schema], step: str, name: str, root: Schema) -> list[Schema]:
    """What may stand at this step. Raises WrongSetting if nothing may."""
    found: list[Schema] = []
    closed = bool(place)
    for each in place:
        if step.isdecimal() and (each.get("type") == "array" or "items" in each):
            found += _members(each.get("items", {}), root)
        elif step in each.get("properties", {}):
            found += _members(each["properties"][step], root)
        elif isinstance(more := each.get("additionalProperties", True), dict):
            found += _members(more, root)
        if not each or (each.get("type") == "object" and each.get("additionalProperties", True) is not False):
            closed = False
    if found or not closed:
        return found
    known = sorted({field for each in place for field in each.get("properties", {})})
    where = name or "a spec"
    if not known:
        form = f"a list: write {name}.0" if _lists(place) else "a value without fields"
        raise WrongSetting(f"{name} is {form}")
    near = difflib.get_close_matches(step, known, n=1, cutoff=0.0)[0]
    nearest = f"{name}.{near}" if name else near
    raise WrongSetting(f"{where} has no field {step!r}; the nearest is {nearest}, and all are {', '.join(known)}")


def _likely(place: Sequence[Schema], value: Any, root: Schema) -> list[Schema]:
    """Of the kinds that may stand here the one that the value names. A kind that is not known here has any field."""
    found: list[Schema] = []
    for each in place:
        kinds = each.get("discriminator", {}).get("mapping")
        if kinds is None:
            found.append(each)
        elif isinstance(value, dict) and isinstance(kind := value.get("kind"), str):
            found += _members({"$ref": kinds[kind]}, root) if kind in kinds else [{}]
        else:
            found += [inner for ref in kinds.values() for inner in _members({"$ref": ref}, root)]
    return found


def _members(schema: Schema, root: Schema) -> Iterator[Schema]:
    """The schemas that a reference or a union stands for; a union that tells its members apart by a field stays one."""
    if (ref := schema.get("$ref")) is not None:
        yield from _members(root["$defs"][ref.rpartition("/")[2]], root)
    elif "discriminator" in schema:
        yield schema
    elif (union := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")) is not None:
        for each in union:
            yield from _members(each, root)
    else:
        yield schema


def _lists(place: Sequence[Schema]) -> bool:
    return any(each.get("type") == "array" for each in place)


def _objects(place: Sequence[Schema]) -> bool:
    return any(each.get("type") == "object" or "properties" in each for each in place)
