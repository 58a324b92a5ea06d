"""Pretrained weights: torchvision's own files, found, checked, and really in the student. The files here are made by
torchvision's constructors and named after their own digest, as torchvision names its own."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection._utils import overwrite_eps

from fgd.detector_specs import FCOS, DetectorSpec, FasterRCNN, RetinaNet
from fgd.detectors import Detector, build
from fgd.engine import pretrained, weights
from fgd.engine.pretrained import Source, source_of
from fgd.errors import WeightsError
from fgd.events import Finished, Note
from fgd.recipe import Recipe
from fgd.spec import JobSpec

COCO = ("__background__", *(f"thing {n}" for n in range(1, 91)))


def no_stop() -> None:
    return


@pytest.fixture(autouse=True)
def nothing_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither files of this host nor its network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.delenv(pretrained.FOLDER, raising=False)


def put(folder: Path, module: nn.Module, stem: str) -> Source:
    folder.mkdir(exist_ok=True)
    torch.save(module.state_dict(), folder / "some.pth")
    digest = hashlib.sha256((folder / "some.pth").read_bytes()).hexdigest()
    (folder / "some.pth").rename(folder / f"{stem}-{digest[:8]}.pth")
    return Source(f"{stem}.V1", f"http://127.0.0.1:9/{stem}-{digest[:8]}.pth", COCO)


def network(spec: DetectorSpec, classes: tuple[str, ...] = ("a", "b")) -> Detector:
    return build(
        Recipe(detector=spec, classes=classes, min_size=64, max_size=96, norm_eps=pretrained.norm_eps(spec))
    ).eval()


def stirred(module: nn.Module) -> nn.Module:
    """Statistics as if trained: fresh ones are 0 and 1 everywhere. Means about 0, or nothing would pass the ReLUs."""
    generator = torch.Generator().manual_seed(0)
    for name, value in module.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.copy_(torch.rand(value.shape, generator=generator) + (0.5 if name.endswith("var") else -0.5))
    return module


def apart(found: Tensor, wanted: Tensor) -> float:
    """In float64, in which the rounding of norms that compute in another order is far below any mistake."""
    assert found.dtype == wanted.dtype == torch.float64
    assert wanted.any()
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (RetinaNet(weights="IMAGENET1K_V1"), "resnet18-f37072fd.pth"),
        (FCOS(backbone="mobilenet_v2", weights="IMAGENET1K_V1"), "mobilenet_v2-b0353104.pth"),
        (FCOS(backbone="resnext101_64x4d", weights="IMAGENET1K_V1"), "resnext101_64x4d-173b62eb.pth"),
        (FCOS(backbone="resnet50", weights="COCO_V1"), "fcos_resnet50_fpn_coco-99b0c9b7.pth"),
        (RetinaNet(backbone="resnet50", weights="COCO_V1", version=2), "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth"),
        (FasterRCNN(backbone="resnet50", weights="COCO_V1"), "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"),
    ],
)
def test_files_are_those_of_torchvisions_enums(spec: DetectorSpec, name: str) -> None:
    source = source_of(spec)
    assert source is not None
    assert source.file == name
    assert name.endswith(f"-{source.digest_start}.pth")
    assert (len(source.categories) == 91) == (spec.weights == "COCO_V1")


def test_weights_none_name_no_file() -> None:
    assert source_of(FCOS()) is None


@pytest.mark.numeric
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small"])
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_the_trunk_computes_what_the_classifier_computes(
    backbone: Any, norm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = stirred(getattr(torchvision.models, backbone)(weights=None)).eval()
    source = put(tmp_path / "w", classifier, backbone)
    monkeypatch.setenv(pretrained.FOLDER, str(tmp_path / "w"))
    student = network(RetinaNet(backbone=backbone, weights="IMAGENET1K_V1", norm=norm, fpn_channels=16))
    loaded = pretrained.load(student, source, no_stop)
    assert loaded.sha256.startswith(source.digest_start)
    assert "backbone.fpn.inner_blocks.0.0.weight" in loaded.afresh
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    classifier.double()
    if backbone == "resnet18":
        known = nn.Sequential(*list(classifier.children())[:-2])
    else:
        known = classifier.get_submodule("features")
    with torch.no_grad():
        ours = student.module.get_submodule("backbone.body").double()(image)["2"]
        assert apart(ours, known(image)) < 1e-12


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize(
    ("spec", "constructor"),
    [
        (RetinaNet(backbone="resnet50", weights="COCO_V1"), "retinanet_resnet50_fpn"),
        (FasterRCNN(backbone="resnet50", weights="COCO_V1", version=2), "fasterrcnn_resnet50_fpn_v2"),
    ],
)
def test_a_whole_detector_computes_what_torchvisions_computes(
    spec: DetectorSpec, constructor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = getattr(torchvision.models.detection, constructor)
    theirs = stirred(make(weights=None, weights_backbone=None, num_classes=91, min_size=64, max_size=96)).eval()
    source = put(tmp_path / "w", theirs, constructor)
    monkeypatch.setenv(pretrained.FOLDER, str(tmp_path / "w"))
    student = network(spec, COCO[1:])
    loaded = pretrained.load(student, source, no_stop)
    assert loaded.afresh == []
    if constructor == "retinanet_resnet50_fpn":  # as torchvision's builder does with these weights
        for each in theirs.modules():
            if isinstance(each, nn.BatchNorm2d):
                each.eps = 0.0
        overwrite_eps(theirs, 0.0)
    image = torch.rand(1, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    necks = [copy.deepcopy(module.get_submodule("backbone")).double() for module in (student.module, theirs)]
    for neck in necks:
        neck.get_submodule("fpn").extra_blocks = None  # ours makes P6 and P7 in float32
    with torch.no_grad():
        ours, plain = (neck(image) for neck in necks)
    assert all(apart(mine, known) < 1e-12 for mine, known in zip(ours.values(), plain.values(), strict=True))
    others = network(spec)
    fresh = {key: value.clone() for key, value in others.module.state_dict().items()}
    again = pretrained.load(others, source, no_stop)
    heads = {
        "RetinaNet": {"head.classification_head.cls_logits.weight", "head.classification_head.cls_logits.bias"},
        "FasterRCNN": {
            f"roi_heads.box_predictor.{layer}.{kind}"
            for layer in ("cls_score", "bbox_pred")
            for kind in ("weight", "bias")
        },
    }[type(spec).__name__]
    assert set(again.afresh) == heads
    now = others.module.state_dict()
    assert all(torch.equal(now[key], fresh[key]) for key in heads)
    source_tensors = theirs.state_dict()
    assert all(torch.equal(now[key], source_tensors[key]) for key in again.copied)


def test_eps_zero_travels_in_recipe_and_model_py() -> None:
    detector = network(RetinaNet(backbone="resnet50", weights="COCO_V1"))
    assert detector.recipe.norm_eps == 0.0
    assert "FrozenBatchNorm2d(c, eps=0.0)" in detector.model_source()
    assert pretrained.norm_eps(RetinaNet(backbone="resnet50", weights="COCO_V1", version=2)) is None
    assert pretrained.norm_eps(RetinaNet(backbone="resnet50", weights="COCO_V1", norm="batch")) is None


def test_another_file_under_the_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "resnet18-f37072fd.pth").write_bytes(b"other bytes")
    monkeypatch.setenv(pretrained.FOLDER, str(tmp_path / "w"))
    spec = RetinaNet(weights="IMAGENET1K_V1", fpn_channels=16)
    source = source_of(spec)
    assert source is not None
    with pytest.raises(WeightsError, match=r"is not ResNet18_Weights.IMAGENET1K_V1: .* its name says f37072fd"):
        pretrained.load(network(spec), source, no_stop)


def test_a_file_of_another_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = put(tmp_path / "w", nn.Linear(2, 2), "resnet18")
    monkeypatch.setenv(pretrained.FOLDER, str(tmp_path / "w"))
    with pytest.raises(WeightsError, match="does not fit the trunk resnet18"):
        pretrained.load(network(RetinaNet(weights="IMAGENET1K_V1", fpn_channels=16)), source, no_stop)


def test_without_file_and_internet_the_error_names_file_address_and_variable() -> None:
    source = Source("X.V1", "http://127.0.0.1:9/x-0123abcd.pth")  # nobody listens there
    with pytest.raises(WeightsError) as error:
        pretrained.find(source, no_stop)
    for word in ("x-0123abcd.pth", source.url, "FGD_WEIGHTS_DIR"):
        assert word in str(error.value)


def test_a_weights_folder_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(pretrained.FOLDER, str(tmp_path / "nowhere"))
    with pytest.raises(WeightsError, match="not a folder"):
        pretrained.find(Source("X.V1", "http://127.0.0.1:9/x-0123abcd.pth"), no_stop)


def test_torch_hubs_cache_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    file = tmp_path / "torch" / "hub" / "checkpoints" / "x-0123abcd.pth"
    file.write_bytes(b"")
    assert pretrained.find(Source("X.V1", "http://127.0.0.1:9/x-0123abcd.pth"), no_stop) == file


@pytest.mark.slow
def test_a_training_starts_from_the_file_and_says_so(
    train: Callable[..., Any], make_spec: Callable[..., JobSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = put(tmp_path / "w", stirred(torchvision.models.mobilenet_v3_small(weights=None)), "mobilenet")
    monkeypatch.setenv(pretrained.FOLDER, str(tmp_path / "w"))
    monkeypatch.setattr(pretrained, "source_of", lambda _: replace(source, categories=()))
    student = {
        "kind": "retinanet",
        "backbone": "mobilenet_v3_small",
        "fpn_channels": 16,
        "weights": "IMAGENET1K_V1",
    }
    run = train(make_spec(student=student, schedule={"epochs": 1}))
    assert run.of(Finished)
    (told,) = [each for each in run.of(Note) if each.code == "pretrained"]
    assert told.data["sha256"].startswith(source.digest_start)
    manifest = json.loads((run.result / "manifest.json").read_text())
    assert manifest["pretrained"]["sha256"] == told.data["sha256"]
    detector = weights.load_detector(run.result)  # needs no file: a recipe builds, the result's own tensors fill
    assert detector.recipe.detector.norm == "frozen"
    given = torch.load(next((tmp_path / "w").iterdir()), weights_only=True)
    assert torch.equal(
        detector.module.state_dict()["backbone.body.0.1.running_mean"], given["features.0.1.running_mean"]
    )
