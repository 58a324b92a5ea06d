"""An export: a child writes and checks the file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from api.core import exports, tasks
from api.core.rows.tables import Export
from fgd.exported import ExportResult
from worker.host import Host
from worker.staging import stage_files
from worker.task import ANSWER, ChildFile, TaskChild

MODEL = ChildFile("content", "model.onnx", "application/octet-stream")
USAGE = ChildFile("usage", "model_onnx.py", "text/x-python")
"""Written beside it by fgd.export."""
REPORT = ChildFile("report", "model_int8.json", "application/json")
"""As well, of a file in INT8."""


class ExportChild(TaskChild):
    kind = Export
    result = ExportResult
    files = (MODEL, USAGE, REPORT)
    log_level = logging.DEBUG

    @contextmanager
    def command(self, host: Host, folder: Path) -> Iterator[list[str]]:
        asked, blobs = self.claim.request, self.claim.blobs
        network = stage_files(host.store, blobs["network"], folder / "network")
        options = ["--onnx", folder / MODEL.name, "--batch", asked["batch"], "--opset", asked["opset"]]
        options += ["--size", *asked["size"]] if asked["size"] is not None else []
        options += ["--int8", "--max-ap-loss", asked["max_ap_loss"]] if asked["format"] == "onnx-int8" else []
        with ExitStack() as held:
            if "dataset" in blobs:
                dataset = held.enter_context(host.cache.dataset(blobs["dataset"]["archive"]))
                options += ["--dataset", dataset]
            told = [str(option) for option in (*options, "--out", folder / ANSWER, network)]
            yield [sys.executable, "-m", "fgd.export.task", *told]


def claim(s: Session, worker_id: str, lease_s: float, devices: Sequence[str]) -> ExportChild | None:
    """One that is quick."""
    return _claim(s, worker_id, lease_s, devices, Export.request["format"].as_string() != "onnx-int8")


def claim_int8(s: Session, worker_id: str, lease_s: float, devices: Sequence[str]) -> ExportChild | None:
    """One that evaluates a whole split, and more than once where that costs AP."""
    return _claim(s, worker_id, lease_s, devices, Export.request["format"].as_string() == "onnx-int8")


def _claim(
    s: Session, worker_id: str, lease_s: float, devices: Sequence[str], which: ColumnElement[bool]
) -> ExportChild | None:
    """Only where the packages for it are installed; looking for them loads none."""
    if any(find_spec(package) is None for package in exports.PACKAGES):
        return None
    claimed = tasks.claim(s, Export, worker_id, devices, lease_s, which)
    return ExportChild(claimed) if claimed is not None else None
