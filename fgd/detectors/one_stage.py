"""What torchvision's FCOS and RetinaNet have in common: two towers over every level, and an anchor generator."""

# N images, K places

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from fgd.detectors.base import Detector
from fgd.detectors.towers import LevelTower, one_cast_each
from fgd.types import Batch, Detections, HeadTower, Output, Predictions

OUTPUTS: dict[Output, str] = {"logits": "cls_logits", "boxes": "bbox_regression", "quality": "bbox_ctrness"}
"""torchvision's names."""
TELLS_MATCHES = SimpleNamespace(compute_loss=lambda _targets, _outputs, _anchors, matches: matches)
"""In place of a head: torchvision's networks match boxes and places on the way to the loss of theirs."""


@dataclass(frozen=True, kw_only=True)
class OneStagePredictions(Predictions):
    outputs: dict[str, Tensor]
    """As torchvision's heads give them: all levels in a row, and a column of the logits for the background."""
    anchors: list[Tensor]
    """Of each image."""


class OneStageDetector(Detector):
    module: Any
    """torchvision's network."""

    @property
    def trunk(self) -> nn.Module:
        trunk: nn.Module = self.module.backbone.body
        return trunk

    @property
    def trunk_and_neck(self) -> tuple[nn.Module, ...]:
        return (self.module.backbone,)

    def _neck(self, images_NCHW: Tensor) -> Sequence[Tensor]:
        return list(self.module.backbone(images_NCHW).values())

    def towers(self) -> Mapping[str, HeadTower]:
        return self._towers()

    @abstractmethod
    def _towers(self) -> dict[str, LevelTower]:
        """In the order in which they run."""

    @abstractmethod
    def _matches(self, anchors: list[Tensor], rows: list[int], targets: list[dict[str, Tensor]]) -> list[Tensor]:
        """Of each image, as `Predictions.matches`."""

    @abstractmethod
    def _decode(self, boxes_NK4: Tensor, anchors_K4: Tensor) -> Tensor: ...

    def predict(
        self,
        features: Mapping[str, Tensor],
        batch: Batch,
        *,
        hold: bool = False,
        regions: bool = True,  # noqa: ARG002  # there are none
    ) -> OneStagePredictions:
        maps = list(features.values())
        rows: dict[Output, list[Tensor]] = {}
        held: dict[str, dict[str, tuple[Tensor, ...]]] = {}
        with one_cast_each(maps[0].device):
            for name, tower in self._towers().items():
                for level, map_NCHW in features.items():
                    if hold:
                        held.setdefault(name, {})[level] = tower.tower.held(map_NCHW)
                        last_NCHW = held[name][level][-1]
                    else:
                        last_NCHW = tower.tower(map_NCHW)
                    for output, layer in tower.layers.items():
                        rows.setdefault(output, []).append(layer.rows(last_NCHW))
        outputs = {OUTPUTS[output]: torch.cat(each, dim=1) for output, each in rows.items()}
        anchors = self.module.anchor_generator(ImageList(batch.images_NCHW, list(batch.image_sizes)), maps)
        counts = [each.shape[1] for each in rows["logits"]]
        matches = self._matches(anchors, counts, targets_of(batch)) if self.training else None
        return OneStagePredictions(
            rows=dict(zip(features, counts, strict=True)),
            logits_NKC=outputs["cls_logits"][..., 1:],
            boxes_NKD=outputs["bbox_regression"],
            anchors_K4=anchors[0],
            decode=self._decode,
            quality_NK=outputs["bbox_ctrness"].squeeze(2) if "bbox_ctrness" in outputs else None,
            matches=tuple(matches) if matches is not None else None,
            held=held,
            outputs=outputs,
            anchors=anchors,
        )

    def losses(self, predictions: Predictions, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(predictions, OneStagePredictions)
        assert predictions.matches is not None, "boxes and places are only matched in training mode"
        losses: dict[str, Tensor] = self.module.head.compute_loss(
            targets_of(batch), predictions.outputs, predictions.anchors, list(predictions.matches)
        )
        return losses

    def detect(self, predictions: Predictions, batch: Batch) -> list[Detections]:
        assert isinstance(predictions, OneStagePredictions)
        counts = list(predictions.rows.values())
        found = self.module.postprocess_detections(
            {name: list(torch.split(output, counts, dim=1)) for name, output in predictions.outputs.items()},
            [list(torch.split(anchors_K4, counts)) for anchors_K4 in predictions.anchors],
            list(batch.image_sizes),
        )
        found = self.module.transform.postprocess(found, list(batch.image_sizes), list(batch.original_sizes))
        return [Detections(each["boxes"], each["scores"], each["labels"]) for each in found]


def targets_of(batch: Batch) -> list[dict[str, Tensor]]:
    """As torchvision takes them."""
    return [{"boxes": target.boxes_K4, "labels": target.labels_K} for target in batch.targets]
