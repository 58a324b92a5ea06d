"""README.md and predict.py beside a student's weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from fgd.detector_specs import FCOS
from fgd.detectors import build
from fgd.engine import weights
from fgd.recipe import Recipe
from fgd.text import model_card

NASTY = ("<script>x</script>", "---\nlicense: mit", "קטב", "🐈 | `x`", "a: [b")
MANIFEST = {"dataset": "ab" * 32, "metrics": {"val": {"ap": 31.25, "ap50": 50.0, "ap75": None}}}


def recipe(classes: tuple[str, ...] = ("cat", "dog")) -> Recipe:
    detector = FCOS.model_validate({"fpn_channels": 64})
    return Recipe(detector=detector, classes=classes, min_size=64, max_size=64, score_thresh=0.0)


def test_the_cards_head_is_yaml_that_a_hub_reads() -> None:
    text = model_card.card(recipe(NASTY), MANIFEST)

    _, head, body = text.split("---\n", 2)
    about = yaml.safe_load(head)
    assert (about["license"], about["pipeline_tag"]) == ("unknown", "object-detection")
    (result,) = about["model-index"][0]["results"]
    assert [each["value"] for each in result["metrics"]] == [0.3125, 0.5]
    assert "<script>" not in body
    assert "\n---" not in body
    assert "קטב" in body
    assert "| val | 31.2 | 50.0 | – |" in body


def test_the_data_set_is_called_by_its_name() -> None:
    text = model_card.card(recipe(), MANIFEST | {"dataset_name": "blood *cells*"})

    (result,) = yaml.safe_load(text.split("---\n", 2)[1])["model-index"][0]["results"]
    assert result["dataset"]["name"] == "blood *cells*"
    assert r"It learned from blood \*cells\* (SHA-256 of its index: `abababababab`)" in text


@pytest.mark.parametrize("name", ["BCCD", *NASTY])
def test_hugging_faces_own_reader_takes_the_card(name: str) -> None:
    hub = pytest.importorskip("huggingface_hub")
    scores = {"ap": 31.25, "ap50": 50.0, "ap75": None}
    manifest = MANIFEST | {"dataset_name": name, "metrics": {"val": scores, "test": scores}}

    card = hub.ModelCard(model_card.card(recipe(NASTY), manifest), ignore_metadata_errors=False)

    assert (card.data.license, card.data.library_name) == ("unknown", "torchvision")
    assert card.data.pipeline_tag == "object-detection"
    results = card.data.eval_results
    assert {(each.dataset_name, each.dataset_split) for each in results} == {(name, "val"), (name, "test")}
    assert [each.metric_value for each in results] == [0.3125, 0.5] * 2
    assert all(each.task_type == "object-detection" for each in results)


@pytest.mark.slow
def test_predict_py_finds_what_the_detector_finds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = build(recipe()).eval()
    with torch.no_grad():  # so that an untrained detector is sure of something
        for last in ("classification_head.cls_logits", "regression_head.bbox_ctrness"):
            detector.module.get_parameter(f"head.{last}.bias").fill_(2.0)
    files = weights.export(tmp_path, detector, MANIFEST, best=None)
    assert files.keys() >= {"README.md", "predict.py", "model.py", "student.safetensors"}
    assert len((tmp_path / "predict.py").read_text().splitlines()) <= 15
    photo = torch.randint(0, 256, (3, 60, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    Image.fromarray(photo.permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")

    script = [sys.executable, "predict.py", "photo.png", "found.jpg"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True)

    with torch.no_grad():
        found = detector.module([photo / 255])[0]
    expected = [
        f"{recipe().classes[label - 1]} {score:.2f} {[round(x, 1) for x in box]}"
        for box, score, label in zip(*(found[key].tolist() for key in ("boxes", "scores", "labels")), strict=True)
        if score >= 0.3
    ]
    assert expected
    assert done.stdout.splitlines() == expected
    assert (tmp_path / "found.jpg").stat().st_size > 0
