"""All that is to be said of a finished job, beside its control and its teacher. Knows rows and the store; no HTTP.

Rows are read at each request. Figures and resamples of detections take seconds, so they are worked out once for each
file, beside the server (resampling.py); operations, times and pictures by a worker (inspections.py): `pending` says how
much of it is to come.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from api.core.lifecycle import State, TaskState
from api.core.paired_runs import Interval, Resampled, Split, pairs_over_images
from api.core.report_rows import Found, Side, seed_of
from api.core.report_views import (
    Comparison,
    ControlRequest,
    CurvePoint,
    JobReport,
    ReportedNetwork,
    ReportInspection,
)
from api.core.rows.tables import Inspection, Job
from api.core.store.names import BlobStore
from fgd.evaluated import SplitFigures
from fgd.inspected import MAX_PICTURES_BYTES, InspectedNetwork, InspectionResult, Pictures
from fgd.result_files import DETECTIONS, MANIFEST, RECIPE, WEIGHTS
from fgd.spec import JobSpec, SubmitJob
from fgd.statistics.intervals import difference, gap_closed
from fgd.stored import stored_recipe, without_retired

MOST_BYTES = 16 * 2**20
"""Of a manifest."""


def report(
    found: Found, store: BlobStore, resampled: Resampled, figures: Mapping[str, SplitFigures | str]
) -> JobReport:
    """Raises StoreAway."""
    job = found.job
    of_result = next(side for side in found.sides if side.role == "student").files
    manifest = _manifest(store, of_result)
    recipe = _json(store, of_result.get(RECIPE)) or {}
    spec = without_retired(job.spec, (JobSpec,))
    seeds = sorted({run.seed for run in found.runs} & {run.seed for run in found.controls})
    digests = dict(of_result) | ({"tensors": job.weights_digest} if job.weights_digest else {})
    digests |= {f"{role}/{name}": digest for role, files in job.inputs.items() for name, digest in files.items()}
    waiting = [digest for digest in found.compared() if digest not in resampled]
    inspection, seen = found.inspection, _seen(found.inspection)
    coming = inspection is not None and inspection.state == TaskState.pending and found.served
    pictures, no_pictures = _pictures(store, found, seen)
    return JobReport(
        job=job.id,
        name=job.name,
        state=State(job.state),
        created_at=job.created_at,
        finished_at=job.finished_at,
        split=found.split,
        dataset=job.dataset_id,
        dataset_name=found.dataset.name if found.dataset else job.dataset_id,
        classes=list(recipe.get("classes") or (found.dataset.classes if found.dataset else None) or ()),
        networks=[_network(side, store, figures, found.split, seen) for side in found.sides],
        inspection=_inspection(found, seen),
        pictures=pictures,
        pictures_reason=no_pictures,
        comparison=_comparison(found, resampled),
        control_request=_control_request(job, spec) if job.taught and not found.controls else None,
        spec=spec,
        seeds=seeds or [seed_of(job)],
        machine=dict((manifest or {}).get("machine") or {}),
        versions=dict((manifest or {}).get("versions") or {}),
        manifest=manifest,
        digests=digests,
        warnings=list(found.warnings),
        pending=len(waiting) + sum(digest not in figures for digest in found.shown()) + coming,
    )


def _comparison(found: Found, resampled: Resampled) -> Comparison | None:
    if not found.controls:
        return None
    own, theirs = ({run.seed: run.final_ap for run in each} for each in (found.runs, found.controls))
    over_images, gap_over_images, reason = pairs_over_images(found.runs, found.controls, found.teacher, resampled)
    return Comparison(
        study=found.study[0].id if found.study else None,
        arm=found.study[1].arm if found.study else None,
        against=found.study[2] if found.study else None,
        difference=Interval.of(difference(own, theirs)),
        difference_over_images=Interval.of(over_images),
        images_reason=reason,
        gap_closed=Interval.of(gap_closed(own, theirs, found.teacher.ap)),
        gap_closed_over_images=Interval.of(gap_over_images),
    )


def _seen(inspection: Inspection | None) -> InspectionResult | None:
    if inspection is None or inspection.result is None:
        return None
    return InspectionResult.model_validate(inspection.result)


def _inspection(found: Found, seen: InspectionResult | None) -> ReportInspection | None:
    if found.subject is None:
        return None
    there = found.inspection
    if there is None:
        reason: str | None = "too much is waiting for the workers; ask again later"
    elif there.error is not None:
        reason = str(there.error["message"])
    else:
        reason = found.waits or ("a worker is at it" if there.state == TaskState.pending else None)
    return ReportInspection(
        state=TaskState(there.state) if there is not None else TaskState.pending,
        reason=reason,
        input=seen.input if seen else None,
        device=seen.device if seen else None,
        threads=seen.threads if seen else None,
        not_timed=seen.not_timed if seen else None,
        at=there.finished_at if there is not None else None,
    )


def _pictures(store: BlobStore, found: Found, seen: InspectionResult | None) -> tuple[Pictures | None, str | None]:
    """And why there are none."""
    if found.subject is None:
        return None, "the job has no result"
    if seen is None or found.inspection is None:
        told = _inspection(found, seen)
        return None, told.reason if told is not None else None
    digest = next((file["sha256"] for file in found.inspection.files or () if file["role"] == "pictures"), None)
    if seen.pictures_reason is not None or digest is None:
        return None, seen.pictures_reason or "they were too large"
    try:
        text = b"".join(store.read(digest, 0, MAX_PICTURES_BYTES))
        return Pictures.model_validate_json(text), None
    except (KeyError, FileNotFoundError, ValueError):
        return None, "they are no longer in the store"


def _network(
    side: Side,
    store: BlobStore,
    figures: Mapping[str, SplitFigures | str],
    split: Split,
    seen: InspectionResult | None,
) -> ReportedNetwork:
    looked: InspectedNetwork | None = next(
        (each for each in (seen.networks if seen else ()) if each.role == side.place), None
    )
    manifest = _manifest(store, side.files) or {}
    shown, of, reason = _figures(side, figures, split)
    return ReportedNetwork(
        role=side.role,
        job=side.job.id if side.job else None,
        model=side.model,
        name=side.name,
        title=_title(store, side.files.get(RECIPE)),
        state=State(side.job.state) if side.job else None,
        seed=seed_of(side.job) if side.job else None,
        parameters=manifest.get("parameters"),
        gflops=looked.gflops if looked else None,
        speeds=list(looked.speeds) if looked else [],
        bytes=side.size,
        sha256=side.files.get(WEIGHTS),
        ap=side.known.ap if side.known.ap is not None or side.evaluation is None else side.evaluation[1].get("ap"),
        figures=shown,
        figures_of=of,
        figures_reason=reason,
        latency=manifest.get("latency"),
        curve=[CurvePoint(step=point.step, ap=point.ap) for point in (side.run.curve if side.run else ())],
    )


def _figures(
    side: Side, figures: Mapping[str, SplitFigures | str], split: Split
) -> tuple[SplitFigures | None, str | None, str | None]:
    """What there is, of what, and why there is nothing."""
    digest = side.known.detections
    if digest is None and side.evaluation is not None:
        id, result = side.evaluation
        return SplitFigures.model_validate(result), id, None
    if digest is None and side.role == "teacher":
        whose = f"model {side.model}" if side.model else "the teacher"
        return (
            None,
            None,
            f"{whose} was not evaluated on these images: `fgd evaluate JOB --teacher --split {split}` does",
        )
    if digest is None:
        ended = side.job is not None and side.job.state == State.succeeded
        return None, None, f"the result has no {DETECTIONS}" if ended else "the job has no result"
    known = figures.get(digest)
    if known is None:
        return None, DETECTIONS, "being worked out; ask again later"
    return (None, DETECTIONS, known) if isinstance(known, str) else (known, DETECTIONS, None)


def _control_request(job: Job, spec: Mapping[str, Any]) -> ControlRequest:
    alone: dict[str, Any] = {"teacher": None, "teachers": {}, "methods": [], "unlabelled": None}
    body = {**spec, **{name: value for name, value in alone.items() if name in JobSpec.model_fields}}
    lean = SubmitJob.model_validate({**body, "name": f"control of {job.id}"}).model_dump(mode="json")
    text = json.dumps(lean)  # one line, ASCII: no name in it can end what the shell reads
    return ControlRequest(
        body=lean,
        command=f"fgd job submit - <<'END'\n{text}\nEND",
        curl=f"curl -X POST \"$API/jobs\" -H 'Content-Type: application/json' --data-binary @- <<'END'\n{text}\nEND",
    )


def _manifest(store: BlobStore, files: Mapping[str, str]) -> dict[str, Any] | None:
    return _json(store, files.get(MANIFEST))


def _json(store: BlobStore, digest: str | None) -> dict[str, Any] | None:
    """None for what is not there, or is no object."""
    if digest is None:
        return None
    try:
        told = json.loads(b"".join(store.read(digest, 0, MOST_BYTES)))
    except (KeyError, FileNotFoundError, ValueError):
        return None
    return told if isinstance(told, dict) else None


def _title(store: BlobStore, digest: str | None) -> str | None:
    if (told := _json(store, digest)) is None:
        return None
    try:
        return stored_recipe(json.dumps(told).encode()).detector.title()
    except (ValidationError, ValueError):
        return None
