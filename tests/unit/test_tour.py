"""docs/tour.ipynb: it uses the public client alone, and shows what a run of it gave. tests/e2e/test_tour.py runs it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import nbformat
import pytest

from fgd import client
from tests.tour import TOUR

CELLS = nbformat.read(TOUR, as_version=4).cells
CODE = [cell for cell in CELLS if cell.cell_type == "code"]
LIBRARIES = {"matplotlib", "PIL"}
PLAIN = {"json", "os", "pathlib", "random", "shutil", "tempfile", "time"}


def nodes() -> Iterator[ast.AST]:
    for cell in CODE:
        yield from ast.walk(ast.parse(cell.source))


def test_it_imports_the_client_and_what_everybody_has() -> None:
    whole = {alias.name for node in nodes() if isinstance(node, ast.Import) for alias in node.names}
    named = [node for node in nodes() if isinstance(node, ast.ImportFrom)]
    ours = {node.module: {alias.name for alias in node.names} for node in named if str(node.module).startswith("fgd")}
    assert ours.keys() == {"fgd.client"}
    assert ours["fgd.client"] <= set(client.__all__)
    others = {name.partition(".")[0] for name in whole | {str(node.module) for node in named}} - {"fgd"}
    assert others <= LIBRARIES | PLAIN


def test_it_calls_only_methods_that_the_client_has_and_shows() -> None:
    asked = {
        node.attr
        for node in nodes()
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "client"
    }
    assert {"submit", "follow", "metrics", "job_report", "predict", "download"} <= asked
    assert [name for name in asked if name.startswith("_") or not hasattr(client.Client, name)] == []


def test_what_its_prose_names_is_there_too() -> None:
    prose = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
    named = re.findall(r"`client\.(\w+)", prose)
    assert named
    assert [name for name in named if not hasattr(client.Client, name)] == []


def test_its_outputs_are_those_of_one_run_without_errors() -> None:
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2


@pytest.mark.parametrize("trace", [r"/home/", r"/root/", r"/tmp/", r"/work/", "warning", "Traceback"])
def test_its_outputs_show_nothing_of_the_machine_that_made_them(trace: str) -> None:
    texts = [
        output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
        for cell in CODE
        for output in cell.outputs
    ]
    assert not any(re.search(trace, text, re.IGNORECASE) for text in texts)


def test_it_is_small() -> None:
    assert TOUR.stat().st_size < 250_000
