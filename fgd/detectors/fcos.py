"""FCOS (arXiv 1904.01355) over torchvision.models.detection.FCOS."""

# N images, C channels, H x W pixels

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from fgd.detectors.base import Detector, Recipe
from fgd.spec import Norm
from fgd.types import Batch, Detections

NORMS: dict[Norm, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": partial(nn.GroupNorm, 32),
    "frozen": FrozenBatchNorm2d,
}
STAGES = {"layer2": "0", "layer3": "1", "layer4": "2"}


class ExtraLevels(LastLevelP6P7):  # type: ignore[misc]
    """P6 and P7 in float32, also where trunk and neck run in bf16.

    oneDNN's bf16 gradient of a 3x3 convolution of stride 2 is garbage on maps one cell wide, as P6 is in images of up
    to 64 pixels (seen with torch 2.14.1 on AVX512_BF16). These levels are so small that float32 costs nothing.
    """

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        with torch.autocast(p[0].device.type, enabled=False):
            coarse, names = super().forward([p[-1].float()], [c[-1].float()], names)
        return [*p, *coarse[1:]], names


class FCOSDetector(Detector):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        spec = recipe.detector
        trunk = getattr(torchvision.models, spec.backbone)(weights=None, norm_layer=NORMS[spec.norm])
        width = trunk.fc.in_features  # of the last stage; each stage before it has half
        neck = BackboneWithFPN(
            trunk,
            STAGES,
            [width // 4, width // 2, width],
            spec.fpn_channels,
            ExtraLevels(spec.fpn_channels, spec.fpn_channels),
        )
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
        outputs = self.module.head(maps)
        anchors = self.module.anchor_generator(ImageList(batch.images_NCHW, list(batch.image_sizes)), maps)
        cells = [each.shape[-2] * each.shape[-1] for each in maps]
        return outputs, anchors, cells

    def model_source(self) -> str:
        recipe, spec = self.recipe, self.recipe.detector
        return MODEL_PY.format(
            classes=list(recipe.classes),
            backbone=spec.backbone,
            norm=NORM_SOURCE[spec.norm],
            channels=spec.fpn_channels,
            min_size=recipe.min_size,
            max_size=recipe.max_size,
            image_mean=list(recipe.image_mean),
            image_std=list(recipe.image_std),
            score_thresh=recipe.score_thresh,
            detections_per_img=recipe.detections_per_img,
        )


NORM_SOURCE: dict[Norm, str] = {
    "batch": "torch.nn.BatchNorm2d",
    "group": "lambda channels: torch.nn.GroupNorm(32, channels)",
    "frozen": "torchvision.ops.misc.FrozenBatchNorm2d",
}

MODEL_PY = '''"""Builds this student in plain torchvision; weights: student.safetensors beside this file.

    python model.py photo.jpg
"""
import sys
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

CLASSES = {classes}  # label k means CLASSES[k - 1]


def build():
    trunk = torchvision.models.{backbone}(weights=None, norm_layer={norm})
    width = trunk.fc.in_features
    stages = {{"layer2": "0", "layer3": "1", "layer4": "2"}}
    extra = LastLevelP6P7({channels}, {channels})
    neck = BackboneWithFPN(trunk, stages, [width // 4, width // 2, width], {channels}, extra)
    return FCOS(neck, len(CLASSES) + 1, min_size={min_size}, max_size={max_size}, image_mean={image_mean},
                image_std={image_std}, score_thresh={score_thresh}, detections_per_img={detections_per_img})


def load(path=Path(__file__).with_name("student.safetensors")):
    model = build()
    model.load_state_dict(load_file(path), strict=True)
    return model.eval()


if __name__ == "__main__":
    image = torchvision.io.read_image(sys.argv[1], torchvision.io.ImageReadMode.RGB) / 255
    with torch.no_grad():
        found = load()([image])[0]
    for box, score, label in zip(found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist()):
        print(f"{{CLASSES[label - 1]}} {{score:.2f}} {{[round(x, 1) for x in box]}}")
'''
