"""COCO average precision of a detector on a data set's split, in float32. Knows nothing of training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor

from fgd.data.loader import Dataset, eval_batches, ground_truth_coco
from fgd.data.transforms import Transform
from fgd.detectors import Detector
from fgd.engine.device import to_device
from fgd.engine.distributed import ALONE, Ranks
from fgd.errors import Stopped
from fgd.types import Batch

AREAS = {"ap_s": 3, "ap_m": 4, "ap_l": 5}


@torch.no_grad()
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
) -> dict[str, float]:
    """ap, ap50, ap75, ap_s, ap_m, ap_l and ap/<class>, 0-100; NaN where there is no such box.

    Each image is padded as it would be alone, so the figures do not depend on the batch size. `features`: another
    way to the detector's maps than its own. `check_stop` is called before each batch and may raise. Several processes
    share the batches; what each found is merged in their order, so the figures are those of one process. Where one of
    them is stopped all are, at the place where they meet: one that ended alone would leave the others waiting.
    """
    was_training = detector.training
    detector.eval()
    mine: list[tuple[int, list[dict[str, object]]]] = []
    stopped: str | None = None
    try:
        batches = eval_batches(dataset, transform, batch_size, ranks.shard)
        for number, batch in enumerate(batches):
            check_stop()
            batch = to_device(batch, device)
            maps = features(batch) if features else detector.features(batch.images_NCHW)
            detections = detector.detect(detector.predict(maps, batch), batch)
            found: list[dict[str, object]] = []
            for image_id, each in zip(batch.image_ids, detections, strict=True):
                boxes = each.boxes_K4.cpu().double().numpy()
                boxes[:, 2:] -= boxes[:, :2]
                rows = zip(boxes.tolist(), each.scores_K.tolist(), each.labels_K.tolist(), strict=True)
                found += [
                    {"image_id": image_id, "bbox": box, "score": score, "category_id": label}
                    for box, score, label in rows
                ]
            mine.append((number, found))
    except Stopped as error:
        stopped = str(error)
    finally:
        detector.train(was_training)
    everyones = ranks.gathered((mine, dataset.broken_reasons(), stopped))
    for _, broken, stopped in everyones:
        if stopped is not None:
            raise Stopped(stopped)
        dataset.mark_broken(broken)
    # The n-th batch of each in turn, which is the order that they have in one process.
    chunks = sorted((number, rank, found) for rank, (theirs, _, _) in enumerate(everyones) for number, found in theirs)
    return average_precision(ground_truth_coco(dataset), [each for *_, found in chunks for each in found])


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
