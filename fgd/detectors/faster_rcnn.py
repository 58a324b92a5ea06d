"""Faster R-CNN (arXiv 1506.01497), versions 1 and 2, over torchvision.models.detection.FasterRCNN."""

# N images, C channels, H x W pixels

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import RPNHead, concat_box_prediction_layers
from torchvision.ops import boxes as box_ops
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from fgd.detector_specs import FasterRCNN
from fgd.detectors import trunks
from fgd.detectors.anchors import ONE_FROM_P2, RATIOS, decoded, generator
from fgd.detectors.base import Detector
from fgd.detectors.family import Anchors, Family, WholeDetector
from fgd.detectors.one_stage import targets_of
from fgd.detectors.onnx_graph import Graph, suppressed
from fgd.detectors.towers import BoxTower, Tower, one_cast_each
from fgd.recipe import Recipe
from fgd.types import Batch, Detections, Predictions, Regions

STRIDES = (4, 8, 16, 32)
"""Of the trunk's stages that the pyramid stands on."""
POOLED = "p6"
"""The level that is pooled from P5 for the proposals alone."""


@dataclass(frozen=True, kw_only=True)
class TwoStagePredictions(Predictions):
    proposal_losses: dict[str, Tensor] = field(default_factory=dict)
    """In training: torchvision draws the places of these losses before it draws the regions."""


class FasterRCNNDetector(Detector):
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

    @property
    def trunk(self) -> nn.Module:
        trunk: nn.Module = self.module.backbone.body
        return trunk

    @property
    def trunk_and_neck(self) -> tuple[nn.Module, ...]:
        return (self.module.backbone,)

    def _neck(self, images_NCHW: Tensor) -> Sequence[Tensor]:
        maps = self.module.backbone(images_NCHW)
        return [maps[str(place)] for place in range(len(STRIDES))]  # without the pooled P6

    def predict(
        self,
        features: Mapping[str, Tensor],
        batch: Batch,
        *,
        hold: bool = False,  # noqa: ARG002  # it offers no towers
        regions: bool = True,
    ) -> TwoStagePredictions:
        """torchvision's order of things: what is drawn depends on it."""
        rpn, maps = self.module.rpn, self._maps(features)
        with one_cast_each(batch.images_NCHW.device):
            of_levels = rpn.head(list(maps.values()))
        rows = [each[0].numel() for each, _ in zip(*of_levels, strict=True)]
        anchors = rpn.anchor_generator(ImageList(batch.images_NCHW, list(batch.image_sizes)), list(maps.values()))
        logits_M1, deltas_M4 = concat_box_prediction_layers(*of_levels)
        predictions = TwoStagePredictions(
            rows=dict(zip((*features, POOLED), rows, strict=True)),
            logits_NKC=logits_M1.view(len(anchors), -1, 1),
            objectness=True,
            boxes_NKD=deltas_M4.view(len(anchors), -1, 4),
            anchors_K4=anchors[0],
            decode=partial(decoded, rpn.box_coder),
        )
        if not regions:
            return predictions
        boxes_NK4 = rpn.box_coder.decode(deltas_M4.detach(), anchors).view(len(anchors), -1, 4)
        proposals, _ = rpn.filter_proposals(boxes_NK4, logits_M1, list(batch.image_sizes), rows)
        if not self.training:
            return replace(predictions, regions=self._answers(maps, batch, proposals))
        labels, matched = rpn.assign_targets_to_anchors(anchors, targets_of(batch))
        drawn = rpn.compute_loss(logits_M1, deltas_M4, labels, rpn.box_coder.encode(matched, anchors))
        proposals, _, labels, deltas = self.module.roi_heads.select_training_samples(proposals, targets_of(batch))
        answers = self._answers(maps, batch, proposals)
        return replace(
            predictions,
            regions=replace(answers, labels_R=torch.cat(labels), targets_R4=torch.cat(deltas)),
            proposal_losses=dict(zip(("loss_objectness", "loss_rpn_box_reg"), drawn, strict=True)),
        )

    def regions(self, features: Mapping[str, Tensor], batch: Batch, proposals: Sequence[Tensor]) -> Regions:
        return self._answers(self._maps(features), batch, proposals)

    def _answers(self, maps: Mapping[str, Tensor], batch: Batch, proposals: Sequence[Tensor]) -> Regions:
        heads = self.module.roi_heads
        pooled = heads.box_roi_pool(maps, list(proposals), list(batch.image_sizes))
        logits_RC, deltas_RD = heads.box_predictor(heads.box_head(pooled))
        return Regions(proposals=tuple(proposals), logits_RC=logits_RC, boxes_RC4=deltas_RD.view(*logits_RC.shape, 4))

    def losses(self, predictions: Predictions, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002
        assert isinstance(predictions, TwoStagePredictions)
        drawn = predictions.regions
        assert drawn is not None
        assert drawn.labels_R is not None, "proposals and boxes are only sampled for the losses in training mode"
        assert drawn.targets_R4 is not None
        classes, boxes = fastrcnn_loss(
            drawn.logits_RC, drawn.boxes_RC4.flatten(1), [drawn.labels_R], [drawn.targets_R4]
        )
        return {"loss_classifier": classes, "loss_box_reg": boxes, **predictions.proposal_losses}

    def detect(self, predictions: Predictions, batch: Batch) -> list[Detections]:
        found = predictions.regions
        assert found is not None
        assert not self.training, "boxes are only detected in eval mode"
        boxes, scores, labels = self.module.roi_heads.postprocess_detections(
            found.logits_RC, found.boxes_RC4.flatten(1), list(found.proposals), list(batch.image_sizes)
        )
        of_images = [
            {"boxes": boxes_K4, "scores": scores_K, "labels": labels_K}
            for boxes_K4, scores_K, labels_K in zip(boxes, scores, labels, strict=True)
        ]
        of_images = self.module.transform.postprocess(of_images, list(batch.image_sizes), list(batch.original_sizes))
        return [Detections(each["boxes"], each["scores"], each["labels"]) for each in of_images]

    def _maps(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As torchvision names them, with P6 pooled from P5."""
        maps = list(features.values())
        maps, names = self.module.backbone.fpn.extra_blocks(maps, maps, [str(place) for place in range(len(maps))])
        return dict(zip(names, maps, strict=True))

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


class FasterRCNNGraph(Graph):
    """torchvision as a whole; only its NMS is ours."""

    @property
    def chooser(self) -> Any:
        return self.network.roi_heads

    def forward(self, images_1CHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        padded_1CHW = self.padded(images_1CHW)
        maps, size = self.network.backbone(padded_1CHW), [(self.height, self.width)]
        with suppression_is_ours(max(self.classes, len(maps))):
            proposals, _ = self.network.rpn(ImageList(padded_1CHW, size), maps)
            (found,), _ = self.network.roi_heads(maps, proposals, size)
        boxes_D4 = F.pad(found["boxes"], (0, 0, 0, self.rows))[: self.rows]
        scores_D, labels_D = (F.pad(found[key], (0, self.rows))[: self.rows] for key in ("scores", "labels"))
        return boxes_D4[None], scores_D[None], labels_D[None]


@contextmanager
def suppression_is_ours(groups: int) -> Iterator[None]:
    """While torchvision's Faster R-CNN is traced: its own NMS would be traced without the choice that FEW tells of."""

    def batched_nms(boxes_M4: Tensor, scores_M: Tensor, groups_M: Tensor, iou: float) -> Tensor:
        # A row that does not count: ONNX finds no largest of nothing.
        boxes_14, scores_1, groups_1 = boxes_M4.new_zeros(1, 4), scores_M.new_zeros(1), groups_M.new_zeros(1)
        left_M = suppressed(
            torch.cat((boxes_M4, boxes_14))[None],
            torch.cat((scores_M, scores_1))[None],
            torch.cat((groups_M, groups_1))[None],
            iou,
            groups,
        )[0]
        (kept_K,) = torch.where(left_M > 0)
        return kept_K[left_M[kept_K].argsort(descending=True)]

    theirs = box_ops.batched_nms  # which rpn and roi_heads look up at each call
    box_ops.batched_nms = batched_nms
    try:
        yield
    finally:
        box_ops.batched_nms = theirs


FAMILY = Family(
    build=FasterRCNNDetector,
    onnx=FasterRCNNGraph,
    pretrained={
        1: WholeDetector("fasterrcnn_resnet50_fpn", norm_eps=0.0),
        2: WholeDetector("fasterrcnn_resnet50_fpn_v2"),
    },
    anchors=Anchors(ONE_FROM_P2, boxes="rpn.head.bbox_pred.weight"),
)
