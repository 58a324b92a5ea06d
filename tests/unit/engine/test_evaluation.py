"""The evaluation of a network on a data set, without a training: python -m fgd.evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fgd import evaluation
from fgd.detector_specs import FCOS
from fgd.detectors import build
from fgd.engine import weights
from fgd.recipe import Recipe
from fgd.statistics import detections

SPEC = FCOS(fpn_channels=64, backbone="mobilenet_v3_small")


def network(folder: Path, *classes: str) -> Path:
    """An untrained one whose scores are high enough to find something, also of the background, which is no class."""
    torch.manual_seed(0)
    detector = build(Recipe(detector=SPEC, classes=classes, min_size=64, max_size=64))
    with torch.no_grad():
        for name, parameter in detector.module.named_parameters():
            if name.endswith("cls_logits.bias"):
                parameter.fill_(-1.0)
    weights.export(folder, detector, {}, best=None)
    return folder


def evaluated(folder: Path, *arguments: object) -> tuple[int, Any]:
    out = folder / "answer.json"
    code = evaluation.main([*map(str, arguments), "--device", "cpu", "--out", str(out)])
    return code, json.loads(out.read_text())


def test_figures_and_detections_are_of_the_classes_that_both_have(digits: Path, tmp_path: Path) -> None:
    net = network(tmp_path / "net", "other", "7", "0")
    file = tmp_path / "detections.npz"

    code, answer = evaluated(tmp_path, net, digits, "--detections", file, "--confusion-score", "0")

    assert code == 0, answer
    result = answer["result"]
    found = detections.read(file)["val"]
    assert found.classes == ("0", "7")
    assert [each["name"] for each in result["per_class"]] == ["0", "7"]
    assert (result["images"], result["undecodable"]) == (6, 0)
    assert result["boxes"] == sum(each["boxes"] for each in result["per_class"]) == len(found.truth_box)
    assert result["detections"] == len(found.found_box) > 0
    assert set(found.found_label.tolist()) <= {1, 2}
    assert result["ap"] is not None
    assert [each["name"] for each in result["precision_recall"]] == ["", "0", "7"]
    assert all(len(each["precision"]) == len(each["score"]) == 101 for each in result["precision_recall"])
    counts = result["confusion"]["counts"]
    assert sum(map(sum, counts[:2])) == result["boxes"]


def test_labels_in_another_order_change_nothing(digits: Path, tmp_path: Path) -> None:
    """The network's own order of classes is its own affair."""
    files = [tmp_path / f"{n}.npz" for n in range(2)]
    nets = [network(tmp_path / "one", "0", "7"), network(tmp_path / "other", "7", "0")]
    swap_classes(nets[1])

    answers = [
        evaluated(tmp_path, net, digits, "--split", "test", "--detections", file)[1]["result"]
        for net, file in zip(nets, files, strict=True)
    ]

    assert answers[0] | {"seconds": 0} == answers[1] | {"seconds": 0}
    assert files[0].read_bytes() == files[1].read_bytes()


def swap_classes(folder: Path) -> None:
    """The rows of both classes change places, as they would be in a network that was trained so."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "student.safetensors")
    for name, value in tensors.items():
        if "cls_logits" in name:
            tensors[name] = value[[0, 2, 1]].contiguous()  # the background's comes first
    weights.write_tensors(folder / "student.safetensors", tensors)


def test_no_class_in_common_and_a_folder_that_is_not_there_are_refused(digits: Path, tmp_path: Path) -> None:
    code, answer = evaluated(tmp_path, network(tmp_path / "net", "cow"), digits)
    assert (code, answer["error"]["code"]) == (1, "user_error")
    assert "none of its classes" in answer["error"]["message"]

    code, answer = evaluated(tmp_path, tmp_path / "nowhere", digits)
    assert code == 2
    assert "recipe.json" in answer["error"]["message"]
