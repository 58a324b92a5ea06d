"""How well a network finds the objects of a split: `python -m fgd.evaluation NETWORK DATASET --split val`.

NETWORK is a folder with student.safetensors and recipe.json; DATASET a folder of any format. Classes are matched by
name, and the figures are of those that both have. Prints one JSON object, {"result": {...}}.

Exit codes: 0; 1 it cannot be evaluated so, 2 a path leads nowhere: {"error": {"code", "message", "pointer"}} says why.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fgd import split_figures
from fgd.class_names import ClassMatch, match_classes
from fgd.errors import DatasetError
from fgd.evaluated import EvaluationResult
from fgd.process import answer
from fgd.spec import Resources

if TYPE_CHECKING:
    from fgd.statistics.detections import SplitDetections


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return answer.answered(arguments, lambda: {"result": evaluated(arguments).model_dump(mode="json")})


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fgd.evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", type=Path, help="student.safetensors and recipe.json")
    parser.add_argument("dataset", type=Path, help="a data set of any format")
    parser.add_argument("--split", choices=["train", "val", "test"], default="val")
    parser.add_argument("--min-size", type=int, help="shorter side after resizing; default: the network's own")
    parser.add_argument("--max-size", type=int, help="longest side after resizing; default: the network's own")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--confusion-score", type=float, default=0.3, help="least score in the confusion matrix")
    parser.add_argument("--detections", type=Path, help="file for what is found on each image: detections.npz")
    answer.add_options(parser)
    return parser.parse_args(argv)


def evaluated(asked: argparse.Namespace) -> EvaluationResult:
    """Raises FGDError if it cannot be evaluated; whatever torch raises if there is too little memory."""
    from fgd.data.formats import open_index
    from fgd.data.loader import Dataset
    from fgd.data.transforms import Transform
    from fgd.engine import device
    from fgd.engine.evaluate import evaluate
    from fgd.engine.teacher import relabelled
    from fgd.engine.weights import load_detector
    from fgd.statistics import detections

    machine = device.choose(Resources(device=asked.device), "float32")
    detector = load_detector(asked.network)
    recipe = detector.recipe
    index, root = open_index(asked.dataset)
    match = match_classes(index.classes, recipe.classes)
    if not match.shared:
        raise DatasetError(f"{asked.dataset}: the network knows none of its classes by name")
    whole = Dataset(index, asked.split, root)
    split = whole.with_images(relabelled(whole.images, match.labels), recipe.classes)
    sizes = asked.min_size or recipe.min_size, asked.max_size or recipe.max_size
    transform = Transform(*sizes, recipe.image_mean, recipe.image_std)
    detector.module.to(machine.device)
    began = time.monotonic()
    found = evaluate(detector, split, transform, batch_size=asked.batch_size, device=machine.device)
    seconds = time.monotonic() - began
    shared = of_shared(found.detections, match)
    if asked.detections is not None:
        detections.write(asked.detections, {asked.split: shared})
    figures = split_figures.of(shared, asked.confusion_score)
    return EvaluationResult(**dict(figures), undecodable=len(split.broken), device=machine.device_name, seconds=seconds)


def of_shared(split: SplitDetections, match: ClassMatch) -> SplitDetections:
    """In the network's labels -> in places among the shared classes, as the data set calls them; detections of other
    classes are left out."""
    import numpy as np

    place = np.zeros(len(split.classes) + 1, np.int32)
    place[list(match.labels.values())] = np.arange(1, len(match.labels) + 1)
    kept = place[split.found_label] > 0
    return replace(
        split,
        classes=match.shared,
        truth_label=place[split.truth_label],
        found_image=split.found_image[kept],
        found_box=split.found_box[kept],
        found_score=split.found_score[kept],
        found_label=place[split.found_label][kept],
    )


if __name__ == "__main__":
    sys.exit(main())
