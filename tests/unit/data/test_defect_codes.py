"""docs/data-formats.md explains each code that a report can have, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from fgd.data.images import UNREADABLE
from fgd.data.index import DOCS, Index
from fgd.data.report import Defects

ROOT = Path(__file__).parents[3]
SOURCES = [*sorted((ROOT / "fgd/data").glob("*.py")), ROOT / "worker/importer.py"]
CALLS = {"add": 4, "reject": 3, "NoBox": 2, "BadImage": 2}
"""What gives a defect its code, by its first argument, and how many arguments it has at least."""


def codes_of(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if len(node.args) >= CALLS.get(name, 99):
                yield from (c.value for c in ast.walk(node.args[0]) if _is_code(c))


def _is_code(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and bool(re.fullmatch(r"[a-z]+(_[a-z]+)+|unreadable", str(node.value)))


def test_the_page_and_the_code_have_the_same_codes() -> None:
    used = {code for source in SOURCES for code in codes_of(source.read_text())} | {UNREADABLE}
    explained = re.findall(r"^\| `(\w+)` \|", (ROOT / DOCS).read_text(), re.MULTILINE)
    assert len(used) > 70
    assert sorted(explained) == sorted(used)


def test_a_report_leads_to_the_page() -> None:
    report = Defects().report("coco", Index(classes=(), splits={}))
    assert (ROOT / report.docs).is_file()
