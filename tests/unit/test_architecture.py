"""Rules of the structure that a reader relies on: unions and dicts agree, and torch stays where it belongs."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
from pydantic import ValidationError

from api.core import request_bodies
from fgd.detectors import DETECTORS
from fgd.methods import METHODS
from fgd.presets import PRESETS
from fgd.spec import DetectorSpec, MethodSpec, Spec


def members(union: object) -> set[object]:
    """The classes of a (discriminated) union, or the one class."""
    inner = get_args(union)
    if not inner:
        return {union}
    return set(get_args(inner[0])) or {inner[0]}


def test_every_method_spec_has_its_module_and_its_numbers() -> None:
    assert set(METHODS) == members(MethodSpec)
    for family, numbers in PRESETS.items():
        assert set(numbers) == {method for method in members(MethodSpec) if method.needs <= family.offers}  # type: ignore[attr-defined]


def test_every_detector_spec_has_its_family_and_its_presets() -> None:
    assert set(DETECTORS) == members(DetectorSpec)
    assert set(PRESETS) == members(DetectorSpec)


def test_every_field_of_a_spec_says_what_it_does() -> None:
    for spec in (*members(MethodSpec), *members(DetectorSpec)):
        fields = spec.model_fields  # type: ignore[attr-defined]
        silent = [name for name, field in fields.items() if name != "kind" and not field.description]
        assert not silent, (spec, silent)


@pytest.mark.parametrize(
    "module",
    [
        "api.main",
        "worker.app",
        "worker.__main__",
        "deploy.local",
        "fgd.cli.main",
        "fgd.client",
        "fgd.cli.demo",
        "fgd.spec",
    ],
)
def test_server_worker_client_and_command_line_load_no_torch(module: str) -> None:
    script = f"import sys, {module}; sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def specs(base: type[Spec] = Spec) -> set[type[Spec]]:
    found = {base}.union(*(specs(sub) for sub in base.__subclasses__())) - {Spec}
    # not those of a query, whose numbers come as text
    return {spec for spec in found if spec.__module__.startswith(("fgd.", request_bodies.__name__))}


def test_a_retired_field_is_no_field_and_stands_in_no_schema() -> None:
    for spec in specs():
        assert not spec.retired.keys() & {field.alias or name for name, field in spec.model_fields.items()}, spec
        assert not {"retired", *spec.retired} & spec.model_json_schema(by_alias=True).get("properties", {}).keys(), spec


def refuses(spec: type[Spec], field: str, value: object) -> bool:
    try:
        spec.model_validate({field: value})
    except ValidationError as error:
        return any(each["loc"][:1] == (field,) for each in error.errors())
    return False


def test_a_number_is_never_taken_from_text_or_truth_values() -> None:
    """Text and truth where a number belongs are slips; such a field says so by its type (fgd.spec.Int, Float)."""
    for spec in specs():
        for name, field in spec.model_fields.items():
            sent = field.alias or name
            numbers = [n for n in (1, 64, 0.5) if not refuses(spec, sent, n)]
            for number in numbers:
                taken = [slip for slip in (str(number), True) if not refuses(spec, sent, slip)]
                assert not taken or field.annotation is bool, (spec, name, taken)
