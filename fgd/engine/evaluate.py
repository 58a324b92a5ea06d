"""COCO average precision of a detector on a data set's split, in float32. Knows nothing of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray
from torch import Tensor

from fgd.data.loader import Dataset, eval_batches, ground_truth_coco
from fgd.data.transforms import Transform
from fgd.detectors import Detector
from fgd.engine.device import to_device
from fgd.engine.distributed import ALONE, Ranks
from fgd.errors import Stopped
from fgd.statistics.detections import SplitDetections, found_as_coco
from fgd.types import Batch

AREAS = {"ap_s": 3, "ap_m": 4, "ap_l": 5}


@dataclass(frozen=True)
class Evaluation:
    """Of a detector on a split."""

    scores: dict[str, float]
    """ap, ap50, ap75, ap_s, ap_m, ap_l and ap/<class>, 0-100; NaN where there is no such box."""
    detections: SplitDetections


def evaluate(
    detector: Detector,
    dataset: Dataset,
    transform: Transform,
    *,
    batch_size: int,
    device: torch.device,
    features: Callable[[Batch], dict[str, Tensor]] | None = None,
    check_stop: Callable[[], None] = lambda: None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Each image is padded as it would be alone, so the figures do not depend on the batch size. `features`: another
    way to the detector's maps than its own. `check_stop` is called before each batch and may raise. Several processes
    share the batches; what each found is merged, so the figures are those of one process. Where one of them is stopped
    all are, at the place where they meet: one that ended alone would leave the others waiting.
    """
    batches = eval_batches(dataset, transform, batch_size, ranks.shard)
    mine, end = _found(detector, batches, device, features, check_stop)
    found: dict[int, Found] = {}
    for theirs, broken, stopped in ranks.gathered((mine, dataset.broken_reasons(), end)):
        if stopped is not None:
            raise Stopped(stopped)
        dataset.mark_broken(broken)
        found |= theirs
    detections = with_truth(dataset, found)
    return Evaluation(average_precision(ground_truth_coco(dataset), found_as_coco(detections)), detections)


Found = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]
"""Boxes, scores and labels of one image."""


@torch.no_grad()
def _found(
    detector: Detector,
    batches: Iterable[Batch],
    device: torch.device,
    features: Callable[[Batch], dict[str, Tensor]] | None,
    check_stop: Callable[[], None],
) -> tuple[dict[int, Found], str | None]:
    """By image id; and why it was stopped, if it was."""
    was_training = detector.training
    detector.eval()
    found: dict[int, Found] = {}
    try:
        for batch in batches:
            check_stop()
            batch = to_device(batch, device)
            maps = features(batch) if features else detector.features(batch.images_NCHW)
            detections = detector.detect(detector.predict(maps, batch), batch)
            for image_id, each in zip(batch.image_ids, detections, strict=True):
                of_a_class = each.labels_K > 0  # one-stage heads may find the background, which nothing is scored by
                boxes_K4, scores_K, labels_K = (
                    tensor[of_a_class].numpy(force=True) for tensor in (each.boxes_K4, each.scores_K, each.labels_K)
                )
                found[image_id] = boxes_K4, scores_K, labels_K
    except Stopped as error:
        return found, str(error)
    finally:
        detector.train(was_training)
    return found, None


def with_truth(dataset: Dataset, found: Mapping[int, Found]) -> SplitDetections:
    """What was found on each image, beside what is there; images that do not decode are left out."""
    images = sorted((image for image in dataset.images if image.id not in dataset.broken), key=lambda image: image.id)
    nothing: Found = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    boxes, scores, labels = (
        zip(*(found.get(image.id, nothing) for image in images), strict=True) if images else ((), (), ())
    )
    return SplitDetections.of(
        dataset.classes,
        [image.name for image in images],
        image_id=[image.id for image in images],
        size=[(image.width, image.height) for image in images],
        truth_image=[n for n, image in enumerate(images) for _ in image.boxes],
        truth_box=[box for image in images for box in image.boxes],
        truth_label=[label for image in images for label in image.labels],
        truth_crowd=[crowd for image in images for crowd in image.crowd],
        found_image=np.repeat(np.arange(len(images)), [len(each) for each in scores]),
        found_box=np.concatenate([nothing[0], *boxes]),
        found_score=np.concatenate([nothing[1], *scores]),
        found_label=np.concatenate([nothing[2], *labels]),
    )


def average_precision(truth: dict[str, object], found: list[dict[str, object]]) -> dict[str, float]:
    """COCO's AP (IoU 0.50:0.95, 100 detections an image) of `found` against a COCO ground-truth dict."""
    names = {category["id"]: category["name"] for category in truth["categories"]}  # type: ignore[attr-defined]
    if not found:
        boxes_of = {annotation["category_id"] for annotation in truth["annotations"]}  # type: ignore[attr-defined]
        overall = 0.0 if boxes_of else float("nan")
        keys = ("ap", "ap50", "ap75", *AREAS)
        per_class = {f"ap/{name}": 0.0 if label in boxes_of else float("nan") for label, name in names.items()}
        return dict.fromkeys(keys, overall) | per_class
    coco = COCO(truth)
    evaluation = COCOeval_faster(coco, coco.loadRes(found), "bbox", print_function=lambda *_: None)
    evaluation.params.maxDets = [1, 10, 100]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    percent = [100.0 * float(stat) if stat > -1 else float("nan") for stat in evaluation.stats[:6]]
    scores = dict(zip(("ap", "ap50", "ap75", *AREAS), percent, strict=True))
    precision_TRKAM = evaluation.eval["precision"]  # IoU thresholds, recalls, classes, areas, detection counts
    for k, label in enumerate(evaluation.params.catIds):
        values = precision_TRKAM[:, :, k, 0, -1]
        valid = values[values > -1]
        scores[f"ap/{names[label]}"] = 100.0 * float(np.mean(valid)) if valid.size else float("nan")
    return scores
