"""What people read is plain English: no messages, docstrings or pages with words that docs/words.md does without."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNWANTED = re.compile(
    r"\b(anew|afresh|can not|for want of|whoever|gives? (its|the) device free|looked at that|(is|are) so limits)\b"
)
SOURCES = sorted(file for package in ("api", "worker", "fgd", "deploy") for file in (ROOT / package).rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "Makefile", *sorted((ROOT / "docs").glob("*.md"))]


def test_messages_and_docstrings_are_plain() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}: {match[0]}"
        for file in SOURCES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
        for match in UNWANTED.finditer(node.value)
    ]
    assert found == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_plain(page: Path) -> None:
    text = page.read_text().partition("## How we write")[0]  # which names them
    assert [match[0] for match in UNWANTED.finditer(text)] == []
