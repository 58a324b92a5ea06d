"""What a network is beside its tensors: recipe.json, which travels with the weights. Knows no torch."""

from __future__ import annotations

from typing import Literal

from fgd.detector_specs import DetectorSpec
from fgd.spec_fields import Float, PositiveFloat, PositiveInt, Spec


class Recipe(Spec):
    """All that a state dict does not say. A stored one is read by `fgd.stored`."""

    format: Literal["fgd-recipe/1"] = "fgd-recipe/1"
    detector: DetectorSpec
    classes: tuple[str, ...]
    """Label k (1, 2, ...) means classes[k - 1]; 0 is background."""
    min_size: PositiveInt
    max_size: PositiveInt
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Of RGB in 0..1; the statistics of ImageNet, as torchvision's weights expect."""
    norm_eps: Float | None = None
    """Of the trunk's batch norms, frozen or not. None: as torchvision builds that trunk."""
    anchor_sizes: tuple[tuple[PositiveInt, ...], ...] | None = None
    """Square roots of the anchors' areas at each level, pixels of the padded input. None: the family's own, or it has
    no anchors."""
    anchor_ratios: tuple[PositiveFloat, ...] | None = None
    """Height by width of the anchors, the same at each level. None: the family's own, or it has no anchors."""
    score_thresh: Float = 0.05
    detections_per_img: PositiveInt = 100
    """The same two for every family: torchvision's own defaults differ from one to the next (FCOS 0.2, RetinaNet
    0.05)."""
