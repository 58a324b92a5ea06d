"""Names and settings as MLflow takes them."""

from __future__ import annotations

import posixpath
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgd.tracking.names import ADDRESS, MAX_NAME, allowed_name, metric_name, params

ALLOWED = re.compile(r"[/\w.\- ]+")


@pytest.mark.parametrize("name", ["loss/total", "val/ap", "schedule.lr_schedule.kind", "ap/Пёс", "a b"])
def test_what_is_allowed_stays(name: str) -> None:
    assert allowed_name(name) == name


@given(st.text(min_size=1, max_size=600))
def test_every_name_becomes_one_that_is_allowed(name: str) -> None:
    found = allowed_name(name)
    assert ALLOWED.fullmatch(found)
    assert posixpath.normpath(found) == found
    assert not found.startswith(("/", ".."))
    assert found != "."
    assert len(found) <= MAX_NAME


def test_names_that_are_changed_stay_apart() -> None:
    names = ["ap/a?", "ap/a!", "ap/a_", "ap//a_", "/ap/a_", "ap/./a_", "ap/a_" + "x" * 300, "ap/a_" + "x" * 301]
    assert len({allowed_name(name) for name in names}) == len(names)


def test_the_split_of_an_evaluation_stands_before_its_name() -> None:
    assert [metric_name("ap", "val"), metric_name("lr", "train"), metric_name("lr", None)] == ["val/ap", "lr", "lr"]


def test_settings_have_the_paths_that_set_takes() -> None:
    spec = {"schedule": {"epochs": 2, "scales": [64, 96]}, "methods": [{"kind": "fgd", "lambda": 0.5}], "teacher": None}
    assert params({**spec, "flip": True, "inherit": []}) == {
        "schedule.epochs": "2",
        "schedule.scales": "[64, 96]",
        "methods.0.kind": "fgd",
        "methods.0.lambda": "0.5",
        "flip": "true",
        "inherit": "[]",
    }


def test_a_long_value_is_cut() -> None:
    assert params({"x": "y" * 501})["x"] == "y" * 497 + "..."


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("http://127.0.0.1:5000", True),
        ("https://mlflow.example.org/base/", True),
        ("http://ada:secret@host:5000", False),
        ("http://host/?token=x", False),
        ("databricks", False),
        ("sqlite:///mlflow.db", False),
        ("file:///srv", False),
        ("http://", False),
    ],
)
def test_an_address_is_that_of_a_server_without_an_account(address: str, good: bool) -> None:
    assert (ADDRESS.fullmatch(address) is not None) == good
