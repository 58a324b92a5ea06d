"""Faster R-CNN (arXiv 1506.01497), versions 1 and 2, over torchvision.models.detection.FasterRCNN."""

# N images, C channels, H x W pixels

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from fgd.detectors import trunks
from fgd.detectors.anchors import ONE_FROM_P2, RATIOS, generator
from fgd.detectors.base import Detector
from fgd.detectors.towers import BoxTower, Tower, one_cast_each
from fgd.recipe import Recipe
from fgd.spec import FasterRCNN
from fgd.types import Batch, Detections

STRIDES = (4, 8, 16, 32)
"""Of the trunk's stages that the pyramid stands on."""


class FasterRCNNDetector(Detector):
    anchor_layout = ONE_FROM_P2

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        spec = recipe.detector
        assert isinstance(spec, FasterRCNN)
        channels = spec.fpn_channels
        anchors = generator(recipe.anchor_sizes or ONE_FROM_P2.sizes(32), recipe.anchor_ratios or RATIOS)
        heads: dict[str, Any] = {}
        if spec.version == 2:
            shapes = anchors.num_anchors_per_location()[0]
            heads["rpn_head"] = RPNHead(channels, shapes, conv_depth=2)
            heads["box_head"] = FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [1024], norm_layer=nn.BatchNorm2d)
        neck = trunks.build_neck(recipe, STRIDES, LastLevelMaxPool, nn.BatchNorm2d if spec.version == 2 else None)
        self.module: TorchvisionFasterRCNN = TorchvisionFasterRCNN(
            neck,
            len(recipe.classes) + 1,
            min_size=recipe.min_size,
            max_size=recipe.max_size,
            image_mean=list(recipe.image_mean),
            image_std=list(recipe.image_std),
            rpn_anchor_generator=anchors,
            box_score_thresh=recipe.score_thresh,
            box_detections_per_img=recipe.detections_per_img,
            **heads,
        )
        self.module.rpn.head.conv = Tower(*self.module.rpn.head.conv)
        wide = self.module.roi_heads.box_head
        self.module.roi_heads.box_head = Tower(*wide) if isinstance(wide, nn.Sequential) else BoxTower(wide)

    def _neck(self, images_NCHW: Tensor) -> Sequence[Tensor]:
        maps = self.module.backbone(images_NCHW)
        return [maps[str(place)] for place in range(len(STRIDES))]  # without the pooled P6

    def losses(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        assert self.training, "proposals and boxes are sampled for the losses in training mode only"
        targets = [{"boxes": target.boxes_K4, "labels": target.labels_K} for target in batch.targets]
        maps, images = self._inputs(features, batch)
        with one_cast_each(batch.images_NCHW.device):
            proposals, proposal_losses = self.module.rpn(images, maps, targets)
        _, box_losses = self.module.roi_heads(maps, proposals, images.image_sizes, targets)
        return {**box_losses, **proposal_losses}

    def detect(self, features: dict[str, Tensor], batch: Batch) -> list[Detections]:
        assert not self.training, "boxes are found in eval mode only"
        maps, images = self._inputs(features, batch)
        proposals, _ = self.module.rpn(images, maps)
        found, _ = self.module.roi_heads(maps, proposals, images.image_sizes)
        found = self.module.transform.postprocess(found, images.image_sizes, list(batch.original_sizes))
        return [Detections(each["boxes"], each["scores"], each["labels"]) for each in found]

    def _inputs(self, features: dict[str, Tensor], batch: Batch) -> tuple[dict[str, Tensor], ImageList]:
        """The maps as torchvision names them, with P6 pooled from P5, and the images."""
        maps = list(features.values())
        maps, names = self.module.backbone.fpn.extra_blocks(maps, maps, [str(place) for place in range(len(maps))])
        return dict(zip(names, maps, strict=True)), ImageList(batch.images_NCHW, list(batch.image_sizes))

    def model_source(self) -> str:
        recipe, spec = self.recipe, self.recipe.detector
        assert isinstance(spec, FasterRCNN)
        sizes, ratios = recipe.anchor_sizes or ONE_FROM_P2.sizes(32), recipe.anchor_ratios or RATIOS
        pool = "feature_pyramid_network.LastLevelMaxPool()"
        build = trunks.neck_source(recipe, STRIDES, pool, "nn.BatchNorm2d" if spec.version == 2 else "None")
        build += f"    anchors = detection.anchor_utils.AnchorGenerator({sizes}, ({ratios},) * {len(sizes)})\n"
        heads = ""
        if spec.version == 2:
            build += HEADS_2.format(channels=spec.fpn_channels, shapes=len(sizes[0]) * len(ratios))
            heads = "rpn_head=rpn_head, box_head=box_head, "
        build += (
            f"    return detection.FasterRCNN(neck, len(CLASSES) + 1, {trunks.sizes_source(recipe)},\n"
            f"                                rpn_anchor_generator=anchors, {heads}"
            f"box_score_thresh={recipe.score_thresh}, box_detections_per_img={recipe.detections_per_img})"
        )
        return trunks.model_source(recipe, build)


HEADS_2 = """\
    rpn_head = detection.rpn.RPNHead({channels}, {shapes}, conv_depth=2)
    box_head = detection.faster_rcnn.FastRCNNConvFCHead(({channels}, 7, 7), [{channels}] * 4, [1024], nn.BatchNorm2d)
"""
