"""What a spec refers to, looked up: data set, teacher, inherited weights. All that is wrong is reported at once.

Knows rows, the store, and folders below the data roots. Knows nothing of HTTP.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.core import datasets
from api.core.errors import Conflict, Fault, Invalid
from api.core.lifecycle import DatasetState, ModelState, State
from api.core.rows.tables import Artifact, Dataset, Job, JobModel, JobParent, Model
from api.core.store.names import Blob, BlobStore, DigestMismatch
from fgd import weights_file
from fgd.errors import SpecError, WeightsError
from fgd.outline import refuse_single_values, refuse_unlabelled
from fgd.recipe import Recipe
from fgd.references import NamedWeights, named_weights
from fgd.result_files import BEST, RECIPE, WEIGHTS, Which, file_with
from fgd.spec import JobSpec
from fgd.spec_fields import FromJob, FromModel, FromPath
from fgd.stored import stored_recipe
from fgd.text.pydantic_messages import sentence

MAX_RECIPE_BYTES = 1 << 20


@dataclass(frozen=True)
class ReferencedWeights:
    """A network that a spec names: its recipe, and its two files, in the store already or still to be packed."""

    recipe: Recipe
    files: Mapping[str, str] = field(default_factory=dict)
    to_pack: Mapping[str, Path] = field(default_factory=dict)


@dataclass
class Inputs:
    """Blobs by role and name, as they go into the job's row."""

    files: dict[str, dict[str, str]] = field(default_factory=dict)
    packed: list[Blob] = field(default_factory=list)
    """Blobs that were put into the store just now; their rows come with the job's."""
    images: dict[str, int] = field(default_factory=dict)
    """Number of each split of the data set."""
    classes: tuple[str, ...] = ()
    """Of the data set."""
    teachers: dict[str, Recipe] = field(default_factory=dict)
    """What teaches, by the names of `JobSpec.teacher_refs`."""


@dataclass(frozen=True)
class LookedUp:
    """What several specs of one request refer to, looked up and packed once."""

    weights: dict[NamedWeights, ReferencedWeights] = field(default_factory=dict)
    packed: dict[Path, Blob] = field(default_factory=dict)


class Findings:
    """Collects what is wrong, so that two errors are both told."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.conflicts: list[Conflict] = []

    def fault(self, pointer: str, code: str, detail: str) -> None:
        self.faults.append(Fault(pointer, code, detail))

    def tell(self) -> None:
        """Raise Invalid with every fault; only when there is none, a Conflict that time may mend."""
        if self.faults:
            raise Invalid(*self.faults)
        if self.conflicts:
            raise self.conflicts[0]


def resolve(
    s: Session,
    store: BlobStore,
    roots: Sequence[Path],
    project_id: str,
    spec: JobSpec,
    looked_up: LookedUp | None = None,
) -> Inputs:
    """Look up everything `spec` refers to; files of {"path"} references are copied into the store. What `looked_up` has
    is taken from there.

    Raises Invalid with every fault found, or Conflict where waiting helps (the data set is still being imported, the
    teacher still trains).
    """
    found, inputs = Findings(), Inputs()
    before = looked_up or LookedUp()
    dataset = _dataset(s, project_id, spec, found, inputs)
    weights = {
        each.role: before.weights.get(each) or _weights(s, store, roots, project_id, each, found)
        for each in named_weights(spec)
    }
    before.weights.update((each, there) for each in named_weights(spec) if (there := weights[each.role]) is not None)
    roles = {name: f"teachers/{name}" if name else "teacher" for name in spec.teacher_refs()}
    teachers = {name: known.recipe for name, role in roles.items() if (known := weights[role]) is not None}
    inherit = weights.get("inherit")
    if dataset is not None:
        _check_batch(dataset, spec, found)
        try:
            refuse_single_values(spec, datasets.squarest(dataset))
        except SpecError as error:
            found.fault(error.pointer, "single_values", error.message)
        ours = dataset.classes or []
        theirs = [name for recipe in teachers.values() for name in recipe.classes]
        try:
            bare = (dataset.splits or {}).get("unlabelled", {}).get("images", 0)
            refuse_unlabelled(spec, bare, ours, theirs)
        except SpecError as error:
            found.fault(error.pointer, "unlabelled_unusable", error.message)
        for name, recipe in teachers.items():
            try:
                spec.refuse_foreign(ours, recipe.classes, name)
            except SpecError as error:
                found.fault(error.pointer, "classes_differ", error.message)
        if inherit is not None:  # its class logits are copied one by one
            _check_classes(inherit.recipe.classes, ours, "/student/inherit", found)
    if inherit is not None:
        try:
            spec.refuse_inherit(inherit.recipe.detector)
        except SpecError as error:
            found.fault(error.pointer, "impossible_inheritance", error.message)
    for name, recipe in teachers.items():
        try:
            spec.refuse_pair(recipe.detector, name)
        except SpecError as error:
            found.fault(error.pointer, "impossible_pair", error.message)
    found.tell()
    assert dataset is not None, "what is missing has been told"
    inputs.images = {name: int(split["images"]) for name, split in (dataset.splits or {}).items()}
    inputs.classes = tuple(dataset.classes or ())
    inputs.teachers = teachers
    # Last: a refused request leaves no blobs behind.
    for role, named in weights.items():
        if named is not None:
            packed = {name: before.packed.get(file) or store.put_file(file) for name, file in named.to_pack.items()}
            before.packed.update((named.to_pack[name], blob) for name, blob in packed.items())
            inputs.packed += packed.values()
            inputs.files[role] = {**named.files, **{name: blob.digest for name, blob in packed.items()}}
    return inputs


def link(s: Session, job: Job, spec: JobSpec) -> None:
    """In the transaction that inserts the job: what it refers to was not deleted since it was looked up, and jobs
    cannot be until it ends. Raises Invalid."""
    for each in named_weights(spec):
        match each.ref:
            case FromJob(job=id):
                _lock(s, Job, job.project_id, id, each, "job")
                s.add(JobParent(job_id=job.id, role=each.role, project_id=job.project_id, parent_id=id))
            case FromModel(model=id):
                _lock(s, Model, job.project_id, id, each, "model")
                s.add(JobModel(job_id=job.id, role=each.role, project_id=job.project_id, model_id=id))
    s.flush()


def _lock(s: Session, kind: type[Job | Model], project_id: str, id: str, named: NamedWeights, noun: str) -> None:
    row = select(kind.id).where(kind.project_id == project_id, kind.id == id)
    if s.scalar(row.with_for_update(read=True, key_share=True)) is None:
        raise Invalid(Fault(f"{named.pointer}/{noun}", f"{named.noun}_not_found", f"there is no {noun} {id} here"))


def folder_below(roots: Sequence[Path], path: str, pointer: str, *, or_zip: bool = False) -> Path:
    """The real folder, or zip where `or_zip`, behind `path`. Raises Invalid, naming `pointer`, unless it lies below one
    of the data roots.

    Links are followed first, so a link inside a root that leads out is refused. Neither whether a path outside exists
    nor what the roots are is ever reported: callers need not know the host.
    """
    if not roots:
        detail = (
            "this server reads no folders: FGD_DATA_ROOTS is not set. Start it with FGD_DATA_ROOTS=/your/folder "
            "(or `fgd serve --data-root /your/folder`)"
        )
        raise Invalid(Fault(pointer, "path_not_allowed", detail))
    if not Path(path).is_absolute():
        raise Invalid(
            Fault(pointer, "path_not_absolute", f"{path!r} is not absolute; give the full path on the server")
        )
    folder = Path(os.path.realpath(path))
    if not any(folder.is_relative_to(root) for root in roots):
        detail = (
            f"{path!r} is not below a folder that this server may read (FGD_DATA_ROOTS); name one that is, or start "
            "the server with `fgd serve --data-root FOLDER`"
        )
        raise Invalid(Fault(pointer, "path_not_allowed", detail))
    zipped = or_zip and folder.suffix.lower() == ".zip" and os.path.isfile(folder)
    if not zipped and not os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
        what = "neither a folder nor a .zip" if or_zip else "not a folder"
        raise Invalid(Fault(pointer, "path_not_found", f"{path!r} is {what}"))
    return folder


# --- the data set ---------------------------------------------------------------------------------------------


def _dataset(s: Session, project_id: str, spec: JobSpec, found: Findings, inputs: Inputs) -> Dataset | None:
    """The ready data set; None if it cannot be used, and `found` says why."""
    if isinstance(spec.dataset, FromPath):
        detail = (
            'register the folder first (POST /v1/datasets {"name": ..., "path": ...}), then name the ds_... id here'
        )
        found.fault("/dataset", "dataset_not_registered", detail)
        return None
    dataset = of_dataset(s, project_id, spec.dataset, "/dataset", found)
    if dataset is not None:
        inputs.files["dataset"] = files_of(dataset)
    return dataset


def of_dataset(s: Session, project_id: str, dataset_id: str, pointer: str, found: Findings) -> Dataset | None:
    """The ready data set; None if it cannot be used, and `found` says why."""
    dataset = s.scalar(select(Dataset).where(Dataset.project_id == project_id, Dataset.id == dataset_id))
    if dataset is None:
        found.fault(pointer, "dataset_not_found", f"there is no data set {dataset_id} here")
    elif dataset.state == DatasetState.rejected:
        found.fault(pointer, "dataset_rejected", f"{dataset.id} was rejected at import: {dataset.error}")
    elif dataset.state == DatasetState.awaiting_upload:
        detail = f"{dataset.id} is waiting for its zip; upload it to /v1/datasets/{dataset.id}/content"
        found.conflicts.append(Conflict("dataset_not_ready", detail, True, pointer))
    elif dataset.state == DatasetState.verifying:
        detail = f"{dataset.id} is still being imported; try again when GET /v1/datasets/{dataset.id} says ready"
        found.conflicts.append(Conflict("dataset_not_ready", detail, True, pointer))
    else:
        return dataset
    return None


def files_of(dataset: Dataset) -> dict[str, str]:
    """The blobs of a ready data set."""
    assert dataset.archive_digest is not None, "a ready data set has its archive"
    assert dataset.index_digest is not None, "a ready data set has its index"
    return {"archive": dataset.archive_digest, "index": dataset.index_digest}


def _check_batch(dataset: Dataset, spec: JobSpec, found: Findings) -> None:
    images = (dataset.splits or {}).get("train", {}).get("images", 0)
    batch, batches = spec.schedule.batch_size, spec.schedule.accumulate
    if batch <= images < batch * batches:
        detail = (
            f"{batches} batches of {batch} are more than the {images} training images of {dataset.id}: an epoch would "
            f"have no step; accumulate {images // batch} or less"
        )
        found.fault("/schedule/accumulate", "batch_too_large", detail)
    if batch > images:
        detail = (
            f"batch_size {batch} is larger than the {images} training images of {dataset.id}: "
            f"an epoch would have no step"
        )
        found.fault("/schedule/batch_size", "batch_too_large", detail)


def _check_classes(theirs: Sequence[str], ours: Sequence[str], pointer: str, found: Findings) -> None:
    if list(theirs) == list(ours):
        return
    missing = [name for name in ours if name not in theirs]
    surplus = [name for name in theirs if name not in ours]
    difference = "; ".join(
        text
        for text in (
            f"it lacks {missing}" if missing else "",
            f"it also has {surplus}" if surplus else "",
            "" if missing or surplus else f"the order differs: {list(theirs)} and {list(ours)}",
        )
        if text
    )
    found.fault(pointer, "classes_differ", f"its classes are not those of the data set: {difference}")


# --- weights --------------------------------------------------------------------------------------------------


def _weights(
    s: Session,
    store: BlobStore,
    roots: Sequence[Path],
    project_id: str,
    named: NamedWeights,
    found: Findings,
) -> ReferencedWeights | None:
    """The weights behind a reference; None if it cannot be used, and `found` says why."""
    try:
        match named.ref:
            case FromJob(job=id):
                return of_job(s, store, project_id, id, named.noun, f"{named.pointer}/job")
            case FromModel(model=id):
                return of_model(s, store, project_id, id, named.noun, f"{named.pointer}/model")
            case FromPath(path=path):
                return _from_path(roots, path, f"{named.pointer}/path")
    except Invalid as error:
        found.faults += error.errors
    except Conflict as error:
        found.conflicts.append(error)
    return None


def of_job(
    s: Session,
    store: BlobStore,
    project_id: str,
    job_id: str,
    role: str,
    pointer: str,
    which: Which = "last",
) -> ReferencedWeights:
    """The student of a finished job. Raises Invalid at `pointer`, or Conflict for a job that is not finished yet."""
    job = s.scalar(select(Job).where(Job.project_id == project_id, Job.id == job_id))
    if job is None:
        raise Invalid(Fault(pointer, f"{role}_not_found", f"there is no job {job_id} here"))
    if job.state != State.succeeded:
        if State(job.state).terminal:
            raise Invalid(
                Fault(pointer, f"{role}_has_no_weights", f"{job_id} has ended ({job.state}); name a job that succeeded")
            )
        detail = f"{job_id} is {job.state}; it has weights once it has succeeded"
        raise Conflict(f"{role}_not_ready", detail, True, pointer)
    rows = s.execute(select(Artifact.name, Artifact.digest).where(Artifact.job_id == job_id))
    files = {name: digest for name, digest in rows if name in (WEIGHTS, BEST, RECIPE)}
    if (wanted := files.get(file_with(which, files))) is not None:
        files[WEIGHTS] = wanted
    files.pop(BEST, None)
    if files.keys() != {WEIGHTS, RECIPE} or not all(map(store.exists, files.values())):
        raise Invalid(Fault(pointer, f"{role}_has_no_weights", f"{job_id} no longer has {WEIGHTS} and {RECIPE}"))
    return ReferencedWeights(_stored_recipe(store, files[RECIPE], job_id, pointer), files)


def of_jobs_teacher(s: Session, store: BlobStore, project_id: str, job_id: str, pointer: str) -> ReferencedWeights:
    """What a job learns or learned from, in whatever state it is. Raises Invalid at `pointer`."""
    job = s.scalar(select(Job).where(Job.project_id == project_id, Job.id == job_id))
    if job is None:
        raise Invalid(Fault(pointer, "job_not_found", f"there is no job {job_id} here"))
    named = [role for role in job.inputs if role.startswith("teachers/")]
    files = job.inputs.get("teacher") or (job.inputs[named[0]] if len(named) == 1 else None)
    if not files and named:
        detail = f"{job_id} has several teachers; name the job or model of one of them instead"
        raise Invalid(Fault(pointer, "job_has_several_teachers", detail))
    if not files:
        raise Invalid(Fault(pointer, "job_has_no_teacher", f"{job_id} has no teacher; name a job that was distilled"))
    if not all(map(store.exists, files.values())):
        raise Invalid(Fault(pointer, "job_has_no_teacher", f"the teacher of {job_id} is no longer in the store"))
    return ReferencedWeights(_stored_recipe(store, files[RECIPE], f"the teacher of {job_id}", pointer), files)


def of_model(
    s: Session, store: BlobStore, project_id: str, model_id: str, role: str, pointer: str
) -> ReferencedWeights:
    """A model that is ready. Raises Invalid at `pointer`, or Conflict for one that is not ready yet."""
    model = s.scalar(select(Model).where(Model.project_id == project_id, Model.id == model_id))
    if model is None:
        raise Invalid(Fault(pointer, f"{role}_not_found", f"there is no model {model_id} here"))
    if model.state == ModelState.rejected:
        raise Invalid(Fault(pointer, f"{role}_rejected", f"{model_id} was rejected at import: {model.error}"))
    if model.state == ModelState.awaiting_upload:
        detail = f"{model_id} has no content yet; upload it with PUT /v1/models/{model_id}/content"
        raise Conflict(f"{role}_not_ready", detail, False, pointer)
    if model.state == ModelState.verifying:
        detail = f"{model_id} is still being verified; try again when GET /v1/models/{model_id} says ready"
        raise Conflict(f"{role}_not_ready", detail, True, pointer)
    assert model.weights_digest is not None, "a ready model has its weights"
    assert model.recipe_digest is not None, "a ready model has its recipe"
    files = {WEIGHTS: model.weights_digest, RECIPE: model.recipe_digest}
    if not all(map(store.exists, files.values())):
        raise Invalid(Fault(pointer, f"{role}_has_no_weights", f"the files of {model_id} are no longer in the store"))
    return ReferencedWeights(_stored_recipe(store, files[RECIPE], model_id, pointer), files)


def _stored_recipe(store: BlobStore, digest: str, whose: str, pointer: str) -> Recipe:
    try:
        with store.local(digest) as file:
            return _recipe(file, pointer)
    except DigestMismatch as error:
        raise Invalid(Fault(pointer, "recipe_unreadable", f"{RECIPE} of {whose} is damaged in the store")) from error


def _from_path(roots: Sequence[Path], path: str, pointer: str) -> ReferencedWeights:
    folder = folder_below(roots, path, pointer)
    files = {name: Path(os.path.realpath(folder / name)) for name in (WEIGHTS, RECIPE)}
    for name, file in files.items():
        if not os.path.isfile(file) or not any(file.is_relative_to(root) for root in roots):
            raise Invalid(
                Fault(pointer, "weights_incomplete", f"{path!r} has no file {name}; it needs {WEIGHTS}, {RECIPE}")
            )
    recipe = _recipe(files[RECIPE], pointer, f"{path}/{RECIPE}")
    _check_weights(files[WEIGHTS], pointer, f"{path}/{WEIGHTS}")
    return ReferencedWeights(recipe, to_pack=files)


def _check_weights(file: Path, pointer: str, named: str) -> None:
    """That it is a whole safetensors file; whether the tensors fit the recipe, only the trainer can say."""
    try:
        with file.open("rb") as opened:
            if weights_file.kind_of(opened.read(weights_file.HEAD_BYTES)) != "safetensors":
                raise WeightsError("not a safetensors file; save the weights with safetensors.torch.save_file")
            tensors, _ = weights_file.read_header(opened)
            if not tensors:
                raise WeightsError("it contains no tensors")
    except (OSError, WeightsError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Invalid(Fault(pointer, "weights_unreadable", f"{named}: {reason}")) from error


def _recipe(file: Path, pointer: str, named: str = RECIPE) -> Recipe:
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_RECIPE_BYTES + 1)
        if len(text) > MAX_RECIPE_BYTES:
            raise ValueError(f"larger than {MAX_RECIPE_BYTES} bytes")
        return stored_recipe(text)
    except (OSError, ValueError) as error:
        detail = f"{named} is not a recipe of this service: {_reason(error)}"
        raise Invalid(Fault(pointer, "recipe_unreadable", detail)) from error


def _reason(error: OSError | ValueError) -> str:
    match error:
        case ValidationError():
            first = error.errors()[0]
            where = "".join(f"/{part}" for part in first["loc"])
            words = sentence(first, str(first["loc"][-1]) if where else "")
            return f"{where}: {words}" if where else words
        case OSError():
            return error.strerror or "it cannot be read"
    return str(error)
