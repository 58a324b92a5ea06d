"""What teacher, control and student of a job find on each image, and where they differ most.

Read from the detections.npz of their results, and for a teacher that has none of these images from an evaluation of it.
Boxes and detections are paired once for each set of files, which takes a second for 10,000 images; the last two sets
are kept, and every question after the first is answered out of memory. Knows rows and the store; no HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock
from typing import Any, Literal

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.core import samples
from api.core.compared_detections import (
    ComparedDetections,
    ComparedImage,
    ComparedNetwork,
    FoundBox,
    ImageBoxes,
    ImageCounts,
    NetworkBoxes,
    TruthBox,
)
from api.core.errors import Conflict, Fault, Invalid, NotFound
from api.core.jobs import controls, requests
from api.core.lifecycle import DatasetState, State, TaskState
from api.core.paired_runs import Split, teacher_of
from api.core.rows.tables import Artifact, Dataset, Evaluation, Job
from api.core.store.names import BlobStore
from fgd.result_files import DETECTIONS
from fgd.statistics.detections import DetectionsUnreadable, SplitDetections, read
from fgd.statistics.matching import Bools, Ints
from fgd.statistics.per_image import IOU, NEVER, Counts, Paired, apart, counts, pair

LEAST = 0.05
"""Detections with a lower score are not looked at."""
USUAL = 0.3
DIGITS = 4
"""Of scores."""
MOST_BYTES = 64 * 2**20
"""Of a file of detections."""
Against = Literal["control", "teacher"]
Only = Literal["worse", "better"]


@dataclass(frozen=True)
class Wanted:
    against: Against | None = None
    """None: the control, or else a teacher."""
    class_name: str | None = None
    only: Only | None = None
    score: float = USUAL
    offset: int = 0
    limit: int = 50


@dataclass(frozen=True)
class _Side:
    """A network, as rows know it."""

    role: str
    job: str | None = None
    model: str | None = None
    detections: str | None = None
    """Digest."""
    evaluation: str | None = None
    reason: str | None = None
    evaluate: dict[str, Any] | None = None


@dataclass(frozen=True)
class Found:
    """All rows that an answer is made of."""

    job: Job
    dataset: Dataset | None
    split: Split
    sides: Sequence[_Side]


@dataclass(frozen=True)
class _Compared:
    """Out of files."""

    splits: tuple[str, ...]
    truth: SplitDetections
    """Without detections."""
    pairs: Mapping[str, Paired | str]
    """By role; text: why there are none."""


def rows(s: Session, project_id: str, job_id: str, split: Split) -> Found:
    """Raises NotFound; Conflict for a job without detections."""
    job = requests.get(s, project_id, job_id)
    student = _of_result(s, "student", job)
    if student.detections is None:
        raise Conflict("no_detections", f"{job_id}: {student.reason}", not State(job.state).terminal)
    dataset = s.scalar(select(Dataset).where(Dataset.project_id == project_id, Dataset.id == job.dataset_id))
    sides = [*_teachers(s, job, split), *_control(s, job), student]
    return Found(job, dataset, split, sides)


def table(found: Found, store: BlobStore, wanted: Wanted) -> ComparedDetections:
    """The images, those first on which the networks differ most. Raises Invalid."""
    compared = _compared(found, store)
    truth, pairs = compared.truth, _known(compared)
    student = pairs["student"]
    wanted_C = _wanted_classes(truth, wanted.class_name)
    against = _against(compared, found.sides, wanted)
    other = pairs.get(against) if against is not None else None
    of = {role: counts(truth, paired, wanted.score, wanted_C & paired.known_C) for role, paired in pairs.items()}
    shared_C = wanted_C & student.known_C & (other.known_C if other is not None else True)
    boxes_I = of["student"].found_I + of["student"].missed_I
    if other is not None:
        ours, theirs = (counts(truth, each, wanted.score, shared_C).mistakes_I for each in (student, other))
        apart_I, worse_I = apart(truth, student, other, wanted.score, shared_C), ours - theirs
    else:
        apart_I = worse_I = of["student"].mistakes_I
    kept = np.flatnonzero(_there(boxes_I, of) if wanted.class_name is not None else np.ones(len(truth), bool))
    worse, better = (int((sign * worse_I[kept] > 0).sum()) if other is not None else 0 for sign in (1, -1))
    if wanted.only is not None:
        kept = kept[(worse_I[kept] > 0) if wanted.only == "worse" else (worse_I[kept] < 0)]
    order = kept[np.lexsort((-of["student"].mistakes_I[kept], -np.abs(worse_I[kept]), -apart_I[kept]))]
    places = _places(store, found)

    def item(n: int) -> ComparedImage:
        sample = places.get(int(truth.image_id[n]))
        return ComparedImage(
            image_id=int(truth.image_id[n]),
            name=truth.names[n],
            sample=sample,
            image_url=_image_url(found, sample),
            boxes=int(boxes_I[n]),
            apart=int(apart_I[n]) if other is not None else None,
            worse_by=int(worse_I[n]) if other is not None else None,
            counts=[_counts_of(role, each, n) for role, each in of.items()],
        )

    return ComparedDetections(
        job=found.job.id,
        dataset=found.job.dataset_id,
        split=found.split,
        splits=list(compared.splits),
        classes=list(truth.classes),
        iou=IOU,
        score=wanted.score,
        against=against,
        networks=[_network(side, compared) for side in found.sides],
        worse=worse,
        better=better,
        total=len(order),
        items=[item(int(n)) for n in order[wanted.offset : wanted.offset + wanted.limit]],
    )


def boxes(found: Found, store: BlobStore, image_id: int) -> ImageBoxes:
    """All boxes of one image. Raises NotFound."""
    compared = _compared(found, store)
    truth = compared.truth
    n = int(np.searchsorted(truth.image_id, image_id))
    if n == len(truth) or truth.image_id[n] != image_id:
        raise NotFound("image", f"{image_id} of {found.job.id}, {found.split}")
    mine = np.flatnonzero(truth.truth_image == n)
    sample = _places(store, found).get(image_id)
    return ImageBoxes(
        image_id=image_id,
        name=truth.names[n],
        width=int(truth.size[n, 0]),
        height=int(truth.size[n, 1]),
        sample=sample,
        image_url=_image_url(found, sample),
        boxes=[
            TruthBox(
                box=_corners(truth.truth_box[each]),
                name=truth.classes[truth.truth_label[each] - 1],
                label=int(truth.truth_label[each]),
                crowd=bool(truth.truth_crowd[each]),
            )
            for each in mine
        ],
        networks=[_boxes_of(role, paired, truth, n, mine) for role, paired in _known(compared).items()],
    )


# --- what is made of the files ---


def _known(compared: _Compared) -> dict[str, Paired]:
    return {role: paired for role, paired in compared.pairs.items() if isinstance(paired, Paired)}


def _wanted_classes(truth: SplitDetections, name: str | None) -> Bools:
    if name is None:
        return np.ones(len(truth.classes), bool)
    if name not in truth.classes:
        known = ", ".join(map(repr, truth.classes[:8])) + (", ..." if len(truth.classes) > 8 else "")
        detail = f"the data set has no class {name[:80]!r}; it has {known}"
        raise Invalid(Fault("", "class_not_found", detail, "class"))
    return np.array([each == name for each in truth.classes])


def _against(compared: _Compared, sides: Sequence[_Side], wanted: Wanted) -> str | None:
    """The role that the student is compared with."""
    known = _known(compared)
    for kind in (wanted.against,) if wanted.against is not None else ("control", "teacher"):
        if (role := next((each for each in known if each.split(" ")[0] == kind), None)) is not None:
            return role
    if wanted.against is not None or wanted.only is not None:
        lacking = [_network(side, compared) for side in sides if side.role.split(" ")[0] == wanted.against]
        why = lacking[0].reason if lacking else "the job has no other network to compare with"
        parameter = "against" if wanted.against is not None else "only"
        raise Invalid(Fault("", "nothing_to_compare", f"{wanted.against or 'control and teacher'}: {why}", parameter))
    return None


def _there(boxes_I: Ints, of: Mapping[str, Counts]) -> Bools:
    """Images with a box or a detection."""
    there: Bools = boxes_I > 0
    for each in of.values():
        there = there | (each.false_I > 0)
    return there


def _counts_of(role: str, of: Counts, n: int) -> ImageCounts:
    return ImageCounts(role=role, found=int(of.found_I[n]), missed=int(of.missed_I[n]), false=int(of.false_I[n]))


def _network(side: _Side, compared: _Compared) -> ComparedNetwork:
    paired = compared.pairs.get(side.role)
    unknown = np.flatnonzero(~paired.known_C) if isinstance(paired, Paired) else ()
    return ComparedNetwork(
        role=side.role,
        job=side.job,
        model=side.model,
        evaluation=side.evaluation,
        reason=paired if isinstance(paired, str) else side.reason,
        evaluate=side.evaluate,
        unknown=[compared.truth.classes[label] for label in unknown],
    )


def _boxes_of(role: str, paired: Paired, truth: SplitDetections, n: int, mine: Ints) -> NetworkBoxes:
    of = paired.of_image(n)
    found = zip(
        paired.box_D4[of], paired.label_D[of], paired.score_D[of], paired.hit_D[of], paired.ignored_D[of], strict=True
    )
    known = paired.known_C[truth.truth_label[mine] - 1]
    return NetworkBoxes(
        role=role,
        detections=[
            FoundBox(
                box=_corners(box),
                name=truth.classes[label - 1],
                label=int(label),
                score=round(float(score), DIGITS),
                hit=None if ignored else bool(hit),
            )
            for box, label, score, hit, ignored in found
        ],
        found_at=[None if score == NEVER else round(float(score), DIGITS) for score in paired.score_T[mine]],
        counted=[bool(each) for each in known & ~truth.truth_crowd[mine]],
    )


def _corners(box: Any) -> tuple[float, float, float, float]:
    left, top, right, bottom = (round(float(side), 2) for side in box)
    return left, top, right, bottom


def _places(store: BlobStore, found: Found) -> Mapping[int, int]:
    """Image id -> its place in the split."""
    if found.dataset is None or found.dataset.state != DatasetState.ready:
        return {}
    return samples.places(store, found.dataset, found.split)


def _image_url(found: Found, sample: int | None) -> str | None:
    if sample is None:
        return None
    return f"/v1/datasets/{found.job.dataset_id}/samples/{sample}/image?split={found.split}"


# --- reading files ---


def _compared(found: Found, store: BlobStore) -> _Compared:
    """Raises Invalid for a split that it has not, Conflict for a damaged file."""
    files = tuple((side.role, side.detections) for side in found.sides if side.detections is not None)
    with _reading:
        return _read(store, found.split, files)


_reading = Lock()
"""Files are read once, though several ask at the same time."""


@lru_cache(maxsize=2)
def _read(store: BlobStore, split: str, files: tuple[tuple[str, str], ...]) -> _Compared:
    """Of roles and digests, the student last: its boxes are the ground truth."""
    *others, (role, digest) = files
    whole = _detections(store, digest)
    if isinstance(whole, str):
        raise Conflict("no_detections", whole)
    if split not in whole:
        detail = f"the result has no detections on {split} images; it has those on {' and '.join(whole)}"
        raise Invalid(Fault("", "split_not_found", detail, "split"))
    mine = whole[split]
    nothing = {name: getattr(mine, name)[:0] for name in ("found_image", "found_box", "found_score", "found_label")}
    truth = replace(mine, **nothing)
    pairs: dict[str, Paired | str] = {}
    for name, theirs in others:
        there = _detections(store, theirs)
        if isinstance(there, str):
            pairs[name] = there
        elif split not in there:
            pairs[name] = f"it was not evaluated on {split} images"
        else:
            pairs[name] = _paired(truth, there[split])
    return _Compared(tuple(whole), truth, pairs | {role: _paired(truth, mine)})


def _paired(truth: SplitDetections, found: SplitDetections) -> Paired:
    """Scores have the digits that are answered, so that a client who counts boxes gets the same counts."""
    return pair(truth, replace(found, found_score=found.found_score.round(DIGITS)), LEAST)


def _detections(store: BlobStore, digest: str) -> dict[str, SplitDetections] | str:
    try:
        if (size := store.size(digest)) > MOST_BYTES:
            return f"its detections are {size} bytes; up to {MOST_BYTES} are looked at"
        with store.local(digest) as file:
            return read(file)
    except (KeyError, FileNotFoundError):
        return "its detections are no longer in the store"
    except DetectionsUnreadable:
        return "its detections are damaged in the store"


# --- reading rows ---


def _of_result(s: Session, role: str, job: Job) -> _Side:
    """The student or the control."""
    if job.state != State.succeeded:
        ended = State(job.state).terminal
        reason = f"it is {job.state}" + ("" if ended else "; its detections are kept once it has succeeded")
        return _Side(role, job.id, reason=reason)
    digest = s.scalar(select(Artifact.digest).where(Artifact.job_id == job.id, Artifact.name == DETECTIONS))
    lacking = f"its result has no {DETECTIONS}: it is of an earlier version" if digest is None else None
    return _Side(role, job.id, detections=digest, reason=lacking)


def _control(s: Session, job: Job) -> Iterator[_Side]:
    """Of a job with a teacher: the one that the dashboard shows."""
    if not job.taught:
        return
    control = s.scalar(select(controls.control_of_job()).where(Job.id == job.id))
    if control is not None:
        yield _of_result(s, "control", requests.get(s, job.project_id, control))
    else:
        yield _Side("control", reason="no job has trained the same student without a teacher")


def _teachers(s: Session, job: Job, split: Split) -> Iterator[_Side]:
    """Each with the detections of its own result, if that was on the same images, or of an evaluation."""
    alone = job.spec.get("teacher")
    named = {"teacher": alone} if alone else {}
    several = {f"teacher {name}": ref for name, ref in (job.spec.get("teachers") or {}).items()}
    for role, ref in {**named, **several}.items():
        side = _Side(role, ref.get("job"), ref.get("model"))
        own = teacher_of(s, job.project_id, job.dataset_id, ref, split).detections
        if own is not None:
            yield replace(side, detections=own)
            continue
        evaluation = _evaluation(s, job, ref, split, alone=not several)
        if evaluation is not None and evaluation.state == TaskState.succeeded:
            digest = next(each["sha256"] for each in evaluation.files or () if each["role"] == "detections")
            yield replace(side, detections=digest, evaluation=evaluation.id)
        elif evaluation is not None:
            yield replace(side, evaluation=evaluation.id, reason="it is being evaluated on these images")
        else:
            body = _to_evaluate(job, ref, split, alone=not several)
            yield replace(side, reason="it was not evaluated on these images", evaluate=body)


def _evaluation(s: Session, job: Job, ref: Mapping[str, Any], split: Split, *, alone: bool) -> Evaluation | None:
    """The newest of a teacher on these images that has succeeded, or else one that has not ended."""
    asked = Evaluation.request
    query = (
        select(Evaluation)
        .where(
            Evaluation.project_id == job.project_id,
            Evaluation.state != TaskState.failed,
            asked["dataset"].as_string() == job.dataset_id,
            asked["split"].as_string() == split,
        )
        .order_by(Evaluation.state.desc(), Evaluation.created_at.desc(), Evaluation.id.desc())
    )
    return next((each for each in s.scalars(query) if _is_of(each.request, job, ref, alone=alone)), None)


def _is_of(asked: Mapping[str, Any], job: Job, ref: Mapping[str, Any], *, alone: bool) -> bool:
    """alone: it is the job's only teacher."""
    if asked.get("network") == "teacher":
        return alone and asked.get("job") == job.id
    of_model = ref.get("model") is not None and asked.get("model") == ref["model"]
    of_job = ref.get("job") is not None and asked.get("job") == ref["job"] and asked.get("which") == "last"
    return of_model or of_job


def _to_evaluate(job: Job, ref: Mapping[str, Any], split: Split, *, alone: bool) -> dict[str, Any] | None:
    """The body of an evaluation. None for one of several teachers that lies in a folder."""
    if alone:
        return {"job": job.id, "network": "teacher", "split": split}
    named = {name: ref[name] for name in ("job", "model") if ref.get(name) is not None}
    return {**named, "dataset": job.dataset_id, "split": split} if named else None
