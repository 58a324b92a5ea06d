"""Making models: of an upload to come, of a finished job, of a checkpoint of a job that still trains.

Files are read before the write lock is taken, as in `submission`. Knows rows and the store; no HTTP, no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self, get_args

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from api.core import datasets, models, references
from api.core.errors import Conflict, Fault, Invalid, NotFound
from api.core.jobs import checkpoints, requests
from api.core.lifecycle import State
from api.core.models import FinishedImport
from api.core.references import ReferencedWeights
from api.core.request_bodies import PromoteModel, SubmitModel, UploadModel
from api.core.rows import db
from api.core.rows.crowd import expect_place
from api.core.rows.idempotency import Once
from api.core.rows.tables import Artifact, Checkpoint, Job, Model
from api.core.settings import Settings
from api.core.store.names import Blob, BlobStore, DigestMismatch
from fgd.errors import WeightsError
from fgd.recipe import Recipe
from fgd.result_files import MANIFEST, RECIPE, WEIGHTS, Which, file_with, step_of
from fgd.spec import JobSpec
from fgd.stored import stored_spec
from fgd.weights_file import digest_of_tensors

MAX_NAME = 100
"""Characters of a model's name, as in fgd.spec_fields."""


@dataclass(frozen=True)
class PromotableWeights:
    """Weights of a job that can be promoted. `id`: last, best, or that of a checkpoint."""

    id: str
    step: int | None
    """None: the result does not say."""
    attempt: int
    """Which attempt of the job wrote it."""
    size: int
    sha256: str
    created_at: datetime
    best: bool = False
    """It has the best validation AP of the job so far."""
    pinned: bool = False
    """Kept until it is unpinned."""

    @classmethod
    def of(cls, row: Checkpoint) -> Self:
        return cls(row.id, row.step, row.attempt, row.size, row.sha256, row.created_at, row.best, row.pinned)


def submit_model(
    engine: Engine, store: BlobStore, settings: Settings, project_id: str, body: SubmitModel, key: str | None
) -> tuple[Model, bool]:
    """The model, and whether it is new: one that awaits its content, or that of a finished job, which is ready."""
    once = Once.of(Model, project_id, key, "POST /v1/models", body)
    with db.reading(engine) as s:
        if (model := once.replayed(s)) is not None:
            return model, False
    if isinstance(body, UploadModel):
        return once.make(engine, _if_few_wait(settings, project_id, lambda s: models.create(s, project_id, body)))
    return once.make(engine, _of_result(engine, store, project_id, body, "/job"))


def promote(
    engine: Engine,
    store: BlobStore,
    settings: Settings,
    project_id: str,
    job_id: str,
    checkpoint: str,
    name: str | None,
    key: str | None,
) -> tuple[Model, bool]:
    """A model of a job's weights: "last" or "best", or of a checkpoint by its id; and whether it is new.

    That of a finished job is ready at once; a checkpoint is taken apart by a worker: ring for it. Raises NotFound for
    a job or checkpoint that is not there, Conflict for a job that has nothing to promote.
    """
    wish = PromoteModel(name=name or "x", job=job_id, which="best" if checkpoint == "best" else "last")
    once = Once.of(Model, project_id, key, f"POST /v1/jobs/{job_id}/checkpoints/{checkpoint}/promote", wish)
    with db.reading(engine) as s:
        if (model := once.replayed(s)) is not None:
            return model, False
        job = requests.get(s, project_id, job_id)
        saved = checkpoints.newest_first(s, job.id)
        classes = datasets.get(s, project_id, job.dataset_id).classes or []
    wish = wish.but(name=name or f"{job.name[: MAX_NAME - 7]} ({wish.which})")
    if job.state == State.succeeded and checkpoint in ("last", "best"):
        return once.make(engine, _of_result(engine, store, project_id, wish, ""))
    row = _saved(job, saved, checkpoint)
    upload = _keep(store, row)
    # The best weights lie in the newest checkpoint, which may be of a later step than they; the worker will see.
    step = row.step if wish.which == "last" or row.best else None
    source = {"kind": "checkpoint", "job": job.id, "which": wish.which, "checkpoint": row.id, "step": step}
    recipe = _recipe(stored_spec(job.spec), classes)

    def insert(s: Session) -> Model:
        return models.promote_checkpoint(s, project_id, wish.name, recipe, source, upload)

    return once.make(engine, _if_few_wait(settings, project_id, insert))


def promotable(s: Session, store: BlobStore, job: Job) -> list[PromotableWeights]:
    """What `promote` takes: the last and the best weights of a result, then the checkpoints that are kept, newest
    first."""
    saved = [PromotableWeights.of(row) for row in checkpoints.newest_first(s, job.id)]
    if job.state != State.succeeded:
        return saved
    found = {row.name: row for row in s.scalars(select(Artifact).where(Artifact.job_id == job.id))}
    if (last := found.get(WEIGHTS)) is None:
        return saved
    best = found[file_with("best", found)]
    manifest = _manifest(store, {name: row.digest for name, row in found.items()})
    step = {which: step_of(which, manifest) for which in get_args(Which)}
    return [
        PromotableWeights("last", step["last"], job.attempt, last.size, last.digest, last.created_at),
        PromotableWeights("best", step["best"], job.attempt, best.size, best.digest, best.created_at, best=True),
        *saved,
    ]


def _manifest(store: BlobStore, files: Mapping[str, str]) -> Mapping[str, Any]:
    """What a result says of itself; nothing where it is gone or damaged, which does not stop a promotion."""
    try:
        found = json.loads(b"".join(store.read(files[MANIFEST])))
    except (KeyError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _if_few_wait(settings: Settings, project_id: str, insert: Callable[[Session], Model]) -> Callable[[Session], Model]:
    """The same, of a model that waits for a worker. It raises Busy where too many do."""

    def checked(s: Session) -> Model:
        expect_place(s, Model, project_id, settings.max_waiting_imports, "FGD_MAX_WAITING_IMPORTS")
        return insert(s)

    return checked


def _of_result(engine: Engine, store: BlobStore, project_id: str, wish: PromoteModel, pointer: str) -> Any:
    """What inserts the model of a finished job. Raises Invalid, Conflict if there is none to be made."""
    with db.reading(engine) as s:
        found = references.of_job(s, store, project_id, wish.job, "job", pointer, wish.which)
        job = requests.get(s, project_id, wish.job)
        artifacts = dict(s.execute(select(Artifact.name, Artifact.digest).where(Artifact.job_id == job.id)).all())
    is_last = found.files[WEIGHTS] == artifacts[WEIGHTS]
    tensors = job.weights_digest if is_last else _tensors_digest(store, found, pointer)
    assert tensors is not None, "a job that succeeded has the digest of its weights"
    made = FinishedImport(_blob(store, found.files[WEIGHTS]), _blob(store, found.files[RECIPE]), tensors)
    step = step_of(wish.which, _manifest(store, artifacts))
    source = {"kind": "job", "job": job.id, "which": wish.which, "step": step}
    return lambda s: models.promote(s, project_id, wish.name, found.recipe, source, made)


def _tensors_digest(store: BlobStore, found: ReferencedWeights, pointer: str) -> str:
    try:
        with store.local(found.files[WEIGHTS]) as file:
            return digest_of_tensors(file)
    except WeightsError as error:
        raise Invalid(Fault(pointer, "job_has_no_weights", f"the job's weights cannot be read: {error}")) from error


def _blob(store: BlobStore, digest: str) -> Blob:
    return Blob(digest, store.size(digest))


def _saved(job: Job, saved: Sequence[Checkpoint], wanted: str) -> Checkpoint:
    """The checkpoint by its id, or the newest. Raises NotFound, Conflict."""
    if wanted not in ("last", "best"):
        row = next((row for row in saved if row.id == wanted), None)
        if row is None:
            raise NotFound("checkpoint", wanted)
        return row
    if saved:
        return saved[0]
    if State(job.state).terminal:
        raise Conflict("no_checkpoint", f"{job.id} has ended ({job.state}); its checkpoints are gone")
    raise Conflict("no_checkpoint", f"{job.id} has not saved a checkpoint yet", retryable=True)


def _keep(store: BlobStore, row: Checkpoint) -> Blob:
    """The checkpoint as a blob of its own: the job will soon drop it. Raises Conflict if it just has."""
    try:
        with store.local_object(row.key) as file:
            return store.take_file(file, expected=row.sha256)
    except (KeyError, FileNotFoundError, DigestMismatch) as error:
        detail = f"the checkpoint of step {row.step} was just replaced; list the checkpoints again"
        raise Conflict("checkpoint_gone", detail, retryable=True) from error


def _recipe(spec: JobSpec, classes: list[str]) -> Recipe:
    """As the trainer would write it; what it knows better stands in the checkpoint and overrules this."""
    return Recipe(
        detector=spec.student.but(inherit=None, weights="none", norm=spec.student.trunk_norm()),
        classes=tuple(classes),
        min_size=spec.schedule.min_size,
        max_size=spec.schedule.max_size,
    )
