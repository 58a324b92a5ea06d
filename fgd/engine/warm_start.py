"""Begin from a finished network: copy what fits into a fresh student. FGD's own inheriting is in weights.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fgd.detectors import Detector
from fgd.engine import weights
from fgd.errors import SpecError
from fgd.result_files import WEIGHTS
from fgd.text.cut import some


@dataclass(frozen=True)
class WarmStart:
    """Names of the student's tensors."""

    copied: Sequence[str]
    left: Sequence[str]
    """Of another shape, not in the source, or rows of classes that the source does not have: these start from
    scratch."""


def start_from(student: Detector, folder: Path) -> WarmStart:
    """Copy every tensor of equal name and shape from the network in `folder`. Raises WeightsError, SpecError.

    The rows of a class head mean classes by place, so they are copied only where both name the same classes in the
    same order; else the head stays as the student was built, for its own number of classes.
    """
    recipe = weights.read_recipe(folder)
    offered = weights.read_tensors(folder / WEIGHTS)
    target = student.module.state_dict()
    same = recipe.classes == student.recipe.classes
    by_class = set() if same else set(weights.rows_of_classes(student.recipe))
    copied = sorted(key for key in target.keys() & offered.keys() - by_class if offered[key].shape == target[key].shape)
    if not copied:
        message = f"a {weights.described(recipe)} has no tensor that fits {weights.described(student.recipe)}"
        raise SpecError(message, "/student/weights")
    if bad := [key for key in copied if offered[key].is_floating_point() and not offered[key].isfinite().all()]:
        raise SpecError(f"NaN or infinity in {some(bad)}", "/student/weights")
    with torch.no_grad():
        for key in copied:
            target[key].copy_(offered[key])
    return WarmStart(copied, sorted(target.keys() - set(copied)))
