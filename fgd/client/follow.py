"""Waiting for what the service does: by a job's event stream, by long polls, or by asking again and again.

Knows HTTP, and when a job has ended. Knows no terminal.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, Literal, TypeVar

import httpx

from fgd.client.answers import Dataset, Job, Model, Plan, StoredEvent, Study, Task
from fgd.client.errors import ApiError, ClientError, Unreachable
from fgd.client.patience import Patience
from fgd.client.sse import NotAStream, parse
from fgd.client.transport import A, Transport, check, problem_of, read, route
from fgd.errors import FGDError

EVENT_STREAM = "text/event-stream"

SILENCE_S = 35.0
"""The service pings every 15 s. A stream that is silent for longer is dead, or kept back by a proxy."""

LONGEST_LOOK_S = 20
"""How long a look may wait for a change: less than proxies and we wait for an answer."""

LOOK_S = 2
"""The same, where a job's events are reported meanwhile."""

FAREWELL_S = 2.0
"""For a stream to say its last words once the job has ended."""

E = TypeVar("E", bound=Job | Dataset | Model | Plan | Study | Task)
"""What goes through states until it has ended."""


class NoStream(ClientError):
    """The service, or what stands before it, gives no stream: events are to be had by the page."""


def until(
    look: Callable[[], A],
    done: Callable[[A], bool],
    on_look: Callable[[A | None], None] | None,
    poll_s: float,
    patience_s: float,
) -> A:
    """Look until it is done. on_look hears every look, None when nobody answered."""
    patience = Patience(for_s=patience_s)
    while True:
        seen: A | None = None
        try:
            seen = look()
            patience.progress()
        except (ApiError, Unreachable) as error:
            patience.bear(error)
        if on_look:
            on_look(seen)
        if seen is not None and done(seen):
            return seen
        time.sleep(poll_s)


def wait_for(
    service: Transport,
    kind: type[E],
    path: str,
    on_look: Callable[[E | None], None] | None,
    poll_s: float,
    patience_s: float,
) -> E:
    """Follow something to its end, whatever that is, and return it."""
    look = _Look(service, kind, path, poll_s, LONGEST_LOOK_S)
    return until(look, lambda found: found.ended, on_look, 0.0, patience_s)


class _Look(Generic[E]):
    """Looks at something again and again. The service is asked to answer when it has changed (Prefer: wait); where it
    does not do that, we wait `poll_s` ourselves."""

    def __init__(self, service: Transport, kind: type[E], path: str, poll_s: float, wait_s: int) -> None:
        self._kind: type[E] = kind
        self._service, self._path, self._poll_s, self._wait_s = service, path, poll_s, wait_s
        self._seen: tuple[E, str] | None = None
        """What was found, and its ETag."""
        self._pauses = False

    def __call__(self) -> E:
        if self._pauses:
            time.sleep(self._poll_s)
        self._pauses = True
        response = self._ask()
        if response.status_code == httpx.codes.NOT_MODIFIED and self._seen is not None:
            return self._seen[0]
        found = read(self._kind, response)
        etag = response.headers.get("etag")
        self._seen = (found, etag) if etag else None
        return found

    def _ask(self) -> httpx.Response:
        if self._seen is None:
            response = self._service.get(self._path)
            self._pauses = "etag" not in response.headers
            return response
        headers = {"If-None-Match": self._seen[1], "Prefer": f"wait={self._wait_s}"}
        try:
            response = self._service.request("GET", self._path, headers=headers, attempts=1)
        except ApiError as error:
            if error.status != httpx.codes.TOO_MANY_REQUESTS:  # as many wait as may
                raise
            return self._service.get(self._path)
        self._pauses = "preference-applied" not in response.headers
        return response


# --- jobs -----------------------------------------------------------------------------------------------------


def events(service: Transport, job_id: str, after: int = 0) -> list[StoredEvent]:
    """All events with a `seq` above `after`, oldest first."""
    found: list[StoredEvent] = []
    while items := service.items(StoredEvent, route("jobs", job_id, "events"), after=after):
        found += items
        after = items[-1].seq
    return found


def follow(service: Transport, job_id: str, after: int, poll_s: float, patience_s: float) -> Iterator[StoredEvent]:
    """Each event above `after`, once and in order, as soon as it happens, until the job has ended."""
    try:
        for event in streamed(service, job_id, after, patience_s):
            yield event
            after = event.seq
        return
    except NoStream:
        pass
    look = _Look(service, Job, route("jobs", job_id), poll_s, LOOK_S)
    while True:
        job = until(look, lambda _: True, None, poll_s, patience_s)
        for event in events(service, job_id, after):  # after the job: those of an ended one are all there
            yield event
            after = event.seq
        if job.ended:
            return


def listen(
    service: Transport,
    job_id: str,
    on_event: Callable[[StoredEvent], None],
    on_job: Callable[[Job | None], None] | None,
    after: int,
    poll_s: float,
    patience_s: float,
) -> Job:
    """Follow a job to its end as `wait_for` does, and hear its events."""
    ear = _Ear(lambda line: streamed(service, job_id, after, patience_s, line))
    look = _Look(service, Job, route("jobs", job_id), poll_s, LOOK_S)
    seq = after

    def tell(heard: Iterator[StoredEvent] | list[StoredEvent]) -> None:
        nonlocal seq
        for event in heard:
            if event.seq > seq:
                seq = event.seq
                on_event(event)

    def looked() -> Job:
        job = look()
        if job.ended:
            ear.wait(FAREWELL_S)
        tell(ear.heard())
        if job.ended or not ear.listens:  # after the job: the events of an ended one are all there
            tell(events(service, job_id, after=seq))
        return job

    try:
        return until(looked, lambda job: job.ended, on_job, 0.0, patience_s)
    finally:
        ear.hang_up()


# --- streams --------------------------------------------------------------------------------------------------


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


def streamed(
    service: Transport, job_id: str, after: int, patience_s: float, line: _Line | None = None
) -> Generator[StoredEvent, None, None]:
    """The events after `after` from the service's stream, over as many connections as it takes, until the end.

    Raises NoStream if there is no stream, ApiError if there is no job, Unreachable if nobody answers any more.
    """
    line = line or _Line()
    patience = Patience(service.backoff_s, for_s=patience_s)
    while not line.ended:
        broken: ApiError | Unreachable = Unreachable(service.url, "the stream broke off")
        try:
            for event in _listen(service, job_id, after, line):
                patience.progress()
                if event == "end":
                    return
                if isinstance(event, StoredEvent) and event.seq > after:
                    after = event.seq
                    yield event
        except httpx.ReadTimeout as error:
            raise NoStream(f"no data for {SILENCE_S:g} s") from error
        except httpx.TransportError as error:
            broken = service.unreachable(error)
        except NotAStream as error:
            raise NoStream(str(error)) from error
        except ApiError as error:
            if error.status in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.NOT_ACCEPTABLE):
                raise NoStream(str(error)) from error
            broken = error
        line.pause(patience.bear(broken))


def _listen(service: Transport, job_id: str, after: int, line: _Line) -> Iterator[StoredEvent | Literal["end"] | None]:
    """One connection: its events, None for a sign of life, "end" at the end of the job."""
    headers = {"Accept": EVENT_STREAM, "Accept-Encoding": "identity", "Last-Event-ID": str(after)}
    timeout = httpx.Timeout(SILENCE_S, connect=5.0)
    url = route("jobs", job_id, "events")
    with service.http.stream("GET", url, headers=headers, timeout=timeout) as response, line.open(response):
        if response.status_code == httpx.codes.NO_CONTENT:
            yield "end"
            return
        if not response.is_success:
            response.read()
            raise problem_of(response)
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
                yield check(StoredEvent, _json_of(sent.data))


def _json_of(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise NotAStream(f"an event is not JSON: {error}") from error
