"""axe-core's verdict on a page. Its script comes from a wheel of the dev extra."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


def serious(page: Any) -> list[str]:
    """What it finds, of serious and critical rules, as lines."""
    found = page.evaluate(_script() + ";axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']}: {node['target']} {node['failureSummary']}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def _script() -> str:
    spec = find_spec("axe_playwright_python")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("axe-core is not installed (make test-browser)")
    return next(Path(spec.submodule_search_locations[0]).rglob("axe.min.js")).read_text()
