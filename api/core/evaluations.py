"""Evaluations: how well a network finds the objects of a split, without a training. The verbs are those of all tasks.

Knows rows and the store; no files and no torch.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.core import networks, references, tasks
from api.core.errors import Fault, Invalid
from api.core.references import Findings
from api.core.request_bodies import SubmitEvaluation
from api.core.rows import db
from api.core.rows.crowd import expect_place
from api.core.rows.idempotency import Once
from api.core.rows.swept import Moment, SweepResult
from api.core.rows.tables import Evaluation
from api.core.settings import Settings
from api.core.store.names import BlobStore

Blobs = dict[str, dict[str, str]]


def submit(
    engine: Engine, store: BlobStore, settings: Settings, project_id: str, body: SubmitEvaluation, key: str | None
) -> tuple[Evaluation, bool]:
    """The evaluation, and whether it is new (False: this Idempotency-Key made it before). Ring for a new one."""
    once = Once.of(Evaluation, project_id, key, "POST /v1/evaluations", body)
    with db.reading(engine) as s:
        if (evaluation := once.replayed(s)) is not None:
            return evaluation, False
        request, blobs = _resolved(s, store, project_id, body)

    def insert(s: Session) -> Evaluation:
        expect_place(s, Evaluation, project_id, settings.max_waiting_tasks, "FGD_MAX_WAITING_TASKS")
        return tasks.insert(s, Evaluation, "evl", project_id, request, blobs, body.device)

    return once.make(engine, insert)


def sweep(s: Session, moment: Moment) -> SweepResult:
    return tasks.sweep(s, Evaluation, moment)


def _resolved(s: Session, store: BlobStore, project_id: str, body: SubmitEvaluation) -> tuple[dict[str, Any], Blobs]:
    """The request with every field filled in, and the blobs that it reads. Raises Invalid with every fault found, or
    Conflict."""
    found = Findings()
    network = networks.named(s, store, project_id, body, found)
    dataset_id = body.dataset or networks.dataset_of_job(s, project_id, body)
    if dataset_id is None and body.model is not None:
        found.fault("/dataset", "dataset_missing", "name the data set: a model has none of its own")
    dataset = dataset_id and references.of_dataset(s, project_id, dataset_id, "/dataset", found)
    if dataset and body.split not in (dataset.splits or {}):
        has = ", ".join(sorted(dataset.splits or {})) or "none"
        found.fault("/split", "split_not_found", f"{dataset.id} has no {body.split} images; its splits: {has}")
    found.tell()
    assert network is not None, "what is missing has been told"
    assert dataset, "what is missing has been told"
    match = networks.matched(dataset, network)
    sizes = {"min_size": body.min_size or network.recipe.min_size, "max_size": body.max_size or network.recipe.max_size}
    if sizes["min_size"] > sizes["max_size"]:
        detail = f"min_size {sizes['min_size']} is larger than max_size {sizes['max_size']}; give both"
        raise Invalid(Fault("/max_size" if body.max_size else "/min_size", "sizes_differ", detail))
    classes = {
        "shared": match.shared,
        "renamed": match.renamed,
        "only_dataset": match.only_dataset,
        "only_network": match.only_network,
    }
    request = body.model_dump(mode="json") | sizes | {"dataset": dataset.id, "classes": classes}
    return request, {"network": dict(network.files), "dataset": references.files_of(dataset)}
