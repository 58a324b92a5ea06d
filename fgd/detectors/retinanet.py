"""RetinaNet (arXiv 1708.02002), versions 1 and 2, over torchvision.models.detection.RetinaNet."""

# N images, C channels, H x W pixels

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead

from fgd.detectors import trunks
from fgd.detectors.anchors import RATIOS, THREE_FROM_P3, generator
from fgd.detectors.base import Detector
from fgd.detectors.towers import Tower, one_cast_each
from fgd.recipe import Recipe
from fgd.spec import RetinaNet
from fgd.types import Batch, Detections

STRIDES = (8, 16, 32)
"""Of the trunk's stages that the pyramid stands on."""


class RetinaNetDetector(Detector):
    anchor_layout = THREE_FROM_P3

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        spec = recipe.detector
        assert isinstance(spec, RetinaNet)
        channels = spec.fpn_channels
        neck = trunks.build_neck(recipe, STRIDES, partial(trunks.ExtraLevels, self._p6_from(), channels))
        anchors = generator(recipe.anchor_sizes or THREE_FROM_P3.sizes(32), recipe.anchor_ratios or RATIOS)
        head = None
        if spec.version == 2:
            shapes = anchors.num_anchors_per_location()[0]
            head = RetinaNetHead(channels, shapes, len(recipe.classes) + 1, norm_layer=partial(nn.GroupNorm, 32))
            head.regression_head._loss_type = "giou"
        self.module: TorchvisionRetinaNet = TorchvisionRetinaNet(
            neck,
            len(recipe.classes) + 1,
            min_size=recipe.min_size,
            max_size=recipe.max_size,
            image_mean=list(recipe.image_mean),
            image_std=list(recipe.image_std),
            anchor_generator=anchors,
            head=head,
            score_thresh=recipe.score_thresh,
            detections_per_img=recipe.detections_per_img,
        )
        for part in (self.module.head.classification_head, self.module.head.regression_head):
            part.conv = Tower(*part.conv)

    def _p6_from(self) -> int:
        """Width of the map that P6 is made of: P5 in version 1, the trunk's last stage in version 2."""
        spec = self.recipe.detector
        assert isinstance(spec, RetinaNet)
        return spec.fpn_channels if spec.version == 1 else trunks.TAPS[spec.backbone][32][1]

    def _neck(self, images_NCHW: Tensor) -> Sequence[Tensor]:
        return list(self.module.backbone(images_NCHW).values())

    def losses(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        outputs, anchors = self._head(features, batch)
        targets = [{"boxes": target.boxes_K4, "labels": target.labels_K} for target in batch.targets]
        losses: dict[str, Tensor] = self.module.compute_loss(targets, outputs, anchors)
        return losses

    def detect(self, features: dict[str, Tensor], batch: Batch) -> list[Detections]:
        outputs, anchors = self._head(features, batch)
        shapes = self.module.anchor_generator.num_anchors_per_location()
        counts = [
            each.shape[-2] * each.shape[-1] * count for each, count in zip(features.values(), shapes, strict=True)
        ]
        found = self.module.postprocess_detections(
            {name: list(torch.split(output, counts, dim=1)) for name, output in outputs.items()},
            [list(torch.split(anchor, counts)) for anchor in anchors],
            list(batch.image_sizes),
        )
        found = self.module.transform.postprocess(found, list(batch.image_sizes), list(batch.original_sizes))
        return [Detections(each["boxes"], each["scores"], each["labels"]) for each in found]

    def _head(self, features: dict[str, Tensor], batch: Batch) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Head outputs, and each image's anchors."""
        maps = list(features.values())
        with one_cast_each(maps[0].device):
            outputs = self.module.head(maps)
        anchors = self.module.anchor_generator(ImageList(batch.images_NCHW, list(batch.image_sizes)), maps)
        return outputs, anchors

    def model_source(self) -> str:
        recipe, spec = self.recipe, self.recipe.detector
        assert isinstance(spec, RetinaNet)
        sizes, ratios = recipe.anchor_sizes or THREE_FROM_P3.sizes(32), recipe.anchor_ratios or RATIOS
        extra = trunks.P6P7_SOURCE.format(self._p6_from(), spec.fpn_channels)
        build = trunks.neck_source(recipe, STRIDES, extra)
        build += f"    anchors = detection.anchor_utils.AnchorGenerator({sizes}, ({ratios},) * {len(sizes)})\n"
        head = ""
        if spec.version == 2:
            build += HEAD_2.format(channels=spec.fpn_channels, shapes=len(sizes[0]) * len(ratios))
            head = "head=head, "
        build += (
            f"    return detection.RetinaNet(neck, len(CLASSES) + 1, {trunks.sizes_source(recipe)},\n"
            f"                               anchor_generator=anchors, {head}score_thresh={recipe.score_thresh}, "
            f"detections_per_img={recipe.detections_per_img})"
        )
        return trunks.model_source(recipe, build)


HEAD_2 = """\
    head = detection.retinanet.RetinaNetHead({channels}, {shapes}, len(CLASSES) + 1, lambda c: nn.GroupNorm(32, c))
    head.regression_head._loss_type = "giou"
"""
