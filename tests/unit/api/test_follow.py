"""The client at an event stream: real API processes, killed while it listens; and services that give no stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fgd.client import Client, StoredEvent, follow
from tests.unit.api.test_live import MAX_STREAMS, Server, cancel, say, serve_in, succeed
from tests.unit.http_fake import Answer, Asked, job_json, problem, serving

NOTES = 60
JOB = "job_" + "0" * 32


@pytest.fixture
def own_server(tmp_path: Path, migrated: Path) -> Iterator[Server]:
    yield from serve_in(tmp_path, migrated)


@contextmanager
def at_work(server: Server, id: str) -> Iterator[None]:
    """The job says something every now and then, and succeeds."""

    def work() -> None:
        for number in range(NOTES):
            say(server, id, f"{number} \u2028 {'x' * number}")
            time.sleep(0.05)
        succeed(server, id)

    worker = threading.Thread(target=work)
    worker.start()
    yield
    worker.join()


def address(server: Server) -> str:
    return str(server.http.base_url)


def pages(server: Server, id: str) -> list[StoredEvent]:
    with Client(address(server)) as client:
        return client.events(id)


def test_of_two_replicas_one_after_the_other_is_killed_and_no_event_is_lost_or_told_twice(own_server: Server) -> None:
    one = own_server
    other = Server(one.given, one.home, one.listener)  # one database, one address: who is free takes the call
    other.start()
    id = one.given.running()
    seen: list[StoredEvent] = []
    cuts: list[int] = []
    doomed = [one, other]
    try:
        with at_work(one, id), Client(address(one), backoff_s=0.02) as client:
            for event in client.follow(id):
                seen.append(event)
                if doomed and len(seen) > 12 * (len(cuts) + 1):
                    replica = doomed.pop(0)
                    replica.end()
                    cuts.append(event.seq)
                    replica.start()
    finally:
        other.end()
        other.http.close()

    assert len(cuts) == 2
    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    assert seen == pages(one, id)
    assert seen[-1].type == "succeeded"


def test_who_waits_for_a_job_hears_its_stream_over_a_killed_and_restarted_server(own_server: Server) -> None:
    server = own_server
    id = server.given.running()
    seen: list[StoredEvent] = []

    def on_event(event: StoredEvent) -> None:
        seen.append(event)
        if len(seen) == 20:
            server.end()
            server.start()

    accepted: list[str] = []
    with at_work(server, id), Client(address(server), backoff_s=0.02) as client:
        client._service.http.event_hooks = {"request": [lambda asked: accepted.append(asked.headers["accept"])]}
        job = client.wait(id, on_event, poll_s=0.05)

    assert job.state == "succeeded"
    assert seen == pages(server, id)
    assert accepted.count(follow.EVENT_STREAM) >= 2


def test_where_all_streams_are_taken_events_are_polled_for(own_server: Server) -> None:
    server = own_server
    id, idle = server.given.running(), server.given.job()
    held = [Client(address(server)) for _ in range(MAX_STREAMS)]
    streams = [client._service.http.stream("GET", f"/v1/jobs/{idle}/events", headers={"Accept": follow.EVENT_STREAM})
               for client in held]  # fmt: skip
    for stream in streams:
        assert stream.__enter__().status_code == 200

    with at_work(server, id), Client(address(server)) as client:
        seen = list(client.follow(id, after=3, poll_s=0.05))

    assert [event.seq for event in seen] == list(range(4, seen[-1].seq + 1))
    assert seen[-1].type == "succeeded"
    for stream, client in zip(streams, held, strict=True):
        stream.__exit__(None, None, None)
        client.close()


def test_a_job_that_has_ended_is_told_and_left(own_server: Server) -> None:
    id = own_server.given.job()
    cancel(own_server, id)

    with Client(address(own_server)) as client:
        told = client.events(id)
        assert list(client.follow(id)) == told
        assert list(client.follow(id, after=told[-1].seq)) == []
        heard: list[StoredEvent] = []
        client.wait(id, heard.append)
        assert heard == told


EVENTS = [{"seq": n, "type": "note", "at": "2026-11-22T10:00:00Z", "attempt": 1, "data": {}} for n in (1, 2, 3)]


def page(asked: Asked) -> Answer:
    items = [event for event in EVENTS if int(str(event["seq"])) > int(asked.query.get("after", 0))]
    return Answer(body={"items": items, "next_after": 3})


def test_an_older_service_that_answers_with_a_page_and_a_full_one_are_polled() -> None:
    for refusal in (None, problem(429, "too_many_streams", "full")):
        with serving() as server, Client(server.url) as client:
            server.routes["GET", f"/v1/jobs/{JOB}"] = Answer(body=job_json("succeeded", id=JOB))
            server.routes["GET", f"/v1/jobs/{JOB}/events"] = lambda asked, refusal=refusal: (
                refusal if refusal and asked.headers["accept"] == follow.EVENT_STREAM else page(asked)
            )
            assert [event.seq for event in client.follow(JOB, poll_s=0.01)] == [1, 2, 3]


def test_a_proxy_that_keeps_the_stream_back_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "SILENCE_S", 0.2)
    over = threading.Event()

    def answer(asked: Asked) -> Answer:
        if asked.headers["accept"] == follow.EVENT_STREAM:
            over.wait(10)
        return page(asked)

    with serving() as server, Client(server.url) as client:
        server.routes["GET", f"/v1/jobs/{JOB}"] = Answer(body=job_json("succeeded", id=JOB))
        server.routes["GET", f"/v1/jobs/{JOB}/events"] = answer
        assert [event.seq for event in client.follow(JOB, poll_s=0.01)] == [1, 2, 3]
        over.set()


def test_a_stream_cut_within_an_event_goes_on_behind_the_last_whole_one() -> None:
    def wire(*events: object) -> bytes:
        return b"".join(
            f"id: {n}\ndata: {StoredEvent.model_validate(e).model_dump_json()}\n\n".encode()
            for n, e in enumerate(events, 1)
        )

    kind = {"Content-Type": "text/event-stream; charset=utf-8"}
    whole = wire(*EVENTS[:2])
    with serving() as server, Client(server.url, backoff_s=0.01) as client:
        server.routes["GET", f"/v1/jobs/{JOB}/events"] = [
            Answer(body=whole, headers=kind, cut_after=len(whole) - 5),
            Answer(body=wire(*EVENTS) + b"event: end\ndata: {}\n\n", headers=kind),
        ]
        assert [event.seq for event in client.follow(JOB)] == [1, 2, 3]
        asked = server.asked_for("GET", f"/v1/jobs/{JOB}/events")
        assert [each.headers["last-event-id"] for each in asked] == ["0", "1"]
