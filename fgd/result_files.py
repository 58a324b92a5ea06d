"""What a finished training leaves: the names of its files, and which of them holds which weights. Knows no torch."""

from __future__ import annotations

from collections.abc import Container
from typing import Literal

WEIGHTS, BEST, RECIPE, MANIFEST = "student.safetensors", "best.safetensors", "recipe.json", "manifest.json"

Which = Literal["last", "best"]


def file_with(which: Which, there: Container[str]) -> str:
    """The file that holds these weights, of a result with these files.

    BEST is written only where the last weights are not the best ones; without it WEIGHTS holds both.
    """
    return BEST if which == "best" and BEST in there else WEIGHTS
