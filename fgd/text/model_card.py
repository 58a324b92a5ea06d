"""README.md and predict.py of a result, as a model hub and a person want them. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import yaml

from fgd.recipe import Recipe
from fgd.text.printable import printable

CARD, PREDICT = "README.md", "predict.py"

PREDICT_PY = '''"""python predict.py photo.jpg [found.jpg]: prints what is found, and draws it into the second file."""
import sys
import torch
import torchvision
from model import CLASSES, load

image = torchvision.io.read_image(sys.argv[1], torchvision.io.ImageReadMode.RGB)
with torch.no_grad():
    found = load()([image / 255])[0]
boxes, scores, labels = (found[key][found["scores"] >= 0.3] for key in ("boxes", "scores", "labels"))
names = [repr(CLASSES[label - 1])[1:-1] for label in labels.tolist()]
for name, score, box in zip(names, scores.tolist(), boxes.tolist()):
    print(f"{name} {score:.2f} {[round(x, 1) for x in box]}")
if len(sys.argv) > 2:
    torchvision.io.write_jpeg(torchvision.utils.draw_bounding_boxes(image, boxes, names), sys.argv[2])
'''
METRICS = {"ap": "mAP", "ap50": "mAP at IoU 0.50", "ap75": "mAP at IoU 0.75"}


def card(recipe: Recipe, manifest: Mapping[str, Any]) -> str:
    """Hugging Face's model card. The licence of weights is that of what they were trained on, so it is unknown here."""
    title, data = recipe.detector.title(), named(manifest)
    scores: Mapping[str, Mapping[str, float | None]] = manifest.get("metrics") or {}
    results = [
        {
            "task": {"type": "object-detection"},
            "dataset": {"name": data, "type": "custom", "split": split},
            "metrics": [
                {"type": "mean_average_precision", "name": name, "value": round(value / 100, 5)}
                for figure, name in METRICS.items()
                if (value := values.get(figure)) is not None
            ],
        }
        for split, values in scores.items()
    ]
    about = {
        "license": "unknown",
        "library_name": "torchvision",
        "pipeline_tag": "object-detection",
        "tags": ["object-detection", "torchvision", "knowledge-distillation"],
        "metrics": ["mean_average_precision"],
        "model-index": [{"name": title, "results": [each for each in results if each["metrics"]]}],
    }
    methods = [each.get("kind", "") for each in (manifest.get("spec") or {}).get("methods") or ()]
    taught = (
        f"It was distilled from a teacher: {', '.join(methods)}." if methods else "It was trained without a teacher."
    )
    rows = "".join(
        f"| {split} | {' | '.join(_number(values.get(figure)) for figure in METRICS)} |\n"
        for split, values in scores.items()
    )
    classes = "".join(f"- {_plain(name)}\n" for name in recipe.classes)
    return (
        f"---\n{yaml.safe_dump(about, allow_unicode=True, sort_keys=False)}---\n\n# {_plain(title)}\n\n"
        f"A detector of {len(recipe.classes)} classes in plain torchvision. {taught} It learned from {_plain(data)} "
        f"(SHA-256 of its index: `{str(manifest.get('dataset', 'unknown'))[:12]}`). Images are scaled to "
        f"{recipe.min_size} pixels on their shorter side and at most {recipe.max_size} on the longer one.\n\n"
        "```\npip install torch torchvision safetensors\npython predict.py photo.jpg found.jpg\n```\n\n"
        f"| split | {' | '.join(METRICS.values())} |\n|---|---|---|---|\n{rows}\n"
        "As COCO has them, 0 to 100. `manifest.json` has all figures, the settings, seed and versions; `model.py` "
        f"builds the network.\n\n## Classes\n\n{classes}"
    )


def named(manifest: Mapping[str, Any]) -> str:
    """The data set's name; results of earlier versions have its digest alone."""
    return str(manifest.get("dataset_name") or f"data set {str(manifest.get('dataset', 'unknown'))[:12]}")


def _plain(name: str) -> str:
    """A name of whatever characters that stays a name in Markdown and HTML."""
    return "".join(f"\\{each}" if each in "\\`*_{}[]()#+-.!|~" else each for each in escape(printable(name)))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
