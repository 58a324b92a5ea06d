"""Which file of a result holds which weights, and of which step they are."""

from __future__ import annotations

from typing import Any

import pytest

from fgd.result_files import Which, step_of


@pytest.mark.parametrize(
    ("which", "manifest", "step"),
    [
        ("last", {"steps": 90, "best": {"step": 60}, "stopped_by_request": False}, 90),
        ("best", {"steps": 90, "best": {"step": 60}, "stopped_by_request": False}, 60),
        ("last", {"steps": 90, "best": {"step": 60}, "stopped_by_request": True}, 60),
        ("best", {"steps": 90, "best": {"step": 60}, "stopped_by_request": True}, 60),
        ("best", {"steps": 90, "best": {"step": -1}}, 90),
        ("best", {"steps": 90}, 90),
        ("last", {}, None),
    ],
)
def test_the_step_is_that_of_the_weights(which: Which, manifest: dict[str, Any], step: int | None) -> None:
    assert step_of(which, manifest) == step
