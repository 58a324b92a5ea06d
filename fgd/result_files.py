"""What a finished training leaves: the names of its files, and which of them holds which weights. Knows no torch."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, Literal

WEIGHTS, BEST, RECIPE, MANIFEST = "student.safetensors", "best.safetensors", "recipe.json", "manifest.json"
DETECTIONS = "detections.npz"
"""What WEIGHTS find on the images of val and test (fgd/statistics/detections.py). Earlier results lack it."""

Which = Literal["last", "best"]


def file_with(which: Which, there: Container[str]) -> str:
    """The file that holds these weights, of a result with these files.

    BEST is written only where the last weights are not the best ones; without it WEIGHTS holds both.
    """
    return BEST if which == "best" and BEST in there else WEIGHTS


def step_of(which: Which, manifest: Mapping[str, Any]) -> int | None:
    """Steps after which the training had these weights; None: the manifest, of an earlier version, does not say.

    A training that was asked to finish early leaves its best weights alone.
    """
    best = (manifest.get("best") or {}).get("step", -1)
    return best if best >= 0 and (which == "best" or manifest.get("stopped_by_request")) else manifest.get("steps")
