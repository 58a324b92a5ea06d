"""Specs that commands are given: from a file, from standard input, from options."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fgd.cli.printing import fail
from fgd.process.exit_codes import REFUSED


def read_spec(source: str | None, settings: Sequence[str] = (), of: Literal["job", "study"] = "job") -> dict[str, Any]:
    """A spec with the settings of `--set` in it. "-" is standard input; None: there are the settings alone."""
    from fgd.cli.settings import WrongSetting, settle

    if source is None and not settings:
        fail("give a file, - for standard input, or --set PATH=VALUE", REFUSED)
    body = _read(source) if source is not None else {}
    if not settings:
        return dict(body)
    try:
        return settle(body, settings, fields_of(of if "arms" in body or of == "job" else "job or study"))
    except WrongSetting as error:
        fail(str(error), REFUSED)


def _read(source: str) -> Mapping[str, Any]:
    from fgd.text import documents

    name = "standard input" if source == "-" else source
    try:
        if source == "-":
            text = sys.stdin.read(documents.MAX_BYTES + 1).encode("utf-8", "surrogateescape")
        else:
            with Path(source).open("rb") as file:
                text = file.read(documents.MAX_BYTES + 1)
        body = documents.parse(text, name)
    except OSError as error:
        fail(f"{source}: {error.strerror}", REFUSED)
    except documents.Unreadable as error:
        fail(str(error), REFUSED)
    if not isinstance(body, dict):
        fail(f"{name}: expected a spec: fields and their values, in YAML or as a JSON object {{...}}", REFUSED)
    return body


def fields_of(of: str) -> Mapping[str, Any]:
    """A job's fields; a study's are those, with arms, students and seeds."""
    from fgd.spec import SubmitJob

    schema = SubmitJob.model_json_schema(by_alias=True)
    if of == "job":
        return schema
    fields = dict(schema["properties"])
    own = {name: fields.pop(name) for name in ("methods", "student", "seed")}
    reference = {"anyOf": [fields["teacher"], {"type": "null"}]}
    arm = {
        "name": {"type": "string"}, "methods": own["methods"], "teacher": reference, "epochs": {"type": "integer"},
        "inherit": {}, "unlabelled": fields["unlabelled"], "against": {"type": "string"},
    }  # fmt: skip
    fields |= {
        "arms": {"type": "array", "items": {"type": "object", "properties": arm, "additionalProperties": False}},
        "students": {"type": "array", "items": own["student"]},
        "seeds": {"type": "array", "items": own["seed"]},
        "control": {"type": "boolean"},
    }
    return {**schema, "properties": fields | (own if of != "study" else {})}
