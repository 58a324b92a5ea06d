"""The AP of an exported file, through the evaluation of the trainer. Beside test_loop.py, whose teacher it shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from fgd.data.formats import open_index
from fgd.data.images import decode
from fgd.data.loader import Dataset, ground_truth_coco
from fgd.data.transforms import Transform
from fgd.engine.evaluate import average_precision, evaluate
from fgd.engine.weights import load_detector
from fgd.export import __main__ as command
from fgd.export import usage, verify

pytestmark = [pytest.mark.slow, pytest.mark.numeric, pytest.mark.long]


def scores_of(file: Path, dataset: Dataset) -> dict[str, float]:
    session = verify.open_session(file)
    found: list[dict[str, object]] = []
    for image in dataset.images:
        boxes, scores, labels = usage.detect(session, np.array(decode(dataset.root / image.file)))
        boxes[:, 2:] -= boxes[:, :2]
        found += [
            {"image_id": image.id, "bbox": box, "score": score, "category_id": label}
            for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
        ]
    return average_precision(ground_truth_coco(dataset), found)


def test_the_exported_file_keeps_the_ap(fit: Any, easy_digits: Path, tmp_path: Path) -> None:
    index, root = open_index(easy_digits)
    dataset = Dataset(index, "test", root)
    detector = load_detector(fit.result)
    transform = Transform(detector.recipe.min_size, detector.recipe.max_size)
    before = evaluate(detector, dataset, transform, batch_size=4, device=torch.device("cpu")).scores
    assert before["ap"] > 5, "a figure near zero proves nothing"
    assert command.main([str(fit.result), "--onnx", str(tmp_path / "student.onnx")]) == 0
    after = scores_of(tmp_path / "student.onnx", dataset)
    assert after.keys() == before.keys()
    # onnxruntime sums in another order, so detections whose scores differ by no more than rounding may change places.
    # Of the few boxes of 8 images one pair at the tenth place moves AP by up to 1; a wrong graph leaves nearly nothing.
    for name, value in before.items():
        assert after[name] == pytest.approx(value, abs=1.0, nan_ok=True)
