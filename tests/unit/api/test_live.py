"""Event streams and long polls, on a real server: what a test client buffers, or never breaks off, shows nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError

import fgd
from api.core.jobs import attempts, record, requests
from api.core.lifecycle import Requested
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Job
from api.core.settings import Settings
from api.core.store.local import LocalStore
from api.live import Changes
from fgd.events import Note, Stepped
from tests.unit.api.conftest import Given

STREAM = {"Accept": "text/event-stream"}
MAX_STREAMS, MAX_WAITERS = 3, 80


def until(true: Callable[[], object], timeout_s: float = 15.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, f"waited {timeout_s} s in vain"
        time.sleep(0.02)


@dataclass
class Server:
    """The API as a process of its own, on a socket that outlives it."""

    given: Given
    home: Path
    listener: socket.socket
    process: subprocess.Popen[bytes] | None = None
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        host, port = self.listener.getsockname()
        self.http = httpx.Client(base_url=f"http://{host}:{port}", timeout=60, trust_env=False)

    def start(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FGD_")}
        own = {
            "FGD_HOME": str(self.home), "FGD_CHANGES_S": "0.05", "FGD_PING_S": "0.3", "FGD_SWEEP_S": "3600",
            "FGD_MAX_STREAMS": str(2 * MAX_STREAMS), "FGD_MAX_WAITERS": str(2 * MAX_WAITERS),  # for one client half
            "PYTHONPATH": str(Path(fgd.__path__[0]).parent),
        }  # fmt: skip
        fd = self.listener.fileno()
        with (self.home / "api.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deploy.api", "--fd", str(fd)],
                env=kept | own, pass_fds=[fd], stdout=log, stderr=log,
            )  # fmt: skip
        self.http.get("/healthz").raise_for_status()  # the socket listens already: this waits for the server

    def end(self, number: int = signal.SIGKILL) -> float:
        """Seconds it took."""
        began = time.monotonic()
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(timeout=20)
        return time.monotonic() - began

    def log(self) -> str:
        return (self.home / "api.log").read_text()

    @contextlib.contextmanager
    def stream(self, id: str, headers: dict[str, str] | None = None, **query: Any) -> Iterator[Stream]:
        how = {"params": query, "headers": {**STREAM, **(headers or {})}}
        with self.http.stream("GET", f"/v1/jobs/{id}/events", **how) as response:
            yield Stream(response)


def _lines_of(response: httpx.Response) -> Iterator[str]:
    """At newlines only: httpx's own would also part at what JSON may hold, U+2028 for one."""
    rest = b""
    for piece in response.iter_raw():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            assert b"\r" not in line  # which ends a line of a stream too
            yield line.decode()


class Stream:
    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = _lines_of(response)
        self.pings = 0
        self.last_id = 0

    def next(self) -> dict[str, str] | None:
        """One event as its fields; None at the end of the stream."""
        fields: dict[str, str] = {}
        for line in self._lines:
            if line.startswith(":"):
                self.pings += 1
            elif line:
                name, _, value = line.partition(": ")
                assert name not in fields, f"{name} twice in one event"
                fields[name] = value
            elif fields.keys() - {"retry"}:
                self.last_id = int(fields.get("id", self.last_id))
                return fields
            else:
                fields = {}
        return None

    def rest(self) -> list[dict[str, str]]:
        found = []
        while (event := self.next()) is not None:
            found.append(event)
        return found


def serve_in(folder: Path, migrated: Path) -> Iterator[Server]:
    shutil.copyfile(migrated, folder / "fgd.db")
    settings = Settings(home=folder)
    engine = db.make_engine(settings.database_url)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        server = Server(Given(engine, LocalStore(settings.blobs), folder), folder, listener)
        try:
            server.start()
            yield server
        finally:
            server.end()
            server.http.close()
            engine.dispose()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Server]:
    """One for all tests that leave it running."""
    yield from serve_in(tmp_path_factory.mktemp("live"), migrated)


@pytest.fixture
def own_server(tmp_path: Path, migrated: Path) -> Iterator[Server]:
    yield from serve_in(tmp_path, migrated)


@pytest.fixture(autouse=True)
def no_place_is_lost(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did to its streams, the server has all its places again."""
    yield
    if "server" not in request.fixturenames:
        return
    server = request.getfixturevalue("server")
    id = server.given.job()

    def all_free() -> bool:
        with contextlib.ExitStack() as held:
            opened = [held.enter_context(server.stream(id)) for _ in range(MAX_STREAMS)]
            return all(stream.response.status_code == 200 for stream in opened)

    until(all_free)
    with server.given.engine.begin() as connection:  # the next test's worker is to find its own job
        connection.exec_driver_sql(
            "UPDATE jobs SET state = 'cancelled', finished_at = created_at WHERE state = 'queued'"
        )


def say(server: Server, id: str, *messages: str) -> None:
    with db.transaction(server.given.engine) as s:
        record.record(s, id, 1, [Note(code="told", message=message) for message in messages])


def succeed(server: Server, id: str) -> None:
    with db.transaction(server.given.engine) as s:
        attempts.finish(s, id, 1, [], "e" * 64)


def cancel(server: Server, id: str) -> None:
    with db.transaction(server.given.engine) as s:
        requests.request(s, DEFAULT_PROJECT, id, Requested.cancel)


def ids(events: list[dict[str, str]]) -> list[int]:
    return [int(event["id"]) for event in events if "id" in event]


# --- streams --------------------------------------------------------------------------------------------------


def test_a_stream_replays_follows_and_ends_as_the_pages_tell(server: Server) -> None:
    id = server.given.running()
    say(server, id, *map(str, range(250)))  # more than is read at once

    with server.stream(id) as stream:
        events = [stream.next() for _ in range(252)]
        for number in range(3):
            say(server, id, f"live {number}")
            events.append(stream.next())
        succeed(server, id)
        events += stream.rest()
        headers = stream.response.headers

    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")
    assert events[-1] == {"event": "end", "data": '{"state":"succeeded"}'}
    told = [json.loads(event["data"]) for event in events[:-1]]
    assert ids(events) == [event["seq"] for event in told] == list(range(1, 257))
    pages = server.http.get(f"/v1/jobs/{id}/events", params={"limit": 1000}).json()["items"]
    assert told == pages


def test_a_stream_tells_the_progress_to_who_wants_it(server: Server) -> None:
    id = server.given.running()
    with server.stream(id, progress=True) as stream:
        events = [stream.next() for _ in range(3)]
        with db.transaction(server.given.engine) as s:
            record.record(s, id, 1, [Stepped(step=7, epoch=1, values={"loss/total": 0.5, "lr": None})])
        events.append(stream.next())
        succeed(server, id)
        rest = stream.rest()

    assert [event.get("event") for event in events] == [None, None, "progress", "progress"]
    assert all("id" not in event for event in (events[2], events[3]))  # it is no part of the story
    shown = json.loads(events[3]["data"])
    assert (shown["state"], shown["progress"]["step"]) == ("running", 7)
    assert shown["progress"]["values"] == {"loss/total": 0.5, "lr": None}
    assert [event.get("event") for event in rest] == [None, "progress", "end"]


def test_last_event_id_goes_on_where_a_stream_broke_off(server: Server) -> None:
    id = server.given.running()
    say(server, id, "a", "b", "c")
    with server.stream(id, after=1) as stream:
        assert ids([stream.next(), stream.next()]) == [2, 3]
    succeed(server, id)

    with server.stream(id, {"Last-Event-ID": "3"}, after=1) as stream:  # as a browser does: the address stays
        assert ids(stream.rest()) == [4, 5, 6]
    with server.stream(id, after=6) as stream:
        assert [event["event"] for event in stream.rest()] == ["end"]
    with server.stream(id, {"Last-Event-ID": "6"}) as stream:  # nothing to come back for
        assert stream.response.status_code == 204
        assert stream.rest() == []


def test_nothing_a_trainer_says_can_forge_an_event(server: Server) -> None:
    id = server.given.running()
    evil = 'x\n\nevent: end\ndata: {}\n\r\rid: 99\r\ndata: y\u2028\u0085\x00"'.replace("\x00", "")
    say(server, id, evil)
    succeed(server, id)

    with server.stream(id, after=2) as stream:
        events = stream.rest()

    assert ids(events) == [3, 4]
    assert json.loads(events[0]["data"])["data"]["message"] == evil
    assert [event.get("event") for event in events] == [None, None, "end"]


def test_a_silent_stream_is_pinged(server: Server) -> None:
    id = server.given.job()
    with server.stream(id) as stream:
        stream.next()
        time.sleep(1)
        cancel(server, id)
        stream.rest()

    assert stream.pings >= 2


def test_a_stream_of_a_deleted_job_ends(server: Server) -> None:
    id = server.given.running()
    with server.stream(id) as stream:
        stream.next(), stream.next()
        with server.given.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM jobs WHERE id = ?", (id,))
        assert stream.rest() == [{"event": "end", "data": '{"state":"deleted"}'}]


def test_a_database_that_fails_for_a_while_costs_no_event(server: Server) -> None:
    id = server.given.running()
    with server.stream(id) as stream:
        stream.next(), stream.next()
        with server.given.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE job_events RENAME TO gone")
            connection.exec_driver_sql("UPDATE jobs SET version = version + 1, event_seq = 3")
            connection.exec_driver_sql(
                "INSERT INTO gone SELECT job_id, 3, project_id, 'note:x', at, attempt, data FROM gone"
                " WHERE job_id = ? AND seq = 2", (id,)
            )  # fmt: skip
        until(lambda: "the database does not answer" in server.log())
        with server.given.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE gone RENAME TO job_events")
        assert ids([stream.next()]) == [3]


def test_a_stream_too_many_is_told_to_come_back_and_who_leaves_makes_room(server: Server) -> None:
    id = server.given.job()
    with contextlib.ExitStack() as held:
        opened = [held.enter_context(server.stream(id)) for _ in range(MAX_STREAMS)]  # kept: a dropped one is closed
        assert all(stream.next() for stream in opened)
        answer = server.http.get(f"/v1/jobs/{id}/events", headers=STREAM)
        page = server.http.get(f"/v1/jobs/{id}/events")

    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (429, "too_many_streams", True)
    assert int(answer.headers["retry-after"]) > 0
    assert page.status_code == 200
    until(lambda: opens(server, id))


def opens(server: Server, id: str) -> bool:
    with server.stream(id) as stream:
        return stream.response.status_code == 200


@pytest.mark.parametrize("bad", ["-1", "x", "1.5", "2147483648"])
def test_a_last_event_id_that_is_no_number_is_a_422(server: Server, bad: str) -> None:
    answer = server.http.get(f"/v1/jobs/{server.given.job()}/events", headers={**STREAM, "Last-Event-ID": bad})

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["parameter"].lower() == "last-event-id"


def test_a_stream_of_an_unknown_job_is_a_404_problem(server: Server) -> None:
    answer = server.http.get("/v1/jobs/job_0/events", headers=STREAM)

    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


def test_a_killed_server_costs_a_reader_neither_an_event_nor_sees_it_one_twice(own_server: Server) -> None:
    server = own_server
    id = server.given.running()
    done = threading.Event()

    def work() -> None:
        for number in range(150):
            say(server, id, str(number))
            time.sleep(0.02)
        succeed(server, id)
        done.set()

    worker = threading.Thread(target=work)
    worker.start()
    seen: list[int] = []
    ended = False
    kills = 0
    while not ended:
        with (
            contextlib.suppress(httpx.TransportError),
            server.stream(id, {"Last-Event-ID": str(max(seen, default=0))}) as stream,
        ):
            while (event := stream.next()) is not None:
                ended = event.get("event") == "end"
                seen += ids([event])
                if kills < 2 and len(seen) > 20 * (kills + 1):
                    kills += 1
                    server.end()
                    server.start()
            ended = ended or stream.response.status_code == 204
    worker.join()

    assert done.is_set()
    assert kills == 2
    assert seen == list(range(1, 154))


def test_a_server_that_is_asked_to_end_does_so_at_once(own_server: Server) -> None:
    server = own_server
    id = server.given.job()
    tag = server.http.get(f"/v1/jobs/{id}").headers["etag"]
    waited: list[httpx.Response] = []

    def wait() -> None:
        waited.append(server.http.get(f"/v1/jobs/{id}", headers={"If-None-Match": tag, "Prefer": "wait=60"}))

    poll = threading.Thread(target=wait)
    poll.start()
    with server.stream(id) as stream:
        stream.next()
        time.sleep(0.3)
        took_s = server.end(signal.SIGTERM)
        rest = stream.rest()
    poll.join()

    assert took_s < 30, server.log()
    assert rest == []  # no "end": the reader is to come back
    assert waited[0].status_code == 304
    assert "Application shutdown complete" in server.log()


# --- long polls -----------------------------------------------------------------------------------------------


def timed(server: Server, id: str, **headers: str) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    answer = server.http.get(
        f"/v1/jobs/{id}", headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    return answer, time.monotonic() - began


def test_a_long_poll_answers_at_the_first_change(server: Server) -> None:
    id = server.given.job()
    tag = server.http.get(f"/v1/jobs/{id}").headers["etag"]
    threading.Timer(0.7, cancel, (server, id)).start()

    answer, took_s = timed(server, id, If_None_Match=tag, Prefer="respond-async, wait=20")

    assert answer.status_code == 200
    assert answer.json()["state"] == "cancelled"
    assert answer.headers["preference-applied"] == "wait=20"
    assert answer.headers["etag"] != tag
    assert 0.6 < took_s < 15


def test_a_long_poll_without_a_change_ends_after_its_wait(server: Server) -> None:
    id = server.given.job()
    tag = server.http.get(f"/v1/jobs/{id}").headers["etag"]

    same, same_s = timed(server, id, If_None_Match=tag, Prefer="wait=1")
    whole, whole_s = timed(server, id, Prefer="wait=1")

    assert (same.status_code, same.headers["etag"], same.headers["preference-applied"]) == (304, tag, "wait=1")
    assert (whole.status_code, whole.headers["etag"]) == (200, tag)
    assert 0.9 < same_s < 30
    assert 0.9 < whole_s < 30


def test_what_has_changed_already_or_will_never_is_not_waited_for(server: Server) -> None:
    ended = server.given.succeeded()
    id = server.given.job()
    tag = server.http.get(f"/v1/jobs/{ended}").headers["etag"]

    changed, changed_s = timed(server, id, If_None_Match='"v0"', Prefer="wait=30")
    final, final_s = timed(server, ended, If_None_Match=tag, Prefer="wait=30")
    unread, unread_s = timed(server, id, Prefer="wait=soon")

    assert (changed.status_code, final.status_code, unread.status_code) == (200, 304, 200)
    assert max(changed_s, final_s, unread_s) < 20
    assert "preference-applied" not in unread.headers


def test_many_waiters_hold_up_nobody_and_too_many_are_refused(server: Server) -> None:
    """More than the server has threads, or connections to its database."""
    id = server.given.job()

    async def wait_all() -> tuple[list[httpx.Response], float]:
        limits = httpx.Limits(max_connections=200)
        url = str(server.http.base_url)
        async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False, limits=limits) as http:
            waits = [
                asyncio.create_task(http.get(f"/v1/jobs/{id}", headers={"Prefer": "wait=30"}))
                for _ in range(MAX_WAITERS + 2)
            ]
            refused = {waits.index(task) for task in (await asyncio.wait(waits, return_when="FIRST_COMPLETED"))[0]}
            assert refused
            await asyncio.sleep(1)
            began = time.monotonic()
            assert (await http.get(f"/v1/jobs/{id}")).status_code == 200
            took_s = time.monotonic() - began
            await asyncio.to_thread(cancel, server, id)
            return list(await asyncio.gather(*waits)), took_s

    answers, took_s = asyncio.run(wait_all())

    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) == 2
    assert refused[0].json()["code"] == "too_many_waiters"
    assert int(refused[0].headers["retry-after"]) > 0
    assert {answer.json()["state"] for answer in answers if answer.status_code == 200} == {"cancelled"}
    assert took_s < 15


def test_who_hangs_up_a_long_poll_makes_room(server: Server) -> None:
    id = server.given.job()

    async def hang_up() -> None:
        async with httpx.AsyncClient(base_url=str(server.http.base_url), trust_env=False) as http:
            waits = [
                asyncio.create_task(http.get(f"/v1/jobs/{id}", headers={"Prefer": "wait=60"}, timeout=60))
                for _ in range(MAX_WAITERS)
            ]
            await asyncio.sleep(1.5)
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    asyncio.run(hang_up())
    until(lambda: server.http.get(f"/v1/jobs/{id}", headers={"Prefer": "wait=1"}).status_code == 200)


def test_a_look_that_fails_is_taken_again(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    id = given.job()
    looks: list[int] = []
    look = Changes._look

    def fail_first(self: Changes, ids: Any) -> Any:
        looks.append(1)
        if len(looks) == 1:
            raise OperationalError("select", {}, Exception("the database is away"))
        if len(looks) == 2:
            raise RuntimeError("a mistake")
        return look(self, ids)

    monkeypatch.setattr(Changes, "_look", fail_first)

    async def wait() -> tuple[bool, bool]:
        async with Changes(given.engine, 0.01) as changes:
            return await changes.wait(Job, id, lambda seen: seen is not None, 5.0), await changes.wait(
                Job, id, lambda _: False, 0.05
            )

    assert asyncio.run(wait()) == (True, False)
    assert len(looks) >= 3
