"""Finished detectors on disk: recipe.json and student.safetensors, read strictly, and the folder a training leaves."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fgd.detectors import Detector, build
from fgd.errors import WeightsError
from fgd.recipe import Recipe
from fgd.result_files import BEST, DETECTIONS, MANIFEST, RECIPE, WEIGHTS
from fgd.statistics import detections
from fgd.statistics.detections import SplitDetections
from fgd.stored import stored_recipe
from fgd.text import model_card
from fgd.text.cut import some


def read_recipe(folder: Path) -> Recipe:
    try:
        return stored_recipe((folder / RECIPE).read_bytes())
    except FileNotFoundError as error:
        raise WeightsError(f"{folder}: no {RECIPE}; name a folder that has {WEIGHTS} and {RECIPE}") from error
    except ValueError as error:
        raise WeightsError(f"{folder / RECIPE}: {error}") from error


def load_detector(folder: Path, name: str = WEIGHTS) -> Detector:
    """The detector that `folder` holds, loaded strictly; raises WeightsError naming every key that does not fit.

    name: the file with its tensors."""
    recipe = read_recipe(folder)
    with torch.random.fork_rng(devices=[]):
        detector = build(recipe)
    load_strictly(detector, read_tensors(folder / name))
    return detector


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: not readable as safetensors: {error}") from error


def load_strictly(detector: Detector, tensors: Mapping[str, Tensor]) -> None:
    found = compare(detector.module.state_dict(), tensors)
    if found:
        raise WeightsError(f"the weights do not fit {described(detector.recipe)}: {found.sentence()}")
    detector.module.load_state_dict(dict(tensors), strict=True)


def described(recipe: Recipe) -> str:
    return f"{recipe.detector.title()} with {len(recipe.classes)} classes"


@dataclass(frozen=True)
class Difference:
    """Between the tensors a network has and those it is offered; true if there is one."""

    missing: list[str]
    unexpected: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Key -> the shape offered, the network's shape."""
    not_finite: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes or self.not_finite)

    def sentence(self, most: int = 8) -> str:
        """Counts, and the first names of each kind."""
        shapes = [f"{key} is {theirs}, not {ours}" for key, (theirs, ours) in self.shapes.items()]
        return "; ".join(
            f"{len(keys)} {what}: {some(keys, most)}"
            for what, keys in (
                ("missing keys", self.missing),
                ("unexpected keys", self.unexpected),
                ("different shapes", shapes),
                ("tensors with NaN or infinity", self.not_finite),
            )
            if keys
        )


def compare(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Difference:
    """Values are looked at only where the shape is right: a stranger's tensor may be of any size."""
    shared = sorted(wanted.keys() & tensors.keys())
    fitting = [key for key in shared if tensors[key].shape == wanted[key].shape]
    return Difference(
        missing=sorted(wanted.keys() - tensors.keys()),
        unexpected=sorted(tensors.keys() - wanted.keys()),
        shapes={
            key: (tuple(tensors[key].shape), tuple(wanted[key].shape)) for key in shared if key not in set(fitting)
        },
        not_finite=[
            key for key in fitting if tensors[key].is_floating_point() and not bool(tensors[key].isfinite().all())
        ],
    )


def rows_of_classes(recipe: Recipe) -> dict[str, tuple[int, int]]:
    """Name of each tensor whose first dimension grows with the number of classes -> its rows for one class, and the
    rows besides, as of the background."""
    with torch.device("meta"):
        one, two = (build(recipe.but(classes=classes)).module.state_dict() for classes in (("a",), ("a", "b")))
    grown = {key: two[key].shape[0] - one[key].shape[0] for key in one if one[key].shape != two[key].shape}
    return {key: (rows, one[key].shape[0] - rows) for key, rows in grown.items()}


def inherit(student: Detector, source: Detector) -> tuple[list[str], list[str]]:
    """Copy neck and head tensors of equal name and shape: FGD's inheriting strategy, the trunk is not.

    Returns the names copied and the names left as initialised.
    """
    target = student.neck_and_head()
    offered = source.neck_and_head()
    copied = sorted(key for key in target if key in offered and offered[key].shape == target[key].shape)
    with torch.no_grad():
        for key in copied:
            target[key].copy_(offered[key])
    return copied, sorted(target.keys() - set(copied))


def export(
    folder: Path,
    detector: Detector,
    manifest: dict[str, Any],
    best: dict[str, Tensor] | None,
    found: Mapping[str, SplitDetections] | None = None,
) -> dict[str, str]:
    """Write the files of a result; returns file name -> sha256.

    `best` are the student's tensors at its best validation AP, written where they are not the last ones. found: what
    the detector finds, by split.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run into the same place
    folder.mkdir(parents=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in detector.module.state_dict().items()}
    write_tensors(folder / WEIGHTS, tensors)
    if best is not None:
        write_tensors(folder / BEST, {k: v.cpu().contiguous() for k, v in best.items()})
    (folder / RECIPE).write_text(detector.recipe.model_dump_json(indent=2) + "\n")
    (folder / "model.py").write_text(detector.model_source())
    (folder / model_card.PREDICT).write_text(model_card.PREDICT_PY)
    (folder / model_card.CARD).write_text(model_card.card(detector.recipe, manifest), encoding="utf-8")
    if found:
        detections.write(folder / DETECTIONS, found)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    # one metadata key: safetensors writes several in random order
    save_file(tensors, path, metadata={"format": "pt"})
