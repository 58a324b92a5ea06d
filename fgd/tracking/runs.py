"""What of a job becomes what of a run, and how it gets there. Knows no rows and no HTTP.

A job has one run in an experiment: the one with the tag `fgd.job`. So everything here may be repeated, by another
process too, and whatever is there already stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from fgd.tracking.mlflow import Metric, MlflowServer, Run
from fgd.tracking.names import MAX_TAG, allowed_name, cut, metric_name, params

JOB = "fgd.job"
STATES = {
    "queued": "SCHEDULED", "running": "RUNNING", "paused": "SCHEDULED", "succeeded": "FINISHED", "failed": "FAILED",
    "cancelled": "KILLED",
}  # fmt: skip
SPEC = "spec.json"

Keep = Callable[[], None]
"""Called now and then while something long goes on; what it raises ends that."""


class Point(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str | None: ...
    @property
    def step(self) -> int: ...
    @property
    def value(self) -> float | None: ...
    @property
    def at(self) -> datetime | None: ...


@dataclass(frozen=True)
class TrackedJob:
    """What a run says of its job."""

    id: str
    name: str
    state: str
    spec: Mapping[str, Any]
    labels: Mapping[str, str]
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    failure: str | None = None
    """Its code and message."""
    url: str | None = None
    """Where people look at it."""


@dataclass(frozen=True)
class TrackedFile:
    name: str
    size: int
    content: Callable[[], Iterator[bytes]]
    changes: bool = False
    """It is not the same whenever it is made; a file of a result is."""


def open_run(server: MlflowServer, experiment: str, job: TrackedJob) -> Run:
    """The run of a job. experiment: its id."""
    found = server.run_with(experiment, JOB, job.id)
    return found or server.create_run(experiment, job.name, _ms(job.started_at or job.created_at), tags_of(job))


def describe(server: MlflowServer, run: Run, job: TrackedJob) -> None:
    """Its settings, and its tags as they are now."""
    server.set_params(run, params(job.spec))
    server.set_tags(run, tags_of(job))


def describe_result(server: MlflowServer, run: Run, report: Mapping[str, Any]) -> None:
    """What is known once it has ended: versions, machine and digests. report: of the job, as the service answers."""
    known = {name: report.get(name) or {} for name in ("versions", "machine")}
    server.set_params(run, params(known) | digests_of(report))
    server.set_tags(run, {"fgd.dataset": cut(str(report.get("dataset_name") or ""), MAX_TAG)})


def add_points(server: MlflowServer, run: Run, pieces: Iterable[Sequence[Point]], keep: Keep) -> None:
    """What is no number is left out."""
    for piece in pieces:
        server.add_metrics(run, [metric for point in piece if (metric := _metric(point)) is not None])
        keep()


def set_state(server: MlflowServer, run: Run, job: TrackedJob) -> None:
    ended = _ms(job.finished_at) if job.finished_at is not None else None
    server.set_state(run, job.name, STATES.get(job.state, "RUNNING"), ended)


def add_files(server: MlflowServer, run: Run, files: Iterable[TrackedFile], keep: Keep) -> None:
    """Those that it does not have yet, and those that change."""
    there = server.files(run)
    for file in files:
        if file.changes or there.get(file.name) != file.size:
            server.upload(run, file.name, file.size, _kept(file.content(), keep))
        keep()


def made_files(job: TrackedJob, report: Mapping[str, Any], page: str) -> list[TrackedFile]:
    """The report in both forms, and the spec, which says more than settings cut short do."""
    contents = {
        "report.html": page.encode(),
        "report.json": _json(report),
        SPEC: _json(job.spec),
    }
    return [_of_bytes(name, content) for name, content in contents.items()]


def tags_of(job: TrackedJob) -> dict[str, str]:
    link = f"[{job.id}]({job.url})" if job.url else job.id
    why = f": {job.failure}" if job.failure else ""
    tags = {
        JOB: job.id,
        "fgd.state": job.state,
        "mlflow.note.content": f"Job {link} of the distillation service, {job.state}{why}",
        "mlflow.source.name": "fgd",
        **({"fgd.url": job.url} if job.url else {}),
        **({"fgd.failure": job.failure} if job.failure else {}),
        **{allowed_name(f"label.{key}"): text for key, text in job.labels.items()},
    }
    return {key: cut(text, MAX_TAG) for key, text in tags.items()}


def digests_of(report: Mapping[str, Any]) -> dict[str, str]:
    found = report.get("digests") or {}
    return {allowed_name(f"digest/{name}"): str(digest) for name, digest in found.items()}


def _of_bytes(name: str, content: bytes) -> TrackedFile:
    return TrackedFile(name, len(content), lambda: iter([content]), changes=True)


def _metric(point: Point) -> Metric | None:
    if point.value is None or point.at is None:
        return None
    return Metric(metric_name(point.name, point.split), point.value, _ms(point.at), point.step)


def _kept(content: Iterator[bytes], keep: Keep) -> Iterator[bytes]:
    for piece in content:
        yield piece
        keep()


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)
