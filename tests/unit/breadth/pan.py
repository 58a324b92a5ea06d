"""A family that shares nothing with torchvision's: its own trunk, neck and heads, each level of another width."""

# N images, C channels, K places, H x W pixels or cells

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image, generalized_box_iou_loss, sigmoid_focal_loss
from torchvision.ops.misc import Conv2dNormActivation

from fgd.detectors.base import Detector
from fgd.detectors.family import Family
from fgd.detectors.towers import Layer, LevelTower, Tower, one_cast_each
from fgd.recipe import Recipe
from fgd.types import Batch, Detections, HeadTower, Output, Predictions

WIDTHS = (64, 96, 128)
STRIDES = (8, 16, 32)
CANDIDATES = 1000


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(block(3, 32, stride=2), block(32, 48, stride=2))
        self.stages = nn.ModuleList(block(a, b, stride=2) for a, b in zip((48, 64, 96), WIDTHS, strict=True))

    def forward(self, images_NCHW: Tensor) -> list[Tensor]:
        maps = [self.stem(images_NCHW)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class Paths(nn.Module):
    """Down the pyramid and up again."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(block(a + b, a) for a, b in pairwise(WIDTHS))
        self.halve = nn.ModuleList(block(a, b, stride=2) for a, b in pairwise(WIDTHS))
        self.up = nn.ModuleList(block(2 * b, b) for b in WIDTHS[1:])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        for n in (1, 0):
            above = F.interpolate(maps[n + 1], size=maps[n].shape[-2:])
            maps[n] = self.down[n](torch.cat([maps[n], above], 1))
        for n in (0, 1):
            maps[n + 1] = self.up[n](torch.cat([maps[n + 1], self.halve[n](maps[n])], 1))
        return maps


class Head(nn.Module):
    """Of one level."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.cls_tower = Tower(*(block(width, width) for _ in range(3)))
        self.reg_tower = Tower(*(block(width, width) for _ in range(3)))
        self.cls, self.reg = nn.Conv2d(width, classes, 1), nn.Conv2d(width, 4, 1)
        nn.init.constant_(self.cls.bias, -4.0)


class Network(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.paths = Body(), Paths()
        self.heads = nn.ModuleList(Head(width, classes) for width in WIDTHS)


def block(inputs: int, outputs: int, stride: int = 1) -> Conv2dNormActivation:
    return Conv2dNormActivation(inputs, outputs, 3, stride)


@dataclass(frozen=True)
class TowerOfLevels:
    towers: Mapping[str, LevelTower]

    @property
    def depth(self) -> int:
        return 3

    def channels(self, level: str) -> int:
        return self.towers[level].channels(level)

    def __call__(self, level: str, map_NCHW: Tensor, first: int = 0) -> dict[Output, Tensor]:
        return self.towers[level](level, map_NCHW, first)


class PanDetector(Detector):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.module = Network(len(recipe.classes))

    @property
    def trunk(self) -> nn.Module:
        return self.module.body

    @property
    def trunk_and_neck(self) -> tuple[nn.Module, ...]:
        return self.module.body, self.module.paths

    def _neck(self, images_NCHW: Tensor) -> Sequence[Tensor]:
        return self.module.paths(self.module.body(images_NCHW))

    def towers(self) -> Mapping[str, HeadTower]:
        return {name: TowerOfLevels(towers) for name, towers in self._towers().items()}

    def _towers(self) -> dict[str, dict[str, LevelTower]]:
        heads = {level.name: head for level, head in zip(self.recipe.detector.levels(), self.module.heads, strict=True)}
        return {
            "cls": {
                level: LevelTower(head.cls_tower, {"logits": Layer(head.cls, len(self.recipe.classes))})
                for level, head in heads.items()
            },
            "reg": {
                level: LevelTower(head.reg_tower, {"boxes": Layer(lambda x, head=head: F.softplus(head.reg(x)), 4)})
                for level, head in heads.items()
            },
        }

    def predict(
        self, features: Mapping[str, Tensor], batch: Batch, *, hold: bool = False, regions: bool = True
    ) -> Predictions:
        rows: dict[Output, list[Tensor]] = {}
        held: dict[str, dict[str, tuple[Tensor, ...]]] = {"cls": {}, "reg": {}}
        with one_cast_each(batch.images_NCHW.device):
            for name, towers in self._towers().items():
                for level, map_NCHW in features.items():
                    maps = held[name][level] = towers[level].tower.held(map_NCHW)
                    for output, layer in towers[level].layers.items():
                        rows.setdefault(output, []).append(layer.rows(maps[-1]))
        anchors_K4 = torch.cat(
            [squares(each, stride) for each, stride in zip(features.values(), STRIDES, strict=True)]
        ).to(batch.images_NCHW.device)
        return Predictions(
            rows={level: each.shape[1] for level, each in zip(features, rows["logits"], strict=True)},
            logits_NKC=torch.cat(rows["logits"], 1),
            boxes_NKD=torch.cat(rows["boxes"], 1),
            anchors_K4=anchors_K4,
            decode=decode,
            matches=tuple(matches(anchors_K4, target.boxes_K4) for target in batch.targets) if self.training else None,
            held=held if hold else {},
        )

    def losses(self, predictions: Predictions, batch: Batch) -> dict[str, Tensor]:
        assert predictions.matches is not None
        boxes_NK4 = predictions.decode(predictions.boxes_NKD, predictions.anchors_K4)
        classes = boxes = predictions.logits_NKC.sum() * 0
        for n, (target, match_K) in enumerate(zip(batch.targets, predictions.matches, strict=True)):
            found_K = match_K >= 0
            wanted_KC = torch.zeros_like(predictions.logits_NKC[n])
            wanted_KC[found_K, target.labels_K[match_K[found_K]] - 1] = 1.0
            classes = classes + sigmoid_focal_loss(predictions.logits_NKC[n], wanted_KC, reduction="sum")
            wanted_K4 = target.boxes_K4[match_K[found_K]]
            boxes = boxes + generalized_box_iou_loss(boxes_NK4[n][found_K], wanted_K4, reduction="sum")
        count = max(1, sum(int((each >= 0).sum()) for each in predictions.matches))
        return {"classes": classes / count, "boxes": boxes / count}

    def detect(self, predictions: Predictions, batch: Batch) -> list[Detections]:
        boxes_NK4 = predictions.decode(predictions.boxes_NKD, predictions.anchors_K4)
        sizes = zip(batch.image_sizes, batch.original_sizes, strict=True)
        return [
            self._of_image(boxes_K4, logits_KC.sigmoid(), size, stored)
            for boxes_K4, logits_KC, (size, stored) in zip(boxes_NK4, predictions.logits_NKC, sizes, strict=True)
        ]

    def _of_image(
        self, boxes_K4: Tensor, scores_KC: Tensor, size: tuple[int, int], stored: tuple[int, int]
    ) -> Detections:
        scores_M, at_M = scores_KC.flatten().topk(min(CANDIDATES, scores_KC.numel()))
        at_M, scores_M = at_M[scores_M > self.recipe.score_thresh], scores_M[scores_M > self.recipe.score_thresh]
        boxes_M4 = clip_boxes_to_image(boxes_K4[at_M // scores_KC.shape[1]], size)
        labels_M = at_M % scores_KC.shape[1] + 1
        kept_D = batched_nms(boxes_M4, scores_M, labels_M, 0.6)[: self.recipe.detections_per_img]
        scale_4 = boxes_K4.new_tensor([stored[1] / size[1], stored[0] / size[0]]).repeat(2)
        return Detections(boxes_M4[kept_D] * scale_4, scores_M[kept_D], labels_M[kept_D])

    def model_source(self) -> str:
        parts = "\n\n".join(inspect.getsource(part) for part in (block, Body, Paths, Tower, Head, Network))
        return f"import torch\nfrom torch import nn\n\nWIDTHS = {WIDTHS}\n\n\n{parts}"


def squares(map_NCHW: Tensor, stride: int) -> Tensor:
    """Of the stride's size around the middle of each cell."""
    y, x = torch.meshgrid(*(torch.arange(each) * stride for each in map_NCHW.shape[-2:]), indexing="ij")
    corner_K2 = torch.stack([x.flatten(), y.flatten()], 1)
    return torch.cat([corner_K2, corner_K2 + stride], 1).float()


def decode(boxes_NK4: Tensor, anchors_K4: Tensor) -> Tensor:
    """Distances to the left, upper, right and lower side, in strides."""
    centre_K2 = (anchors_K4[:, :2] + anchors_K4[:, 2:]) / 2
    side_K1 = anchors_K4[:, 2:3] - anchors_K4[:, :1]
    return torch.cat([centre_K2 - boxes_NK4[..., :2] * side_K1, centre_K2 + boxes_NK4[..., 2:] * side_K1], -1)


def matches(anchors_K4: Tensor, boxes_M4: Tensor) -> Tensor:
    """The smallest box around each place's middle; -1: none."""
    if not len(boxes_M4):
        return torch.full((len(anchors_K4),), -1, device=anchors_K4.device)
    centre_K12 = ((anchors_K4[:, :2] + anchors_K4[:, 2:]) / 2)[:, None]
    inside_KM = ((centre_K12 > boxes_M4[:, :2]) & (centre_K12 < boxes_M4[:, 2:])).all(2)
    area_M = (boxes_M4[:, 2:] - boxes_M4[:, :2]).prod(1)
    area_KM = torch.where(inside_KM, area_M, torch.inf)
    return torch.where(inside_KM.any(1), area_KM.argmin(1), -1)


FAMILY = Family(build=PanDetector)
