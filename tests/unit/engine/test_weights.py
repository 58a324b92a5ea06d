from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fgd.detector_specs import FCOS, Norm
from fgd.detectors import build
from fgd.engine import weights
from fgd.errors import WeightsError
from fgd.recipe import Recipe
from fgd.result_files import WEIGHTS


def recipe(**detector: object) -> Recipe:
    return Recipe(
        detector=FCOS.model_validate({"fpn_channels": 64} | detector), classes=("cat", "dog"), min_size=96, max_size=128
    )


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    weights.export(tmp_path, build(recipe()), {"format": "fgd-manifest/1"}, best=None)
    return tmp_path


LARGE = [pytest.param(backbone, marks=pytest.mark.slow) for backbone in ("resnet34", "resnet50")]


@pytest.mark.numeric
@pytest.mark.parametrize("backbone", ["resnet18", *LARGE])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_model_py_builds_the_student_in_plain_torchvision_and_loads_strictly(
    tmp_path: Path, backbone: str, norm: Norm
) -> None:
    detector = build(recipe(backbone=backbone, norm=norm)).eval()
    weights.export(tmp_path, detector, {}, best=None)
    text = (tmp_path / "model.py").read_text()
    assert len(text.splitlines()) <= 40
    assert "fgd" not in text
    plain = runpy.run_path(str(tmp_path / "model.py"))["load"]()
    image = torch.rand(3, 100, 90, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = detector.module([image])[0], plain([image])[0]
    # The same layers, called on the same values.
    assert torch.equal(ours["boxes"], theirs["boxes"])
    assert torch.equal(ours["scores"], theirs["scores"])


def test_a_round_trip_keeps_every_tensor(exported: Path) -> None:
    first, again = weights.load_detector(exported), load_file(exported / WEIGHTS)
    assert all(torch.equal(value, again[name]) for name, value in first.module.state_dict().items())


def test_loading_leaves_the_global_generator_as_it_was(exported: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    weights.load_detector(exported)
    assert torch.equal(torch.rand(1), expected)


def test_missing_and_unexpected_keys_and_shapes_are_named(exported: Path) -> None:
    tensors = load_file(exported / WEIGHTS)
    del tensors["head.classification_head.cls_logits.bias"]
    tensors["surprise"] = torch.zeros(1)
    tensors["backbone.body.conv1.weight"] = torch.zeros(2, 2)
    save_file(tensors, exported / WEIGHTS)
    with pytest.raises(WeightsError) as error:
        weights.load_detector(exported)
    message = str(error.value)
    assert "1 missing keys: head.classification_head.cls_logits.bias" in message
    assert "1 unexpected keys: surprise" in message
    assert "backbone.body.conv1.weight is (2, 2), not (64, 3, 7, 7)" in message


def test_weights_that_are_not_finite_are_refused(exported: Path) -> None:
    tensors = load_file(exported / WEIGHTS)
    tensors["backbone.body.conv1.weight"][0] = float("nan")
    save_file(tensors, exported / WEIGHTS)
    with pytest.raises(WeightsError, match=r"NaN or infinity: backbone\.body\.conv1\.weight"):
        weights.load_detector(exported)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("recipe.json", None, "no recipe.json"),
        ("recipe.json", b"{}", "detector"),
        ("student.safetensors", b"not weights", "not readable as safetensors"),
        ("student.safetensors", None, "not readable as safetensors"),
    ],
)
def test_a_folder_that_is_no_model_says_what_it_lacks(
    exported: Path, name: str, content: bytes | None, says: str
) -> None:
    (exported / name).unlink()
    if content is not None:
        (exported / name).write_bytes(content)
    with pytest.raises(WeightsError, match=says):
        weights.load_detector(exported)


def test_inherit_copies_neck_and_head_and_nothing_of_the_trunk() -> None:
    source, student = build(recipe(backbone="resnet34")), build(recipe(backbone="resnet18"))
    trunk = student.module.backbone.body.conv1.weight.clone()  # type: ignore[union-attr, operator]
    copied, kept = weights.inherit(student, source)
    ours, theirs = student.module.state_dict(), source.module.state_dict()
    assert copied
    assert not kept  # resnet18 and resnet34 have stages of equal width
    assert all(torch.equal(ours[name], theirs[name]) for name in copied)
    assert torch.equal(student.module.backbone.body.conv1.weight, trunk)  # type: ignore[union-attr, arg-type]


def test_inherit_leaves_tensors_of_another_shape_and_names_them() -> None:
    copied, kept = weights.inherit(build(recipe(backbone="resnet18")), build(recipe(backbone="resnet50")))
    assert "backbone.fpn.inner_blocks.0.0.weight" in kept
    assert "head.classification_head.cls_logits.weight" in copied
