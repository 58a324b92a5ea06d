"""Detector families, one file each, over torchvision's public parts. docs/extending.md says how to add one."""

from __future__ import annotations

from fgd.detectors.base import Detector
from fgd.detectors.faster_rcnn import FasterRCNNDetector
from fgd.detectors.fcos import FCOSDetector
from fgd.detectors.retinanet import RetinaNetDetector
from fgd.recipe import Recipe
from fgd.spec import FCOS, FasterRCNN, RetinaNet, Spec

DETECTORS: dict[type[Spec], type[Detector]] = {
    FCOS: FCOSDetector,
    RetinaNet: RetinaNetDetector,
    FasterRCNN: FasterRCNNDetector,
}

__all__ = ["DETECTORS", "Detector", "build"]


def build(recipe: Recipe) -> Detector:
    """A detector with fresh weights from torch's global generator."""
    return DETECTORS[type(recipe.detector)](recipe)
