"""Weights from elsewhere, as files that torch and safetensors really write; and pickles that must not run."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fgd import weights_file
from fgd.detector_specs import FCOS, FasterRCNN, RetinaNet
from fgd.detectors import build
from fgd.engine import checkpoint, import_weights, weights
from fgd.engine.import_weights import Misfit, convert
from fgd.errors import WeightsError
from fgd.recipe import Recipe
from fgd.result_files import WEIGHTS

RECIPE = Recipe(detector=FCOS(fpn_channels=64), classes=("cat", "dog"), min_size=96, max_size=128)
HEAD = "head.classification_head.cls_logits."


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return dict(build(RECIPE).module.state_dict())


def saved(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_good_file_becomes_a_model_that_loads_strictly(tensors: dict[str, Tensor], tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"in.{kind}"
    save_file(tensors, file, metadata={"author": "x"}) if kind == "safetensors" else torch.save(tensors, file)

    report = convert(file, RECIPE, tmp_path)

    assert report["format"] == kind
    assert report["tensors"] == len(tensors)
    assert report["weights_digest"] == checkpoint.digest_of_tensors(tensors)
    assert report["weights_digest"] == weights_file.digest_of_tensors(tmp_path / WEIGHTS)
    loaded = weights.load_detector(tmp_path).module.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in tensors.items())


def test_names_of_any_length_are_cut_in_a_report(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    long = {f"{n}{'x' * 50_000}": torch.zeros(1) for n in range(3)}
    file = saved({"model": tensors | long, **{f"{n}{'y' * 50_000}": 0 for n in range(150)}}, tmp_path / "in.pth")

    with pytest.raises(Misfit) as caught:
        convert(file, RECIPE, tmp_path)

    report = caught.value.report
    assert report["counts"]["unexpected"] == 3
    assert {len(name) for name in report["unexpected"]} == {200}
    assert len(json.dumps(report)) + len(str(caught.value)) < 10_000


def test_wrapper_prefix_and_half_precision_are_undone_and_told(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    half = {f"module.{key}": value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    file = saved({"epoch": 3, "model": half, "optimizer": {"lr": 1.0}}, tmp_path / "in.pth")

    report = convert(file, RECIPE, tmp_path)

    assert (report["wrapper"], report["prefix"], report["left_out"]) == ("model", "module.", ["epoch", "optimizer"])
    assert list(report["cast"]) == ["float16"]
    assert any("'module.'" in note for note in report["notes"])
    assert all(value.dtype == tensors[key].dtype for key, value in load_file(tmp_path / WEIGHTS).items())


def test_torchvision_s_own_detector_fits_the_one_of_that_name(tmp_path: Path) -> None:
    from torchvision.models.detection import fcos_resnet50_fpn

    theirs = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4).state_dict()
    recipe = RECIPE.but(detector=FCOS(backbone="resnet50", fpn_channels=256), classes=("a", "b", "c"))

    assert convert(saved(theirs, tmp_path / "in.pth"), recipe, tmp_path)["tensors"] == len(theirs)


def trained_elsewhere(kind: str, sizes: Any, ratios: tuple[float, ...]) -> Any:
    """A torchvision detector with anchors of its own, built by torchvision's classes alone."""
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    anchors = AnchorGenerator(sizes, (ratios,) * 5)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if kind == "faster_rcnn":
            neck = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=torch.nn.BatchNorm2d)
            return detection.FasterRCNN(neck, 3, rpn_anchor_generator=anchors, min_size=96, max_size=128)
        neck = resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, norm_layer=torch.nn.BatchNorm2d, returned_layers=[2, 3, 4],
            extra_blocks=LastLevelP6P7(256, 256),
        )  # fmt: skip
        return detection.RetinaNet(neck, 3, anchor_generator=anchors, min_size=96, max_size=128, score_thresh=0.005)


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["retinanet", "faster_rcnn"])
def test_a_network_with_anchors_of_its_own_finds_the_same_boxes_when_they_are_named(tmp_path: Path, kind: str) -> None:
    sizes, ratios = ((16, 20), (32, 40), (64, 80), (100, 128), (200, 256)), (1.0, 3.0)
    theirs = trained_elsewhere(kind, sizes, ratios).eval()
    spec = RetinaNet() if kind == "retinanet" else FasterRCNN()
    recipe = RECIPE.but(detector=spec, anchor_sizes=sizes, anchor_ratios=ratios, score_thresh=0.005)
    file = saved(theirs.state_dict(), tmp_path / "in.pth")

    convert(file, recipe, tmp_path)

    ours = weights.load_detector(tmp_path)
    (tmp_path / "model.py").write_text(ours.model_source())
    exported = runpy.run_path(str(tmp_path / "model.py"))["load"]()
    if kind == "faster_rcnn":
        theirs.roi_heads.score_thresh = 0.005
    with torch.no_grad():
        image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(1))
        expected, found = theirs([image])[0], exported([image])[0]
    assert len(expected["boxes"]) > 0
    # The same layers, called on the same values; a recipe keeps 100 detections, torchvision's RetinaNet 300.
    assert all(torch.equal(value[:100], found[key]) for key, value in expected.items())

    error = misfit(theirs.state_dict(), tmp_path / "again", recipe.but(anchor_sizes=None, anchor_ratios=None))
    made = 9 if kind == "retinanet" else 3
    assert f"The file's head has 4 anchors at each place, but anchor_sizes and anchor_ratios give {made}" in str(error)
    assert error.report["pointer"] == "/anchor_sizes"
    assert "classes" not in str(error).partition(".")[0]


def test_a_family_without_anchors_is_not_asked_for_them(tmp_path: Path) -> None:
    theirs = build(RECIPE.but(detector=RetinaNet(fpn_channels=64))).module.state_dict()
    assert misfit(theirs, tmp_path).report["pointer"] == "/detector"


def test_a_file_of_one_family_named_as_another_is_told_what_it_is_and_nothing_of_anchors(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    error = misfit({"model": tensors}, tmp_path, RECIPE.but(detector=RetinaNet(fpn_channels=64)))

    assert str(error).startswith(
        'The file looks like fcos resnet18 with 3 classes (2 and background), "fpn_channels": 64, "norm": "batch"; '
        'you named "kind": "retinanet". The file does not fit RetinaNet'
    )
    assert (error.report["pointer"], len(error.report["hints"])) == ("/detector", 1)


def test_averaged_weights_are_taken_unless_the_raw_ones_are_asked_for(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    raw = {key: value + 1 if value.is_floating_point() else value for key, value in tensors.items()}
    ema = {"module": {f"module.{key}": value for key, value in tensors.items()}, "updates": 7}
    file = saved({"model": raw, "ema": ema, "epoch": 1}, tmp_path / "in.pth")

    averaged = convert(file, RECIPE, tmp_path)
    assert (averaged["take"], averaged["wrapper"], averaged["left_out"]) == ("ema", "ema.module", ["epoch", "model"])
    assert averaged["weights_digest"] == checkpoint.digest_of_tensors(tensors)
    assert '"take": "raw"' in averaged["notes"][1]
    assert convert(file, RECIPE, tmp_path, take="raw")["weights_digest"] == checkpoint.digest_of_tensors(raw)


def test_a_checkpoint_of_our_trainer_may_be_uploaded(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    model = {f"{import_weights.STUDENT}{key}": value for key, value in tensors.items()}
    best = {key: value * 2 for key, value in tensors.items()}
    file = saved({"format": checkpoint.FORMAT, "model": model, "best": best, "optimizer": {}}, tmp_path / "in.pt")

    assert convert(file, RECIPE, tmp_path)["weights_digest"] == checkpoint.digest_of_tensors(tensors)


def misfit(tensors: Any, tmp_path: Path, recipe: Recipe = RECIPE) -> Misfit:
    tmp_path.mkdir(exist_ok=True)
    with pytest.raises(Misfit) as caught:
        convert(saved(tensors, tmp_path / "in.pth"), recipe, tmp_path)
    assert not (tmp_path / WEIGHTS).exists()
    return caught.value


def test_another_number_of_classes_is_said_in_classes(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    named = tuple(f"c{n}" for n in range(5))

    error = misfit(tensors, tmp_path, RECIPE.but(classes=named))

    assert "The file's head has 2 classes + background, but you named 5" in str(error)
    assert error.report["pointer"] == "/classes"
    assert error.report["counts"]["shapes"] == 2
    assert error.report["shapes"][f"{HEAD}bias"] == {"file": (3,), "network": (6,)}


def test_missing_unexpected_and_differing_keys_are_counted_and_named(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    odd = {key: value for key, value in tensors.items() if key != f"{HEAD}bias"} | {"surprise": torch.zeros(1)}
    odd["backbone.body.conv1.weight"] = torch.zeros(2, 2)

    error = misfit(odd, tmp_path)

    assert f"1 missing keys: {HEAD}bias" in str(error)
    assert "1 unexpected keys: surprise" in str(error)
    assert "backbone.body.conv1.weight is (2, 2), not (64, 3, 7, 7)" in str(error)
    assert error.report["counts"] == {"missing": 1, "unexpected": 1, "shapes": 1, "not_finite": 0}


def test_another_norm_is_guessed(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    frozen = RECIPE.but(detector=RECIPE.detector.but(norm="frozen"))

    assert '"norm": "batch"' in str(misfit(tensors, tmp_path, frozen))
    assert '"norm": "frozen"' in str(misfit(build(frozen).module.state_dict(), tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(tensors: dict[str, Tensor], tmp_path: Path, value: float) -> None:
    broken = tensors | {f"{HEAD}bias": torch.full_like(tensors[f"{HEAD}bias"], value)}

    assert misfit(broken, tmp_path).report["not_finite"] == [f"{HEAD}bias"]


def test_a_double_too_large_for_a_float_is_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    large = tensors | {f"{HEAD}bias": torch.full((3,), 1e300, dtype=torch.float64)}

    with pytest.raises(WeightsError, match="NaN or infinity"):
        convert(saved(large, tmp_path / "in.pth"), RECIPE, tmp_path)


def test_a_tensor_that_claims_terabytes_is_refused_without_being_made(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    bomb = tensors | {"bomb": torch.zeros(1).expand(2**42)}

    assert misfit(bomb, tmp_path).report["unexpected"] == ["bomb"]


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("beside", [True, False])
def test_a_pickle_with_code_is_refused_and_nothing_runs(
    tensors: dict[str, Tensor], tmp_path: Path, beside: bool
) -> None:
    canary = tmp_path / "canary"
    file = saved({"model": tensors, "x": Bomb(canary)} if beside else Bomb(canary), tmp_path / "in.pth")

    with pytest.raises(WeightsError, match=r"system.*could run code.*nothing was loaded"):
        convert(file, RECIPE, tmp_path)

    assert not canary.exists()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.zeros(3), "contains a Tensor"),
        ({}, "an empty dict"),
        ({"a": 1}, "'a' is not a tensor"),
        ([1, 2], "contains a list"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path: Path, value: Any, says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        convert(saved(value, tmp_path / "in.pth"), RECIPE, tmp_path)


def test_a_whole_pickled_network_is_refused_by_name(tmp_path: Path) -> None:
    file = saved(torch.nn.Linear(2, 2), tmp_path / "in.pth")

    with pytest.raises(WeightsError, match=r"torch\.nn.*Save model\.state_dict\(\)"):
        convert(file, RECIPE, tmp_path)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_sparse_and_complex_tensors_and_wrong_kinds_of_numbers_are_refused(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    for odd in (torch.zeros(3).to_sparse(), torch.zeros(3, dtype=torch.complex64)):
        with pytest.raises(WeightsError, match="not a plain tensor"):
            convert(saved(tensors | {f"{HEAD}bias": odd}, tmp_path / "in.pth"), RECIPE, tmp_path)
    whole = tensors | {f"{HEAD}bias": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(WeightsError, match=r"is torch\.int64, not torch\.float32"):
        convert(saved(whole, tmp_path / "in.pth"), RECIPE, tmp_path)


def test_a_file_cut_off_anywhere_is_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    for name in ("in.pth", "in.safetensors"):
        file = tmp_path / name
        torch.save(tensors, file) if name == "in.pth" else save_file(tensors, file)
        whole = file.read_bytes()
        for share in (0.1, 0.5, 0.999):
            file.write_bytes(whole[: int(len(whole) * share)])
            with pytest.raises(WeightsError, match="cut off"):
                convert(file, RECIPE, tmp_path)


def test_torchscript_and_torch_s_old_format_are_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.warns(FutureWarning):
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pth")  # type: ignore[no-untyped-call]
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)

    for name, says in (("script.pth", "TorchScript"), ("old.pth", "bare pickle")):
        with pytest.raises(weights_file.NotWeights, match=says):
            convert(tmp_path / name, RECIPE, tmp_path)


def test_a_checkpoint_of_ours_gives_its_last_and_its_best_student(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    model = {f"{import_weights.STUDENT}{key}": value for key, value in tensors.items()} | {
        "methods.fgd.x": torch.zeros(1)
    }
    best = {key: value + 1 if value.is_floating_point() else value for key, value in tensors.items()}
    whole = {"format": checkpoint.FORMAT, "model": model, "best": best, "recipe": RECIPE.model_dump(mode="json")}
    whole["state"] = {"step": 90, "best_step": 60}
    file = saved(whole, tmp_path / "in.pt")
    guess = RECIPE.but(detector=FCOS(fpn_channels=96))

    for which, its_tensors, step in (("last", tensors, 90), ("best", best, 60)):
        report = convert(file, guess, tmp_path, which)
        assert (report["weights_digest"], report["step"]) == (checkpoint.digest_of_tensors(its_tensors), step)
    assert weights.read_recipe(tmp_path) == RECIPE
    with pytest.raises(WeightsError, match="no best weights"):
        convert(saved(whole | {"best": None}, file), guess, tmp_path, "best")
