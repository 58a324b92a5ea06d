"""What everybody does all the time, GET of a thing and of its list: ETags, 304s, long polls, HEAD; and what it costs,
in statements and objects instead of seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import event, literal, select
from sqlalchemy.exc import OperationalError

from api import schemas
from api.core import datasets, plans, uploading
from api.core.jobs import attempts, record, requests
from api.core.lifecycle import FailureCode, Requested
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Base, Model
from api.looks import Looks
from api.routes.studies import StudyView
from fgd.events import Stepped
from tests.unit.api.core.test_plans import MEASURED

UPLOAD = {"name": "t", "detector": {"kind": "fcos", "fpn_channels": 64}, "classes": ["cat", "dog"]}


@dataclass(frozen=True)
class Thing:
    """Something with a version: its address, and a change of it."""

    url: str
    change: Callable[[], None]


def a_job(client: Any, given: Any) -> Thing:
    id = given.job()

    def cancel() -> None:
        with db.transaction(given.engine) as s:
            requests.request(s, DEFAULT_PROJECT, id, Requested.cancel)

    return Thing(f"/v1/jobs/{id}", cancel)


def a_dataset(client: Any, given: Any) -> Thing:
    id = given.dataset("verifying").id

    def reject() -> None:
        with db.transaction(given.engine) as s:
            claim = datasets.claim_import(s, "wrk_a", lease_s=20.0)
            assert claim is not None
            datasets.reject(s, id, claim.attempt, None, "no boxes at all")

    return Thing(f"/v1/datasets/{id}", reject)


def a_model(client: Any, given: Any) -> Thing:
    id = client.post("/v1/models", json=UPLOAD).json()["id"]

    def arrive() -> None:
        with db.transaction(given.engine) as s:
            uploading.arrived(s, Model, DEFAULT_PROJECT, id, given.store.put_bytes(b"weights"))

    return Thing(f"/v1/models/{id}", arrive)


def a_plan(client: Any, given: Any) -> Thing:
    id = client.post("/v1/plans", json=given.body()).json()["id"]

    def measure() -> None:
        with db.transaction(given.engine) as s:
            claim = plans.claim(s, "wrk_a", ("cpu", "auto"), lease_s=20.0)
            assert claim is not None
            plans.finish(s, id, claim.attempt, MEASURED, 0)

    return Thing(f"/v1/plans/{id}", measure)


THINGS = [a_job, a_dataset, a_model, a_plan]
each_thing = pytest.mark.parametrize("make", THINGS)


# --- conditions and long polls --------------------------------------------------------------------------------


@each_thing
def test_a_thing_has_an_etag_that_answers_304_until_it_changes(client: Any, given: Any, make: Any) -> None:
    thing = make(client, given)
    first = client.get(thing.url)
    tag = first.headers["etag"]
    assert tag == f'"v{first.json()["version"]}"'
    assert "preference-applied" not in first.headers

    for names in (tag, f'"v0", W/{tag}', "*"):
        same = client.get(thing.url, headers={"If-None-Match": names})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag), names

    thing.change()
    changed = client.get(thing.url, headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


@each_thing
def test_a_long_poll_ends_at_a_change_or_with_its_time(client: Any, given: Any, make: Any) -> None:
    thing = make(client, given)
    tag = client.get(thing.url).headers["etag"]

    same = client.get(thing.url, headers={"If-None-Match": tag, "Prefer": "wait=1"})
    assert (same.status_code, same.headers["preference-applied"]) == (304, "wait=1")

    change = threading.Timer(0.3, thing.change)
    change.start()
    began = time.monotonic()
    changed = client.get(thing.url, headers={"If-None-Match": tag, "Prefer": "wait=60"})
    change.join()
    assert (changed.status_code, changed.headers["preference-applied"]) == (200, "wait=60")
    assert changed.headers["etag"] != tag
    assert time.monotonic() - began < 50, "it did not wait to the end"


@each_thing
def test_head_is_get_without_the_bytes(client: Any, given: Any, make: Any) -> None:
    url = make(client, given).url
    whole, head = client.get(url), client.head(url)
    same = client.head(url, headers={"If-None-Match": whole.headers["etag"]})

    assert (head.status_code, head.content) == (200, b"")
    for name in ("etag", "content-type", "content-length"):
        assert head.headers[name] == whole.headers[name]
    assert (same.status_code, same.headers["etag"]) == (304, whole.headers["etag"])


def test_head_of_lists_and_of_what_is_not_there_and_of_what_has_no_get(client: Any, given: Any) -> None:
    given.job()
    assert client.head("/v1/jobs").headers["content-length"] == client.get("/v1/jobs").headers["content-length"]
    assert client.head("/v1/jobs/job_1").status_code == 404
    assert client.head("/v1/jobs/job_1/cancel").status_code == 405


# --- what an answer holds -------------------------------------------------------------------------------------


def holds(view: type[BaseModel], answer: Any) -> None:
    """The answer is what the document says: all of its fields, no others, and nothing that is read differently."""
    thing = answer.json()
    assert view.model_validate_json(answer.content).model_dump(mode="json") == thing


def in_every_state(client: Any, given: Any) -> Iterator[tuple[type[BaseModel], str]]:
    dataset = given.dataset()
    given.worker()
    succeeded, failed = given.succeeded(), given.running()
    cancelled, paused = given.job(dataset), given.job(dataset)
    with db.transaction(given.engine) as s:
        requests.request(s, DEFAULT_PROJECT, cancelled, Requested.cancel)
        requests.request(s, DEFAULT_PROJECT, paused, Requested.pause)
        attempts.fail(s, failed, 1, FailureCode.user_error, "the data has no boxes", {"images": 3})
    running = given.running(dataset=dataset, metadata={"owner": "ü"})
    with db.transaction(given.engine) as s:
        record.record(s, running, 1, [Stepped(step=1, epoch=1, values={"loss/total": 1.5, "val/ap": None})])
    for id in (succeeded, cancelled, failed, paused, running, given.job(dataset)):
        yield schemas.JobView, f"/v1/jobs/{id}"
    for state in ("verifying", "rejected", "ready"):
        yield schemas.DatasetView, f"/v1/datasets/{given.dataset(state).id}"
        given.claim_import()
    waiting = client.post("/v1/datasets", json={"name": "d"}).json()["id"]
    yield schemas.DatasetView, f"/v1/datasets/{waiting}"
    for body in (UPLOAD, {"name": "m", "job": succeeded}):
        yield schemas.ModelView, f"/v1/models/{client.post('/v1/models', json=body).json()['id']}"
    plan = a_plan(client, given)
    yield schemas.PlanView, plan.url
    plan.change()
    yield schemas.PlanView, plan.url
    arms = [{"name": "fgd", "methods": [{"kind": "fgd"}], "epochs": 3}]
    study = {"name": "s", "teacher": {"job": succeeded}, "dataset": dataset.id, "arms": arms, "students": [{}]}
    url = f"/v1/studies/{client.post('/v1/studies', json=study | {'seeds': [0]}).json()['id']}"
    yield StudyView, url
    assert client.post(f"{url}/cancel").status_code == 202
    yield StudyView, url


def test_every_answer_has_the_shape_that_the_document_says(client: Any, given: Any) -> None:
    seen = set()
    for view, url in in_every_state(client, given):
        answer = client.get(url)
        holds(view, answer)
        seen.add((view, answer.json()["state"]))
    assert len(seen) >= 16
    for view, url in ((schemas.JobPage, "jobs"), (schemas.DatasetPage, "datasets"), (schemas.ModelPage, "models")):
        page = client.get(f"/v1/{url}?limit=2")
        holds(view, page)
        assert len(page.json()["items"]) == 2


def test_what_a_job_reported_last_has_its_shape(client: Any, given: Any) -> None:
    id = given.running()
    with db.transaction(given.engine) as s:
        record.record(s, id, 1, [Stepped(step=1, epoch=1, values={"a": 1.0, "b": None})])
    answer = client.get(f"/v1/jobs/{id}/metrics/latest")
    holds(schemas.Points, answer)
    assert [(point["name"], point["value"]) for point in answer.json()["items"]] == [("a", 1.0), ("b", None)]
    assert client.get("/v1/jobs/job_1/metrics/latest").json()["code"] == "job_not_found"


# --- what it costs --------------------------------------------------------------------------------------------


@dataclass
class Cost:
    statements: list[str] = field(default_factory=list)
    """Queries, without those that begin and end transactions or see whether a connection lives."""
    objects: list[object] = field(default_factory=list)


@contextlib.contextmanager
def costing(client: Any) -> Iterator[Cost]:
    cost = Cost()
    engine = client.app.state.service.engine

    def executed(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(("SELECT", "WITH")):
            cost.statements.append(" ".join(statement.split()))

    def loaded(target: object, _context: Any) -> None:
        cost.objects.append(target)

    event.listen(engine, "before_cursor_execute", executed)
    event.listen(Base, "load", loaded, propagate=True)
    try:
        yield cost
    finally:
        event.remove(engine, "before_cursor_execute", executed)
        event.remove(Base, "load", loaded)


@each_thing
def test_a_304_is_one_statement_for_one_column(client: Any, given: Any, make: Any) -> None:
    url = make(client, given).url
    tag = client.get(url).headers["etag"]
    with costing(client) as cost:
        assert client.get(url, headers={"If-None-Match": tag}).status_code == 304

    assert cost.objects == []
    (statement,) = cost.statements
    assert re.match(r"SELECT (\w+)\.version FROM \1 WHERE ", statement), statement


def test_a_job_is_one_statement_and_one_that_waits_five_more(client: Any, given: Any) -> None:
    given.worker()
    running = given.running()
    queued = given.job()
    client.get("/v1/jobs")
    for id, most in ((running, 1), (queued, 6)):
        with costing(client) as cost:
            assert client.get(f"/v1/jobs/{id}").status_code == 200
        assert cost.objects == []
        assert len(cost.statements) <= most, cost.statements


@pytest.mark.parametrize("length", [5, 60])
def test_a_list_is_two_statements_however_long_and_five_more_where_jobs_wait(
    client: Any, given: Any, length: int
) -> None:
    given.worker()
    dataset = given.dataset()
    ids = [given.job(dataset) for _ in range(length)]
    client.get("/v1/jobs")  # the key of cursors is read once
    with costing(client) as waiting:
        assert len(client.get("/v1/jobs?limit=50").json()["items"]) == min(length, 50)
    with db.transaction(given.engine) as s:
        for id in ids:
            requests.request(s, DEFAULT_PROJECT, id, Requested.cancel)
    with costing(client) as ended:
        page = client.get("/v1/jobs?limit=50").json()
    with costing(client) as next:
        if page["next"]:
            client.get("/v1/jobs", params={"limit": 50, "cursor": page["next"]})

    assert waiting.objects == ended.objects == next.objects == []
    assert len(waiting.statements) <= 7, waiting.statements
    assert len(ended.statements) == 2, ended.statements
    assert len(next.statements) == (2 if page["next"] else 0), next.statements


def test_a_look_that_meets_a_busy_file_is_taken_again_in_a_thread(given: Any) -> None:
    """As is every look at PostgreSQL."""
    sqlite = given.engine.dialect.name == "sqlite"
    ran_in = []

    def read(s: db.Reader) -> Any:
        ran_in.append(threading.current_thread())
        if sqlite and len(ran_in) == 1:
            raise OperationalError("select", {}, Exception("database is locked"))
        return s.scalar(select(literal(7)))

    async def look() -> Any:
        with Looks(given.engine) as looks:
            return await looks.look(read)

    assert asyncio.run(look()) == 7
    assert [thread is threading.main_thread() for thread in ran_in] == ([True, False] if sqlite else [False])


@pytest.mark.parametrize(
    ("query", "bounded"),
    [
        ("", True),
        ("state=failed&created_after=2026-01-01T00:00:00Z", True),
        ("name=cells", True),
        ("state=failed&state=running", False),
        ("state=failed&name=cells", False),
        ("name=cells*", False),
        ("metadata.owner=me", False),
    ],
)
def test_a_list_that_no_index_leads_to_is_read_in_a_thread(
    client: Any, given: Any, monkeypatch: pytest.MonkeyPatch, query: str, bounded: bool
) -> None:
    """Which on SQLite others are not."""
    given.job()
    looks, in_threads = client.app.state.service.looks, []
    look_here = looks.look_here
    monkeypatch.setattr(looks, "look_here", lambda read: in_threads.append(read) or look_here(read))

    assert client.get(f"/v1/jobs?{query}").status_code == 200
    sqlite = given.engine.dialect.name == "sqlite"
    assert len(in_threads) == (0 if bounded and sqlite else 1)
