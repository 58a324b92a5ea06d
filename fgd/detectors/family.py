"""What a family of detectors is, for all who must not ask which one it is. Each family's record stands in its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fgd.detectors.anchors import AnchorLayout
from fgd.detectors.base import Detector
from fgd.detectors.onnx_graph import Graph
from fgd.recipe import Recipe


@dataclass(frozen=True)
class WholeDetector:
    """torchvision's own, trained on COCO."""

    builder: str
    """Its function in torchvision.models.detection."""
    norm_eps: float | None = None
    """Of the trunk's frozen batch norms, where torchvision sets another one when it loads these weights: they were
    trained so. None: as torchvision builds that trunk."""


@dataclass(frozen=True)
class Anchors:
    """Of a family whose boxes start from them."""

    layout: AnchorLayout
    boxes: str
    """Key of the tensor whose first dimension is the anchors at each place times the four numbers of a box."""


@dataclass(frozen=True)
class Family:
    build: Callable[[Recipe], Detector]
    """With fresh weights from torch's global generator."""
    onnx: type[Graph] | None = None
    """What is traced for an export. None: there is none, and its spec is not `exportable`."""
    pretrained: Mapping[int, WholeDetector] = field(default_factory=dict)
    """By the `variant` of its spec. The spec of a family without takes no COCO_V1."""
    anchors: Anchors | None = None
    """None: there are none to fit."""
