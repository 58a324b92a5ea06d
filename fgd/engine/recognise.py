"""Which of the networks that we know a file of weights holds: family, version, trunk, width, norm, anchors, classes.

Found by comparing names and shapes with each of them; values are not looked at. Only for the reason of a rejection:
what a request names is what a file must fit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import torch
from pydantic import TypeAdapter
from torch import Tensor

from fgd.detector_specs import FCOS, DetectorSpec, TorchvisionDetector_, Trunk
from fgd.detectors import build, family_of
from fgd.engine import weights
from fgd.engine.foreign_state import NamedTensor, Take, unwrapped_tensors
from fgd.errors import WeightsError
from fgd.recipe import Recipe
from fgd.spec_fields import members

BODY = "backbone.body."
WIDTH = "backbone.fpn.layer_blocks.0.0.weight"
"""Its first dimension is the width of the pyramid."""
LIKE = 0.9
"""Share of names in common from which a file is called one of a family."""
ELSEWHERE = (
    ("bbox_head.", "an MMDetection network"),
    ("roi_heads.box_predictor.cls_score.weight", "a Faster R-CNN of other parts"),
    ("backbone.bottom_up.", "a Detectron2 network"),
    ("class_embed.", "a DETR"),
    ("decoder.layers.", "a network with a transformer decoder"),
    ("model.0.conv.weight", "a YOLO of Ultralytics"),
    ("backbone.backbone.", "a YOLOX"),
    ("fc.weight", "a classifier: a trunk without pyramid and head"),
    ("classifier.", "a classifier: a trunk without pyramid and head"),
)
"""What keys of other software begin with -> what that is. None of it fits a detector of ours."""

Shapes = Mapping[str, tuple[int, ...]]
SPECS: TypeAdapter[DetectorSpec] = TypeAdapter(DetectorSpec)


@dataclass(frozen=True)
class Likeness:
    """The known network that a file is most like."""

    recipe: Recipe
    """With class names made up."""
    exact: bool
    """Every name and every shape is its own."""

    def sentence(self) -> str:
        detector, count = self.recipe.detector, len(self.recipe.classes)
        what = f"{detector.kind} {getattr(detector, 'backbone', '')} with {count + 1} classes ({count} and background)"
        more = [said for name, said in _fields(detector).items() if name not in ("kind", "backbone")]
        how = "looks like" if self.exact else "does not fit, but is most like,"
        return f"The file {how} {', '.join([what, *more])}"

    def other_fields(self, named: Recipe) -> dict[str, str]:
        """The fields of the detector that were named otherwise, and how."""
        theirs, ours = _fields(self.recipe.detector), _fields(named.detector)
        return {name: said for name, said in ours.items() if theirs.get(name, said) != said}


def _fields(detector: DetectorSpec) -> dict[str, str]:
    """What decides the tensors of a network, as a request writes it."""
    fields = {name: getattr(detector, name, None) for name in ("kind", "backbone", "version", "fpn_channels")}
    fields["norm"] = detector.trunk_norm()
    return {name: f'"{name}": {json.dumps(value)}' for name, value in fields.items() if value is not None}


def likeness(items: Sequence[NamedTensor], recipe: Recipe, take: Take) -> Likeness | None:
    """The known network that the file is most like; None: it is like none. recipe: the one that was named."""
    trunk = _trunk(items, recipe, take)
    if trunk is None:
        return None
    best: tuple[float, Likeness] | None = None
    for member in members(DetectorSpec):
        for spec in _versions(member, trunk):
            shapes = _read(items, _shapes(spec), take)
            share = _share(_names(shapes), _names(_shapes(spec)))
            found = _sized(spec, shapes, recipe) if share >= LIKE else None
            if found is not None and (best is None or share > best[0]):
                best = share, found
    return best[1] if best is not None else None


def elsewhere(items: Sequence[NamedTensor]) -> str | None:
    """A hint for keys that other software writes."""
    for start, what in ELSEWHERE:
        if any(item.key.removeprefix("module.").startswith(start) for item in items):
            return f"By its keys the file is {what}"
    return None


# --- the trunk ------------------------------------------------------------------------------------------------


def _trunk(items: Sequence[NamedTensor], recipe: Recipe, take: Take) -> Trunk | None:
    """The one that was named, if it fits; else the one that fits best."""
    named = getattr(recipe.detector, "backbone", None)
    candidates: list[Trunk] = sorted(get_args(Trunk), key=lambda trunk: trunk != named)
    found: tuple[float, Trunk | None] = (LIKE, None)
    for trunk in candidates:
        wanted = _of_body(_shapes(FCOS(backbone=trunk)))
        offered = _of_body(_read(items, _shapes(FCOS(backbone=trunk)), take))
        share = _share(set(offered.items()), set(wanted.items()))
        if share == 1.0:
            return trunk
        found = max(found, (share, trunk), key=lambda each: each[0])
    return found[1]


def _of_body(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Weights and biases of the trunk: its norm shows in others."""
    return {key: shape for key, shape in shapes.items() if key.startswith(BODY) and key.endswith((".weight", ".bias"))}


# --- family and sizes -----------------------------------------------------------------------------------------


def _versions(member: type[Any], trunk: str) -> list[DetectorSpec]:
    if not issubclass(member, TorchvisionDetector_):
        return []
    versions = [{"version": 1}, {"version": 2}] if "version" in member.model_fields else [{}]
    kind = member.model_fields["kind"].default
    return [SPECS.validate_python({"kind": kind, "backbone": trunk, **version}) for version in versions]


def _sized(spec: DetectorSpec, shapes: Shapes, recipe: Recipe) -> Likeness | None:
    """The spec with the file's width, norm, anchors and classes."""
    body = [key for key in shapes if key.startswith(BODY)]
    counted = any(key.endswith("num_batches_tracked") for key in body)
    norm = ("batch" if counted else "frozen") if any(key.endswith("running_mean") for key in body) else "group"
    try:
        spec = spec.but(norm=norm, **({"fpn_channels": shapes[WIDTH][0]} if WIDTH in shapes else {}))
    except ValueError:  # a width that we do not build
        return None
    made = recipe.but(detector=spec, classes=("a",), anchor_sizes=None, anchor_ratios=None)
    made = _with_anchors(made, shapes)
    count = _classes(made, shapes)
    if count is None:
        return None
    same = recipe.classes if count == len(recipe.classes) else tuple(f"class {n + 1}" for n in range(count))
    made = made.but(classes=same)
    return Likeness(made, shapes == _shapes_of(made))


def _with_anchors(made: Recipe, shapes: Shapes) -> Recipe:
    """As many at each place as the file has; which ones, no file says."""
    anchors = family_of(made.detector).anchors
    if anchors is None or not shapes.get(anchors.boxes):
        return made
    each = shapes[anchors.boxes][0] // 4
    if each == _shapes_of(made)[anchors.boxes][0] // 4 or each < 1:
        return made
    return made.but(anchor_sizes=((*range(1, each + 1),),) * made.detector.anchor_levels, anchor_ratios=(1.0,))


def _classes(made: Recipe, shapes: Shapes) -> int | None:
    """From the tensors that have rows for each class; None if they disagree."""
    counts = set()
    for key, (of_one, besides) in weights.rows_of_classes(made).items():
        if shapes.get(key):
            count, rest = divmod(shapes[key][0] - besides, of_one)
            counts.add(count if not rest else 0)
    return counts.pop() if len(counts) == 1 and min(counts) > 0 else None


# --- names and shapes -----------------------------------------------------------------------------------------


@cache
def _shapes(spec: DetectorSpec) -> Shapes:
    return _shapes_of(Recipe(detector=spec, classes=("a",), min_size=64, max_size=64))


def _shapes_of(recipe: Recipe) -> Shapes:
    with torch.device("meta"):
        return _shapes_in(build(recipe).module.state_dict())


def _read(items: Sequence[NamedTensor], wanted: Shapes, take: Take) -> Shapes:
    """The file's tensors by the keys of that network, as far as it has them."""
    try:
        return _shapes_in(unwrapped_tensors(items, wanted, take).tensors)
    except WeightsError:
        return {}


def _shapes_in(tensors: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _names(shapes: Shapes) -> set[str]:
    """Without what depends on the norm."""
    return {key for key in shapes if key.endswith((".weight", ".bias"))}


def _share(one: set[Any], other: set[Any]) -> float:
    return len(one & other) / max(1, len(one | other))
