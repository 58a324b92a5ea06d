"""A small typed client of the service, with about one method per route. Knows no torch, SQL or terminal.

What is behind a method: `transport` sends a request, `transfer` files, `follow` waits. `tasks` has the methods of what
a worker works out, `studies` those of studies, `images` those of single images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx
from pydantic import ValidationError

from fgd.budget import FindStudent
from fgd.client import follow, transfer
from fgd.client.answers import (
    Artifact,
    Attempt,
    Checkpoint,
    Dataset,
    FocusStep,
    Job,
    JobReport,
    LogChunk,
    MetricPoint,
    Model,
    Plan,
    StoredEvent,
    Summary,
    Worker,
)
from fgd.client.errors import ApiError, WrongArgument
from fgd.client.images import Images
from fgd.client.studies import Studies
from fgd.client.tasks import Tasks
from fgd.client.transport import DEFAULT_URL, Transport, foreign, read, route
from fgd.data.index import Report
from fgd.spec import JobSpec


class Client(Tasks, Studies, Images):
    """Talks to one service. Use it in a `with` block, or close it.

    api_key: sent as a bearer token. attempts: tries per request. backoff_s: pause before the second try, doubled
    before each further one.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        timeout_s: float = 30.0,
        attempts: int = 5,
        backoff_s: float = 0.2,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._service = Transport(url, api_key, timeout_s, attempts, backoff_s, transport)

    def close(self) -> None:
        self._service.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # jobs

    def submit(self, spec: JobSpec | Mapping[str, Any], idempotency_key: str | None = None) -> Job:
        """Queue a job. Sending the same spec with the same key again returns the same job."""
        body = spec.model_dump_json(by_alias=True) if isinstance(spec, JobSpec) else json.dumps(dict(spec))
        return read(Job, self._service.post("/v1/jobs", body, idempotency_key))

    def plan(self, spec: JobSpec | Mapping[str, Any]) -> Plan:
        """Plan a job without making it. Call `wait_plan` next to learn what it would cost."""
        body = spec.model_dump_json(by_alias=True) if isinstance(spec, JobSpec) else json.dumps(dict(spec))
        return read(Plan, self._service.post("/v1/plans", body))

    def find_student(self, question: FindStudent | Mapping[str, Any]) -> Plan:
        """Ask which students answer within `latency_budget_ms`. Call `wait_plan` next; its `students` is the table."""
        body = question.model_dump_json() if isinstance(question, FindStudent) else json.dumps(dict(question))
        return read(Plan, self._service.post("/v1/plans", body))

    def wait_plan(
        self,
        plan_id: str,
        on_plan: Callable[[Plan | None], None] | None = None,
        *,
        poll_s: float = 0.5,
        patience_s: float = 600.0,
    ) -> Plan:
        """Wait until a plan has ended: measured or failed."""
        return follow.wait_for(self._service, Plan, route("plans", plan_id), on_plan, poll_s, patience_s)

    def job(self, job_id: str) -> Job:
        return read(Job, self._service.get(route("jobs", job_id)))

    def jobs(
        self,
        most: int = 50,
        *,
        states: Sequence[str] = (),
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        study: str | None = None,
    ) -> list[Job]:
        """Jobs that match all filters, newest first, at most `most`; reads as many pages as needed.

        states: any of these. name: the whole name; with * at the end how it begins, at the beginning how it ends, at
        both what is in it. metadata: each key has this value. created_after is inclusive, created_before is not; a
        time without a zone is this machine's local one. study: its id.
        """
        filters: dict[str, Any] = {
            "state": list(states) or None,
            "name": name,
            "created_after": created_after and created_after.astimezone().isoformat(),
            "created_before": created_before and created_before.astimezone().isoformat(),
            "study": study,
            **{f"metadata.{key}": value for key, value in (metadata or {}).items()},
        }
        return self._service.pages(Job, "/v1/jobs", most, **filters)

    def summaries(
        self,
        most: int = 50,
        *,
        sort: str = "-created",
        search: str = "",
        states: Sequence[str] = (),
        worse: bool = False,
    ) -> list[Summary]:
        """A line for each job, at most 200. sort: created, name, state, ap or gain, with "-" the greatest first.
        search: text in the name or in a label. worse: only jobs that are worse than their control."""
        filters = {"sort": sort, "search": search or None, "state": list(states) or None, "worse": worse or None}
        return self._service.items(Summary, "/v1/summaries", limit=most, **filters)

    def change(
        self,
        job_id: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        priority: int | None = None,
    ) -> Job:
        """Change what is given; metadata replaces all labels. Raises ApiError for the priority of an ended job."""
        new = {"name": name, "metadata": None if metadata is None else dict(metadata), "priority": priority}
        return read(Job, self._service.patch(route("jobs", job_id), new))

    def cancel(self, job_id: str, mode: Literal["graceful", "now"] = "graceful") -> Job:
        """Cancel a job. "graceful" lets the trainer save a checkpoint first. Cancelling twice is not an error."""
        return self._ask_to_end(job_id, "cancel", json.dumps({"mode": mode}), "cancelled")

    def pause(self, job_id: str) -> Job:
        """Pause a job; a running one saves a checkpoint first. Pausing twice is not an error."""
        return read(Job, self._service.post(route("jobs", job_id, "pause"), "{}"))

    def resume(self, job_id: str) -> Job:
        """Resume a paused job. Resuming twice is not an error."""
        return read(Job, self._service.post(route("jobs", job_id, "resume"), "{}"))

    def stop(self, job_id: str) -> Job:
        """Finish a job early: its best weights become the result. Stopping twice is not an error."""
        return self._ask_to_end(job_id, "stop", "{}", "succeeded")

    def _ask_to_end(self, job_id: str, verb: str, body: str, end: str) -> Job:
        """The request may have been heard, and the job have ended, though the answer was lost on its way."""
        try:
            return read(Job, self._service.post(route("jobs", job_id, verb), body))
        except ApiError as error:
            job = self.job(job_id) if error.status == httpx.codes.CONFLICT else None
            if job is None or job.state != end:
                raise
            return job

    def delete_job(self, job_id: str) -> None:
        """Delete a job that has ended, with its files. Raises ApiError if it has not ended, or a job needs its
        weights."""
        self._service.request("DELETE", route("jobs", job_id))

    def attempts(self, job_id: str) -> list[Attempt]:
        """Each time a worker took the job, oldest first."""
        return self._service.items(Attempt, route("jobs", job_id, "attempts"))

    def workers(self) -> list[Worker]:
        return self._service.items(Worker, route("workers"))

    def events(self, job_id: str, after: int = 0) -> list[StoredEvent]:
        """All events with a `seq` above `after`, oldest first."""
        return follow.events(self._service, job_id, after)

    def follow(
        self, job_id: str, after: int = 0, *, poll_s: float = 1.0, patience_s: float = 600.0
    ) -> Iterator[StoredEvent]:
        """Each event above `after`, once and in order, as soon as it happens, until the job has ended.

        A stream that breaks off continues after the last event, on whichever server answers; if no stream is available,
        the service is polled. `patience_s`: how long to wait for an answer.
        """
        return follow.follow(self._service, job_id, after, poll_s, patience_s)

    def metrics(
        self, job_id: str, name: str | None = None, split: str | None = None, max_points: int | None = None
    ) -> list[MetricPoint]:
        """All points, or those of one series; with `max_points` at most that many of each, chosen to keep every
        peak."""
        return self._service.items(
            MetricPoint, route("jobs", job_id, "metrics"), name=name, split=split, max_points=max_points
        )

    def latest(self, job_id: str) -> list[MetricPoint]:
        """The last point of every series."""
        return self._service.items(MetricPoint, route("jobs", job_id, "metrics", "latest"))

    def tensorboard(self, job_id: str, folder: Path) -> Path:
        """Write every number that the job has reported so far into `folder`, as a TensorBoard event file. Returns it.

        The folder is created if missing. Called again, it replaces the file by one with what came since.
        """
        return transfer.fetch_event_file(self._service, route("jobs", job_id, "metrics", "tensorboard"), folder)

    def focus(self, job_id: str) -> list[FocusStep]:
        """The steps after which it was noted what the job's methods look at."""
        return self._service.items(FocusStep, route("jobs", job_id, "focus"))

    def focus_maps(self, job_id: str, step: int) -> dict[str, Any]:
        """The masks and attentions of a step, as the module `fgd.focus_files` describes them; `fgd.focus_files.values`
        reads the numbers of one."""
        return self._service.json(route("jobs", job_id, "focus", str(step)))

    def focus_photos(self, job_id: str) -> dict[str, Any]:
        """The small images on which they are shown, with their boxes."""
        return self._service.json(route("jobs", job_id, "focus", "photos"))

    def job_report(self, job_id: str, split: Literal["val", "test"] = "val") -> JobReport:
        """A job beside its control and its teacher. While it has files `pending`, figures are still being worked
        out."""
        return read(JobReport, self._service.get(route("jobs", job_id, "report"), split=split))

    def job_report_page(self, job_id: str, split: Literal["val", "test"] = "val") -> str:
        """The same as one HTML page that opens offline."""
        path, headers = route("jobs", job_id, "report"), {"Accept": "text/html"}
        return self._service.request("GET", path, params={"split": split}, headers=headers).text

    def logs(self, job_id: str, attempt: int | None = None, after_offset: int = 0) -> LogChunk:
        """A piece of an attempt's log (default: the last attempt), from a byte offset on. Empty: nothing more so
        far."""
        response = self._service.get(route("jobs", job_id, "logs"), attempt=attempt, after_offset=after_offset)
        headers = response.headers
        return LogChunk(
            content=response.content,
            attempt=int(headers["x-attempt"]) if headers.get("x-attempt", "").isdigit() else None,
            next_offset=int(headers.get("x-next-offset", after_offset + len(response.content))),
        )

    def log_tail(self, job_id: str, lines: int = 20) -> list[str]:
        """The last lines of the last attempt's log."""
        text, offset = b"", 0
        while chunk := (answer := self.logs(job_id, after_offset=offset)).content:
            # A log may be long; only the end is wanted. 64 KiB holds any twenty lines worth showing.
            text, offset = (text + chunk)[-65536:], answer.next_offset
        return text.decode(errors="replace").splitlines()[-lines:]

    def wait(
        self,
        job_id: str,
        on_event: Callable[[StoredEvent], None] | None = None,
        on_job: Callable[[Job | None], None] | None = None,
        *,
        after: int = 0,
        poll_s: float = 1.0,
        patience_s: float = 600.0,
    ) -> Job:
        """Wait until a job has ended, in whatever state, and return it.

        on_event is called with each event above `after` once, in order; on_job with the job at every poll, or None if
        the service did not answer. Waits at most `patience_s` for a service that restarts.
        """
        if on_event is None:
            return follow.wait_for(self._service, Job, route("jobs", job_id), on_job, poll_s, patience_s)
        return follow.listen(self._service, job_id, on_event, on_job, after, poll_s, patience_s)

    # artifacts

    def artifacts(self, job_id: str) -> list[Artifact]:
        return self._service.items(Artifact, route("jobs", job_id, "artifacts"))

    def download(
        self,
        artifact: Artifact,
        folder: Path,
        on_bytes: Callable[[int], None] | None = None,
        *,
        name: str | None = None,
    ) -> Path:
        """Fetch an artifact into a folder, under its own name or `name`. Returns the file.

        The folder is created if missing. An interrupted download resumes, in this process or a later one. The file gets
        its name only when it is complete and its SHA-256 is right; such a file is not downloaded again. on_bytes is
        called with the number of bytes so far.
        """
        url = route("artifacts", artifact.id, "content")
        return transfer.download(self._service, url, artifact, folder, on_bytes, name)

    # data sets

    def add_dataset(
        self,
        name: str,
        path: Path | str | None,
        *,
        format: str = "auto",
        verify: str = "full",
        val_fraction: float | None = None,
        group_by: str = "none",
        idempotency_key: str | None = None,
    ) -> Dataset:
        """Import a folder that the service can read, below one of its FGD_DATA_ROOTS. Call `wait_dataset` next.

        path None: upload its zip with `upload_dataset`.
        """
        told: dict[str, Any] = {"name": name, "format": format, "verify": verify, "group_by": group_by}
        told |= {"path": str(path)} if path is not None else {}
        told |= {"val_fraction": val_fraction} if val_fraction is not None else {}
        return read(Dataset, self._service.post("/v1/datasets", json.dumps(told), idempotency_key))

    def upload_dataset(
        self,
        dataset_id: str,
        zip_path: Path,
        on_bytes: Callable[[int], None] | None = None,
        *,
        poll_s: float = 0.5,
        patience_s: float = 600.0,
    ) -> Dataset:
        """Upload the zip of a data set; bytes that the service already has are not sent again.

        An interrupted upload resumes, in this process or a later one. The service compares the SHA-256; waits at most
        `patience_s` while it does so and stores a large zip. on_bytes is called with the number of bytes so far.
        """
        url = route("datasets", dataset_id, "content")
        transfer.upload(self._service, url, zip_path, on_bytes, poll_s, patience_s)
        return self.dataset(dataset_id)

    def change_dataset(self, dataset_id: str, *, name: str) -> Dataset:
        """Give it another name, in whatever state it is."""
        return read(Dataset, self._service.patch(route("datasets", dataset_id), {"name": name}))

    def delete_dataset(self, dataset_id: str) -> None:
        """Raises ApiError, naming the jobs, if any uses it."""
        self._service.request("DELETE", route("datasets", dataset_id))

    def dataset(self, dataset_id: str) -> Dataset:
        return read(Dataset, self._service.get(route("datasets", dataset_id)))

    def datasets(self, most: int = 50, *, name: str | None = None, states: Sequence[str] = ()) -> list[Dataset]:
        """Those that match, newest first, at most `most` of them; name and states as in `jobs`."""
        return self._service.pages(Dataset, "/v1/datasets", most, name=name, state=list(states) or None)

    def report(self, dataset_id: str) -> Report:
        """What the importer found. Raises ApiError while the import is running."""
        response = self._service.get(route("datasets", dataset_id, "report"))
        try:
            return Report.model_validate_json(response.content)
        except ValidationError as error:
            raise foreign(response, error) from error

    def wait_dataset(
        self,
        dataset_id: str,
        on_dataset: Callable[[Dataset | None], None] | None = None,
        *,
        poll_s: float = 0.5,
        patience_s: float = 600.0,
    ) -> Dataset:
        """Wait until an import has ended: ready or rejected."""
        return follow.wait_for(self._service, Dataset, route("datasets", dataset_id), on_dataset, poll_s, patience_s)

    # models

    def add_model(
        self,
        file: Path | None,
        name: str,
        detector: Mapping[str, Any],
        classes: Sequence[str],
        *,
        on_bytes: Callable[[int], None] | None = None,
        **recipe: Any,
    ) -> Model:
        """Upload weights, safetensors or .pth, that fit `detector`. Call `wait_model` next.

        file None: upload the weights with `upload_model`, which also resumes an interrupted upload.
        recipe: min_size, max_size, image_mean, image_std, anchor_sizes, anchor_ratios, and take: "ema" or "raw" of a
        file that holds both. on_bytes is called with the number of bytes so far.
        """
        if file is not None and not file.stat().st_size:  # before anything is made; nor is it, if the file is not there
            raise WrongArgument(f"{file} is empty; it should contain weights")
        body = {"name": name, "detector": dict(detector), "classes": list(classes), **recipe}
        made = read(Model, self._service.post("/v1/models", json.dumps(body)))
        return made if file is None else self.upload_model(made.id, file, on_bytes)

    def upload_model(
        self,
        model_id: str,
        file: Path,
        on_bytes: Callable[[int], None] | None = None,
        *,
        poll_s: float = 0.5,
        patience_s: float = 600.0,
    ) -> Model:
        """Upload the weights of a model, as `upload_dataset` uploads a zip."""
        url = route("models", model_id, "content")
        transfer.upload(self._service, url, file, on_bytes, poll_s, patience_s)
        return self.model(model_id)

    def promote(self, job_id: str, checkpoint: str = "last", name: str | None = None) -> Model:
        """Make a model of a job's weights: "last", "best", or the id of a checkpoint of a running job."""
        body = json.dumps({"name": name} if name else {})
        return read(Model, self._service.post(route("jobs", job_id, "checkpoints", checkpoint, "promote"), body))

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        return self._service.items(Checkpoint, route("jobs", job_id, "checkpoints"))

    def pin(self, job_id: str, checkpoint: str) -> Checkpoint:
        """Keep a checkpoint when newer ones come, and after the job's end."""
        return read(Checkpoint, self._service.request("POST", route("jobs", job_id, "checkpoints", checkpoint, "pin")))

    def unpin(self, job_id: str, checkpoint: str) -> Checkpoint:
        """Treat it like other checkpoints again."""
        return read(
            Checkpoint, self._service.request("DELETE", route("jobs", job_id, "checkpoints", checkpoint, "pin"))
        )

    def model(self, model_id: str) -> Model:
        return read(Model, self._service.get(route("models", model_id)))

    def models(self, most: int = 50, *, name: str | None = None, states: Sequence[str] = ()) -> list[Model]:
        """Those that match, newest first, at most `most` of them; name and states as in `jobs`."""
        return self._service.pages(Model, "/v1/models", most, name=name, state=list(states) or None)

    def change_model(self, model_id: str, *, name: str) -> Model:
        """Give it another name, in whatever state it is."""
        return read(Model, self._service.patch(route("models", model_id), {"name": name}))

    def delete_model(self, model_id: str) -> None:
        """Raises ApiError while an unfinished job uses it."""
        self._service.request("DELETE", route("models", model_id))

    def wait_model(
        self,
        model_id: str,
        on_model: Callable[[Model | None], None] | None = None,
        *,
        poll_s: float = 0.5,
        patience_s: float = 600.0,
    ) -> Model:
        """Wait until a model's check has ended: ready or rejected."""
        return follow.wait_for(self._service, Model, route("models", model_id), on_model, poll_s, patience_s)

    # the service

    def ready(self) -> bool:
        """Whether the service answers and can work. Asks once; does not raise if there is no service."""
        try:
            return self._service.http.get("/readyz").is_success
        except httpx.TransportError:
            return False
