"""Text that was written to hurt the reader, not to be read."""

from __future__ import annotations

import pytest

from fgd.text.strict_json import MAX_DEPTH, MAX_VALUES, NotJSON, parse


@pytest.mark.timeout(30)  # one that goes back at every quote would take hours
@pytest.mark.parametrize(
    "body",
    [b'"' + b'\\"' * 500_000, b'{"a": "' + b'\\\\\\"' * 300_000, b'["' + b"\\" * 999_999],
    ids=["escaped quotes", "escaped backslashes and quotes", "backslashes"],
)
def test_a_string_without_end_is_refused_in_time_that_grows_with_its_length_only(body: bytes) -> None:
    with pytest.raises(NotJSON, match="not JSON"):
        parse(body)


def test_depth_is_counted_outside_of_strings_only() -> None:
    brackets = "[" * (MAX_DEPTH + 10)
    assert parse(f'{{"a": "{brackets}\\"{brackets}"}}') == {"a": f'{brackets}"{brackets}'}
    assert parse("[" * MAX_DEPTH + "]" * MAX_DEPTH) is not None
    with pytest.raises(NotJSON, match="nested deeper"):
        parse("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


def test_the_reason_that_is_reported_is_the_reason() -> None:
    with pytest.raises(NotJSON, match="half a surrogate pair"):
        parse(b'"\\ud800"')
    with pytest.raises(NotJSON, match="not UTF-8"):
        parse(b'"\xff"')


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"1," * MAX_VALUES + b"1]",
        b"[" + b"[]," * MAX_VALUES + b"[]]",
        b"[" + b'{"a":1,"b":2},' * MAX_VALUES + b"1]",
        b"[" + b"1," * 500_000,
    ],
    ids=["numbers", "lists", "objects", "cut off"],
)
def test_more_values_than_an_honest_document_has_are_refused_before_they_are_built(body: bytes) -> None:
    with pytest.raises(NotJSON, match=f"more than {MAX_VALUES} values"):
        parse(body)


def test_commas_in_strings_are_no_values() -> None:
    text = "," * 2 * MAX_VALUES
    assert parse(f'["{text}", "\\"{text}"]') == [text, f'"{text}']
    assert len(parse("[" + "1," * (MAX_VALUES - 2) + "1]")) == MAX_VALUES - 1
