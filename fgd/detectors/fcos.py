"""FCOS (arXiv 1904.01355) over torchvision.models.detection.FCOS."""

# N images, C channels, H x W pixels

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection.image_list import ImageList

from fgd.detectors import trunks
from fgd.detectors.family import Family, WholeDetector
from fgd.detectors.one_stage import TELLS_MATCHES, OneStageDetector, targets_of
from fgd.detectors.onnx_graph import OneStageGraph
from fgd.detectors.towers import Layer, LevelTower, Tower
from fgd.recipe import Recipe
from fgd.types import Batch

STRIDES = (8, 16, 32)
"""Of the trunk's stages that the pyramid stands on."""


class FCOSDetector(OneStageDetector):
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

    def _towers(self) -> dict[str, LevelTower]:
        classes, boxes = self.module.head.classification_head, self.module.head.regression_head
        return {
            "cls": LevelTower(classes.conv, {"logits": Layer(classes.cls_logits, classes.num_classes, background=1)}),
            "reg": LevelTower(
                boxes.conv,
                {
                    "boxes": Layer(lambda map_NCHW: boxes.bbox_reg(map_NCHW).relu(), 4),
                    "quality": Layer(boxes.bbox_ctrness, 1),
                },
            ),
        }

    def _matches(self, anchors: list[Tensor], rows: list[int], targets: list[dict[str, Tensor]]) -> list[Tensor]:
        network = SimpleNamespace(center_sampling_radius=self.module.center_sampling_radius, head=TELLS_MATCHES)
        matches: list[Tensor] = TorchvisionFCOS.compute_loss(network, targets, {}, anchors, rows)
        return matches

    def _decode(self, boxes_NK4: Tensor, anchors_K4: Tensor) -> Tensor:
        decoded_NK4: Tensor = self.module.box_coder.decode(boxes_NK4, anchors_K4)
        return decoded_NK4

    def counted(self, batch: Batch) -> int:
        """Cells that have a box to find: FCOS's losses are sums over the batch, divided by their number."""
        height, width = batch.padded_size
        strides = [level.stride for level in self.recipe.detector.levels()]
        shapes = [(-(-height // stride), -(-width // stride)) for stride in strides]
        maps = [torch.empty((0, 1, *shape)) for shape in shapes]
        images = ImageList(torch.empty((len(batch.image_ids), 0, height, width)), list(batch.image_sizes))
        anchors = self.module.anchor_generator(images, maps)
        targets = [{name: each.cpu() for name, each in target.items()} for target in targets_of(batch)]
        cells = [height * width for height, width in shapes]
        return sum(int((each >= 0).sum()) for each in self._matches(anchors, cells, targets))

    def model_source(self) -> str:
        recipe, channels = self.recipe, self.recipe.detector.fpn_channels
        build = trunks.neck_source(recipe, STRIDES, trunks.P6P7_SOURCE.format(channels, channels))
        build += (
            f"    return detection.FCOS(neck, len(CLASSES) + 1, {trunks.sizes_source(recipe)},\n"
            f"                          score_thresh={recipe.score_thresh}, "
            f"detections_per_img={recipe.detections_per_img})"
        )
        return trunks.model_source(recipe, build)


class FCOSGraph(OneStageGraph):
    def scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return torch.sqrt(outputs["cls_logits"].sigmoid() * outputs["bbox_ctrness"].sigmoid())

    def boxes(self, deltas_NM4: Tensor, anchors_NM4: Tensor) -> Tensor:
        boxes_NM4: Tensor = self.network.box_coder.decode(deltas_NM4, anchors_NM4)
        return boxes_NM4


FAMILY = Family(build=FCOSDetector, onnx=FCOSGraph, pretrained={1: WholeDetector("fcos_resnet50_fpn")})
