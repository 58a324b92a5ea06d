"""The verbs of models: a network of its own, that may teach or be begun from. Knows rows, no files, no torch.

awaiting_upload -----------> verifying --finish_import--> ready       from then on only its name changes; for the
                                       |                              first arrow see uploading
                                       --lose-----------> verifying   tried again, as data sets are
                                       --reject---------> rejected    `error` and `report` say why
promote (of a finished job) ----------------------------> ready
promote (of a checkpoint) -> verifying
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.core import blobs, imports, uploading
from api.core.errors import Conflict
from api.core.lifecycle import TERMINAL, ModelState
from api.core.request_bodies import UploadModel
from api.core.rows import db, leases
from api.core.rows.ids import new_id
from api.core.rows.lookup import delete_row, owned
from api.core.rows.swept import Moment, SweepResult
from api.core.rows.tables import Job, JobModel, Model
from api.core.store.names import Blob
from fgd.recipe import Recipe

Report = dict[str, Any]
MAX_NAMED = 5
"""Jobs that a refusal names."""


@dataclass(frozen=True)
class FinishedImport:
    """A network whose two files are in the store."""

    weights: Blob
    recipe: Blob
    tensors_digest: str


@dataclass(frozen=True)
class ModelClaim:
    id: str
    project_id: str
    attempt: int
    """Fencing token."""
    upload: str
    """Blob to read."""
    recipe: dict[str, Any]
    which: str | None
    """"last" or "best" of a training's checkpoint; None: the file was uploaded."""
    take: str
    """"ema" or "raw" of an uploaded file that holds both."""


def create(s: Session, project_id: str, body: UploadModel) -> Model:
    """A model whose weights are uploaded next."""
    recipe = Recipe.model_validate(body.model_dump(exclude={"name", "take"}))
    source = {"kind": "upload"} | ({"take": body.take} if body.take != "ema" else {})
    return _insert(s, project_id, body.name, ModelState.awaiting_upload, recipe, source)


def promote(
    s: Session, project_id: str, name: str, recipe: Recipe, source: dict[str, Any], made: FinishedImport
) -> Model:
    """A model of a finished job's weights: ready at once."""
    model = _insert(s, project_id, name, ModelState.awaiting_upload, recipe, source)
    _finish(s, model, made, None)
    s.flush()
    return model


def promote_checkpoint(
    s: Session, project_id: str, name: str, recipe: Recipe, source: dict[str, Any], upload: Blob
) -> Model:
    """A model of a checkpoint, which a worker takes apart."""
    model = _insert(s, project_id, name, ModelState.awaiting_upload, recipe, source)
    return uploading.arrived(s, Model, project_id, model.id, upload)


def get(s: Session, project_id: str, model_id: str) -> Model:
    """Raises NotFound, for another project's model too."""
    return owned(s, Model, project_id, model_id)


def delete(s: Session, project_id: str, model_id: str) -> None:
    """Delete a model; its files are collected later. Raises Conflict while jobs that have not ended refer to it."""
    model = owned(s, Model, project_id, model_id, locked=True)
    waiting = (
        select(Job.id)
        .join(JobModel, JobModel.job_id == Job.id)
        .where(JobModel.model_id == model_id, Job.state.not_in(TERMINAL))
        .distinct()
        .order_by(Job.id)
    )
    users = list(s.scalars(waiting))
    if users:
        more = f" and {len(users) - MAX_NAMED} more" if len(users) > MAX_NAMED else ""
        named = ", ".join(users[:MAX_NAMED])
        raise Conflict("model_in_use", f"{model_id} is used by {named}{more}; cancel them, or wait for their end")
    delete_row(s, model)


# --- workers --------------------------------------------------------------------------------------------------


def claim_import(s: Session, worker_id: str, lease_s: float) -> ModelClaim | None:
    """Take the oldest model that waits for its import; None if there is none."""
    model = leases.claim(s, Model, worker_id, lease_s)
    if model is None:
        return None
    assert model.upload_digest is not None, "a model that waits has its content"
    return ModelClaim(
        id=model.id,
        project_id=model.project_id,
        attempt=model.attempt,
        upload=model.upload_digest,
        recipe=model.recipe,
        which=model.source.get("which"),
        take=model.source.get("take", "ema"),
    )


def finish_import(
    s: Session, model_id: str, attempt: int, recipe: dict[str, Any], made: FinishedImport, report: Report
) -> None:
    """verifying -> ready. Both files are in the store already. A checkpoint itself says which step's weights were
    wanted of it. Raises Fenced."""
    model = leases.held(s, Model, model_id, attempt)
    model.recipe = recipe
    if model.source["kind"] == "checkpoint" and report.get("step") is not None:
        model.source = {**model.source, "step": report["step"]}
    _finish(s, model, made, report)
    s.flush()


def reject(s: Session, model_id: str, attempt: int, report: Report | None, error: str) -> None:
    """verifying -> rejected; `error` in one sentence. Raises Fenced."""
    model = leases.held(s, Model, model_id, attempt)
    model.error = error
    imports.end(model, ModelState.rejected, db.now(s), report)
    s.flush()


def sweep(s: Session, moment: Moment) -> SweepResult:
    """Free expired imports, give up on those that keep killing workers, and on uploads that never came."""
    uploading.give_up(s, Model, moment.at)
    return imports.sweep(s, Model, moment)


# --- inside ---------------------------------------------------------------------------------------------------


def _insert(s: Session, project_id: str, name: str, state: ModelState, recipe: Recipe, source: dict[str, Any]) -> Model:
    model = Model(
        id=new_id("mdl"),
        project_id=project_id,
        name=name,
        state=state,
        recipe=recipe.model_dump(mode="json"),
        source=source,
        attempt=0,
        losses=0,
        created_at=db.now(s),
    )
    s.add(model)
    s.flush()
    return model


def _finish(s: Session, model: Model, made: FinishedImport, report: Report | None) -> None:
    at = db.now(s)
    blobs.remember_blobs(s, model.project_id, at, made.weights, made.recipe)
    model.weights_digest, model.recipe_digest = made.weights.digest, made.recipe.digest
    model.tensors_digest, model.size = made.tensors_digest, made.weights.size
    imports.end(model, ModelState.ready, at, report)
