"""What the engine needs of a detector. Knows nothing of teachers, optimisers or files."""

# N images, C channels, H x W pixels

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fgd.detectors.towers import BoxTower, Tower
from fgd.recipe import Recipe
from fgd.types import Batch, Detections, HeadTower, Predictions, Regions


class Detector(nn.Module, ABC):
    """`module` is plain torchvision: its state dict is what users download.

    Features and predictions are arguments, not hooks: `features()` once, `predict()` once, then `losses()` or
    `detect()`, and the distillation methods see the same maps and predictions. Trunk, neck and the head's towers may
    train in bf16; the maps, the head's outputs, anchors and losses are float32, and so is everything in eval mode.
    """

    recipe: Recipe
    module: nn.Module
    _bf16: bool = False

    @property
    def bf16(self) -> bool:
        """Train trunk, neck and towers under bf16 autocast."""
        return self._bf16

    @bf16.setter
    def bf16(self, on: bool) -> None:
        self._bf16 = on
        for each in self.module.modules():
            if isinstance(each, Tower | BoxTower):
                each.bf16 = on

    def features(self, images_NCHW: Tensor) -> dict[str, Tensor]:
        """The neck's maps by level name, finest first, float32 N x C x H/stride x W/stride."""
        lower = self.bf16 and self.training
        if lower and self.recipe.detector.trunk_norm() != "group":  # torch's group norm is slow in this layout
            images_NCHW = images_NCHW.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images_NCHW.device.type, torch.bfloat16, enabled=lower):
            maps = self._neck(images_NCHW)
        maps = [each.to(torch.float32, memory_format=torch.contiguous_format) for each in maps]
        return {level.name: each for level, each in zip(self.recipe.detector.levels(), maps, strict=True)}

    @abstractmethod
    def _neck(self, images_NCHW: Tensor) -> Sequence[Tensor]: ...

    @property
    @abstractmethod
    def trunk(self) -> nn.Module:
        """The part of `module` that is trained as a classifier before."""

    @property
    @abstractmethod
    def trunk_and_neck(self) -> tuple[nn.Module, ...]:
        """The parts of `module` that make the maps: all but the head."""

    @abstractmethod
    def predict(
        self, features: Mapping[str, Tensor], batch: Batch, *, hold: bool = False, regions: bool = True
    ) -> Predictions:
        """One pass of the head. In training what the losses are made of is drawn here, from torch's global generator.

        hold: keep the maps between the convolutions of `towers`. regions: run a second stage, which losses and
        detections need.
        """

    @abstractmethod
    def losses(self, predictions: Predictions, batch: Batch) -> dict[str, Tensor]:
        """Scalar detection losses by name; images without boxes are legal."""

    def counted(self, batch: Batch) -> int:
        """How many `losses` takes its mean over (1 if it is 0). It weighs the batches of a step, so that several equal
        one large batch. Here: images, for families that normalise each image by itself."""
        return len(batch.image_ids)

    @abstractmethod
    def detect(self, predictions: Predictions, batch: Batch) -> list[Detections]:
        """Detections in pixels of the stored images."""

    def towers(self) -> Mapping[str, HeadTower]:
        """Of the head, by a name that families share: "cls", "reg". None in families that do not offer them."""
        return {}

    def regions(self, features: Mapping[str, Tensor], batch: Batch, proposals: Sequence[Tensor]) -> Regions:
        """The second stage's answers to proposals of each image, xyxy in pixels of the padded input."""
        raise NotImplementedError(f"{self.recipe.detector.kind} has no second stage")

    @abstractmethod
    def model_source(self) -> str:
        """The text of model.py: builds `module` from torchvision's public classes alone, for a strict load."""

    def neck_and_head(self) -> dict[str, Tensor]:
        """What FGD's inheriting strategy copies: every tensor outside the trunk."""
        of_trunk = self.trunk_keys()
        return {key: value for key, value in self.module.state_dict().items() if key not in of_trunk}

    def trunk_keys(self) -> dict[str, str]:
        """Key of each tensor of the trunk in the state dict of `module` -> its key in the trunk's own."""
        prefix = next(name for name, each in self.module.named_modules() if each is self.trunk)
        return {f"{prefix}.{key}": key for key in self.trunk.state_dict()}
