"""What is traced to ONNX: images in, final boxes out, every shape fixed but the batch. Knows no family and no ONNX.

`OneStageGraph` runs torchvision's network and box coder; selection and suppression are written for whole batches, as
torchvision's go image by image and make maps of varying length.
"""

# N images, C classes, H x W pixels, K locations times shapes, M candidates, D detections

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import boxes as box_ops

from fgd.data.transforms import STRIDE
from fgd.detectors.base import Detector

FEW = 1000
"""torchvision keeps classes apart by moving their boxes away from each other, if there are not more candidates: what
that rounds is done here too, since it decides which of two boxes of nearly the same overlap is kept."""


class Graph(nn.Module):
    """float32 N x 3 x H x W in 0..1 -> boxes N x D x 4 in its pixels, scores N x D, labels N x D; score 0: no box."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, detector: Detector, height: int, width: int) -> None:
        super().__init__()
        self.network: Any = detector.module
        self.height, self.width = height, width
        self.classes = len(detector.recipe.classes) + 1
        self.rows = detector.recipe.detections_per_img
        """D: what each image's answer is filled up to."""
        for name in ("image_mean", "image_std"):
            self.register_buffer(name, torch.tensor(getattr(detector.recipe, name)).reshape(1, 3, 1, 1))

    @property
    def chooser(self) -> Any:
        """The part of torchvision's network that chooses boxes: it has score_thresh and nms_thresh."""
        return self.network

    def padded(self, images_NCHW: Tensor) -> Tensor:
        normal_NCHW = (images_NCHW - self.image_mean) / self.image_std
        return F.pad(normal_NCHW, (0, -self.width % STRIDE, 0, -self.height % STRIDE))


class OneStageGraph(Graph, ABC):
    """A head that says the same of each place."""

    anchors_K4: Tensor

    def __init__(self, detector: Detector, height: int, width: int) -> None:
        super().__init__(detector, height, width)
        with torch.no_grad():
            images_NCHW = self.padded(torch.zeros(1, 3, height, width))
            maps = list(self.network.backbone(images_NCHW).values())
            (anchors_K4,) = self.network.anchor_generator(ImageList(images_NCHW, [(height, width)]), maps)
        shapes = self.network.anchor_generator.num_anchors_per_location()
        self.counts = [each.shape[2] * each.shape[3] * count for each, count in zip(maps, shapes, strict=True)]
        self.candidates = [min(self.network.topk_candidates, count * self.classes) for count in self.counts]
        self.rows = min(self.rows, sum(self.candidates))
        self.register_buffer("anchors_K4", anchors_K4)

    @abstractmethod
    def scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """N x K x C in 0..1 of the head's outputs."""

    @abstractmethod
    def boxes(self, deltas_NM4: Tensor, anchors_NM4: Tensor) -> Tensor:
        """N x M x 4, xyxy in pixels."""

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs = self.network.head(list(self.network.backbone(self.padded(images_NCHW)).values()))
        scores_NKC = self.scores(outputs)
        scores_NKC = torch.where(scores_NKC > self.network.score_thresh, scores_NKC, 0.0)
        levels = zip(
            torch.split(scores_NKC, self.counts, 1),
            torch.split(outputs["bbox_regression"], self.counts, 1),
            torch.split(self.anchors_K4, self.counts),
            self.candidates,
            strict=True,
        )
        boxes, scores, labels = zip(*(self._best_of_level(*level) for level in levels), strict=True)
        return self._final(torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1))

    def _best_of_level(
        self, scores_NKC: Tensor, deltas_NK4: Tensor, anchors_K4: Tensor, candidates: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The candidates of one level: boxes, scores, labels."""
        scores_NM, at_NM = scores_NKC.flatten(1).topk(candidates)
        place_NM = torch.div(at_NM, self.classes, rounding_mode="floor")
        anchors_NM4 = anchors_K4[place_NM]
        deltas_NM4 = deltas_NK4.gather(1, place_NM[..., None].expand(-1, -1, 4))
        boxes_NM4 = self.boxes(deltas_NM4, anchors_NM4)
        return box_ops.clip_boxes_to_image(boxes_NM4, (self.height, self.width)), scores_NM, at_NM % self.classes

    def _final(self, boxes_NM4: Tensor, scores_NM: Tensor, labels_NM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left_NM = suppressed(boxes_NM4, scores_NM, labels_NM, self.network.nms_thresh, self.classes)
        scores_ND, at_ND = left_NM.topk(self.rows)
        found_ND = scores_ND > 0
        boxes_ND4 = boxes_NM4.gather(1, at_ND[..., None].expand(-1, -1, 4))
        boxes_ND4 = torch.where(found_ND[..., None], boxes_ND4, 0.0)
        return boxes_ND4, scores_ND, torch.where(found_ND, labels_NM.gather(1, at_ND), 0)


def suppressed(boxes_NM4: Tensor, scores_NM: Tensor, groups_NM: Tensor, iou: float, groups: int) -> Tensor:
    """The scores of those that NMS keeps within each group, else 0. Candidates of score 0 do not count.

    The operator is `fgd.export.operators.non_max_suppression`: a training needs none.
    """
    there_NM = scores_NM > 0
    largest_N = torch.where(there_NM[..., None], boxes_NM4, 0.0).flatten(1).amax(1)
    apart_NM = torch.where((there_NM.sum(1) <= FEW)[:, None], groups_NM * (largest_N + 1)[:, None], 0.0)
    mine_NCM = torch.arange(groups)[None, :, None] == groups_NM[:, None]
    scores_NCM = torch.where(mine_NCM, scores_NM[:, None], 0.0)
    kept: Tensor = torch.ops.fgd.non_max_suppression(boxes_NM4 + apart_NM[..., None], scores_NCM, iou)
    return kept
