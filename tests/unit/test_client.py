"""The client against a real HTTP server on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fgd.client import (
    ApiError,
    Artifact,
    Client,
    ClientError,
    DigestMismatch,
    FieldError,
    Job,
    StoredEvent,
    Unreachable,
    WrongArgument,
)
from fgd.detector_specs import FCOS
from fgd.spec import JobSpec
from tests.unit.http_fake import HANG_UP, Answer, Asked, Server, closed_port, job_json, problem, serving

JOB = job_json()["id"]
SPEC = JobSpec(name="cells", teacher=None, student=FCOS(), dataset="ds_" + "0" * 32, methods=())
CONTENT = bytes(range(256)) * 40
ARTIFACT = Artifact(
    id="art_1", name="student.safetensors", size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest()
)
CONTENT_PATH = "/v1/artifacts/art_1/content"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with patient(server.url) as client:
        yield client


def patient(url: str, **how: Any) -> Client:
    return Client(url, backoff_s=0.001, **how)


def content(asked: Asked, cut_after: int | None = None, body: bytes = CONTENT, etag: str = '"sha256-1"') -> Answer:
    """Serve an artifact as the contract says: strong ETag, Range honoured under If-Range, Repr-Digest on all."""
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    headers = {"ETag": etag, "Repr-Digest": f"sha-256=:{digest}:", "Accept-Ranges": "bytes"}
    if "range" not in asked.headers or asked.headers.get("if-range") != etag:
        return Answer(200, body, headers, cut_after)
    start = int(asked.headers["range"].removeprefix("bytes=").removesuffix("-"))
    headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
    return Answer(206, body[start:], headers, cut_after)


def offer(server: Server, answer: Any = content) -> None:
    server.routes[("HEAD", CONTENT_PATH)] = content
    server.routes[("GET", CONTENT_PATH)] = answer


# --- requests -------------------------------------------------------------------------------------------------


def test_a_job_is_submitted_as_its_spec(client: Client, server: Server) -> None:
    server.routes[("POST", "/v1/jobs")] = Answer(201, job_json("queued"))
    job = client.submit(SPEC)
    assert (job.id, job.state, job.ended) == (JOB, "queued", False)
    assert JobSpec.model_validate_json(server.asked[0].body) == SPEC


def test_a_submission_repeated_after_a_broken_connection_carries_the_same_key(client: Client, server: Server) -> None:
    server.routes[("POST", "/v1/jobs")] = [HANG_UP, problem(503, "starting", "not yet"), Answer(201, job_json())]
    client.submit(SPEC)
    keys = [asked.headers["idempotency-key"] for asked in server.asked]
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_two_submissions_are_two_jobs(client: Client, server: Server) -> None:
    server.routes[("POST", "/v1/jobs")] = Answer(201, job_json())
    client.submit(SPEC)
    client.submit(SPEC)
    assert server.asked[0].headers["idempotency-key"] != server.asked[1].headers["idempotency-key"]


def test_the_key_travels_as_a_bearer_token_and_is_in_no_error(server: Server) -> None:
    server.routes[("GET", f"/v1/jobs/{JOB}")] = problem(403, "forbidden", "not yours")
    with patient(server.url, api_key="dk_" + "s" * 40) as client, pytest.raises(ApiError) as raised:
        client.job(JOB)
    assert server.asked[0].headers["authorization"] == "Bearer dk_" + "s" * 40
    assert "ssss" not in repr(raised.value) + repr(client)


def test_an_id_cannot_lead_to_another_route(client: Client, server: Server) -> None:
    with pytest.raises(ApiError):
        client.job("../datasets")
    assert server.asked[0].path == "/v1/jobs/..%2Fdatasets"


def test_a_busy_service_is_asked_again_when_it_says(client: Client, server: Server) -> None:
    busy = problem(429, "quota", "later")
    server.routes[("GET", f"/v1/jobs/{JOB}")] = [
        Answer(429, busy.body, {**busy.headers, "Retry-After": "0"}),
        Answer(body=job_json()),
    ]
    assert client.job(JOB).id == JOB


def test_a_refused_request_is_not_repeated(client: Client, server: Server) -> None:
    server.routes[("POST", "/v1/jobs")] = problem(422, "invalid", "no")
    with pytest.raises(ApiError):
        client.submit(SPEC)
    assert len(server.asked) == 1


def test_a_problem_shows_each_field_at_fault(client: Client, server: Server) -> None:
    errors = [
        {"pointer": "/schedule/batch_size", "code": "too_small", "detail": "must be at least 1"},
        {"pointer": "", "code": "bad", "detail": "unknown", "parameter": "limit"},
    ]
    server.routes[("POST", "/v1/jobs")] = problem(422, "invalid_spec", "2 fields are wrong", errors=errors)
    with pytest.raises(ApiError) as raised:
        client.submit(SPEC)
    assert str(raised.value).splitlines() == [
        "2 fields are wrong (422 invalid_spec)",
        "  /schedule/batch_size: must be at least 1",
        "  limit: unknown",
    ]


def test_what_the_fields_say_is_not_said_twice() -> None:
    fault = FieldError("/name", "too_long", "at most 100 characters")
    error = ApiError(422, "invalid", "/name: at most 100 characters", (fault,), title="Invalid request")
    assert str(error).splitlines() == ["Invalid request (422 invalid)", "  /name: at most 100 characters"]


def test_errors_survive_pickling() -> None:
    fault = FieldError("/name", "too_long", "at most 100 characters")
    for error in (
        ApiError(422, "invalid", "no", (fault,), "req_1", retryable=False),
        Unreachable("http://x", "refused"),
        DigestMismatch("student.safetensors", "aa", "bb"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_only_what_is_given_of_a_job_is_changed(client: Client, server: Server) -> None:
    server.routes[("PATCH", f"/v1/jobs/{JOB}")] = Answer(200, job_json("queued"))

    assert client.change(JOB, metadata={}, priority=3).id == JOB
    assert json.loads(server.asked[0].body) == {"metadata": {}, "priority": 3}


def test_data_sets_and_models_are_renamed(client: Client, server: Server) -> None:
    for change, path in ((client.change_dataset, "/v1/datasets/x_1"), (client.change_model, "/v1/models/x_1")):
        server.routes[("PATCH", path)] = Answer(200, {"id": "x_1", "name": "b", "state": "ready"})
        assert change("x_1", name="b").name == "b"
        asked = server.asked[-1]
        assert (json.loads(asked.body), asked.headers["content-type"]) == ({"name": "b"}, "application/json")


def test_data_sets_and_models_are_asked_for_by_name_and_state(client: Client, server: Server) -> None:
    for list_them, path in ((client.datasets, "/v1/datasets"), (client.models, "/v1/models")):
        server.routes[("GET", path)] = Answer(200, {"items": [], "next": None})
        assert list_them(name="*cells*", states=("ready",)) == []
        assert server.asked[-1].query == {"limit": "50", "name": "*cells*", "state": "ready"}


def test_a_page_of_a_proxy_becomes_a_readable_error(client: Client, server: Server) -> None:
    server.routes[("GET", f"/v1/jobs/{JOB}")] = Answer(502, b"<html>Bad Gateway</html>")
    with pytest.raises(ApiError, match=f"GET /v1/jobs/{JOB} was answered Bad Gateway") as raised:
        client.job(JOB)
    assert raised.value.code == "http_502"
    assert len(server.asked) == 5


def test_another_kind_of_server_is_named_as_such(client: Client, server: Server) -> None:
    server.routes[("GET", f"/v1/jobs/{JOB}")] = Answer(200, b"<html>hello</html>")
    with pytest.raises(ClientError, match="does not answer like this service"):
        client.job(JOB)


def test_nobody_there_is_an_error_that_says_what_to_do() -> None:
    with patient(f"http://127.0.0.1:{closed_port()}") as client, pytest.raises(Unreachable, match="fgd serve"):
        client.job(JOB)


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://x/", "", "http://", "http://[", "http://x:abc", "http://x:99999", "http://x/\n", "http://..",
     "http://xn--/", f"http://{'a' * 64}.org", f"http://{'a' * 70_000}", "http://x/?a=b"],
)  # fmt: skip
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(WrongArgument, match="not the address"):
        Client(url)


@pytest.mark.parametrize("url", ["http://h", "https://h.org:8443/fgd/", "http://[::1]:8000", "http://bücher.example"])
def test_an_address_may_name_a_port_a_path_and_any_host(url: str) -> None:
    Client(url).close()


@pytest.mark.parametrize("key", ["schlüssel", "a\nb", "mine "])
def test_a_key_that_no_header_carries_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(WrongArgument, match="the API key has a space") as refused:
        Client(api_key=key)
    assert key not in str(refused.value)


def test_a_proxy_of_the_internet_does_not_catch_this_machine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    server.routes[("GET", f"/v1/jobs/{JOB}")] = Answer(body=job_json())
    with patient(server.url) as client:
        assert client.job(JOB).id == JOB


def test_cancelling_a_cancelled_job_is_no_error(client: Client, server: Server) -> None:
    server.routes[("POST", f"/v1/jobs/{JOB}/cancel")] = problem(409, "ended", "it has ended")
    server.routes[("GET", f"/v1/jobs/{JOB}")] = Answer(body=job_json("cancelled"))
    assert client.cancel(JOB, "now").state == "cancelled"
    assert json.loads(server.asked[0].body) == {"mode": "now"}


def test_a_stop_whose_answer_was_lost_is_no_error(client: Client, server: Server) -> None:
    server.routes[("POST", f"/v1/jobs/{JOB}/stop")] = problem(409, "job_finished", "it has ended")
    server.routes[("GET", f"/v1/jobs/{JOB}")] = [Answer(body=job_json("succeeded")), Answer(body=job_json("cancelled"))]
    assert client.stop(JOB).state == "succeeded"
    with pytest.raises(ApiError, match="it has ended"):
        client.stop(JOB)


def test_cancelling_a_finished_job_is_an_error(client: Client, server: Server) -> None:
    server.routes[("POST", f"/v1/jobs/{JOB}/cancel")] = problem(409, "ended", "it has ended")
    server.routes[("GET", f"/v1/jobs/{JOB}")] = Answer(body=job_json("succeeded"))
    with pytest.raises(ApiError, match="it has ended"):
        client.cancel(JOB)


def test_a_list_is_read_over_pages_up_to_what_was_asked_for(client: Client, server: Server) -> None:
    def page(asked: Asked) -> Answer:
        start = int(asked.query.get("cursor", "0"))
        count = min(2, int(asked.query["limit"]))
        return Answer(body={"items": [job_json(name=str(start + n)) for n in range(count)], "next": str(start + count)})

    server.routes[("GET", "/v1/jobs")] = page
    assert [job.name for job in client.jobs(5)] == ["0", "1", "2", "3", "4"]


def test_what_the_methods_look_at_is_read(client: Client, server: Server) -> None:
    step = {"step": 30, "epoch": 1, "size": 9, "sha256": "a" * 64}
    maps, photos = {"step": 30, "images": []}, {"split": "val", "photos": []}
    for path, body in (("", {"items": [step]}), ("/30", maps), ("/photos", photos)):
        server.routes[("GET", f"/v1/jobs/{JOB}/focus{path}")] = Answer(body=body)
    (found,) = client.focus(JOB)
    assert (found.epoch, client.focus_maps(JOB, found.step), client.focus_photos(JOB)) == (1, maps, photos)


def test_metrics_and_logs_are_read(client: Client, server: Server) -> None:
    point = {"name": "ap", "split": "test", "step": 9, "value": None, "at": "2026-11-22T10:00:00Z"}
    server.routes[("GET", f"/v1/jobs/{JOB}/metrics")] = Answer(body={"items": [point]})
    server.routes[("GET", f"/v1/jobs/{JOB}/metrics/latest")] = Answer(body={"items": [point]})
    assert client.metrics(JOB, "ap", "test") == client.latest(JOB)
    assert server.asked[0].query == {"name": "ap", "split": "test"}

    log = b"one\ntwo\nthree\n"

    def logs(asked: Asked) -> Answer:
        start = int(asked.query["after_offset"])
        return Answer(
            body=log[start : start + 5], headers={"X-Next-Offset": str(min(start + 5, len(log))), "X-Attempt": "2"}
        )

    server.routes[("GET", f"/v1/jobs/{JOB}/logs")] = logs
    assert client.logs(JOB).attempt == 2
    assert client.log_tail(JOB, 2) == ["two", "three"]


def test_an_event_file_gets_the_name_that_the_service_gives_it(client: Client, server: Server, tmp_path: Path) -> None:
    named = {"Content-Disposition": 'attachment; filename="events.out.tfevents.7.job"'}
    url = ("GET", f"/v1/jobs/{JOB}/metrics/tensorboard")
    server.routes[url] = [Answer(503, {"code": "database_away", "retryable": True}), Answer(body=b"one", headers=named)]
    file = client.tensorboard(JOB, tmp_path / "new" / "folder")
    assert (file.name, file.read_bytes()) == ("events.out.tfevents.7.job", b"one")
    server.routes[url] = Answer(body=b"one and more", headers=named)
    assert client.tensorboard(JOB, file.parent) == file
    assert file.read_bytes() == b"one and more"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("name", ["../../up", "a/b", "", ".."])
def test_an_event_file_cannot_choose_its_folder(client: Client, server: Server, tmp_path: Path, name: str) -> None:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    server.routes[("GET", f"/v1/jobs/{JOB}/metrics/tensorboard")] = Answer(body=b"x", headers=headers)
    with pytest.raises(ClientError, match="not a plain file name"):
        client.tensorboard(JOB, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_rejected_data_set_ends_the_waiting(client: Client, server: Server) -> None:
    dataset = {"id": "ds_1", "name": "cells", "state": "verifying", "classes": None, "splits": None, "error": None}
    server.routes[("POST", "/v1/datasets")] = Answer(202, dataset)
    server.routes[("GET", "/v1/datasets/ds_1")] = [
        Answer(body=dataset),
        HANG_UP,
        Answer(body={**dataset, "state": "rejected"}),
    ]
    found = client.add_dataset("cells", Path("/data/cells"))
    assert client.wait_dataset(found.id, poll_s=0.001).state == "rejected"
    assert json.loads(server.asked[0].body)["path"] == "/data/cells"


def test_a_service_that_can_is_asked_to_answer_when_something_has_changed(client: Client, server: Server) -> None:
    dataset = {"id": "ds_1", "name": "cells", "state": "verifying"}
    waited = {"ETag": '"v2"', "Preference-Applied": "wait=20"}
    server.routes[("GET", "/v1/datasets/ds_1")] = [
        Answer(body=dataset, headers={"ETag": '"v1"'}),
        Answer(304, headers={"ETag": '"v1"', "Preference-Applied": "wait=20"}),
        Answer(body={**dataset, "state": "ready"}, headers=waited),
    ]
    looks: list[str] = []
    found = client.wait_dataset("ds_1", lambda seen: looks.append(seen.state if seen else "?"), poll_s=60.0)
    assert (found.state, looks) == ("ready", ["verifying", "verifying", "ready"])
    asked = [(each.headers.get("if-none-match"), each.headers.get("prefer")) for each in server.asked]
    assert asked == [(None, None), ('"v1"', "wait=20"), ('"v1"', "wait=20")]


# --- waiting --------------------------------------------------------------------------------------------------


def event(seq: int, type: str = "phase") -> dict[str, Any]:
    return {"seq": seq, "type": type, "at": "2026-11-22T10:00:00Z", "attempt": 1, "data": {}}


def story(server: Server, states: list[str]) -> None:
    """A job that moves on by one state and one event with each look."""
    seen = 0

    def job(_: Asked) -> Answer:
        nonlocal seen
        seen = min(seen + 1, len(states))
        return Answer(body=job_json(states[seen - 1]))

    def events(asked: Asked) -> Answer:
        after = int(asked.query["after"])
        items = [event(seq) for seq in range(after + 1, min(seen, after + 2) + 1)]
        return Answer(body={"items": items, "next_after": after + len(items)})

    server.routes[("GET", f"/v1/jobs/{JOB}")] = job
    server.routes[("GET", f"/v1/jobs/{JOB}/events")] = events


def test_waiting_tells_every_event_once_and_in_order(client: Client, server: Server) -> None:
    story(server, ["queued", "running", "running", "succeeded"])
    heard: list[int] = []
    looks: list[str] = []
    job = client.wait(
        JOB, lambda event: heard.append(event.seq), lambda job: looks.append(job.state if job else "?"), poll_s=0.001
    )
    assert job.state == "succeeded"
    assert heard == [1, 2, 3, 4]
    assert looks == ["queued", "running", "running", "succeeded"]


def test_waiting_outlives_a_restart_of_the_service() -> None:
    looks: list[Job | None] = []
    heard: list[int] = []
    first = Server()
    story(first, ["running"])
    with patient(first.url, attempts=1) as client:

        def on_job(job: Job | None) -> None:
            looks.append(job)

        def wait() -> None:
            client.wait(JOB, lambda event: heard.append(event.seq), on_job, poll_s=0.005, patience_s=30)

        waiter = threading.Thread(target=wait)
        waiter.start()
        until(lambda: len(looks) >= 2)
        first.close()
        until(lambda: None in looks)
        with serving(first.port, prepare=lambda second: story(second, ["running", "running", "succeeded"])):
            waiter.join(20)
    assert looks[-1] is not None
    assert looks[-1].state == "succeeded"
    assert heard == [1, 2, 3]


def test_waiting_for_a_service_that_is_gone_for_good_ends() -> None:
    with patient(f"http://127.0.0.1:{closed_port()}", attempts=1) as client, pytest.raises(Unreachable):
        client.wait(JOB, poll_s=0.001, patience_s=0.05)


def test_waiting_for_an_unknown_job_ends_at_once(client: Client, server: Server) -> None:
    with pytest.raises(ApiError, match="404"):
        client.wait(JOB)
    assert len(server.asked) == 1


def until(true: Any, limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.002)


# --- downloads ------------------------------------------------------------------------------------------------


def test_a_download_is_verified_and_appears_whole(client: Client, server: Server, tmp_path: Path) -> None:
    offer(server)
    there: list[int] = []
    path = client.download(ARTIFACT, tmp_path, there.append)
    assert path == tmp_path / "student.safetensors"
    assert path.read_bytes() == CONTENT
    assert there[-1] == len(CONTENT)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_means_the_same_whether_it_is_there_or_not(client: Client, server: Server, tmp_path: Path) -> None:
    offer(server)
    other = ARTIFACT.model_copy(update={"name": "recipe.json"})
    new = tmp_path / "new" / "folder"
    paths = [client.download(each, new) for each in (ARTIFACT, other, ARTIFACT)]
    assert paths == [new / ARTIFACT.name, new / "recipe.json", new / ARTIFACT.name]
    assert client.download(ARTIFACT, tmp_path, name="mine").read_bytes() == CONTENT
    for folder, name in ((tmp_path / "mine", None), (tmp_path, "new"), (tmp_path, "../x")):
        with pytest.raises(WrongArgument):
            client.download(ARTIFACT, folder, name=name)


def test_a_download_cut_at_every_chunk_goes_on_where_it_stopped(client: Client, server: Server, tmp_path: Path) -> None:
    offer(server, lambda asked: content(asked, cut_after=1000))
    path = client.download(ARTIFACT, tmp_path / "weights")
    assert path.read_bytes() == CONTENT
    asked = server.asked_for("GET", CONTENT_PATH)
    starts = [int(a.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-")) for a in asked]
    assert starts == list(range(0, len(CONTENT), 1000))
    assert all(a.headers["if-range"] == '"sha256-1"' for a in asked[1:])


def test_a_later_process_goes_on_with_what_an_earlier_one_left(client: Client, server: Server, tmp_path: Path) -> None:
    offer(server, [content(Asked("GET", "", {}, {}, b""), cut_after=4000), problem(404, "gone", "gone")])
    with pytest.raises(ApiError):
        client.download(ARTIFACT, tmp_path)
    offer(server)
    with patient(server.url) as later:
        assert later.download(ARTIFACT, tmp_path).read_bytes() == CONTENT
    assert server.asked_for("GET", CONTENT_PATH)[-1].headers["range"] == "bytes=4000-"


def test_a_server_that_ignores_ranges_is_read_from_the_start(client: Client, server: Server, tmp_path: Path) -> None:
    whole = content(Asked("GET", "", {}, {}, b""))
    offer(server, [content(Asked("GET", "", {}, {}, b""), cut_after=3000), whole])
    assert client.download(ARTIFACT, tmp_path).read_bytes() == CONTENT


def test_wrong_bytes_are_refused_and_removed(client: Client, server: Server, tmp_path: Path) -> None:
    bent = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]

    def lie(asked: Asked) -> Answer:
        honest = content(asked)
        return Answer(200, bent, honest.headers)

    offer(server, lie)
    with pytest.raises(DigestMismatch, match=ARTIFACT.sha256):
        client.download(ARTIFACT, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_content_than_promised_is_refused_before_it_is_fetched(
    client: Client, server: Server, tmp_path: Path
) -> None:
    server.routes[("HEAD", CONTENT_PATH)] = lambda asked: content(asked, body=b"something else")
    with pytest.raises(DigestMismatch):
        client.download(ARTIFACT, tmp_path)
    assert server.asked_for("GET", CONTENT_PATH) == []


def test_a_body_longer_than_promised_is_cut_short(client: Client, server: Server, tmp_path: Path) -> None:
    offer(server, lambda asked: Answer(200, CONTENT * 50))
    with pytest.raises(DigestMismatch, match=f"more than {len(CONTENT)} bytes"):
        client.download(ARTIFACT, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_connections_that_bring_nothing_end_the_download(client: Client, server: Server, tmp_path: Path) -> None:
    offer(server, HANG_UP)
    with pytest.raises(Unreachable):
        client.download(ARTIFACT, tmp_path)
    assert len(server.asked_for("GET", CONTENT_PATH)) == 5


def test_a_file_that_is_already_there_is_not_fetched_again(client: Client, server: Server, tmp_path: Path) -> None:
    (tmp_path / ARTIFACT.name).write_bytes(CONTENT)
    assert client.download(ARTIFACT, tmp_path) == tmp_path / ARTIFACT.name
    assert server.asked == []


def test_an_older_file_is_replaced(client: Client, server: Server, tmp_path: Path) -> None:
    offer(server)
    (tmp_path / ARTIFACT.name).write_bytes(b"of an older job")
    assert client.download(ARTIFACT, tmp_path).read_bytes() == CONTENT


def test_an_empty_file_can_be_downloaded(client: Client, server: Server, tmp_path: Path) -> None:
    empty = Artifact(id="art_1", name="empty", size=0, sha256=hashlib.sha256(b"").hexdigest())
    server.routes[("HEAD", CONTENT_PATH)] = server.routes[("GET", CONTENT_PATH)] = lambda a: content(a, body=b"")
    assert client.download(empty, tmp_path).read_bytes() == b""


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "a\\b", "a\0b"])
def test_a_name_from_elsewhere_cannot_choose_a_folder(
    client: Client, server: Server, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ClientError, match="not a plain file name"):
        client.download(ARTIFACT.model_copy(update={"name": name}), tmp_path)
    assert server.asked == []


# --- what it is made of ---------------------------------------------------------------------------------------


def test_client_command_and_demo_load_no_torch() -> None:
    modules = "fgd.client, fgd.cli.main, fgd.cli.demo, fgd.cli.watch"
    code = f"import sys, {modules}; sys.exit(any('torch' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_event_of_a_newer_service_is_read() -> None:
    assert StoredEvent.model_validate({**event(1, "note:brand_new"), "colour": "red"}).type == "note:brand_new"
