"""/v1/jobs/{id}/...: what a job did and left behind: events, metrics, log, checkpoints, artifacts."""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from api import streams
from api.core.errors import Fault, Invalid, Refused
from api.core.jobs import curves, history, requests
from api.deps import Accept, JobInPath, ProjectDep, Service, ServiceDep, client_of, project_of, service_of
from api.errors import Responses, documented
from api.http import negotiate, ranges, tabular, tensorboard
from api.http.bodies import StrictRoute
from api.http.compressing import compressed_pieces
from api.schemas import (
    Artifacts,
    ArtifactView,
    Attempts,
    AttemptView,
    EventPage,
    EventQuery,
    EventView,
    LogOfQuery,
    LogQuery,
    MetricQuery,
    Points,
)
from api.views import dumps

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

EVENT_STREAM, CSV, JSON = "text/event-stream", "text/csv", "application/json"

LastEventId = Annotated[
    int | None,
    Header(ge=0, lt=2**31, description="For a stream that broke off: continue after the event with this `seq`."),
]
RangeHeader = Annotated[str | None, Header(description="One range of the whole log, as in bytes=-2000.")]
IfRange = Annotated[str | None, Header(description="A log has no validator: with this, the range is ignored.")]


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


_EVENTS: Responses = {
    200: {
        "description": "A page of events, or with Accept: text/event-stream a stream of them: `id` is the seq, `data` "
        "an EventView as JSON, with `progress` also `event: progress` (data: a ProgressUpdate), a comment line a ping, "
        "and `event: end` (data: the job's last state) says that the job "
        "has ended and nothing will follow.",
        "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
        "headers": {
            "Cache-Control": _header("no-store, on a stream"),
            "X-Accel-Buffering": _header("no, on a stream: a proxy should pass events on at once"),
        },
    },
    204: {
        "description": "Stream only: there are no events after Last-Event-ID, and there will be none. Do not reconnect."
    },
}
_METRICS: Responses = {
    200: {
        "model": Points,
        "description": "Points by series, then step; with Accept: text/csv as CSV (RFC 4180) with a header line.",
        "content": {CSV: {"schema": {"type": "string"}}},
    }
}
_TENSORBOARD: Responses = {
    200: {
        "description": "An event file. Its name is in Content-Disposition; TensorBoard finds files by it.",
        "content": {tensorboard.TYPE: {"schema": {"type": "string", "format": "binary"}}},
        "headers": {"Content-Disposition": _header('attachment; filename="events.out.tfevents..."')},
    }
}
_LOG_HEADERS = {
    "X-Attempt": _header("The attempt whose log this is; 0: there was no attempt yet."),
    "Accept-Ranges": _header("bytes"),
}
_TEXT = {"text/plain": {"schema": {"type": "string", "format": "binary"}}}
_LOG: Responses = {
    200: {
        "description": "The bytes from `after_offset` on, about a megabyte at a time.",
        "content": _TEXT,
        "headers": {**_LOG_HEADERS, "X-Next-Offset": _header("Send it as `after_offset` in the next request.")},
    },
    206: {
        "description": "The requested range.",
        "content": _TEXT,
        "headers": {
            **_LOG_HEADERS,
            "Content-Range": _header("bytes first-last/size; size is the current length of the log."),
        },
    },
}


@router.get("/{job_id}/events", response_model=EventPage, responses={**_EVENTS, **documented(404, 422, 429)})
async def list_events(
    job_id: JobInPath,
    query: Annotated[EventQuery, Query()],
    request: Request,
    service: ServiceDep,
    project: ProjectDep,
    accept: Accept = None,
    last_event_id: LastEventId = None,
) -> Any:
    """The job's events, oldest first. For pages, send `next_after` as `after`. With Accept: text/event-stream you get a
    stream: first the events after `after` (or after Last-Event-ID, which takes precedence), then new ones until the
    job has ended. `limit` applies to pages, not to a stream."""
    if negotiate.prefers(accept, EVENT_STREAM, JSON):
        return await _stream(service, client_of(request), project, job_id, query, last_event_id)
    return await run_in_threadpool(_page, service, project, job_id, query)


async def _stream(
    service: Service, client: str, project: str, job_id: str, query: EventQuery, last_event_id: int | None
) -> Response:
    after = query.after if last_event_id is None else last_event_id
    first = await run_in_threadpool(streams.look, service, project, job_id, after)  # a 404 belongs before the stream
    if last_event_id is not None and first.ended is not None and not first.events:
        return Response(status_code=204, headers=streams.HEADERS)
    give_back = service.streams.take(client)
    return streams.EventStream(streams.told(service, project, job_id, after, query.progress), give_back)


def _page(service: Service, project: str, job_id: str, query: EventQuery) -> EventPage:
    with service.reading() as s:
        items = history.events(s, requests.get(s, project, job_id), query.after, query.limit)
    return EventPage(items=[EventView.of(event) for event in items], next_after=items[-1].seq if items else query.after)


@router.get("/{job_id}/attempts", responses=documented(404))
def list_attempts(job_id: JobInPath, service: ServiceDep, project: ProjectDep) -> Attempts:
    """Each time a worker took the job: where, on what device, how it ended, and how many steps were lost."""
    with service.reading() as s:
        job = requests.get(s, project, job_id)
        return Attempts(items=[AttemptView.of(row, job) for row in history.attempts(s, job)])


@router.get("/{job_id}/metrics", response_model=Points, responses={**_METRICS, **documented(404, 422)})
def list_metrics(
    job_id: JobInPath,
    query: Annotated[MetricQuery, Query()],
    request: Request,
    service: ServiceDep,
    project: ProjectDep,
    accept: Accept = None,
) -> Response:
    """Every number the job reported. With `max_points` only enough of each series to draw it: the first and the last
    point, and the smallest and largest of each of equally wide buckets, so that no peak is lost."""
    window = query.window()
    if window.first is not None and window.last is not None and window.first > window.last:
        raise Invalid(Fault("", "empty_range", f"from {window.first} is after to {window.last}", parameter="from"))
    with service.reading() as s:
        found = curves.curves(s, requests.get(s, project, job_id).id, window)
    pieces = curves.points(service.engine, found, window)
    begun = chain([next(pieces, [])], pieces)  # a database that is busy is a 503, not half an answer
    if negotiate.prefers(accept, CSV, JSON):
        headers = {"Content-Disposition": f'attachment; filename="{job_id}-metrics.csv"', "Vary": "Accept"}
        return StreamingResponse(tabular.as_csv(begun), headers=headers, media_type=tabular.CSV_TYPE)
    return compressed_pieces(request, tabular.as_json(begun))


@router.get("/{job_id}/metrics/tensorboard", response_class=Response, responses={**_TENSORBOARD, **documented(404)})
def tensorboard_events(job_id: JobInPath, service: ServiceDep, project: ProjectDep) -> Response:
    """Every number that the job has reported so far, as a TensorBoard event file. Put the files of several jobs into
    folders of their own, and `tensorboard --logdir` shows them side by side."""
    window = curves.Window()
    with service.reading() as s:
        job = requests.get(s, project, job_id)
        found, since = curves.curves(s, job.id, window), job.created_at
    pieces = curves.points(service.engine, found, window)
    begun = chain([next(pieces, [])], pieces)  # a database that is busy is a 503, not half an answer
    headers = {"Content-Disposition": f'attachment; filename="{tensorboard.file_name(job_id, since)}"'}
    return StreamingResponse(tensorboard.as_events(begun, since), headers=headers, media_type=tensorboard.TYPE)


@router.get("/{job_id}/metrics/latest", response_model=Points, responses=documented(404))
async def latest_metrics(job_id: JobInPath, request: Request) -> Response:
    """The last value of each number."""
    project = project_of(request)
    points = await service_of(request).looks.look(lambda s: history.latest(s, project, job_id))
    return Response(dumps({"items": [vars(point) for point in points]}), media_type=JSON)


@router.get("/{job_id}/logs", response_class=Response, responses={**_LOG, **documented(400, 404, 416, 422)})
def read_log(
    job_id: JobInPath,
    query: Annotated[LogQuery, Query()],
    service: ServiceDep,
    project: ProjectDep,
    range: RangeHeader = None,
    if_range: IfRange = None,
) -> Response:
    """The trainer's log: from a byte offset on, about a megabyte at a time, or all bytes of a Range."""
    if range is not None and query.after_offset:
        raise Refused("range_and_offset", "Range and after_offset both say where to start; send only one of them", 400)
    with service.reading() as s:
        job = requests.get(s, project, job_id)
        of = history.log_of(s, job, query.attempt)
        part = _part(range if if_range is None else None, of)
        log = history.log(s, of, query.after_offset) if part is None else None
    headers = _log_headers(of)
    if log is not None:
        headers["X-Next-Offset"] = str(log.next_offset)
        return Response(log.data, headers=headers, media_type="text/plain; charset=utf-8")
    assert part is not None
    headers |= {"Content-Range": part.header(of.size), "Content-Length": str(part.length)}
    body = history.log_range(service.engine, of, part.start, part.length)
    return StreamingResponse(body, 206, headers, "text/plain; charset=utf-8")


@router.head("/{job_id}/logs", response_class=Response, responses={**_LOG, **documented(404, 422)})
def describe_log(
    job_id: JobInPath, query: Annotated[LogOfQuery, Query()], service: ServiceDep, project: ProjectDep
) -> Response:
    """The current length of an attempt's log, without its content."""
    with service.reading() as s:
        of = history.log_of(s, requests.get(s, project, job_id), query.attempt)
    headers = {**_log_headers(of), "Content-Length": str(of.size)}
    return Response(headers=headers, media_type="text/plain; charset=utf-8")


def _part(header: str | None, of: history.LogOf) -> ranges.Range | None:
    try:
        return ranges.parse(header, of.size)
    except ranges.Unsatisfiable:
        detail = f"the log has {of.size} bytes so far; there is nothing at that offset"
        raise Refused("range_not_satisfiable", detail, 416, {"Content-Range": f"bytes */{of.size}"}) from None


def _log_headers(of: history.LogOf) -> dict[str, str]:
    return {"X-Attempt": str(of.attempt), "Accept-Ranges": "bytes", "Cache-Control": "no-store, no-transform"}


@router.get("/{job_id}/artifacts", responses=documented(404))
def list_artifacts(job_id: JobInPath, service: ServiceDep, project: ProjectDep) -> Artifacts:
    """The files of the result; each is at /v1/artifacts/{id}/content."""
    with service.reading() as s:
        rows = history.artifacts(s, requests.get(s, project, job_id))
    return Artifacts(items=[ArtifactView.of(row) for row in rows])
