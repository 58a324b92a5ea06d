"""The weights that a spec names, whatever field they stand in. Knows the spec alone.

The field's name is the role of the weights: teacher, teachers/<name>, inherit, weights. Whatever asks what a job needs,
in the service or in the library, asks here, so that a field that is added is known to all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from fgd.spec import JobSpec
from fgd.spec_fields import FromJob, FromModel, FromPath, WeightsRef

NOUNS = {"teachers": "teacher"}


@dataclass(frozen=True)
class NamedWeights:
    role: str
    noun: str
    """What they are, in codes of errors: teacher of each of the teachers."""
    pointer: str
    """JSON pointer of the reference, in the spec."""
    ref: WeightsRef


def named_weights(spec: JobSpec) -> tuple[NamedWeights, ...]:
    """In the order of the spec's fields."""
    found = tuple(each for name in JobSpec.model_fields if name != "dataset" for each in _below(spec, name, ""))
    assert len({each.role for each in found}) == len(found), "each field that names weights has a name of its own"
    return found


def _below(owner: BaseModel, name: str, pointer: str) -> Iterator[NamedWeights]:
    yield from _in(getattr(owner, name), name, f"{pointer}/{name}")


def _in(value: Any, role: str, pointer: str) -> Iterator[NamedWeights]:
    if isinstance(value, FromJob | FromModel | FromPath):
        yield NamedWeights(role, NOUNS.get(role.partition("/")[0], role), pointer, value)
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _below(value, name, pointer)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _in(each, f"{role}/{key}", f"{pointer}/{key}")
    elif isinstance(value, tuple):
        for place, each in enumerate(value):
            yield from _in(each, role, f"{pointer}/{place}")
