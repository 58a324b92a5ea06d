"""RetinaNet (arXiv 1708.02002), versions 1 and 2, over torchvision.models.detection.RetinaNet."""

# N images, C channels, H x W pixels

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace

from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead

from fgd.detector_specs import RetinaNet
from fgd.detectors import trunks
from fgd.detectors.anchors import RATIOS, THREE_FROM_P3, decoded, generator
from fgd.detectors.family import Anchors, Family, WholeDetector
from fgd.detectors.one_stage import TELLS_MATCHES, OneStageDetector
from fgd.detectors.onnx_graph import OneStageGraph
from fgd.detectors.towers import Layer, LevelTower, Tower
from fgd.recipe import Recipe

STRIDES = (8, 16, 32)
"""Of the trunk's stages that the pyramid stands on."""


class RetinaNetDetector(OneStageDetector):
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

    def _towers(self) -> dict[str, LevelTower]:
        classes, boxes = self.module.head.classification_head, self.module.head.regression_head
        return {
            "cls": LevelTower(classes.conv, {"logits": Layer(classes.cls_logits, classes.num_classes, background=1)}),
            "reg": LevelTower(boxes.conv, {"boxes": Layer(boxes.bbox_reg, 4)}),
        }

    def _matches(self, anchors: list[Tensor], rows: list[int], targets: list[dict[str, Tensor]]) -> list[Tensor]:  # noqa: ARG002
        network = SimpleNamespace(proposal_matcher=self.module.proposal_matcher, head=TELLS_MATCHES)
        matches: list[Tensor] = TorchvisionRetinaNet.compute_loss(network, targets, {}, anchors)
        return matches

    def _decode(self, boxes_NK4: Tensor, anchors_K4: Tensor) -> Tensor:
        return decoded(self.module.box_coder, boxes_NK4, anchors_K4)

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


class RetinaNetGraph(OneStageGraph):
    def scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return outputs["cls_logits"].sigmoid()

    def boxes(self, deltas_NM4: Tensor, anchors_NM4: Tensor) -> Tensor:
        boxes_K4: Tensor = self.network.box_coder.decode_single(deltas_NM4.reshape(-1, 4), anchors_NM4.reshape(-1, 4))
        return boxes_K4.reshape(*deltas_NM4.shape[:2], 4)


FAMILY = Family(
    build=RetinaNetDetector,
    onnx=RetinaNetGraph,
    pretrained={
        1: WholeDetector("retinanet_resnet50_fpn", norm_eps=0.0),
        2: WholeDetector("retinanet_resnet50_fpn_v2"),
    },
    anchors=Anchors(THREE_FROM_P3, boxes="head.regression_head.bbox_reg.weight"),
)
