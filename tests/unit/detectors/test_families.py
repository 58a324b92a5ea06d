"""What every family owes: torchvision's numbers, the strides and widths its spec promises, a model.py that loads.

What is compared with torchvision is equal to the bit: the same layers are called on the same values, in float32.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torchvision
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from fgd.data.transforms import Sample, Transform
from fgd.detector_specs import FCOS, DetectorSpec, FasterRCNN, Level, RetinaNet, Trunk
from fgd.detectors import DETECTORS, Detector, build, family_of
from fgd.detectors.anchors import RATIOS
from fgd.detectors.trunks import TAPS
from fgd.engine import pretrained, weights
from fgd.errors import SpecError
from fgd.methods.base import Pair
from fgd.outline import refuse_single_values
from fgd.recipe import Recipe
from fgd.spec import JobSpec
from fgd.spec_fields import FromPath
from fgd.types import Batch

pytestmark = pytest.mark.numeric
FAMILIES: dict[str, DetectorSpec] = {
    "fcos": FCOS(fpn_channels=64),
    "retinanet": RetinaNet(fpn_channels=24),
    "retinanet_v2": RetinaNet(version=2, fpn_channels=64, backbone="mobilenet_v3_large"),
    "faster_rcnn": FasterRCNN(fpn_channels=24, backbone="mobilenet_v2"),
    "faster_rcnn_v2": FasterRCNN(version=2, fpn_channels=24),
}
CLASSES = ("a", "b", "c")
BOXES = [[5.0, 8.0, 50.0, 60.0], [40.0, 20.0, 75.0, 70.0]]


@pytest.fixture(scope="module", params=list(FAMILIES))
def detector(request: pytest.FixtureRequest) -> Detector:
    torch.manual_seed(0)
    made = build(Recipe(detector=FAMILIES[request.param], classes=CLASSES, min_size=96, max_size=128))
    with torch.no_grad():  # a fresh head is so sure of seeing nothing that no box would be compared
        for name, parameter in made.module.named_parameters():
            if name.endswith("cls_logits.bias"):
                parameter.zero_()
    return made


def batch_of(*sizes: tuple[int, int], boxes: bool = True) -> tuple[list[Tensor], list[dict[str, Tensor]], Batch]:
    """Images and targets as plain torchvision takes them, and the same as our batch."""
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    targets = [
        {
            "boxes": torch.tensor(BOXES if boxes else []).reshape(-1, 4),
            "labels": torch.tensor([2, 1] if boxes else [], dtype=torch.int64),
        }
        for _ in pixels
    ]
    samples = [
        Sample(i, each, target["boxes"], target["labels"])
        for i, (each, target) in enumerate(zip(pixels, targets, strict=True))
    ]
    return [each / 255 for each in pixels], targets, Transform(96, 128)(samples)


def test_levels_have_the_strides_and_widths_the_spec_promises(detector: Detector) -> None:
    _, _, batch = batch_of((100, 120))
    features = detector.features(batch.images_NCHW)
    spec = detector.recipe.detector
    height, width = batch.padded_size
    assert list(features) == [level.name for level in spec.levels()]
    for level in spec.levels():
        size = -(-height // level.stride), -(-width // level.stride)
        assert features[level.name].shape == (1, level.channels, *size)


def test_its_spec_and_its_record_agree_about_anchors(detector: Detector) -> None:
    spec, anchors = detector.recipe.detector, family_of(detector.recipe.detector).anchors
    assert spec.anchor_levels == (len(anchors.layout.sizes(32)) if anchors else 0)
    if anchors is not None:
        shapes = anchors.layout.sizes(32)[0]
        assert len(detector.module.state_dict()[anchors.boxes]) == 4 * len(shapes) * len(RATIOS)


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
def test_torchvision_has_the_whole_detectors_that_its_record_names(spec: DetectorSpec) -> None:
    source = pretrained.source_of(spec.but(backbone="resnet50", fpn_channels=256, weights="COCO_V1"))
    assert source is not None
    assert source.categories[:2] == ("__background__", "person")


@pytest.mark.parametrize("boxes", [True, False])
def test_losses_are_torchvisions_own(detector: Detector, boxes: bool) -> None:
    images, targets, batch = batch_of((100, 120), (80, 90), boxes=boxes)
    detector.train()  # batch statistics: both passes see the same batch
    detector.module.get_submodule("transform").eval()  # in training it draws one of its single size, at random
    torch.manual_seed(1)  # of the sampler of proposals and boxes
    ours = detector.losses(detector.predict(detector.features(batch.images_NCHW), batch), batch)
    torch.manual_seed(1)
    theirs = detector.module(images, targets)
    assert ours.keys() == theirs.keys()
    for name, loss in ours.items():
        assert torch.equal(loss, theirs[name])
        assert loss.isfinite()


def test_detections_are_torchvisions_own_in_pixels_of_the_stored_image(detector: Detector) -> None:
    images, _, batch = batch_of((200, 240), (150, 130))
    detector.eval()
    with torch.no_grad():
        ours = detector.detect(detector.predict(detector.features(batch.images_NCHW), batch), batch)
        theirs = detector.module(images)
    for mine, plain in zip(ours, theirs, strict=True):
        assert 0 < len(mine.boxes_K4) <= 100
        assert torch.equal(mine.boxes_K4, plain["boxes"])
        assert torch.equal(mine.scores_K, plain["scores"])
        assert torch.equal(mine.labels_K, plain["labels"])


def test_model_py_builds_it_in_plain_torchvision_and_finds_the_same_boxes(detector: Detector, tmp_path: Path) -> None:
    weights.export(tmp_path, detector.eval(), {}, best=None)
    text = (tmp_path / "model.py").read_text()
    assert len(text.splitlines()) <= 40
    assert "fgd" not in text
    plain = runpy.run_path(str(tmp_path / "model.py"))["load"]()
    image = torch.rand(3, 100, 90, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = detector.module([image])[0], plain([image])[0]
    assert len(ours["boxes"]) > 0
    assert all(torch.equal(ours[key], theirs[key]) for key in ("boxes", "scores", "labels"))


def test_heads_and_losses_are_float32_where_the_trunk_trains_in_bf16() -> None:
    _, _, batch = batch_of((60, 70), (80, 90))
    spec = FAMILIES["faster_rcnn"]
    detector = build(Recipe(detector=spec, classes=CLASSES, min_size=64, max_size=64)).train()
    detector.bf16 = True
    features = detector.features(batch.images_NCHW)
    losses = detector.losses(detector.predict(features, batch), batch)
    assert {each.dtype for each in [*features.values(), *losses.values()]} == {torch.float32}


@pytest.mark.parametrize(
    ("spec", "constructor"),
    [
        (FCOS(backbone="resnet50"), "fcos_resnet50_fpn"),
        (RetinaNet(backbone="resnet50"), "retinanet_resnet50_fpn"),
        (RetinaNet(backbone="resnet50", version=2), "retinanet_resnet50_fpn_v2"),
        (FasterRCNN(backbone="resnet50"), "fasterrcnn_resnet50_fpn"),
        (FasterRCNN(backbone="resnet50", version=2), "fasterrcnn_resnet50_fpn_v2"),
    ],
)
def test_at_full_size_it_is_torchvisions_network(spec: DetectorSpec, constructor: str) -> None:
    with torch.device("meta"):
        ours = build(Recipe(detector=spec, classes=CLASSES, min_size=96, max_size=128)).module
        make: Callable[..., nn.Module] = getattr(torchvision.models.detection, constructor)
        theirs = make(weights=None, weights_backbone=None, num_classes=len(CLASSES) + 1, min_size=96, max_size=128)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert leaves(ours) == leaves(theirs)
    if isinstance(spec, RetinaNet):
        loss = "head.regression_head"
        assert ours.get_submodule(loss)._loss_type == theirs.get_submodule(loss)._loss_type


def leaves(module: nn.Module) -> dict[str, str]:
    """What each layer says of itself: kernel, stride, eps, groups, sizes."""
    return {name: repr(each) for name, each in module.named_modules() if not list(each.children())}


@pytest.mark.parametrize(
    ("detector", "size", "refused"),
    [
        (FCOS(fpn_channels=64), (32, 32), True),
        (FCOS(fpn_channels=64, norm="group"), (32, 32), False),
        (FCOS(fpn_channels=64, backbone="mobilenet_v3_small"), (33, 33), True),
        (FasterRCNN(version=2, fpn_channels=24, norm="group"), (64, 65), True),
        (RetinaNet(fpn_channels=24), (40, 42), False),
        (RetinaNet(fpn_channels=24), (40, 41), True),
    ],
)
def test_torch_refuses_what_the_outline_does(detector: DetectorSpec, size: tuple[int, int], refused: bool) -> None:
    """One image that becomes 32 pixels, in training."""
    spec = JobSpec(
        name="j", teacher=None, student=detector, dataset=FromPath(path="/x"), methods=(),
        schedule={"batch_size": 1, "min_size": 32, "max_size": 64},
    )  # fmt: skip
    made = build(Recipe(detector=detector, classes=CLASSES, min_size=32, max_size=64)).train()
    pixels = Sample(1, torch.zeros(3, *size, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    batch = Transform(32, 64)([pixels])

    if not refused:
        made.features(batch.images_NCHW)
        refuse_single_values(spec, max(size) / min(size))
        return
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        made.features(batch.images_NCHW)
    with pytest.raises(SpecError, match="one value a channel"):
        refuse_single_values(spec, max(size) / min(size))


def test_every_detector_spec_has_its_family() -> None:
    assert set(DETECTORS) == {FCOS, RetinaNet, FasterRCNN}


# --- trunks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", get_args(Trunk))
def test_every_trunk_gives_maps_of_the_promised_strides_and_widths(backbone: Trunk) -> None:
    spec = FasterRCNN(backbone=backbone, fpn_channels=16)
    with torch.device("meta"):  # shapes alone: the largest has 88 million weights
        detector = build(Recipe(detector=spec, classes=("a",), min_size=96, max_size=128)).eval()
        maps = detector._neck(torch.zeros(1, 3, 128, 160))
    assert [tuple(each.shape) for each in maps] == [
        (1, 16, -(-128 // level.stride), -(-160 // level.stride)) for level in spec.levels()
    ]


def test_mobilenet_is_tapped_where_a_stage_ends() -> None:
    """The block after a tapped one halves the map, or there is none."""
    for backbone in ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"):
        layers = list(getattr(torchvision.models, backbone)(weights=None).features)
        sizes, x = [], torch.zeros(1, 3, 64, 64)
        for layer in layers:
            x = layer.eval()(x)
            sizes.append(x.shape[-1])
        for stride, (name, _) in TAPS[backbone].items():
            assert sizes[int(name)] == 64 // stride
            assert int(name) + 1 == len(layers) or sizes[int(name) + 1] == 32 // stride


@pytest.mark.parametrize(("backbone", "eps", "momentum"), [("resnet18", 1e-5, 0.1), ("mobilenet_v3_small", 1e-3, 0.01)])
def test_batch_norm_is_the_trunks_own(backbone: Trunk, eps: float, momentum: float) -> None:
    with torch.device("meta"):
        made = build(
            Recipe(detector=RetinaNet(backbone=backbone, fpn_channels=16), classes=("a",), min_size=64, max_size=64)
        )
    norms = [each for each in made.modules() if isinstance(each, nn.BatchNorm2d)]
    assert {(each.eps, each.momentum) for each in norms} == {(eps, momentum)}


# --- specs ----------------------------------------------------------------------------------------------------

parse: Callable[[str], DetectorSpec] = partial(TypeAdapter(DetectorSpec).validate_json)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"kind": "retinanet", "version": 2, "fpn_channels": 40}, "group norm of 32 groups"),
        ({"kind": "retinanet", "fpn_channels": 20}, "multiple of 8"),
        ({"kind": "faster_rcnn", "version": 3}, "less than or equal to 2"),
        ({"kind": "fcos", "version": 2}, "Extra inputs"),
        ({"kind": "retinanet", "norm": "group", "backbone": "mobilenet_v2"}, "layers of 16 channels"),
        ({"kind": "fcos", "norm": "group", "weights": "IMAGENET1K_V1"}, "trained with batch normalisation"),
        ({"kind": "faster_rcnn", "weights": "COCO_V1"}, "backbone resnet50 with fpn_channels 256"),
        (
            {"kind": "retinanet", "weights": "COCO_V1", "backbone": "resnet50", "fpn_channels": 128},
            "not for resnet50 with 128",
        ),
        ({"kind": "ssd"}, "'fcos', 'retinanet', 'faster_rcnn'"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(body: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        parse(json.dumps(body))


def test_a_student_without_kind_is_fcos_as_in_the_first_version() -> None:
    assert parse('{"backbone": "resnet34", "norm": "batch"}') == FCOS(backbone="resnet34", norm="batch")


@pytest.mark.parametrize(("weights", "norm"), [("none", "batch"), ("IMAGENET1K_V1", "frozen")])
def test_norm_follows_the_weights(weights: str, norm: str) -> None:
    assert parse(json.dumps({"kind": "retinanet", "weights": weights})).trunk_norm() == norm


# --- pairs ----------------------------------------------------------------------------------------------------


def job(student: DetectorSpec) -> JobSpec:
    return JobSpec(name="pair", teacher=None, student=student, dataset=FromPath(path="/d"), methods=())


@pytest.mark.parametrize(
    ("student", "teacher", "shared"),
    [
        (RetinaNet(), FCOS(), ["p3", "p4", "p5", "p6", "p7"]),
        (RetinaNet(), FasterRCNN(), ["p3", "p4", "p5"]),
        (FasterRCNN(), FCOS(), ["p3", "p4", "p5"]),
    ],
)
def test_families_are_paired_by_stride(student: DetectorSpec, teacher: DetectorSpec, shared: list[str]) -> None:
    job(student).refuse_pair(teacher)
    assert list(Pair.of(student, teacher).levels) == shared


def test_a_pair_without_a_common_stride_is_refused_with_both_lists() -> None:
    class Odd(FCOS):
        def levels(self) -> tuple[Level, ...]:
            return Level("c1", 6, 16), Level("c2", 12, 16)

    with pytest.raises(SpecError, match=r"student strides \[4, 8, 16, 32\], teacher strides \[6, 12\]"):
        job(FasterRCNN()).refuse_pair(Odd())


@pytest.mark.parametrize("source", [FCOS(), FasterRCNN(), RetinaNet(version=2)])
def test_heads_of_another_family_or_version_are_not_inherited(source: DetectorSpec) -> None:
    with pytest.raises(SpecError, match=f"inherits from a network of kind {source.kind}"):
        job(RetinaNet()).refuse_inherit(source)
    job(RetinaNet()).refuse_inherit(RetinaNet(backbone="resnet50"))


@pytest.mark.parametrize("kind", ["fcos", "retinanet", "faster_rcnn"])
def test_a_seed_draws_the_trunk_first_so_it_means_the_same_network_in_every_family(kind: str) -> None:
    torch.manual_seed(7)
    alone = torchvision.models.resnet18(weights=None).state_dict()
    torch.manual_seed(7)
    detector = parse(json.dumps({"kind": kind, "backbone": "resnet18", "fpn_channels": 64}))
    made = build(Recipe(detector=detector, classes=("a",), min_size=64, max_size=64)).module.state_dict()

    assert torch.equal(made["backbone.body.layer4.1.conv2.weight"], alone["layer4.1.conv2.weight"])
