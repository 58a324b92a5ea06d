"""Examples in the API's document are answers and bodies of the form that it describes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

import api.core.compared_detections
import api.core.request_bodies
import api.core.study_bodies
import api.schemas


def models() -> Iterator[tuple[type[BaseModel], Any]]:
    modules = (api.core.compared_detections, api.core.request_bodies, api.core.study_bodies, api.schemas)
    for module in modules:
        for found in vars(module).values():
            if isinstance(found, type) and issubclass(found, BaseModel) and found.__module__ == module.__name__:
                told = found.__dict__.get("model_config", {}).get("json_schema_extra")
                for example in told.get("examples", ()) if isinstance(told, dict) else ():
                    yield found, example


@pytest.mark.parametrize(("model", "example"), list(models()), ids=lambda each: getattr(each, "__name__", ""))
def test_an_example_is_whole_and_has_no_field_too_many(model: type[BaseModel], example: Any) -> None:
    TypeAdapter(model).validate_json(json.dumps(example), extra="forbid")


def test_the_tables_of_the_dashboard_have_examples() -> None:
    told = {model.__name__ for model, _ in models()}
    assert told >= {"SummaryTable", "FocusList", "FocusPhotos", "FocusStep", "ComparedDetections", "ImageBoxes"}
