from __future__ import annotations

from typing import Any

import pytest

from fgd.text import documents, strict_yaml


def test_what_json_can_say_is_read_as_it_is_meant() -> None:
    said = "a: 1e-4\nb: [1, -2.5, .5, true, null, ~]\nc: {d: no, e: 2026-11-30, f: 1:30}\ng: '7'\nh:\n1: |\n  12\n"
    assert strict_yaml.parse(said) == {
        "a": 1e-4, "b": [1, -2.5, 0.5, True, None, None], "c": {"d": "no", "e": "2026-11-30", "f": "1:30"}, "g": "7",
        "h": None, "1": "12\n",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says", "line"),
    [
        ("", "it is empty", None),
        ("a: 1\nb: {c: 1, c: 2}", "the key 'c' stands twice", 2),
        ("a: &x [1]\nb: *x", "alias", 2),
        ("a: !!python/name:os.system", "tag", 1),
        ("a: 1\n---\nb: 2", "second document", 2),
        ("? [1]\n: 2", "a key must be", 1),
        ("a: [1", "not YAML", 1),
        ("a:\n\t- 1", "not YAML", 2),
        ("a: \0", "not YAML", None),
        ("\n" + "[" * 100_000, "nested deeper", 2),
        ("[" + "1," * 30_000 + "1]", "more than", 1),
        ("a: 1e999", "too large a number", 1),
    ],
)
def test_what_is_refused_says_its_line(text: str, says: str, line: int | None) -> None:
    with pytest.raises(strict_yaml.NotYAML, match=says) as refused:
        strict_yaml.parse(text)
    assert refused.value.line == line


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [("a.YML", '{"b": 1}', {"b": 1}), ("-", '{"b": 1}', {"b": 1}), ("-", "b: 1", {"b": 1}), ("a.json", "[1]", [1])],
)
def test_the_name_of_a_file_or_its_beginning_says_what_it_is(name: str, text: str, found: Any) -> None:
    assert documents.parse(text.encode(), name) == found


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.yaml", b"b: 1\nb: 1", "a.yaml:2: "),
        ("a.json", b"b: 1", "a.json: not JSON"),
        ("a.yaml", b"\xff", "a.yaml: not UTF-8"),
        ("a.yaml", b"#" * (documents.MAX_BYTES + 1), "a.yaml: larger than 4 MiB"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, text: bytes, says: str) -> None:
    with pytest.raises(documents.Unreadable, match=f"^{says}"):
        documents.parse(text, name)
