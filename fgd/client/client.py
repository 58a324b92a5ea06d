"""A small typed client of the service: about one method a route. Knows HTTP. Knows no torch, SQL or terminal.

    FGDError
    +-- ClientError                base
        +-- ApiError               the service answered, and the answer is a problem (RFC 9457)
        +-- Unreachable            nobody answered
        +-- DigestMismatch         the bytes that came down are not those that were promised

Every request may be repeated safely (jobs and data sets are submitted under an Idempotency-Key), so each is: a
connection that breaks, a busy or a restarting service cost time, not work. What is read ignores fields it does not
know, so an older client can talk to a newer service.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import queue
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from fgd.client.sse import NotAStream, parse
from fgd.data.index import Report
from fgd.errors import FGDError
from fgd.outline import Measured, Outline
from fgd.spec import JobSpec
from fgd.text.printable import printable

DEFAULT_URL = "http://127.0.0.1:8000"

BUSY = frozenset({429, 502, 503, 504})
"""Statuses that say "not now"."""

UPLOAD_TIMEOUT_S = 300.0
"""For one piece of an upload, and for the service to write it all to its disk."""

LONGEST_PAUSE_S = 10.0
"""Between two tries; also bounds what a Retry-After may ask for."""

EVENT_STREAM = "text/event-stream"

SILENCE_S = 35.0
"""The service pings every 15 s. A stream that is silent for longer is dead, or kept back by a proxy."""

LONGEST_LOOK_S = 20
"""A look at a job may wait so long for a change: less than proxies and we wait for an answer."""

LOOK_S = 2
"""The same, where events are told meanwhile."""

FAREWELL_S = 2.0
"""For a stream to say its last words once the job has ended."""


# --- errors ---------------------------------------------------------------------------------------------------


class ClientError(FGDError):
    pass


@dataclass(frozen=True)
class FieldError:
    """One part of the request that the service refuses."""

    pointer: str
    """JSON pointer into the body; "" for the whole of it."""
    code: str
    detail: str
    parameter: str | None = None
    """The query parameter, path segment or header at fault, where it is not the body."""

    @property
    def where(self) -> str:
        return self.parameter or self.pointer or "the request"


class ApiError(ClientError):
    """A problem the service answered with. `code` is its stable word, `errors` name the fields at fault."""

    code: str  # type: ignore[misc]  # per problem here, per class elsewhere

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        errors: tuple[FieldError, ...] = (),
        request_id: str | None = None,
        retryable: bool = False,
        title: str = "",
    ) -> None:
        super().__init__(status, code, detail, errors, request_id, retryable, title)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        self.request_id = request_id
        self.retryable = retryable
        self.title = title

    def __str__(self) -> str:
        said_twice = any(error.detail in self.detail for error in self.errors)
        lines = [f"{self.title if said_twice and self.title else self.detail} ({self.status} {self.code})"]
        lines += [f"  {error.where}: {error.detail}" for error in self.errors]
        return "\n".join(map(printable, lines))


class Unreachable(ClientError):
    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url = url
        self.reason = reason

    def __str__(self) -> str:
        return f"no service answers at {self.url} ({self.reason}); start one with `fgd serve`, or set FGD_URL"


class DigestMismatch(ClientError):
    def __init__(self, name: str, expected: str, got: str) -> None:
        super().__init__(name, expected, got)
        self.name = name

    def __str__(self) -> str:
        _, expected, got = self.args
        return f"{self.name}: sha256 {got}, but {expected} was promised; nothing was kept, download it again"


class _NoStream(ClientError):
    """The service, or what stands before it, gives no stream: events are to be had by the page."""


# --- what the service answers ---------------------------------------------------------------------------------


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Progress(_Answer):
    step: int = 0
    total_steps: int | None = None
    """None until the trainer has said so; so is `epochs`."""
    epoch: int = 0
    epochs: int | None = None
    values: dict[str, float | None] = {}
    """The latest of each: "loss/total", "lr", "val/ap", ..."""


class Failure(_Answer):
    code: str
    message: str
    advice: str = ""
    """What to change."""
    data: dict[str, Any] = {}
    retryable: bool = False


class Job(_Answer):
    id: str
    name: str
    state: str
    """queued, running, paused, succeeded, failed, cancelled."""
    phase: str | None = None
    requested: str | None = None
    spec: dict[str, Any]
    """As resolved by the service; a dict, because a newer service may know more than `fgd.spec` here."""
    metadata: dict[str, str] = {}
    priority: int = 0
    attempt: int = 0
    progress: Progress | None = None
    waiting_reason: str | None = None
    failure: Failure | None = None
    weights_digest: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def ended(self) -> bool:
        return self.state in ("succeeded", "failed", "cancelled")


class Attempt(_Answer):
    """One time that a worker took a job."""

    attempt: int
    worker: str = ""
    host: str = ""
    device: str | None = None
    started_at: datetime
    finished_at: datetime | None = None
    outcome: str | None = None
    """succeeded, failed, cancelled, paused, lost, handed_back; None: it runs."""
    code: str | None = None
    reason: str | None = None
    exit: int | None = None
    signal: str | None = None
    first_step: int | None = None
    last_step: int | None = None
    steps_done: int = 0
    lost_steps: int = 0
    spec: dict[str, Any] = {}
    """The JobSpec it ran with; after a lack of memory its batches may be smaller than the job's."""


class Running(_Answer):
    job: str
    name: str = ""
    attempt: int = 0
    phase: str | None = None
    device: str | None = None
    since: datetime | None = None


class Worker(_Answer):
    id: str
    host: str
    pid: int = 0
    live: bool
    complaint: str | None = None
    """Why it takes nothing just now."""
    slots: int
    free_slots: int = 0
    devices: tuple[dict[str, Any], ...] = ()
    versions: dict[str, str] = {}
    facts: dict[str, Any] = {}
    started_at: datetime
    last_beat: datetime
    running: tuple[Running, ...] = ()


class StoredEvent(_Answer):
    """One line of a job's history; `seq` counts from 1 without gaps."""

    seq: int
    type: str
    at: datetime
    attempt: int | None = None
    data: dict[str, Any] = {}


class Point(_Answer):
    """One value of one series. `step` is the trainer's; `value` is null where it was not finite."""

    name: str
    split: str | None = None
    step: int
    value: float | None
    at: datetime | None = None


class Artifact(_Answer):
    id: str
    name: str
    size: int
    """Bytes."""
    sha256: str
    media_type: str = "application/octet-stream"


class Split(_Answer):
    images: int
    boxes: int


class Dataset(_Answer):
    id: str
    name: str
    state: str
    """awaiting_upload, verifying, ready, rejected."""
    classes: tuple[str, ...] | None = None
    splits: dict[str, Split] | None = None
    error: Any = None
    created_at: datetime | None = None

    @property
    def ended(self) -> bool:
        return self.state in ("ready", "rejected")


class PlanError(_Answer):
    code: str
    message: str
    pointer: str = ""


class Plan(_Answer):
    """What a job would do, and what it would cost once a worker has tried a few steps."""

    id: str
    state: str
    """measuring, measured, failed."""
    waiting_reason: str | None = None
    outline: Outline
    measured: Measured | None = None
    error: PlanError | None = None


class Model(_Answer):
    id: str
    name: str
    state: str
    """awaiting_upload, verifying, ready, rejected."""
    source: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    classes: tuple[str, ...] = ()
    weights_digest: str | None = None
    sha256: str | None = None
    size: int | None = None
    report: dict[str, Any] | None = None
    error: str | None = None
    content_url: str | None = None
    created_at: datetime | None = None

    @property
    def settled(self) -> bool:
        return self.state in ("ready", "rejected")


class Kept(_Answer):
    """Weights of a job that can be promoted to a model."""

    id: str
    step: int | None = None
    size: int
    created_at: datetime
    best: bool = False
    pinned: bool = False


@dataclass(frozen=True)
class LogChunk:
    content: bytes
    attempt: int | None
    next_offset: int
    """Where to go on reading."""


A = TypeVar("A", bound=_Answer)


# --- the client -----------------------------------------------------------------------------------------------


class Client:
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
        address = httpx.URL(url)
        if address.scheme not in ("http", "https") or not address.host:
            raise ClientError(f"{url!r} is not the address of a service; it looks like {DEFAULT_URL}")
        self.url = url.rstrip("/")
        self._attempts = attempts
        self._backoff_s = backoff_s
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            # A proxy set for the internet must not catch what is meant for this machine.
            trust_env=address.host not in ("127.0.0.1", "localhost", "::1"),
            transport=transport,
        )

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # jobs

    def submit(self, spec: JobSpec | Mapping[str, Any], idempotency_key: str | None = None) -> Job:
        """Queue a job. The same key with the same spec is the same job, however often it is sent."""
        body = spec.model_dump_json(by_alias=True) if isinstance(spec, JobSpec) else json.dumps(dict(spec))
        return _read(Job, self._post("/v1/jobs", body, idempotency_key))

    def plan(self, spec: JobSpec | Mapping[str, Any]) -> Plan:
        """What the job would do; no job is made. Follow it with `wait_plan` to hear what it would cost."""
        body = spec.model_dump_json(by_alias=True) if isinstance(spec, JobSpec) else json.dumps(dict(spec))
        return _read(Plan, self._post("/v1/jobs?dry_run=true", body))

    def wait_plan(
        self,
        plan_id: str,
        on_plan: Callable[[Plan | None], None] | None = None,
        *,
        poll_s: float = 0.5,
        patience_s: float = 600.0,
    ) -> Plan:
        """Follow a plan to its end: measured or failed."""
        path = _path("plans", plan_id)
        return self._until(
            lambda: _read(Plan, self._get(path)), lambda plan: plan.state != "measuring", on_plan, poll_s, patience_s
        )

    def job(self, job_id: str) -> Job:
        return _read(Job, self._get(_path("jobs", job_id)))

    def jobs(
        self,
        most: int = 50,
        *,
        states: Sequence[str] = (),
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> list[Job]:
        """The newest first, at most `most` of those that every filter lets through; as many pages as it takes.

        states: any of these. name: the whole name, or with * at the end how it begins. metadata: each key has this
        value. created_after is inclusive, created_before is not; a time without a zone is this machine's local one.
        """
        filters: dict[str, Any] = {
            "state": list(states) or None,
            "name": name,
            "created_after": created_after and created_after.astimezone().isoformat(),
            "created_before": created_before and created_before.astimezone().isoformat(),
            **{f"metadata.{key}": value for key, value in (metadata or {}).items()},
        }
        return self._list(Job, "/v1/jobs", most, **filters)

    def cancel(self, job_id: str, mode: Literal["graceful", "now"] = "graceful") -> Job:
        """End a job. "graceful" lets the trainer write a checkpoint first. Cancelling twice is no error."""
        return self._ask_to_end(job_id, "cancel", json.dumps({"mode": mode}), "cancelled")

    def pause(self, job_id: str) -> Job:
        """Let a job wait; a running one saves a checkpoint first. Pausing twice is no error."""
        return _read(Job, self._post(_path("jobs", job_id, "pause"), "{}"))

    def resume(self, job_id: str) -> Job:
        """Let a paused job go on. Resuming twice is no error."""
        return _read(Job, self._post(_path("jobs", job_id, "resume"), "{}"))

    def stop(self, job_id: str) -> Job:
        """Finish a job early: its best weights become the result. Twice is no error."""
        return self._ask_to_end(job_id, "stop", "{}", "succeeded")

    def _ask_to_end(self, job_id: str, verb: str, body: str, end: str) -> Job:
        """The request may have been heard, and the job have ended, though the answer was lost on its way."""
        try:
            return _read(Job, self._post(_path("jobs", job_id, verb), body))
        except ApiError as error:
            job = self.job(job_id) if error.status == httpx.codes.CONFLICT else None
            if job is None or job.state != end:
                raise
            return job

    def attempts(self, job_id: str) -> list[Attempt]:
        """Each time that a worker took the job, the first one first."""
        page = self._json(_path("jobs", job_id, "attempts"))
        return [_check(Attempt, item) for item in page.get("items", [])]

    def workers(self) -> list[Worker]:
        page = self._json(_path("workers"))
        return [_check(Worker, item) for item in page.get("items", [])]

    def events(self, job_id: str, after: int = 0) -> list[StoredEvent]:
        """All events with a `seq` above `after`, oldest first."""
        found: list[StoredEvent] = []
        while True:
            page = self._json(_path("jobs", job_id, "events"), after=after)
            items = [_check(StoredEvent, item) for item in page.get("items", [])]
            if not items:
                return found
            found += items
            after = items[-1].seq

    def follow(
        self, job_id: str, after: int = 0, *, poll_s: float = 1.0, patience_s: float = 600.0
    ) -> Iterator[StoredEvent]:
        """Each event above `after`, once and in order, as soon as it happens, until the job has ended.

        A stream that breaks off goes on after the last event that came, at whichever server answers then; where there
        is no stream to be had, the service is asked again and again. `patience_s`: how long nobody may answer.
        """
        try:
            for event in self._streamed(job_id, after, patience_s):
                yield event
                after = event.seq
            return
        except _NoStream:
            pass
        look = _Look(self, job_id, poll_s, LOOK_S)
        while True:
            job = self._until(look, lambda _: True, None, poll_s, patience_s)
            for event in self.events(job_id, after):  # after the job: those of an ended one are all there
                yield event
                after = event.seq
            if job.ended:
                return

    def metrics(
        self, job_id: str, name: str | None = None, split: str | None = None, max_points: int | None = None
    ) -> list[Point]:
        """All points, of one series if named; or at most `max_points` of each, chosen so that every peak is seen."""
        page = self._json(_path("jobs", job_id, "metrics"), name=name, split=split, max_points=max_points)
        return [_check(Point, item) for item in page.get("items", [])]

    def latest(self, job_id: str) -> list[Point]:
        """The last point of every series."""
        page = self._json(_path("jobs", job_id, "metrics", "latest"))
        return [_check(Point, item) for item in page.get("items", [])]

    def logs(self, job_id: str, attempt: int | None = None, after_offset: int = 0) -> LogChunk:
        """A piece of an attempt's log (default: the last attempt), from a byte offset on. Empty: no more as yet."""
        response = self._get(_path("jobs", job_id, "logs"), attempt=attempt, after_offset=after_offset)
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
        """Follow a job to its end, whatever that is, and return it.

        on_event hears each event above `after` once, in order; on_job hears every look at the job, None when nobody
        answered. A service that restarts meanwhile is waited for, `patience_s` at most.
        """
        ear = _Ear(lambda line: self._streamed(job_id, after, patience_s, line)) if on_event else None
        look = _Look(self, job_id, poll_s, LOOK_S if on_event else LONGEST_LOOK_S)
        seq = after

        def tell(events: Iterator[StoredEvent] | list[StoredEvent]) -> None:
            nonlocal seq
            for event in events:
                if event.seq > seq and on_event:
                    seq = event.seq
                    on_event(event)

        def looked() -> Job:
            job = look()
            if ear is None:
                return job
            if job.ended:
                ear.wait(FAREWELL_S)
            tell(ear.heard())
            if job.ended or not ear.listens:  # after the job: the events of an ended one are all there
                tell(self.events(job_id, after=seq))
            return job

        try:
            return self._until(looked, lambda job: job.ended, on_job, 0.0, patience_s)
        finally:
            if ear is not None:
                ear.hang_up()

    def _streamed(
        self, job_id: str, after: int, patience_s: float, line: _Line | None = None
    ) -> Generator[StoredEvent, None, None]:
        """The events after `after` from the service's stream, over as many connections as it takes, until the end.

        Raises _NoStream if there is no stream, ApiError if there is no job, Unreachable if nobody answers any more.
        """
        line = line or _Line()
        heard, fruitless = time.monotonic(), 0
        while not line.ended:
            reason: ApiError | Unreachable = Unreachable(self.url, "the stream broke off")
            try:
                for event in self._listen(job_id, after, line):
                    heard, fruitless = time.monotonic(), 0
                    if event == "end":
                        return
                    if isinstance(event, StoredEvent) and event.seq > after:
                        after = event.seq
                        yield event
            except httpx.ReadTimeout as error:
                raise _NoStream(f"nothing came for {SILENCE_S:g} s") from error
            except httpx.TransportError as error:
                reason = Unreachable(self.url, str(error) or type(error).__name__)
            except NotAStream as error:
                raise _NoStream(str(error)) from error
            except ApiError as error:
                if error.status in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.NOT_ACCEPTABLE):
                    raise _NoStream(str(error)) from error
                if not _passing(error):
                    raise
                reason = error
            if time.monotonic() - heard > patience_s:
                raise reason
            fruitless += 1
            line.pause(self._backoff_s * 2 ** min(fruitless - 1, 5) * random.uniform(0.5, 1.0))

    def _listen(self, job_id: str, after: int, line: _Line) -> Iterator[StoredEvent | Literal["end"] | None]:
        """One connection: its events, None for a sign of life, "end" at the end of the job."""
        headers = {"Accept": EVENT_STREAM, "Accept-Encoding": "identity", "Last-Event-ID": str(after)}
        timeout = httpx.Timeout(SILENCE_S, connect=5.0)
        url = _path("jobs", job_id, "events")
        with self._http.stream("GET", url, headers=headers, timeout=timeout) as response, line.open(response):
            if response.status_code == httpx.codes.NO_CONTENT:
                yield "end"
                return
            if not response.is_success:
                response.read()
                raise _problem(response)
            if response.headers.get("content-type", "").partition(";")[0].strip().lower() != EVENT_STREAM:
                raise NotAStream("the answer is a page, not a stream")
            yield None
            for sent in parse(response.iter_bytes()):
                if sent is None:
                    yield None
                elif sent.event == "end":
                    yield "end"
                    return
                elif sent.event == "message":
                    yield _check(StoredEvent, _json_of(sent.data))

    # artifacts

    def artifacts(self, job_id: str) -> list[Artifact]:
        page = self._json(_path("jobs", job_id, "artifacts"))
        return [_check(Artifact, item) for item in page.get("items", [])]

    def download(self, artifact: Artifact, path: Path, on_bytes: Callable[[int], None] | None = None) -> Path:
        """Fetch an artifact to a file, or into a folder under its own name. Returns the file.

        An interrupted download goes on where it stopped, in this process or a later one. The file appears under its
        name only when all of it is there and its SHA-256 is right; a file that already is, is not fetched again.
        on_bytes hears how many bytes are there.
        """
        target = path / _plain_name(artifact.name) if path.is_dir() else path
        if target.is_file() and _sha256(target) == artifact.sha256:
            return target
        # The digest in the name: what lies there can only be the beginning of this very content.
        part = target.with_name(f".{target.name}.{artifact.sha256[:16]}.part")
        url = _path("artifacts", artifact.id, "content")
        head = self._request("HEAD", url, follow_redirects=True)
        _check_promise(head, artifact, part)
        self._fetch_all(url, artifact, part, head.headers.get("etag"), on_bytes)
        if (got := _sha256(part)) != artifact.sha256:
            part.unlink()
            raise DigestMismatch(artifact.name, artifact.sha256, got)
        os.replace(part, target)
        _sync_folder(target.parent)
        return target

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
        """Import a folder that the service can see, below one of its FGD_DATA_ROOTS. Follow it with wait_dataset.

        path None: its zip follows, by `upload`.
        """
        told: dict[str, Any] = {"name": name, "format": format, "verify": verify, "group_by": group_by}
        told |= {"path": str(path)} if path is not None else {}
        told |= {"val_fraction": val_fraction} if val_fraction is not None else {}
        return _read(Dataset, self._post("/v1/datasets", json.dumps(told), idempotency_key))

    def upload(
        self,
        dataset_id: str,
        zip_path: Path,
        on_bytes: Callable[[int], None] | None = None,
        *,
        poll_s: float = 0.5,
        patience_s: float = 600.0,
    ) -> Dataset:
        """Send the zip of a data set that waits for one; what is there already is not sent again.

        An interrupted upload goes on where it stopped, in this process or a later one. The service compares the
        SHA-256; while it does, and puts a large zip away, it is waited for, `patience_s` at most. on_bytes hears how
        many bytes are there.
        """
        url, size, sha256 = _path("datasets", dataset_id, "content"), zip_path.stat().st_size, _sha256(zip_path)
        if size == 0:
            raise ClientError(f"{zip_path} is empty; it should be the zip of a data set")
        fruitless, best, heard = 0, -1, time.monotonic()
        while True:
            head = self._request("HEAD", url).headers
            if head.get("upload-complete") == "?1":
                return self.dataset(dataset_id)
            there = _number(head.get("upload-offset"))
            if there > best:
                fruitless, best, heard = 0, there, time.monotonic()
            else:
                fruitless += 1
            reason = self._send(url, zip_path, there, size, sha256, on_bytes)
            if reason is None:
                return self.dataset(dataset_id)
            if isinstance(reason, ApiError) and reason.code == "upload_in_progress":
                if time.monotonic() - heard > patience_s:
                    raise reason
                fruitless = 0
                time.sleep(poll_s)
            if fruitless >= self._attempts:
                raise reason
            if fruitless:
                self._pause(fruitless)

    def _send(
        self, url: str, zip_path: Path, offset: int, size: int, sha256: str, on_bytes: Callable[[int], None] | None
    ) -> ApiError | Unreachable | None:
        """One connection: all from `offset` on. None if that was the end; else why it broke off."""
        if offset > size:
            raise ClientError(
                f"the service has {offset} bytes of {zip_path.name}, which has {size}; it is another file"
            )
        headers = {
            "Content-Type": "application/partial-upload",
            "Content-Length": str(size - offset),
            "Upload-Offset": str(offset),
            "Upload-Length": str(size),
            "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:",
        }
        try:
            response = self._http.patch(url, content=_read_from(zip_path, offset, on_bytes), headers=headers)
        except httpx.TransportError as error:
            return Unreachable(self.url, str(error) or type(error).__name__)
        if response.is_success:
            return None
        problem = _problem(response)
        if not _passing(problem) and problem.code != "upload_offset_mismatch":
            raise problem
        return problem

    def delete_dataset(self, dataset_id: str) -> None:
        """Raises ApiError, naming the jobs, if any uses it."""
        self._request("DELETE", _path("datasets", dataset_id))

    def dataset(self, dataset_id: str) -> Dataset:
        return _read(Dataset, self._get(_path("datasets", dataset_id)))

    def datasets(self, most: int = 50) -> list[Dataset]:
        """The newest first, at most `most` of them."""
        return self._list(Dataset, "/v1/datasets", most)

    def report(self, dataset_id: str) -> Report:
        """What the importer saw. Raises ApiError while it is still looking."""
        response = self._get(_path("datasets", dataset_id, "report"))
        try:
            return Report.model_validate_json(response.content)
        except ValidationError as error:
            raise _foreign(response, error) from error

    def wait_dataset(
        self,
        dataset_id: str,
        on_dataset: Callable[[Dataset | None], None] | None = None,
        *,
        poll_s: float = 0.5,
        patience_s: float = 600.0,
    ) -> Dataset:
        """Follow an import to its end: ready or rejected."""
        return self._until(lambda: self.dataset(dataset_id), lambda found: found.ended, on_dataset, poll_s, patience_s)

    # models

    def add_model(
        self,
        file: Path,
        name: str,
        detector: Mapping[str, Any],
        classes: Sequence[str],
        *,
        on_bytes: Callable[[int], None] | None = None,
        **recipe: Any,
    ) -> Model:
        """Upload weights, safetensors or .pth, that fit `detector`. Follow it with wait_model.

        recipe: min_size, max_size, image_mean, image_std, anchor_sizes, anchor_ratios. on_bytes hears how many bytes
        were sent.
        """
        digest, size = _sha256(file), file.stat().st_size  # before anything is made: the file may not be there
        body = {"name": name, "detector": dict(detector), "classes": list(classes), **recipe}
        made = _read(Model, self._post("/v1/models", json.dumps(body)))
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
            # The service takes the same content twice, so a connection that breaks may be tried again.
            "Content-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:",
        }
        content = lambda: _chunks(file, on_bytes)  # noqa: E731  # anew for each try
        url = _path("models", made.id, "content")
        return _read(Model, self._request("PUT", url, content=content, headers=headers, timeout=UPLOAD_TIMEOUT_S))

    def promote(self, job_id: str, checkpoint: str = "last", name: str | None = None) -> Model:
        """Make a model of a job's weights: "last", "best", or the id of a checkpoint of a running job."""
        body = json.dumps({"name": name} if name else {})
        return _read(Model, self._post(_path("jobs", job_id, "checkpoints", checkpoint, "promote"), body))

    def checkpoints(self, job_id: str) -> list[Kept]:
        page = self._json(_path("jobs", job_id, "checkpoints"))
        return [_check(Kept, item) for item in page.get("items", [])]

    def pin(self, job_id: str, checkpoint: str) -> Kept:
        """Keep a checkpoint when newer ones come, and after the job's end."""
        return _read(Kept, self._request("POST", _path("jobs", job_id, "checkpoints", checkpoint, "pin")))

    def unpin(self, job_id: str, checkpoint: str) -> Kept:
        """Keep it no longer than others are."""
        return _read(Kept, self._request("DELETE", _path("jobs", job_id, "checkpoints", checkpoint, "pin")))

    def model(self, model_id: str) -> Model:
        return _read(Model, self._get(_path("models", model_id)))

    def models(self, most: int = 50) -> list[Model]:
        """The newest first, at most `most` of them."""
        return self._list(Model, "/v1/models", most)

    def remove_model(self, model_id: str) -> None:
        """Raises ApiError while a job that has not ended uses it."""
        self._request("DELETE", _path("models", model_id))

    def wait_model(
        self,
        model_id: str,
        on_model: Callable[[Model | None], None] | None = None,
        *,
        poll_s: float = 0.5,
        patience_s: float = 600.0,
    ) -> Model:
        """Follow a check to its end: ready or rejected."""
        return self._until(lambda: self.model(model_id), lambda found: found.settled, on_model, poll_s, patience_s)

    # the service

    def ready(self) -> bool:
        """Does the service answer, and can it work? Asks once; never raises for a service that is not there."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    # how

    def _get(self, path: str, **query: Any) -> httpx.Response:
        return self._request("GET", path, params={key: value for key, value in query.items() if value is not None})

    def _json(self, path: str, **query: Any) -> dict[str, Any]:
        response = self._get(path, **query)
        try:
            answer = response.json()
        except ValueError as error:
            raise _foreign(response, error) from error
        if not isinstance(answer, dict):
            raise _foreign(response, ValueError("not an object"))
        return answer

    def _list(self, kind: type[A], path: str, most: int, **filters: Any) -> list[A]:
        found: list[A] = []
        cursor: str | None = None
        while len(found) < most:
            page = self._json(path, limit=min(200, most - len(found)), cursor=cursor, **filters)
            found += [_check(kind, item) for item in page.get("items", [])]
            if (cursor := page.get("next")) is None:
                break
        return found

    def _post(self, path: str, body: str, idempotency_key: str | None = None) -> httpx.Response:
        headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._request("POST", path, content=body, headers=headers)

    def _request(self, method: str, path: str, *, attempts: int | None = None, **how: Any) -> httpx.Response:
        """Send until there is an answer worth having; ApiError or Unreachable otherwise."""
        attempt, content, attempts = 0, how.pop("content", None), attempts or self._attempts
        while True:
            attempt += 1
            try:
                response = self._http.request(method, path, content=content() if callable(content) else content, **how)
            except httpx.TransportError as error:
                if attempt >= attempts:
                    raise Unreachable(self.url, str(error) or type(error).__name__) from error
                self._pause(attempt)
                continue
            if response.is_success or response.status_code == httpx.codes.NOT_MODIFIED:
                return response
            problem = _problem(response)
            if attempt >= attempts or not _passing(problem):
                raise problem
            self._pause(attempt, response.headers.get("retry-after"))

    def _pause(self, attempt: int, retry_after: str | None = None) -> None:
        """Twice as long each time, spread out so that many clients do not come back at once."""
        pause_s = self._backoff_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
        if retry_after and retry_after.isdigit():
            pause_s = max(pause_s, float(retry_after))
        time.sleep(min(pause_s, LONGEST_PAUSE_S))

    def _until(
        self,
        look: Callable[[], A],
        done: Callable[[A], bool],
        on_look: Callable[[A | None], None] | None,
        poll_s: float,
        patience_s: float,
    ) -> A:
        heard = time.monotonic()
        while True:
            seen: A | None = None
            try:
                seen = look()
                heard = time.monotonic()
            except (ApiError, Unreachable) as error:
                if not _passing(error) or time.monotonic() - heard > patience_s:
                    raise
            if on_look:
                on_look(seen)
            if seen is not None and done(seen):
                return seen
            time.sleep(poll_s)

    def _fetch_all(
        self, url: str, artifact: Artifact, part: Path, etag: str | None, on_bytes: Callable[[int], None] | None
    ) -> None:
        """Bring `part` to its full length, over as many connections as it takes while each brings something."""
        fruitless = 0
        while not part.exists() or (there := part.stat().st_size) != artifact.size:
            before = there if part.exists() and there < artifact.size else 0
            reason: Exception = ClientError("the body ended early")
            try:
                self._fetch(url, artifact, part, before, etag, on_bytes)
            except httpx.TransportError as error:
                reason = error
            except ApiError as error:
                if not _passing(error):
                    raise
                reason = error
            if part.exists() and part.stat().st_size > before:
                fruitless = 0
                continue
            fruitless += 1
            if fruitless >= self._attempts:
                raise Unreachable(self.url, str(reason) or type(reason).__name__) from reason
            self._pause(fruitless)

    def _fetch(
        self,
        url: str,
        artifact: Artifact,
        part: Path,
        offset: int,
        etag: str | None,
        on_bytes: Callable[[int], None] | None,
    ) -> None:
        """One connection: append from `offset` if the service still has the same content, else start over."""
        headers = {"Accept-Encoding": "identity"}
        if offset and etag and not etag.startswith("W/"):
            headers |= {"Range": f"bytes={offset}-", "If-Range": etag}
        with self._http.stream("GET", url, headers=headers, follow_redirects=True) as response:
            if not response.is_success:
                response.read()
                raise _problem(response)
            _check_promise(response, artifact, part)
            goes_on = response.status_code == httpx.codes.PARTIAL_CONTENT
            if goes_on and not response.headers.get("content-range", "").startswith(f"bytes {offset}-"):
                raise ClientError(f"{artifact.name}: asked from byte {offset} on, got another range")
            there = offset if goes_on else 0
            with part.open("ab" if goes_on else "wb") as file:
                try:
                    for chunk in response.iter_raw():
                        file.write(chunk)
                        there += len(chunk)
                        if there > artifact.size:
                            raise DigestMismatch(artifact.name, artifact.sha256, f"of more than {artifact.size} bytes")
                        if on_bytes:
                            on_bytes(there)
                except DigestMismatch:
                    part.unlink()
                    raise
                file.flush()
                os.fsync(file.fileno())


# --- waiting --------------------------------------------------------------------------------------------------


class _Look:
    """Looks at a job again and again. The service is asked to answer when something has changed (Prefer: wait); where
    it does not do that, we wait `poll_s` ourselves."""

    def __init__(self, client: Client, job_id: str, poll_s: float, wait_s: int) -> None:
        self._client, self._path, self._poll_s, self._wait_s = client, _path("jobs", job_id), poll_s, wait_s
        self._seen: tuple[Job, str] | None = None
        """The job, and its ETag."""
        self._pauses = False

    def __call__(self) -> Job:
        if self._pauses:
            time.sleep(self._poll_s)
        self._pauses = True
        response = self._ask()
        if response.status_code == httpx.codes.NOT_MODIFIED and self._seen is not None:
            return self._seen[0]
        job = _read(Job, response)
        etag = response.headers.get("etag")
        self._seen = (job, etag) if etag else None
        return job

    def _ask(self) -> httpx.Response:
        if self._seen is None:
            response = self._client._request("GET", self._path)
            self._pauses = "etag" not in response.headers
            return response
        headers = {"If-None-Match": self._seen[1], "Prefer": f"wait={self._wait_s}"}
        try:
            response = self._client._request("GET", self._path, headers=headers, attempts=1)
        except ApiError as error:
            if error.status != httpx.codes.TOO_MANY_REQUESTS:  # as many wait as may
                raise
            return self._client._request("GET", self._path)
        self._pauses = "preference-applied" not in response.headers
        return response


class _Line:
    """The connection of a stream, which another thread may cut."""

    def __init__(self) -> None:
        self._cut = threading.Event()
        self._socket: socket.socket | None = None

    @property
    def ended(self) -> bool:
        return self._cut.is_set()

    def pause(self, seconds: float) -> None:
        self._cut.wait(seconds)

    @contextmanager
    def open(self, response: httpx.Response) -> Iterator[None]:
        stream = response.extensions.get("network_stream")
        found = stream.get_extra_info("socket") if stream is not None else None
        self._socket = found if isinstance(found, socket.socket) else None
        try:
            yield
        finally:
            self._socket = None

    def cut(self) -> None:
        self._cut.set()
        if (open_socket := self._socket) is not None:
            with suppress(OSError):  # it has ended by itself
                open_socket.shutdown(socket.SHUT_RDWR)


class _Ear:
    """Listens to a stream while its owner does something else."""

    def __init__(self, stream: Callable[[_Line], Iterator[StoredEvent]]) -> None:
        self._line = _Line()
        self._stream = stream
        self._heard: queue.SimpleQueue[StoredEvent] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._listen, name="events", daemon=True)
        self._thread.start()

    @property
    def listens(self) -> bool:
        return self._thread.is_alive()

    def _listen(self) -> None:
        # Whatever ends it, its owner sees that, asks by himself, and meets the reason if it is still there.
        with suppress(FGDError, httpx.HTTPError, RuntimeError, OSError):
            for event in self._stream(self._line):
                self._heard.put(event)

    def heard(self) -> Iterator[StoredEvent]:
        with suppress(queue.Empty):
            while True:
                yield self._heard.get_nowait()

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)

    def hang_up(self) -> None:
        self._line.cut()
        self._thread.join(FAREWELL_S)


# --- helpers --------------------------------------------------------------------------------------------------


def _path(*parts: str) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def _check(kind: type[A], item: Any) -> A:
    try:
        return kind.model_validate(item)
    except ValidationError as error:
        raise ClientError(f"the service's answer is not a {kind.__name__}: {error}") from error


def _json_of(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise NotAStream(f"an event is not JSON: {error}") from error


def _read(kind: type[A], response: httpx.Response) -> A:
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise _foreign(response, error) from error


def _foreign(response: httpx.Response, error: Exception) -> ClientError:
    return ClientError(f"{response.url} does not answer as this service does; is the address right? ({error})")


def _passing(error: ApiError | Unreachable) -> bool:
    """May the same request succeed a little later?"""
    return isinstance(error, Unreachable) or error.status in BUSY or error.retryable


def _problem(response: httpx.Response) -> ApiError:
    """The problem+json of an answer; a proxy's HTML page, too, becomes a readable error."""
    fallback = f"{response.request.method} {response.request.url.path} was answered {response.reason_phrase or 'oddly'}"
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return ApiError(response.status_code, f"http_{response.status_code}", fallback)
    errors = body.get("errors")
    return ApiError(
        response.status_code,
        str(body.get("code") or f"http_{response.status_code}"),
        str(body.get("detail") or body.get("title") or fallback),
        tuple(
            FieldError(
                str(error.get("pointer", "")),
                str(error.get("code", "")),
                str(error.get("detail", "")),
                str(error["parameter"]) if error.get("parameter") else None,
            )
            for error in (errors if isinstance(errors, list) else [])
            if isinstance(error, dict)
        ),
        str(body["request_id"]) if body.get("request_id") else None,
        body.get("retryable") is True,
        str(body.get("title") or ""),
    )


def _check_promise(response: httpx.Response, artifact: Artifact, part: Path) -> None:
    """The digest of the whole content (RFC 9530), which every answer about it carries, must be the artifact's."""
    promised = _repr_digest(response.headers.get("repr-digest", ""))
    if promised is not None and promised != artifact.sha256:
        part.unlink(missing_ok=True)
        raise DigestMismatch(artifact.name, artifact.sha256, promised)


def _repr_digest(header: str) -> str | None:
    """sha-256=:<base64>: as hex; None if the header has none that can be read."""
    for field in header.split(","):
        name, _, value = field.strip().partition("=")
        if name.lower() == "sha-256" and len(value) > 2 and value[0] == value[-1] == ":":
            try:
                return base64.b64decode(value[1:-1], validate=True).hex()
            except binascii.Error:
                return None
    return None


def _number(header: str | None) -> int:
    if header is None or not header.isdecimal():
        raise ClientError(f"the service says Upload-Offset: {header}, which is no number of bytes")
    return int(header)


def _read_from(path: Path, offset: int, on_bytes: Callable[[int], None] | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(1 << 18):
            yield chunk
            if on_bytes:
                on_bytes(file.tell())


def _plain_name(name: str) -> str:
    """A name from elsewhere must not choose a folder here."""
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
        raise ClientError(f"the service names an artifact {name!r}, which is no plain file name")
    return name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _chunks(file: Path, on_bytes: Callable[[int], None] | None) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while chunk := opened.read(1 << 18):
            yield chunk
            if on_bytes:
                on_bytes(opened.tell())


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
