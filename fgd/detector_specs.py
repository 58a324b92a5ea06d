"""The families of detectors: what a request says of a network, and what methods can take of it. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fgd.spec_fields import Int, Spec, WeightsRef

# --- what methods take of detectors ---------------------------------------------------------------------------

Need = Literal["features", "logits", "boxes", "distributions", "anchors", "proposals", "towers"]
"""What a method takes of a network, and a family of detectors offers.

features       the neck's maps
logits         what the head gives each class at each place; of two stages, the first one's: whether anything is there
boxes          the box at each place, as the head codes it
distributions  the box at each place as distributions over bins
anchors        what the student's boxes are coded against: anchors, or the points of a family without
proposals      the second stage: its proposals, and its answers to any others
towers         the head's convolutions, to be run from any one on, and the maps between them
"""
OF_CLASSES: frozenset[Need] = frozenset({"logits", "proposals", "towers"})
"""These are compared class by class: of the classes that teacher and student both know, at least one."""
OF_THE_HEAD: frozenset[Need] = frozenset({"logits", "boxes", "distributions"})
"""For these the teacher runs its head."""


@dataclass(frozen=True)
class Level:
    """A level of a detector's pyramid that carries knowledge."""

    name: str
    stride: int
    """Pixels of the padded input."""
    channels: int


# --- detectors ------------------------------------------------------------------------------------------------

Trunk = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
]
Norm = Literal["batch", "group", "frozen"]
WeightsName = Literal["none", "IMAGENET1K_V1", "COCO_V1"]
WidthIn32 = Annotated[Int, Field(ge=64, le=1024, multiple_of=32)]
WidthIn8 = Annotated[Int, Field(ge=8, le=1024, multiple_of=8)]
Version = Annotated[Int, Field(ge=1, le=2)]


class Detector_(Spec):
    """What every family has. Strides are pixels of the padded input."""

    offers: ClassVar[frozenset[Need]] = frozenset({"features"})
    """What methods can take of it."""
    anchor_levels: ClassVar[int] = 0
    """Levels that have anchors; 0: its boxes start from none."""
    exportable: ClassVar[bool] = False
    """Whether an ONNX file can be made of it."""
    one_image_because: ClassVar[str] = ""
    """Why such a file cannot take several images at once; "" where it can."""

    weights: WeightsName | WeightsRef = "none"
    """Where the network starts. "none": from scratch. "IMAGENET1K_V1": torchvision's trunk of that name. "COCO_V1":
    torchvision's whole detector; it exists for resnet50 with fpn_channels 256. If the file cannot be found, or its
    SHA-256 is not the one in its name, the job fails. From a job, a model or a path, every tensor of equal name and
    shape is copied (rows of classes only if the classes are the same); the others start from scratch, and an event
    names them."""
    norm: Norm | None = None
    """Normalisation of the trunk. Default: "frozen" with torchvision's weights, else "batch". "frozen" needs weights:
    frozen random statistics learn nothing. "group" is for ResNet and ResNeXt, without torchvision's weights."""
    inherit: WeightsRef | None = None
    """Copy neck and head tensors of equal shape from this network before training (FGD's inheriting strategy)."""

    def trunk_norm(self) -> Norm:
        """`norm`, or what it defaults to."""
        return self.norm or ("frozen" if self.weights in ("IMAGENET1K_V1", "COCO_V1") else "batch")

    def batch_norms(self) -> bool:
        """Whether any layer normalises by the batch's own statistics in training."""
        return self.trunk_norm() == "batch"

    def variant(self) -> int:
        """Which of the family's networks it is: the version, where there are several."""
        return 1

    def levels(self) -> tuple[Level, ...]:
        """Pyramid levels that carry knowledge, finest first."""
        raise NotImplementedError

    def title(self) -> str:
        """The network in a few words, for people."""
        return type(self).__name__

    def refused_batch(self, images: int | str | None) -> str:
        """Why no ONNX file of it takes so many images at once (None or "dynamic": any number); "" where one does."""
        if images == 1 or not self.one_image_because:
            return ""
        return (
            f"{self.title()} can only be exported for one image at a time, because {self.one_image_because}; "
            "leave it at 1"
        )


class TorchvisionTrunk(Spec):
    """A trunk of torchvision's under a pyramid."""

    backbone: Trunk = "resnet18"
    """The trunk, as torchvision builds it."""
    fpn_channels: Int = 256
    """Width of the pyramid and of the heads."""


class TorchvisionDetector_(Detector_, TorchvisionTrunk):
    """What the families have that torchvision builds."""

    exportable = True

    @model_validator(mode="after")
    def _norm_fits(self) -> Self:
        if self.norm == "group" and self.weights in ("IMAGENET1K_V1", "COCO_V1"):
            raise ValueError(
                f'norm "group" cannot use weights {self.weights}, which were trained with batch normalisation; '
                'use "frozen" or "batch", or weights "none"'
            )
        if self.norm == "group" and self.backbone.startswith("mobilenet"):
            raise ValueError(f'norm "group" has 32 groups, {self.backbone} has layers of 16 channels; use "batch"')
        return self

    @model_validator(mode="after")
    def _whole_detector_exists(self) -> Self:
        if self.weights == "COCO_V1" and (self.backbone, self.fpn_channels) != ("resnet50", 256):
            raise ValueError(
                "weights COCO_V1 is a whole detector, which torchvision only has for backbone resnet50 with "
                f"fpn_channels 256, not for {self.backbone} with {self.fpn_channels}; IMAGENET1K_V1 is only the trunk"
            )
        return self

    def levels(self) -> tuple[Level, ...]:
        """P3-P7."""
        return tuple(Level(f"p{n}", 2**n, self.fpn_channels) for n in range(3, 8))

    def title(self) -> str:
        version = f" v{self.variant()}" if self.variant() > 1 else ""
        return f"{type(self).__name__}{version} {self.backbone.replace('resnet', 'R')}, FPN {self.fpn_channels}"


class FCOS(TorchvisionDetector_):
    """FCOS (arXiv 1904.01355) as torchvision builds it: one stage, no anchors, pyramid levels P3-P7."""

    offers = frozenset({"features", "logits", "boxes", "anchors", "towers"})

    kind: Literal["fcos"] = "fcos"
    fpn_channels: WidthIn32 = 256
    """Width of the pyramid and the heads; a multiple of 32, the groups of the heads' group norm. 32 itself would leave
    one value to a group on a small image's 1x1 map, which torch refuses."""


class RetinaNet(TorchvisionDetector_):
    """RetinaNet (arXiv 1708.02002) as torchvision builds it: one stage, anchors, pyramid levels P3-P7.

    The smallest anchor is chosen for the training boxes before training, and travels with the weights.
    """

    offers = frozenset({"features", "logits", "boxes", "anchors", "towers"})
    anchor_levels = 5

    kind: Literal["retinanet"] = "retinanet"
    version: Version = 1
    """2: torchvision's retinanet_resnet50_fpn_v2: group norm in the heads, P6 from the trunk, GIoU loss."""
    fpn_channels: WidthIn8 = 256
    """Width of the pyramid and the heads; a multiple of 8. Version 2: of 32, and at least 64, for its group norm."""

    def variant(self) -> int:
        return self.version

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.version == 2 and (self.fpn_channels < 64 or self.fpn_channels % 32):
            raise ValueError(
                f"fpn_channels {self.fpn_channels}: RetinaNet version 2 has group norm of 32 groups in its heads; "
                "use a multiple of 32, at least 64, or version 1"
            )
        return self


class FasterRCNN(TorchvisionDetector_):
    """Faster R-CNN (arXiv 1506.01497) with a pyramid, as torchvision builds it: two stages, anchors, levels P2-P5.

    The smallest anchor is chosen for the training boxes before training, and travels with the weights. P6, a pooled
    P5 for the proposals, carries no knowledge of its own and is not distilled.
    """

    offers = frozenset({"features", "logits", "boxes", "anchors", "proposals"})
    anchor_levels = 5  # P6 too
    one_image_because = "each image has its own number of proposals"

    kind: Literal["faster_rcnn"] = "faster_rcnn"
    version: Version = 1
    """2: torchvision's fasterrcnn_resnet50_fpn_v2: batch norm in pyramid and box head, two convolutions for the
    proposals, four convolutions and one linear layer for the boxes."""
    fpn_channels: WidthIn8 = 256
    """Width of the pyramid and the heads; a multiple of 8."""

    def batch_norms(self) -> bool:
        return super().batch_norms() or self.version == 2

    def variant(self) -> int:
        return self.version

    def levels(self) -> tuple[Level, ...]:
        return tuple(Level(f"p{n}", 2**n, self.fpn_channels) for n in range(2, 6))


KIND_IF_UNSAID = "fcos"
"""Requests of the first version, which knew FCOS alone, may leave out `kind`."""


def _with_kind(value: Any) -> Any:
    return {"kind": KIND_IF_UNSAID, **value} if isinstance(value, dict) else value


DetectorSpec = Annotated[FCOS | RetinaNet | FasterRCNN, Field(discriminator="kind"), BeforeValidator(_with_kind)]
"""One class per detector family. Version 2 is a field and not a family: presets and losses to distil are the same."""
