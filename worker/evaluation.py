"""An evaluation: a child detects and counts, on a GPU where one is free."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.orm import Session

from api.core import tasks
from api.core.rows.tables import Evaluation
from fgd.evaluated import EvaluationResult
from worker.host import Host
from worker.staging import stage_files
from worker.task import ANSWER, ChildFile, TaskChild

DETECTIONS = ChildFile("detections", "detections.npz", "application/zip")


class EvaluationChild(TaskChild):
    kind = Evaluation
    result = EvaluationResult
    files = (DETECTIONS,)
    log_level = logging.DEBUG

    @contextmanager
    def command(self, host: Host, folder: Path) -> Iterator[list[str]]:
        asked, blobs = self.claim.request, self.claim.blobs
        network = stage_files(host.store, blobs["network"], folder / "network")
        with host.cache.dataset(blobs["dataset"]["archive"]) as dataset:
            options = {
                "--split": asked["split"],
                "--min-size": asked["min_size"],
                "--max-size": asked["max_size"],
                "--batch-size": asked["batch_size"],
                "--confusion-score": asked["confusion_score"],
                "--device": asked["device"],
                "--detections": folder / DETECTIONS.name,
                "--out": folder / ANSWER,
            }
            told = [str(part) for option in options.items() for part in option]
            yield [sys.executable, "-m", "fgd.evaluation", *told, str(network), str(dataset)]


def claim(s: Session, worker_id: str, lease_s: float, devices: Sequence[str]) -> EvaluationChild | None:
    claimed = tasks.claim(s, Evaluation, worker_id, devices, lease_s)
    return EvaluationChild(claimed) if claimed is not None else None
