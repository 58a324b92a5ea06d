"""FCOS (arXiv 1904.01355) over torchvision.models.detection.FCOS."""

# N images, C channels, H x W pixels

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection.image_list import ImageList

from fgd.detectors import trunks
from fgd.detectors.base import Detector
from fgd.detectors.towers import Tower, one_cast_each
from fgd.recipe import Recipe
from fgd.types import Batch, Detections

STRIDES = (8, 16, 32)
"""Of the trunk's stages that the pyramid stands on."""


class FCOSDetector(Detector):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        channels = recipe.detector.fpn_channels
        neck = trunks.build_neck(recipe, STRIDES, partial(trunks.ExtraLevels, channels, channels))
        self.module: TorchvisionFCOS = TorchvisionFCOS(
            neck,
            len(recipe.classes) + 1,
            min_size=recipe.min_size,
            max_size=recipe.max_size,
            image_mean=list(recipe.image_mean),
            image_std=list(recipe.image_std),
            score_thresh=recipe.score_thresh,
            detections_per_img=recipe.detections_per_img,
        )
        for head in (self.module.head.classification_head, self.module.head.regression_head):
            head.conv = Tower(*head.conv)

    def _neck(self, images_NCHW: Tensor) -> Sequence[Tensor]:
        return list(self.module.backbone(images_NCHW).values())

    def losses(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        outputs, anchors, cells = self._head(features, batch)
        targets = [{"boxes": target.boxes_K4, "labels": target.labels_K} for target in batch.targets]
        losses: dict[str, Tensor] = self.module.compute_loss(targets, outputs, anchors, cells)
        return losses

    def counted(self, batch: Batch) -> int:
        """Cells that have a box to find: FCOS's losses are sums over the batch, divided by their number."""
        height, width = batch.padded_size
        shapes = [(-(-height // stride), -(-width // stride)) for stride in self.recipe.detector.levels().values()]
        maps = [torch.empty((0, 1, *shape)) for shape in shapes]
        images = ImageList(torch.empty((len(batch.image_ids), 0, height, width)), list(batch.image_sizes))
        anchors = self.module.anchor_generator(images, maps)
        targets = [{"boxes": target.boxes_K4.cpu(), "labels": target.labels_K.cpu()} for target in batch.targets]
        cells = [height * width for height, width in shapes]
        # torchvision matches boxes and cells on the way to the head's loss: this head is only told what was matched.
        head = SimpleNamespace(compute_loss=lambda _targets, _outputs, _anchors, matched: matched)
        matcher = SimpleNamespace(center_sampling_radius=self.module.center_sampling_radius, head=head)
        matched = TorchvisionFCOS.compute_loss(matcher, targets, {}, anchors, cells)
        return sum(int((each >= 0).sum()) for each in matched)

    def detect(self, features: dict[str, Tensor], batch: Batch) -> list[Detections]:
        outputs, anchors, cells = self._head(features, batch)
        found = self.module.postprocess_detections(
            {name: list(torch.split(output, cells, dim=1)) for name, output in outputs.items()},
            [list(torch.split(anchor, cells)) for anchor in anchors],
            list(batch.image_sizes),
        )
        found = self.module.transform.postprocess(found, list(batch.image_sizes), list(batch.original_sizes))
        return [Detections(each["boxes"], each["scores"], each["labels"]) for each in found]

    def _head(self, features: dict[str, Tensor], batch: Batch) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
        """Head outputs, each image's anchors, and the number of cells of each level."""
        maps = list(features.values())
        with one_cast_each(maps[0].device):
            outputs = self.module.head(maps)
        anchors = self.module.anchor_generator(ImageList(batch.images_NCHW, list(batch.image_sizes)), maps)
        cells = [each.shape[-2] * each.shape[-1] for each in maps]
        return outputs, anchors, cells

    def model_source(self) -> str:
        recipe, channels = self.recipe, self.recipe.detector.fpn_channels
        build = trunks.neck_source(recipe, STRIDES, trunks.P6P7_SOURCE.format(channels, channels))
        build += (
            f"    return detection.FCOS(neck, len(CLASSES) + 1, {trunks.sizes_source(recipe)},\n"
            f"                          score_thresh={recipe.score_thresh}, "
            f"detections_per_img={recipe.detections_per_img})"
        )
        return trunks.model_source(recipe, build)
