"""What is wrong with a field, in our own words: pydantic's errors as sentences a user can act on. Knows no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MAX_DETAIL = 500


def sentence(error: Mapping[str, Any], field: str = "") -> str:
    """error: one of ValidationError.errors(). field: the name of what is at fault, where it has one."""
    return _sentence(error["type"], error.get("ctx", {}), field, error["msg"])[:MAX_DETAIL]


def _sentence(type: str, about: Mapping[str, Any], field: str, said: str) -> str:
    match type:
        case "extra_forbidden":
            return f"there is no field {field!r} here; check its spelling"
        case "missing":
            return f"the field {field!r} is required"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "an object is expected here"
        case "tuple_type" | "list_type":
            return "a list is expected here"
        case "string_type":
            return "text is expected here"
        case "bool_type":
            return "true or false is expected here"
        case "int_type" | "int_parsing" | "int_from_float":
            return "a whole number is expected here, without quotes"
        case "float_type" | "float_parsing":
            return "a number is expected here, without quotes"
        case "finite_number":
            return "a finite number is expected here"
        case "greater_than":
            return f"must be more than {about['gt']:g}"
        case "greater_than_equal":
            return f"must be at least {_number(about['ge'])}"
        case "less_than":
            return f"must be less than {_number(about['lt'])}"
        case "less_than_equal":
            return f"must be at most {_number(about['le'])}"
        case "multiple_of":
            return f"must be a multiple of {_number(about['multiple_of'])}"
        case "literal_error":
            return f"must be {about['expected']}"
        case "union_tag_invalid":
            return f"there is no kind {about['tag']!r}; must be one of {about['expected_tags']}"
        case "union_tag_not_found":
            return f"the field {about['discriminator']} is required: it says which kind this is"
        case "string_too_short":
            return (
                "must not be empty" if about["min_length"] == 1 else f"needs {about['min_length']} characters or more"
            )
        case "string_too_long":
            return f"may have {about['max_length']} characters at most"
        case "too_long":
            return f"may have {about['max_length']} entries at most"
        case "string_pattern_mismatch":
            if id_form := re.fullmatch(r"\^([a-z]+_)\[0-9a-f\]\{32\}\$", about["pattern"]):
                return f"must be an id: {id_form[1]} and 32 of 0-9 and a-f, as the list of all has it"
            return f"holds a character that is not allowed, or has another form; must match {about['pattern']}"
        case "value_error":
            return said.removeprefix("Value error, ")
    return said


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"
