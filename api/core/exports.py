"""Exports: a file that runs without torch, written and checked by a worker. The verbs are those of all tasks.

Knows rows and the store; no files and no torch.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.core import networks, references, tasks, workers
from api.core.references import Findings, ReferencedWeights
from api.core.request_bodies import SubmitExport
from api.core.rows import db
from api.core.rows.crowd import expect_place
from api.core.rows.db import Reader
from api.core.rows.idempotency import Once
from api.core.rows.swept import Moment, SweepResult
from api.core.rows.tables import Dataset, Export
from api.core.settings import Settings
from api.core.store.names import BlobStore
from fgd.exported import MAX_AP_LOSS

PACKAGES = ("onnx", "onnxruntime")
"""Without which a worker takes no export."""


def submit(
    engine: Engine, store: BlobStore, settings: Settings, project_id: str, body: SubmitExport, key: str | None
) -> tuple[Export, bool]:
    """The export, and whether it is new (False: this Idempotency-Key made it before). Ring for a new one."""
    once = Once.of(Export, project_id, key, "POST /v1/exports", body)
    with db.reading(engine) as s:
        if (export := once.replayed(s)) is not None:
            return export, False
        request, blobs = _resolved(s, store, project_id, body)

    def insert(s: Session) -> Export:
        expect_place(s, Export, project_id, settings.max_waiting_tasks, "FGD_MAX_WAITING_TASKS")
        return tasks.insert(s, Export, "exp", project_id, request, blobs)

    return once.make(engine, insert)


def waiting_reason(s: Reader, export: Any, lease_s: float) -> str | None:
    """As of any task; and a worker needs the packages."""
    reason = tasks.waiting_reason(s, export, lease_s)
    live = workers.live(s, lease_s) if reason is not None else []
    if live and not any(set(PACKAGES) <= worker.versions.keys() for worker in live):
        return 'no worker can export; on a worker\'s host: pip install "fgd-service[export]", and restart the worker'
    return reason


def sweep(s: Session, moment: Moment) -> SweepResult:
    return tasks.sweep(s, Export, moment)


def _resolved(
    s: Session, store: BlobStore, project_id: str, body: SubmitExport
) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """The request with every field filled in, and the blobs that it reads. Raises Invalid, Conflict."""
    found = Findings()
    network = networks.named(s, store, project_id, body, found)
    if network is not None:
        _check_network(network, body, found)
    dataset_id = body.dataset or networks.dataset_of_job(s, project_id, body)
    dataset = references.of_dataset(s, project_id, dataset_id, "/dataset", found) if dataset_id is not None else None
    int8 = body.format == "onnx-int8"
    if int8 and dataset is not None:
        _check_images(dataset, found)
    if int8 and dataset_id is None and body.model is not None:
        detail = "name the data set that INT8 is to be calibrated on: a model has none of its own"
        found.fault("/dataset", "dataset_missing", detail)
    found.tell()
    assert network is not None, "what is missing has been told"
    blobs = {"network": dict(network.files)}
    request = body.model_dump(mode="json") | {"dataset": dataset_id}
    if int8:
        assert dataset is not None, "what is missing has been told"
        networks.matched(dataset, network)
        request["max_ap_loss"] = MAX_AP_LOSS if body.max_ap_loss is None else body.max_ap_loss
    if dataset is not None and (int8 or store.exists(references.files_of(dataset)["archive"])):
        blobs["dataset"] = references.files_of(dataset)
    return request, blobs


def _check_network(network: ReferencedWeights, body: SubmitExport, found: Findings) -> None:
    detector = network.recipe.detector
    if not detector.exportable:
        detail = f"{detector.title()} cannot be exported to ONNX; name a network of another family"
        found.fault("/job" if body.job is not None else "/model", "not_exportable", detail)
    elif why := detector.refused_batch(body.batch):
        found.fault("/batch", "one_image_at_a_time", why)


def _check_images(dataset: Dataset, found: Findings) -> None:
    """Whether there is something to calibrate and to judge INT8 on."""
    splits = dataset.splits or {}
    for split, what in {"train": "calibrated on training images", "val": "judged on validation images"}.items():
        if split not in splits:
            has = ", ".join(sorted(splits)) or "none"
            detail = f"INT8 is {what}, and {dataset.id} has none; its splits: {has}. Name another data set"
            found.fault("/dataset", "split_not_found", detail)
    if splits.get("val", {}).get("boxes") == 0:
        detail = f"INT8 is judged on boxes of validation images, and {dataset.id} has none; name another data set"
        found.fault("/dataset", "no_boxes", detail)
