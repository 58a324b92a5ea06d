"""Text that was written to hurt the reader, not to be read."""

from __future__ import annotations

import pytest

from fgd.text.strict_json import MAX_DEPTH, NotJSON, parse


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
