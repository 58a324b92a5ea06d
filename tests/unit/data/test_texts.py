"""YAML of strangers: whatever it holds is a value, or a refusal in words."""

from __future__ import annotations

from typing import Any

import pytest

from fgd.data.texts import UnreadableText, load_yaml
from fgd.data.tree import short

HUGE = "0x" + "f" * 5000


@pytest.mark.parametrize(
    "text", [HUGE, "0b" + "1" * 20_000, "9" * 5000, ":".join("1" * 5000), ":".join("1" * 99) + ":1.5"]
)
def test_what_is_too_long_to_be_a_number_stays_text(text: str) -> None:
    assert load_yaml(f"names: {text}") == {"names": text}


@pytest.mark.parametrize(
    ("text", "value"), [("0x1F", 31), ("1_000", 1000), ("-7", -7), ("1:30", 90), ("0.25", 0.25), ("1e3", "1e3")]
)
def test_numbers_are_numbers(text: str, value: Any) -> None:
    assert load_yaml(text) == value


@pytest.mark.parametrize(
    "text", ["!!timestamp x", "!!int x", "!!int [1]", "!!float {}", "0001-99-99", "!!binary é", "!!set 3"]
)
def test_tags_that_do_not_fit_their_value_are_refused(text: str) -> None:
    with pytest.raises(UnreadableText, match="invalid YAML"):
        load_yaml(text)


def test_any_value_has_a_short_form() -> None:
    endless: list[Any] = []
    for _ in range(100_000):
        endless = [endless]
    assert short(int(HUGE, 16)) == "a int too large to show"
    assert len(short([int(HUGE, 16)])) <= 80
    assert len(short(endless)) <= 80
