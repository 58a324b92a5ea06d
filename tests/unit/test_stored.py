"""Specs and recipes of earlier versions: read without the fields that were retired since, wherever they stand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from fgd.detector_specs import FCOS
from fgd.recipe import Recipe
from fgd.spec import JobSpec
from fgd.spec_fields import Spec
from fgd.stored import stored_recipe, stored_spec, without_retired
from fgd.text.pointers import faults_of_spec


class Circle(Spec):
    retired: ClassVar[Mapping[str, str]] = {"sides": "a circle has none"}

    kind: Literal["circle"] = "circle"


class Polygon(Spec):
    kind: Literal["polygon"] = "polygon"
    sides: int


Shape = Annotated[Circle | Polygon, Field(discriminator="kind")]


class Drawing(Spec):
    retired: ClassVar[Mapping[str, str]] = {"colour": "all are black"}

    shapes: tuple[Shape, ...] = ()
    frame_: Shape | None = Field(default=None, alias="frame")
    labels: dict[str, str] = Field(default_factory=dict)


OLD = {
    "shapes": [{"kind": "circle", "sides": 1}, {"kind": "polygon", "sides": 4}],
    "frame": {"kind": "circle", "sides": 0},
    "colour": "red",
    "labels": {"colour": "of a label's own"},
}
NOW = {
    "shapes": [{"kind": "circle"}, {"kind": "polygon", "sides": 4}],
    "frame": {"kind": "circle"},
    "labels": {"colour": "of a label's own"},
}


def spec(**resources: Any) -> dict[str, Any]:
    return {
        "name": "n", "teacher": None, "student": {}, "dataset": {"path": "cells"}, "methods": [], "resources": resources
    }  # fmt: skip


def test_retired_fields_are_left_out_at_any_depth_and_nothing_else() -> None:
    before = repr(OLD)
    assert without_retired(OLD, (Drawing,)) == NOW
    assert repr(OLD) == before, "the row itself stays as it is"
    Drawing.model_validate(NOW)


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        ({"colour": "red"}, "/colour"),
        ({"shapes": [{"kind": "polygon", "sides": 4}, {"kind": "circle", "sides": None}]}, "/shapes/1/sides"),
        ({"frame": {"kind": "circle", "sides": 1}}, "/frame/sides"),
    ],
)
def test_a_request_that_names_one_is_pointed_at_the_field(document: dict[str, Any], pointer: str) -> None:
    with pytest.raises(ValidationError) as error:
        TypeAdapter(Drawing).validate_python(document)
    (fault,) = faults_of_spec(error.value.errors(), document)
    assert (fault.pointer, fault.code) == (pointer, "retired_field")
    assert "was removed: a" in fault.detail


@pytest.mark.parametrize("compile", [True, False])
def test_a_job_of_the_compiled_losses_is_read_as_one_without_them(compile: bool) -> None:
    assert stored_spec(spec(threads=2, compile=compile)) == JobSpec.model_validate(spec(threads=2))


def test_a_recipe_is_read_without_the_fields_that_its_detector_had(monkeypatch: pytest.MonkeyPatch) -> None:
    today = Recipe(detector=FCOS(norm="batch"), classes=("a",), min_size=64, max_size=96)
    document = today.model_dump(mode="json")
    document["detector"]["tied"] = True
    with pytest.raises(ValidationError, match="tied"):
        stored_recipe(document)

    monkeypatch.setattr(FCOS, "retired", {"tied": "both towers have weights of their own"})

    assert stored_recipe(document) == stored_recipe(json.dumps(document).encode()) == today


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"format": "fgd-recipe/2"}', b'{"classes": [], "classes": []}'])
def test_what_is_no_recipe_is_a_fault_and_no_crash(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|Recipe|twice"):
        stored_recipe(text)


def test_what_is_stored_today_is_shown_as_it_is() -> None:
    today = JobSpec.model_validate(spec(threads=2)).model_dump(mode="json")
    assert without_retired(today) == today


def test_any_other_unknown_field_is_a_fault_of_what_is_stored_too() -> None:
    with pytest.raises(ValidationError, match="thraeds"):
        stored_spec(spec(thraeds=2))
