from __future__ import annotations

import contextlib
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fgd.data.formats import open_index
from fgd.data.loader import Dataset
from fgd.data.transforms import Transform
from fgd.detector_specs import FCOS
from fgd.detectors import build
from fgd.engine.distributed import Ranks
from fgd.engine.evaluate import average_precision, evaluate
from fgd.recipe import Recipe
from fgd.statistics import detections


def scene(seed: int, images: int = 12) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth with crowds and all sizes, and detections: shifted truths, doubles and strays."""
    draw = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image in range(images):
        for _ in range(int(draw.integers(0, 6))):
            x, y, w, h = draw.uniform(0, 200), draw.uniform(0, 200), draw.uniform(4, 180), draw.uniform(4, 180)
            label = int(draw.integers(1, 4))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": label,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": int(draw.random() < 0.1),
                }
            )
            for _ in range(int(draw.integers(0, 3))):
                dx, dy = draw.normal(0, 0.1, 2) * (w, h)
                guess = label if draw.random() < 0.9 else 1
                score = float(draw.random())
                found.append({"image_id": image, "category_id": guess, "bbox": [x + dx, y + dy, w, h], "score": score})
    truth = {
        "info": {},
        "images": [{"id": i, "width": 400, "height": 400, "file_name": str(i)} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": k, "name": f"class {k}"} for k in (1, 2, 3, 4)],
    }
    return truth, found


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_pycocotools(seed: int) -> None:
    truth, found = scene(seed)
    ours = average_precision(truth, found)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        reference = COCOeval(coco, coco.loadRes(found), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    theirs = [100 * stat if stat > -1 else math.nan for stat in reference.stats[:6]]
    mine = [ours[name] for name in ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l")]
    assert mine == pytest.approx(theirs, abs=1e-6, nan_ok=True)
    for k, label in enumerate(reference.params.catIds):
        precision = reference.eval["precision"][:, :, k, 0, -1]
        valid = precision[precision > -1]
        expected = 100 * valid.mean() if valid.size else math.nan
        assert ours[f"ap/class {label}"] == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_nothing_found_is_an_ap_of_zero_and_a_class_without_boxes_has_none() -> None:
    truth, _ = scene(0)
    scores = average_precision(truth, [])
    assert scores["ap"] == scores["ap50"] == scores["ap/class 1"] == 0.0
    assert math.isnan(scores["ap/class 4"])


def test_perfect_detections_are_an_ap_of_100() -> None:
    truth, _ = scene(1)
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
    perfect = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in truth["annotations"]
    ]
    assert average_precision(truth, perfect)["ap"] == pytest.approx(100.0)


@dataclass(frozen=True)
class Met(Ranks):
    """One of two processes: the other's share was found before, and is handed over where they meet."""

    others: tuple[Any, ...] = ()
    mine: list[Any] = field(default_factory=list)

    def gathered(self, mine: Any) -> list[Any]:
        self.mine.append(mine)
        return [mine, *self.others]


def test_what_two_processes_find_is_kept_as_one_would_keep_it(digits: Path, tmp_path: Path) -> None:
    index, root = open_index(digits)
    recipe = Recipe(detector=FCOS(fpn_channels=64), classes=index.classes, min_size=64, max_size=64, score_thresh=0.001)
    torch.manual_seed(0)
    network, transform = build(recipe), Transform(64, 64)

    def found(ranks: Ranks, name: str) -> bytes:
        val = Dataset(index, "val", root)
        split = evaluate(network, val, transform, batch_size=1, device=torch.device("cpu"), ranks=ranks).detections
        assert len(split.found_score) > 0
        detections.write(tmp_path / name, {"val": split})
        return (tmp_path / name).read_bytes()

    second = Met(1, 2)
    found(second, "second")
    assert found(Met(0, 2, others=tuple(second.mine)), "both") == found(Ranks(), "alone")
    assert (tmp_path / "second").read_bytes() != (tmp_path / "alone").read_bytes()
