"""Detector families, one file each, over torchvision's public parts. docs/extending.md says how to add one."""

from __future__ import annotations

from fgd.detector_specs import FCOS, DetectorSpec, FasterRCNN, RetinaNet
from fgd.detectors import faster_rcnn, fcos, retinanet
from fgd.detectors.base import Detector
from fgd.detectors.family import Family
from fgd.recipe import Recipe
from fgd.spec_fields import Spec

DETECTORS: dict[type[Spec], Family] = {
    FCOS: fcos.FAMILY,
    RetinaNet: retinanet.FAMILY,
    FasterRCNN: faster_rcnn.FAMILY,
}

__all__ = ["DETECTORS", "Detector", "Family", "build", "family_of"]


def family_of(spec: DetectorSpec) -> Family:
    return DETECTORS[type(spec)]


def build(recipe: Recipe) -> Detector:
    """A detector with fresh weights from torch's global generator."""
    return family_of(recipe.detector).build(recipe)
