"""Every 4xx that the routes of data sets, models, plans, studies, results and jobs can answer: its code, and the place
at fault.

Each route has a function that provokes all of its refusals in the real application. What it meets is held
against the OpenAPI document, and the table against the codes in the source: a new refusal without a line here is told.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import itertools
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

import api
from api.core import datasets, models, studies
from api.core.jobs import attempts, checkpoints, requests
from api.core.lifecycle import FailureCode
from api.core.rows import db
from api.core.rows.ids import new_id
from api.core.store import uploads
from api.http.bodies import MAX_BODY_BYTES
from api.routes import artifacts, evaluations, exports, plans, predictions, samples
from api.routes import datasets as dataset_routes
from api.routes import models as model_routes
from api.routes import studies as study_routes
from fgd.data.index import Index
from tests.unit.api.test_evaluations import finished
from tests.unit.api.test_exports import written

JSON = {"Content-Type": "application/json"}
ZIP = {"Content-Type": "application/zip"}
PIECE = {"Content-Type": "application/partial-upload", "Upload-Offset": "0"}
RAW = {"Content-Type": "application/octet-stream"}
UPLOAD = {"name": "t", "detector": {"kind": "fcos", "fpn_channels": 64}, "classes": ["cat", "dog"]}
FGD = [{"kind": "fgd"}]


def safetensors(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


GOOD = safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8)


@dataclass
class World:
    client: Any
    given: Any
    serving: Any
    settings: Any
    patch: pytest.MonkeyPatch

    def promoted(self) -> str:
        """A model that is ready."""
        return str(self.client.post("/v1/models", json={"name": "m", "job": self.given.succeeded()}).json()["id"])


@dataclass(frozen=True)
class Refusal:
    answer: Any
    status: int
    code: str
    at: str | None = None
    """A JSON pointer; "?name" for a parameter or header; None where no place in the request is at fault."""


Provoke = Callable[[World], Iterator[Refusal]]
REFUSALS: dict[str, Provoke] = {}
"""Route -> what provokes all of its refusals."""


def of(*routes: str) -> Callable[[Provoke], Provoke]:
    def remember(provoke: Provoke) -> Provoke:
        REFUSALS.update(dict.fromkeys(routes, provoke))
        return provoke

    return remember


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> str:
    """SQLite alone: what is refused does not depend on the database, and other tests run on both."""
    (tmp_path / "fgd.db").write_bytes(migrated.read_bytes())
    return f"sqlite:///{tmp_path}/fgd.db"


@pytest.fixture
def world(client: Any, given: Any, serving: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(client, given, serving, settings, monkeypatch)


# --- what many routes share -----------------------------------------------------------------------------------


def bad_json(w: World, url: str, field: str = "/nmae", method: str = "POST") -> Iterator[Refusal]:
    """The refusals of every route with a JSON body."""
    send, large = partial(w.client.request, method, url), b" " * (MAX_BODY_BYTES + 1)
    yield Refusal(send(content=b"{", headers=JSON), 400, "malformed_json")
    yield Refusal(send(content=large, headers=JSON), 413, "body_too_large")
    yield Refusal(send(content=b"{}", headers={"Content-Type": "text/plain"}), 415, "not_json_type")
    yield Refusal(send(content=b"[]", headers=JSON), 422, "invalid_request", "")
    yield Refusal(send(json={"nmae": 1}), 422, "invalid_request", field)


def bad_renames(w: World, url: str, missing: str, code: str) -> Iterator[Refusal]:
    """The refusals of every route that gives another name."""
    yield from bad_json(w, url, method="PATCH")
    yield Refusal(w.client.patch(url, json={"name": ""}), 422, "invalid_request", "/name")
    yield Refusal(w.client.patch(missing, json={"name": "x"}), 404, code)
    yield Refusal(w.client.patch(url, json={"name": "x"}, headers={"If-Match": '"v0"'}), 412, "precondition_failed")


def bad_keys(w: World, url: str, body: dict[str, Any], verb: Any, name: str) -> Iterator[Refusal]:
    """The refusals of every route that takes an Idempotency-Key."""
    once = {"Idempotency-Key": "once"}
    assert w.client.post(url, json=body, headers=once).status_code in (201, 202)
    other = body | {"name": "another"}
    reused = w.client.post(url, json=other, headers=once)
    yield Refusal(reused, 422, "idempotency_key_reused", "?Idempotency-Key")
    odd = w.client.post(url, json=body, headers={"Idempotency-Key": "a b"})
    yield Refusal(odd, 422, "invalid_request", "?idempotency-key")

    def beaten(*_: Any, **__: Any) -> None:
        raise IntegrityError("INSERT", {}, Exception("as PostgreSQL tells the second of two that run side by side"))

    with w.patch.context() as patch:
        patch.setattr(verb, name, beaten)
        raced = w.client.post(url, json=body, headers={"Idempotency-Key": "raced"})
    yield Refusal(raced, 409, "idempotency_key_in_use")


def too_many_waiters(w: World, url: str) -> Iterator[Refusal]:
    """The refusal of every route that can be polled."""
    with w.serving(w.settings.model_copy(update={"max_waiters": 1})) as narrow:
        narrow.app.state.service.waiters.take("10.0.0.1")
        yield Refusal(narrow.get(url, headers={"Prefer": "wait=9"}), 429, "too_many_waiters")


def too_many_waiting(w: World, url: str, body: dict[str, Any], setting: str) -> Iterator[Refusal]:
    """The refusal of every route that makes something others wait behind."""
    with w.serving(w.settings.model_copy(update={setting: 1})) as narrow:
        key = {"Idempotency-Key": f"crowd{url}"}
        made = [narrow.post(url, json=body, headers=key) for _ in range(2)]
        assert [answer.status_code < 300 for answer in made] == [True, True], "the second is the first again"
        answer = narrow.post(url, json=body)
        assert answer.headers["retry-after"]
        assert f"FGD_{setting.upper()}" in answer.json()["detail"]
        yield Refusal(answer, 429, "too_many_waiting")


def bad_pages(w: World, url: str) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"{url}?cursor=abc"), 400, "bad_cursor")
    yield Refusal(w.client.get(f"{url}?limit=0"), 422, "invalid_request", "?limit")
    yield Refusal(w.client.get(f"{url}?limit=x"), 422, "invalid_request", "?limit")


def digest(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def cut(w: World, method: str, url: str, headers: dict[str, str], *messages: dict[str, Any]) -> Any:
    """The answer to a request whose body comes as `messages`: what a server tells of a connection that breaks, or of a
    caller that sends more than it said, which no well-behaved client does."""
    waiting, answer = list(messages), {"body": b""}

    async def receive() -> dict[str, Any]:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer["status"] = message["status"]
            answer["headers"] = dict(message["headers"])
        else:
            answer["body"] += message.get("body", b"")

    told, (path, _, query) = {"host": "127.0.0.1", **headers}, url.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": query.encode(),
        "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
        "headers": [(k.lower().encode(), v.encode()) for k, v in told.items()],
    }  # fmt: skip
    w.client.portal.call(w.client.app, scope, receive, send)
    return Answered(answer["status"], answer["headers"][b"content-type"].decode(), answer["body"])


@dataclass
class Answered:
    status_code: int
    content_type: str
    content: bytes

    @property
    def headers(self) -> dict[str, str]:
        return {"content-type": self.content_type}

    @property
    def text(self) -> str:
        return self.content.decode()

    def json(self) -> Any:
        return json.loads(self.content)


SOME = {"type": "http.request", "body": b"abc", "more_body": True}


# --- data sets ------------------------------------------------------------------------------------------------


@of("POST /v1/datasets")
def submit_dataset(w: World) -> Iterator[Refusal]:
    url, post = "/v1/datasets", w.client.post
    yield from bad_json(w, url)
    yield from too_many_waiting(w, url, {"name": "cells"}, "max_waiting_imports")
    yield from bad_keys(w, url, {"name": "cells"}, datasets, "submit")
    yield Refusal(post(url, json={"name": "d", "format": "tfrecord"}), 422, "invalid_request", "/format")
    yield Refusal(post(url, json={"name": "d", "path": "cells"}), 422, "path_not_absolute", "/path")
    yield Refusal(post(url, json={"name": "d", "path": "/etc"}), 422, "path_not_allowed", "/path")
    missing = str(w.given.roots / "missing")
    yield Refusal(post(url, json={"name": "d", "path": missing}), 422, "path_not_found", "/path")


@of("GET /v1/datasets")
def list_datasets(w: World) -> Iterator[Refusal]:
    yield from bad_pages(w, "/v1/datasets")


@of("GET /v1/datasets/{dataset_id}")
def get_dataset(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"/v1/datasets/{new_id('ds')}"), 404, "dataset_not_found")
    yield from too_many_waiters(w, f"/v1/datasets/{w.given.dataset('verifying').id}")


@of("PATCH /v1/datasets/{dataset_id}")
def rename_dataset(w: World) -> Iterator[Refusal]:
    url = f"/v1/datasets/{w.given.dataset().id}"
    yield from bad_renames(w, url, f"/v1/datasets/{new_id('ds')}", "dataset_not_found")


@of("GET /v1/datasets/{dataset_id}/report")
def get_report(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"/v1/datasets/{new_id('ds')}/report"), 404, "dataset_not_found")
    yield Refusal(w.client.get(f"/v1/datasets/{w.given.dataset('verifying').id}/report"), 409, "dataset_not_ready")
    waiting = w.client.post("/v1/datasets", json={"name": "d"}).json()["id"]
    yield Refusal(w.client.get(f"/v1/datasets/{waiting}/report"), 409, "dataset_not_ready")


@of("DELETE /v1/datasets/{dataset_id}")
def delete_dataset(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.delete(f"/v1/datasets/{new_id('ds')}"), 404, "dataset_not_found")
    used = w.given.dataset()
    w.given.job(used)
    yield Refusal(w.client.delete(f"/v1/datasets/{used.id}"), 409, "dataset_in_use")


@of("PUT /v1/datasets/{dataset_id}/content")
def put_content(w: World) -> Iterator[Refusal]:
    url = w.client.post("/v1/datasets", json={"name": "d"}).json()["upload_url"]
    yield from whole_content(w, url)


def whole_content(w: World, url: str) -> Iterator[Refusal]:
    """What PUT refuses, for whatever noun."""
    yield from content(w, "PUT", url, RAW)
    yield Refusal(w.client.put(url, content=b"", headers=RAW), 422, "upload_empty", "")
    for header in ("Content-Digest", "Repr-Digest"):
        promised = RAW | {header: digest(b"y")}
        yield Refusal(w.client.put(url, content=GOOD, headers=promised), 422, "digest_mismatch", f"?{header}")


@of("PATCH /v1/datasets/{dataset_id}/content")
def patch_content(w: World) -> Iterator[Refusal]:
    url = w.client.post("/v1/datasets", json={"name": "d"}).json()["upload_url"]
    yield from content_in_pieces(w, url)


def content_in_pieces(w: World, url: str) -> Iterator[Refusal]:
    """What PATCH refuses, for whatever noun."""

    def patch(data: bytes = b"x", **headers: str) -> Any:
        return w.client.patch(url, content=data, headers=PIECE | {k.replace("_", "-"): v for k, v in headers.items()})

    yield Refusal(patch(Upload_Offset="9"), 409, "upload_offset_mismatch")
    yield Refusal(patch(Upload_Offset="-1"), 422, "invalid_request", "?upload-offset")
    yield Refusal(patch(b"abc", Upload_Length="2"), 422, "upload_length_exceeded", "?Upload-Length")
    both = {"Upload_Length": "9", "Upload_Complete": "?1"}
    yield Refusal(patch(**both), 422, "upload_length_differs", "?Upload-Length")
    yield Refusal(patch(Content_Digest=digest(b"y")), 422, "digest_mismatch", "?Content-Digest")
    yield from content(w, "PATCH", url, PIECE)


def content(w: World, method: str, url: str, headers: dict[str, str]) -> Iterator[Refusal]:
    """What PUT and PATCH refuse alike, for whatever noun. Leaves three bytes behind."""
    _, _, noun, id, _ = url.split("/")
    ready = w.given.dataset().id if noun == "datasets" else w.promoted()
    limit = "upload_bytes" if noun == "datasets" else "max_model_bytes"

    def ask(client: Any = w.client, to: str = url, data: Any = b"x", **more: str) -> Any:
        return client.request(
            method, to, content=data, headers=headers | {k.replace("_", "-"): v for k, v in more.items()}
        )

    unknown = new_id(id.partition("_")[0])
    yield Refusal(ask(to=f"/v1/{noun}/{unknown}/content"), 404, f"{noun.removesuffix('s')}_not_found")
    yield Refusal(ask(to=f"/v1/{noun}/{ready}/content"), 409, "upload_not_expected")
    with uploads.writing(w.settings.uploads, id):
        yield Refusal(ask(), 409, "upload_in_progress")
    yield Refusal(ask(data=iter([b"x"])), 411, "length_required")
    with w.serving(w.settings.model_copy(update={limit: 10})) as small:
        yield Refusal(ask(small, data=b"x" * 11), 413, "upload_too_large")
    yield Refusal(ask(Content_Type="multipart/form-data"), 415, "not_raw")
    yield Refusal(ask(Content_Encoding="gzip"), 415, "not_raw")
    yield Refusal(ask(Content_Digest="sha-256=x"), 422, "digest_unreadable", "?Content-Digest")
    yield Refusal(ask(Content_Digest=b"sha-256=:\xff:"), 400, "header_not_ascii")
    said = headers | {"Content-Length": "2"}
    yield Refusal(cut(w, method, url, said, SOME), 400, "length_differs")
    kept = int(w.client.head(url).headers["upload-offset"])
    said = headers | {"Content-Length": "9", **({"Upload-Offset": str(kept)} if method == "PATCH" else {})}
    yield Refusal(cut(w, method, url, said, SOME), 400, "upload_cut")


@of("HEAD /v1/datasets/{dataset_id}/content")
def head_content(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.head(f"/v1/datasets/{new_id('ds')}/content"), 404, "dataset_not_found")


@of("GET /v1/datasets/{dataset_id}/samples")
def find_samples(w: World) -> Iterator[Refusal]:
    waiting = w.client.post("/v1/datasets", json={"name": "d"}).json()["id"]

    def find(id: str, query: str = "?name=a") -> Any:
        return w.client.get(f"/v1/datasets/{id}/samples{query}")

    yield Refusal(find(new_id("ds")), 404, "dataset_not_found")
    yield Refusal(find(waiting), 409, "dataset_not_ready")
    yield Refusal(find(waiting, "?split=all"), 422, "invalid_request", "?split")


@of("GET /v1/datasets/{dataset_id}/samples/{n}")
def get_sample(w: World) -> Iterator[Refusal]:
    yield from sample(w, "")


@of("GET /v1/datasets/{dataset_id}/samples/{n}/image")
def get_sample_image(w: World) -> Iterator[Refusal]:
    yield from sample(w, "/image")


def sample(w: World, image: str) -> Iterator[Refusal]:
    index = Index(classes=("cat",), splits={"train": (), "val": ()})
    with w.patch.context() as patch:  # a data set with a real index, of no images
        put_bytes = w.given.store.put_bytes
        patch.setattr(w.given.store, "put_bytes", lambda data: put_bytes(index.model_dump_json().encode()))
        dataset = w.given.dataset()
    waiting = w.client.post("/v1/datasets", json={"name": "d"}).json()["id"]
    rejected = w.given.dataset("rejected")

    def get(id: str, n: str = "0", query: str = "") -> Any:
        return w.client.get(f"/v1/datasets/{id}/samples/{n}{image}{query}")

    yield Refusal(get(new_id("ds")), 404, "dataset_not_found")
    yield Refusal(get(dataset.id), 404, "sample_not_found")
    yield Refusal(get(rejected.id), 404, "sample_not_found")
    yield Refusal(get(waiting), 409, "dataset_not_ready")
    yield Refusal(get(dataset.id, "x"), 422, "invalid_request", "?n")
    yield Refusal(get(dataset.id, query="?split=all"), 422, "invalid_request", "?split")


# --- models ---------------------------------------------------------------------------------------------------


@of("POST /v1/models")
def submit_model(w: World) -> Iterator[Refusal]:
    url = "/v1/models"
    yield from bad_json(w, url)
    yield from too_many_waiting(w, url, UPLOAD, "max_waiting_imports")
    yield from bad_keys(w, url, UPLOAD, models, "create")
    for change, at in ({"classes": []}, "/classes"), ({"min_size": 900, "max_size": 800}, ""):
        yield Refusal(w.client.post(url, json=UPLOAD | change), 422, "invalid_request", at)
    running = w.given.running()
    yield Refusal(w.client.post(url, json={"name": "m", "job": running}), 409, "job_not_ready", "/job")
    unknown = w.client.post(url, json={"name": "m", "job": new_id("job")})
    yield Refusal(unknown, 422, "job_not_found", "/job")
    failed = failed_job(w, running)
    yield Refusal(w.client.post(url, json={"name": "m", "job": failed}), 422, "job_has_no_weights", "/job")


def failed_job(w: World, running: str) -> str:
    with db.transaction(w.given.engine) as s:
        attempts.fail(s, running, 1, FailureCode.loss_non_finite, "nan")
    return running


@of("GET /v1/models")
def list_models(w: World) -> Iterator[Refusal]:
    yield from bad_pages(w, "/v1/models")


@of("GET /v1/models/{model_id}")
def get_model(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"/v1/models/{new_id('mdl')}"), 404, "model_not_found")
    yield from too_many_waiters(w, f"/v1/models/{w.client.post('/v1/models', json=UPLOAD).json()['id']}")


@of("DELETE /v1/models/{model_id}")
def delete_model(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.delete(f"/v1/models/{new_id('mdl')}"), 404, "model_not_found")
    model = w.promoted()
    assert w.client.post("/v1/jobs", json=w.given.body(student={"weights": {"model": model}})).status_code == 201
    yield Refusal(w.client.delete(f"/v1/models/{model}"), 409, "model_in_use")


@of("PATCH /v1/models/{model_id}")
def rename_model(w: World) -> Iterator[Refusal]:
    url = f"/v1/models/{w.client.post('/v1/models', json=UPLOAD).json()['id']}"
    yield from bad_renames(w, url, f"/v1/models/{new_id('mdl')}", "model_not_found")


@of("PUT /v1/models/{model_id}/content")
def put_weights(w: World) -> Iterator[Refusal]:
    url = w.client.post("/v1/models", json=UPLOAD).json()["content_url"]
    yield from whole_content(w, url)
    yield Refusal(w.client.put(url, content=b"hello, this is text", headers=RAW), 415, "not_weights")
    yield Refusal(w.client.put(url, content=GOOD[:-1], headers=RAW), 422, "weights_damaged", "")


@of("PATCH /v1/models/{model_id}/content")
def patch_weights(w: World) -> Iterator[Refusal]:
    url = w.client.post("/v1/models", json=UPLOAD).json()["content_url"]
    yield from content_in_pieces(w, url)
    url = w.client.post("/v1/models", json=UPLOAD).json()["content_url"]
    yield Refusal(w.client.patch(url, content=b"hello, this is text", headers=PIECE), 415, "not_weights")
    whole = PIECE | {"Upload-Complete": "?1"}
    yield Refusal(w.client.patch(url, content=GOOD[:-1], headers=whole), 422, "weights_damaged", "")


@of("HEAD /v1/models/{model_id}/content")
def head_weights(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.head(f"/v1/models/{new_id('mdl')}/content"), 404, "model_not_found")


@of("GET /v1/jobs/{job_id}/checkpoints")
def list_checkpoints(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"/v1/jobs/{new_id('job')}/checkpoints"), 404, "job_not_found")


@of("POST /v1/jobs/{job_id}/checkpoints/{checkpoint_id}/pin")
def pin(w: World) -> Iterator[Refusal]:
    job, step = w.given.running(), itertools.count(1)

    def saved() -> str:
        nth = next(step)
        with db.transaction(w.given.engine) as s:
            attempts.checkpoint(s, job, 1, nth, f"jobs/{job}/a1/ckpt-{nth}.pt", "c" * 64, 1)
            return str(checkpoints.newest_first(s, job)[0].id)

    def pin(checkpoint: str, of: str = job) -> Any:
        return w.client.post(f"/v1/jobs/{of}/checkpoints/{checkpoint}/pin")

    yield Refusal(pin(new_id("ckpt"), new_id("job")), 404, "job_not_found")
    yield Refusal(pin(new_id("ckpt")), 404, "checkpoint_not_found")
    for _ in range(checkpoints.MAX_PINNED):
        assert pin(saved()).status_code == 200
    yield Refusal(pin(saved()), 409, "too_many_pinned")


@of("DELETE /v1/jobs/{job_id}/checkpoints/{checkpoint_id}/pin")
def unpin(w: World) -> Iterator[Refusal]:
    job = w.given.running()
    yield Refusal(w.client.delete(f"/v1/jobs/{new_id('job')}/checkpoints/{new_id('ckpt')}/pin"), 404, "job_not_found")
    yield Refusal(w.client.delete(f"/v1/jobs/{job}/checkpoints/{new_id('ckpt')}/pin"), 404, "checkpoint_not_found")


@of("POST /v1/jobs/{job_id}/checkpoints/{checkpoint_id}/promote")
def promote_checkpoint(w: World) -> Iterator[Refusal]:
    done = w.given.succeeded()
    url = f"/v1/jobs/{done}/checkpoints/last/promote"
    yield from bad_json(w, url)
    yield from bad_keys(w, url, {"name": "m"}, models, "promote")
    running = w.given.running()
    post = w.client.post
    yield Refusal(post(f"/v1/jobs/{new_id('job')}/checkpoints/last/promote"), 404, "job_not_found")
    yield Refusal(post(f"/v1/jobs/{running}/checkpoints/last/promote"), 409, "no_checkpoint")
    unknown = f"/v1/jobs/{running}/checkpoints/{new_id('ckpt')}/promote"
    yield Refusal(post(unknown), 404, "checkpoint_not_found")
    with db.transaction(w.given.engine) as s:
        attempts.checkpoint(s, running, 1, 40, "jobs/never-written.pt", "0" * 64, 10)
    yield Refusal(post(f"/v1/jobs/{running}/checkpoints/last/promote"), 409, "checkpoint_gone")
    file = w.settings.home / "ckpt"
    file.write_bytes(b"a checkpoint")
    w.given.store.put_object("jobs/kept.pt", file)
    with db.transaction(w.given.engine) as s:
        attempts.checkpoint(s, running, 1, 50, "jobs/kept.pt", hashlib.sha256(b"a checkpoint").hexdigest(), 12)
    with w.serving(w.settings.model_copy(update={"max_waiting_imports": 1})) as narrow:
        url = f"/v1/jobs/{running}/checkpoints/last/promote"
        assert narrow.post(url).status_code == 202
        yield Refusal(narrow.post(url), 429, "too_many_waiting")


# --- jobs -----------------------------------------------------------------------------------------------------


@of("POST /v1/jobs")
def submit_job(w: World) -> Iterator[Refusal]:
    url, given = "/v1/jobs", w.given
    yield from bad_json(w, url)
    ready = given.dataset()
    yield from too_many_waiting(w, url, given.body(ready), "max_queued_jobs")
    (queued,) = w.client.get(f"{url}?state=queued").json()["items"]
    w.client.post(f"{url}/{queued['id']}/cancel")

    def job(dataset: Any = ready, **changes: Any) -> Any:
        return w.client.post(url, json=given.body(dataset, **changes))

    def on(dataset: Any) -> Any:
        return w.client.post(url, json=given.body(ready) | {"dataset": dataset})

    yield Refusal(on(new_id("ds")), 422, "dataset_not_found", "/dataset")
    yield Refusal(on({"path": "/x"}), 422, "dataset_not_registered", "/dataset")
    yield Refusal(on(given.dataset("rejected").id), 422, "dataset_rejected", "/dataset")
    waiting = w.client.post("/v1/datasets", json={"name": "d"}).json()["id"]
    yield Refusal(on(waiting), 409, "dataset_not_ready", "/dataset")
    yield Refusal(on(given.dataset("verifying").id), 409, "dataset_not_ready", "/dataset")
    given.claim_import()
    yield Refusal(job(schedule={"batch_size": 41}), 422, "batch_too_large", "/schedule/batch_size")
    tiny = {"batch_size": 1, "min_size": 32, "max_size": 32}
    yield Refusal(job(schedule=tiny), 422, "single_values", "/schedule/batch_size")
    many = {"batch_size": 40, "accumulate": 2}
    yield Refusal(job(schedule=many), 422, "batch_too_large", "/schedule/accumulate")
    yield Refusal(w.client.post(f"{url}?dry_run=maybe", json=given.body(ready)), 422, "invalid_request", "?dry_run")
    bare = {"teacher": {"job": given.succeeded()}, "methods": [{"kind": "fgd"}], "unlabelled": {}}
    yield Refusal(job(**bare), 422, "unlabelled_unusable", "/unlabelled")
    other = given.succeeded(("cow",))
    yield Refusal(job(student={"inherit": {"job": other}}), 422, "classes_differ", "/student/inherit")
    retinanet = {"kind": "retinanet", "inherit": {"job": given.succeeded()}}
    yield Refusal(job(student=retinanet), 422, "impossible_inheritance", "/student/inherit")
    yield from bad_references(w, job)
    yield from bad_keys(w, url, given.body(ready), requests, "submit")


def bad_references(w: World, job: Callable[..., Any]) -> Iterator[Refusal]:
    """Teacher, inherited and beginning weights, each as a job, a model and a path."""
    waiting = w.client.post("/v1/models", json=UPLOAD).json()["id"]
    rejected = w.client.post("/v1/models", json=UPLOAD).json()["id"]
    assert w.client.put(f"/v1/models/{rejected}/content", content=GOOD, headers=RAW).status_code == 202
    with db.transaction(w.given.engine) as s:
        claim = models.claim_import(s, "wrk_a", lease_s=20.0)
        assert claim is not None
        models.reject(s, rejected, claim.attempt, None, "it does not fit")
    running, failed = w.given.running(), failed_job(w, w.given.running())
    folders = {name: w.given.roots / name for name in ("bare", "no_recipe", "no_weights")}
    for name, folder in folders.items():
        folder.mkdir()
        if name != "bare":
            (folder / "recipe.json").write_text("{")
            (folder / "student.safetensors").write_bytes(GOOD)
    recipe = {"format": "fgd-recipe/1", "detector": {"kind": "fcos"}, "classes": ["cat", "dog"], "min_size": 64}
    (folders["no_weights"] / "recipe.json").write_text(json.dumps(recipe | {"max_size": 64}))
    (folders["no_weights"] / "student.safetensors").write_bytes(b"no weights")

    for role, pointer in (("teacher", "/teacher"), ("inherit", "/student/inherit"), ("weights", "/student/weights")):
        for ref, status, code in (
            ({"job": new_id("job")}, 422, f"{role}_not_found"),
            ({"job": failed}, 422, f"{role}_has_no_weights"),
            ({"job": running}, 409, f"{role}_not_ready"),
            ({"model": new_id("mdl")}, 422, f"{role}_not_found"),
            ({"model": rejected}, 422, f"{role}_rejected"),
            ({"model": waiting}, 409, f"{role}_not_ready"),
            ({"path": "/etc"}, 422, "path_not_allowed"),
            ({"path": str(folders["bare"])}, 422, "weights_incomplete"),
            ({"path": str(folders["no_recipe"])}, 422, "recipe_unreadable"),
            ({"path": str(folders["no_weights"])}, 422, "weights_unreadable"),
        ):
            body = {"teacher": ref, "methods": FGD} if role == "teacher" else {"student": {role: ref}}
            yield Refusal(job(**body), status, code, f"{pointer}/{next(iter(ref))}")


@of("GET /v1/jobs")
def list_jobs(w: World) -> Iterator[Refusal]:
    yield from bad_pages(w, "/v1/jobs")
    for _ in range(2):
        w.given.job()
    cursor = w.client.get("/v1/jobs?limit=1").json()["next"]
    yield Refusal(w.client.get(f"/v1/jobs?cursor={cursor}&name=x"), 400, "cursor_of_other_filters")
    for query, code, parameter in (
        ("nmae=x", "extra_forbidden", "nmae"),
        ("metadata.a=1&metadata.a=2", "given_twice", "metadata.a"),
        ("metadata.a%20b=1", "bad_label", "metadata.a b"),
        ("state=asleep", "invalid_request", "state"),
        ("created_after=yesterday", "invalid_request", "created_after"),
    ):
        yield Refusal(w.client.get(f"/v1/jobs?{query}"), 422, code, f"?{parameter}")


@of("GET /v1/jobs/{job_id}")
def get_job(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"/v1/jobs/{new_id('job')}"), 404, "job_not_found")
    yield from too_many_waiters(w, f"/v1/jobs/{w.given.job()}")


@of("DELETE /v1/jobs/{job_id}")
def delete_job(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.delete(f"/v1/jobs/{new_id('job')}"), 404, "job_not_found")
    teacher = w.given.succeeded()
    yield Refusal(w.client.delete(f"/v1/jobs/{w.given.job()}"), 409, "job_running")
    taught = w.client.post("/v1/jobs", json=w.given.body(teacher={"job": teacher}, methods=FGD))
    assert taught.status_code == 201, taught.text
    yield Refusal(w.client.delete(f"/v1/jobs/{teacher}"), 409, "job_in_use")


@of("POST /v1/jobs/{job_id}/cancel")
def cancel_job(w: World) -> Iterator[Refusal]:
    yield from bad_json(w, f"/v1/jobs/{w.given.job()}/cancel")
    yield Refusal(w.client.post(f"/v1/jobs/{new_id('job')}/cancel"), 404, "job_not_found")
    yield Refusal(
        w.client.post(f"/v1/jobs/{w.given.job()}/cancel", json={"mode": "x"}), 422, "invalid_request", "/mode"
    )
    for each in w.client.get("/v1/jobs").json()["items"]:
        w.client.post(f"/v1/jobs/{each['id']}/cancel")
    yield Refusal(w.client.post(f"/v1/jobs/{w.given.succeeded()}/cancel"), 409, "job_finished")


# --- what jobs leave behind, and plans ------------------------------------------------------------------------


@of("GET /v1/jobs/{job_id}/events")
def list_events(w: World) -> Iterator[Refusal]:
    id = w.given.job()
    url = f"/v1/jobs/{id}/events"
    yield Refusal(w.client.get(f"/v1/jobs/{new_id('job')}/events"), 404, "job_not_found")
    yield Refusal(w.client.get(f"{url}?after=-1"), 422, "invalid_request", "?after")
    yield Refusal(w.client.get(f"{url}?aftr=1"), 422, "invalid_request", "?aftr")
    yield Refusal(w.client.get(url, headers={"Last-Event-ID": "x"}), 422, "invalid_request", "?last-event-id")
    with w.serving(w.settings.model_copy(update={"max_streams": 1})) as narrow:
        narrow.app.state.service.streams.take("10.0.0.1")
        yield Refusal(narrow.get(url, headers={"Accept": "text/event-stream"}), 429, "too_many_streams")


@of("GET /v1/jobs/{job_id}/metrics")
def list_metrics(w: World) -> Iterator[Refusal]:
    url = f"/v1/jobs/{w.given.job()}/metrics"
    yield Refusal(w.client.get(f"/v1/jobs/{new_id('job')}/metrics"), 404, "job_not_found")
    yield Refusal(w.client.get(f"{url}?from=2&to=1"), 422, "empty_range", "?from")
    yield Refusal(w.client.get(f"{url}?max_points=1"), 422, "invalid_request", "?max_points")
    yield Refusal(w.client.get(f"{url}?first=1"), 422, "invalid_request", "?first")


@of("GET /v1/jobs/{job_id}/metrics/tensorboard")
def tensorboard_events(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"/v1/jobs/{new_id('job')}/metrics/tensorboard"), 404, "job_not_found")


@of("GET /v1/jobs/{job_id}/report")
def get_job_report(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"/v1/jobs/{new_id('job')}/report"), 404, "job_not_found")
    url = f"/v1/jobs/{w.given.job()}/report"
    yield Refusal(w.client.get(f"{url}?split=train"), 422, "invalid_request", "?split")


@of("GET /v1/jobs/{job_id}/metrics/latest")
def latest_metrics(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"/v1/jobs/{new_id('job')}/metrics/latest"), 404, "job_not_found")


@of("GET /v1/jobs/{job_id}/logs")
def read_log(w: World) -> Iterator[Refusal]:
    url = f"/v1/jobs/{w.given.running()}/logs"
    yield Refusal(w.client.get(f"/v1/jobs/{new_id('job')}/logs"), 404, "job_not_found")
    yield Refusal(w.client.get(f"{url}?attempt=9"), 404, "attempt_not_found")
    yield Refusal(w.client.get(f"{url}?attempt=0"), 422, "invalid_request", "?attempt")
    ranged = {"Range": "bytes=5-"}
    yield Refusal(w.client.get(f"{url}?after_offset=1", headers=ranged), 400, "range_and_offset")
    yield Refusal(w.client.get(url, headers=ranged), 416, "range_not_satisfiable")


@of("HEAD /v1/jobs/{job_id}/logs")
def describe_log(w: World) -> Iterator[Refusal]:
    url = f"/v1/jobs/{w.given.running()}/logs"
    yield Refusal(w.client.head(f"/v1/jobs/{new_id('job')}/logs"), 404, "job_not_found")
    yield Refusal(w.client.head(f"{url}?attempt=0"), 422, "invalid_request")


@of("GET /v1/jobs/{job_id}/artifacts")
def list_artifacts(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"/v1/jobs/{new_id('job')}/artifacts"), 404, "job_not_found")


@of("GET /v1/artifacts/{artifact_id}/content")
def download(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"/v1/artifacts/{new_id('art')}/content"), 404, "artifact_not_found")
    job, _ = w.given.artifact(b"weights")
    (file,) = w.client.get(f"/v1/jobs/{job}/artifacts").json()["items"]
    beyond = w.client.get(f"/v1/artifacts/{file['id']}/content", headers={"Range": "bytes=99-"})
    yield Refusal(beyond, 416, "range_not_satisfiable")


@of("HEAD /v1/artifacts/{artifact_id}/content")
def describe(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.head(f"/v1/artifacts/{new_id('art')}/content"), 404, "artifact_not_found")


@of("GET /v1/plans/{plan_id}")
def get_plan(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"/v1/plans/{new_id('plan')}"), 404, "plan_not_found")
    yield from too_many_waiters(w, f"/v1/plans/{w.client.post('/v1/plans', json=w.given.body()).json()['id']}")


@of("POST /v1/plans")
def submit_plan(w: World) -> Iterator[Refusal]:
    """What a body that names something is refused for, a job is too."""
    yield from bad_json(w, "/v1/plans")
    body = w.given.body()
    with w.serving(w.settings.model_copy(update={"max_waiting_plans": 1})) as narrow:
        assert narrow.post("/v1/plans", json=body).status_code == 202
        yield Refusal(narrow.post("/v1/plans", json=body), 429, "too_many_waiting")
        assert narrow.post("/v1/jobs?dry_run=true", json=body).status_code == 429
    yield Refusal(
        w.client.post("/v1/plans", json={**body, "dataset": new_id("ds")}), 422, "dataset_not_found", "/dataset"
    )
    waiting = w.client.post("/v1/datasets", json={"name": "d"}).json()["id"]
    yield Refusal(w.client.post("/v1/plans", json={**body, "dataset": waiting}), 409, "dataset_not_ready", "/dataset")


# --- studies --------------------------------------------------------------------------------------------------


def study_body(w: World) -> dict[str, Any]:
    before = w.client.get("/v1/jobs?state=succeeded").json()["items"]
    return {
        "name": "s",
        "teacher": {"job": before[0]["id"] if before else w.given.succeeded()},
        "dataset": w.given.dataset().id,
        "arms": [{"name": "fgd", "methods": FGD}],
        "students": [{"fpn_channels": 64}],
        "seeds": [0, 1],
    }


def a_study(w: World, state: str = "queued") -> str:
    """The address of one."""
    url = f"/v1/studies/{w.client.post('/v1/studies', json=study_body(w)).json()['id']}"
    if state == "cancelled":
        assert w.client.post(f"{url}/cancel").status_code == 202
    return url


@of("POST /v1/studies")
def submit_study(w: World) -> Iterator[Refusal]:
    body = study_body(w)
    yield from bad_json(w, "/v1/studies")
    yield from bad_keys(w, "/v1/studies", body, studies, "_grow")
    refused: list[tuple[dict[str, Any], str, str]] = [
        ({"teacher": None}, "teacher_missing", "/teacher"),
        ({"arms": [{"name": "plain", "methods": []}]}, "teacher_without_methods", "/teacher"),
        ({"arms": [*body["arms"], *body["arms"]]}, "name_taken", "/arms/1/name"),
        ({"arms": [{"name": "x", "methods": FGD, "against": "y"}]}, "arm_not_found", "/arms/0/against"),
        ({"seeds": [3, 3]}, "given_twice", "/seeds/1"),
        ({"seeds": list(range(101))}, "too_many_jobs", "/seeds"),
    ]
    for change, code, pointer in refused:
        yield Refusal(w.client.post("/v1/studies", json=body | change), 422, code, pointer)
    perhaps = w.client.post("/v1/studies?dry_run=perhaps", json=body)
    yield Refusal(perhaps, 422, "invalid_request", "?dry_run")
    unready = body | {"dataset": w.client.post("/v1/datasets", json={"name": "d"}).json()["id"]}
    yield Refusal(w.client.post("/v1/studies", json=unready), 409, "dataset_not_ready", "/dataset")
    with w.serving(w.settings.model_copy(update={"max_queued_jobs": 3})) as narrow:
        yield Refusal(narrow.post("/v1/studies", json=body), 429, "too_many_waiting")


@of("GET /v1/studies")
def list_studies(w: World) -> Iterator[Refusal]:
    yield from bad_pages(w, "/v1/studies")


@of("GET /v1/studies/{study_id}")
def get_study(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"/v1/studies/{new_id('std')}"), 404, "study_not_found")
    yield from too_many_waiters(w, a_study(w))


@of("GET /v1/studies/{study_id}/leaderboard")
def get_leaderboard(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"/v1/studies/{new_id('std')}/leaderboard"), 404, "study_not_found")
    yield Refusal(w.client.get(f"{a_study(w)}/leaderboard?split=train"), 422, "invalid_request", "?split")


@of("PATCH /v1/studies/{study_id}")
def rename_study(w: World) -> Iterator[Refusal]:
    yield from bad_renames(w, a_study(w), f"/v1/studies/{new_id('std')}", "study_not_found")


@of("POST /v1/studies/{study_id}/extend")
def extend_study(w: World) -> Iterator[Refusal]:
    url = f"{a_study(w)}/extend"
    yield from bad_json(w, url)
    yield Refusal(w.client.post(f"/v1/studies/{new_id('std')}/extend", json={}), 404, "study_not_found")
    other = {"arms": [{"name": "fgd", "methods": [{"kind": "mimic"}]}]}
    yield Refusal(w.client.post(url, json=other), 422, "arm_exists", "/arms/0/name")
    with w.serving(w.settings.model_copy(update={"max_queued_jobs": 4})) as narrow:
        yield Refusal(narrow.post(url, json={"seeds": [8]}), 429, "too_many_waiting")

    def changed_meanwhile(*arguments: Any) -> Any:
        w.client.patch(url.removesuffix("/extend"), json={"name": "changed"})
        return checked(*arguments)

    checked = studies._checked
    with w.patch.context() as patch:
        patch.setattr(studies, "_checked", changed_meanwhile)
        yield Refusal(w.client.post(url, json={"seeds": [9]}), 409, "study_changed")
    study = w.client.get(url.removesuffix("/extend")).json()
    assert w.client.post(f"/v1/studies/{study['id']}/cancel").status_code == 202
    assert w.client.delete(f"/v1/jobs/{study['spec']['teacher']['job']}").status_code == 204
    yield Refusal(w.client.post(url, json={"seeds": [9]}), 409, "study_cannot_grow")


@of("POST /v1/studies/{study_id}/retry")
def retry_study(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.post(f"/v1/studies/{new_id('std')}/retry"), 404, "study_not_found")
    yield Refusal(w.client.post(f"{a_study(w)}/retry"), 409, "nothing_to_retry")
    ended = a_study(w, "cancelled")
    with w.serving(w.settings.model_copy(update={"max_queued_jobs": 3})) as narrow:
        yield Refusal(narrow.post(f"{ended}/retry"), 429, "too_many_waiting")


@of("POST /v1/studies/{study_id}/cancel")
def cancel_study(w: World) -> Iterator[Refusal]:
    url = a_study(w)
    yield from bad_json(w, f"{url}/cancel")
    yield Refusal(w.client.post(f"/v1/studies/{new_id('std')}/cancel"), 404, "study_not_found")
    for _ in range(4):
        claim = w.given.claim()
        with db.transaction(w.given.engine) as s:
            attempts.finish(s, claim.job_id, claim.attempt, [], "e" * 64)
    yield Refusal(w.client.post(f"{url}/cancel"), 409, "study_finished")


@of("POST /v1/studies/{study_id}/pause")
def pause_study(w: World) -> Iterator[Refusal]:
    yield from of_ended_studies(w, "pause")


@of("POST /v1/studies/{study_id}/resume")
def resume_study(w: World) -> Iterator[Refusal]:
    yield from of_ended_studies(w, "resume")


def of_ended_studies(w: World, verb: str) -> Iterator[Refusal]:
    yield Refusal(w.client.post(f"/v1/studies/{new_id('std')}/{verb}"), 404, "study_not_found")
    yield Refusal(w.client.post(f"{a_study(w, 'cancelled')}/{verb}"), 409, "study_finished")


@of("DELETE /v1/studies/{study_id}")
def delete_study(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.delete(f"/v1/studies/{new_id('std')}"), 404, "study_not_found")
    yield Refusal(w.client.delete(a_study(w)), 409, "study_running")
    yield Refusal(w.client.delete(f"{a_study(w)}?jobs=perhaps"), 422, "invalid_request", "?jobs")


# --- what a worker works out ----------------------------------------------------------------------------------


def bad_networks(w: World, url: str, **more: Any) -> Iterator[Refusal]:
    """The refusals of every route that names a model, or a job's student or teacher."""
    running, ended = w.given.running(), failed_job(w, w.given.running())
    waiting = w.client.post("/v1/models", json=UPLOAD).json()["id"]
    for body, status, code, at in (
        ({"job": new_id("job")}, 422, "job_not_found", "/job"),
        ({"job": ended}, 422, "job_has_no_weights", "/job"),
        ({"job": running}, 409, "job_not_ready", "/job"),
        ({"job": running, "network": "teacher"}, 422, "job_has_no_teacher", "/job"),
        ({"model": new_id("mdl")}, 422, "model_not_found", "/model"),
        ({"model": waiting}, 409, "model_not_ready", "/model"),
        ({}, 422, "invalid_request", ""),
        ({"model": waiting, "which": "best"}, 422, "invalid_request", "/which"),
    ):
        yield Refusal(w.client.post(url, json={**body, **more}), status, code, at)


@of("POST /v1/evaluations")
def submit_evaluation(w: World) -> Iterator[Refusal]:
    url = "/v1/evaluations"
    yield from bad_json(w, url)
    of, job = w.given.dataset().id, w.given.succeeded()
    body = {"job": job, "dataset": of}
    yield from too_many_waiting(w, url, body, "max_waiting_tasks")
    yield from bad_networks(w, url, dataset=of)
    other, sizes = w.given.dataset(classes=("cow",)).id, {"min_size": 900}
    waiting = w.client.post("/v1/datasets", json={"name": "d"}).json()["id"]
    for change, status, code, at in (
        ({"dataset": new_id("ds")}, 422, "dataset_not_found", "/dataset"),
        ({"dataset": w.given.dataset("rejected").id}, 422, "dataset_rejected", "/dataset"),
        ({"dataset": waiting}, 409, "dataset_not_ready", "/dataset"),
        ({"dataset": other}, 422, "no_common_class", "/dataset"),
        ({"split": "test"}, 422, "split_not_found", "/split"),
        (sizes, 422, "sizes_differ", "/min_size"),
    ):
        yield Refusal(w.client.post(url, json={**body, **change}), status, code, at)
    yield Refusal(w.client.post(url, json={"model": w.promoted()}), 422, "dataset_missing", "/dataset")
    once = {"Idempotency-Key": "again"}
    w.client.post(url, json=body, headers=once)
    reused = w.client.post(url, json={**body, "split": "train"}, headers=once)
    yield Refusal(reused, 422, "idempotency_key_reused", "?Idempotency-Key")


def bad_pages_of_tasks(w: World, url: str, *ids: str) -> Iterator[Refusal]:
    """ids: the filters that take one."""
    yield from bad_pages(w, url)
    for value in ("", "running", "pending,failed", "PENDING"):
        yield Refusal(w.client.get(url, params={"state": value}), 422, "invalid_request", "?state")
    of_others = {"job": new_id("mdl"), "model": new_id("job"), "dataset": new_id("job")}
    for name in ids:
        for value in ("", "x", new_id("job").upper(), f"{new_id('job')}0", of_others[name], "\x00"):
            yield Refusal(w.client.get(url, params={name: value}), 422, "invalid_request", f"?{name}")
    for name in {"name", "split", "study", "dataset"}.difference(ids):
        yield Refusal(w.client.get(url, params={name: "x"}), 422, "invalid_request", f"?{name}")


@of("GET /v1/evaluations")
def list_evaluations(w: World) -> Iterator[Refusal]:
    yield from bad_pages_of_tasks(w, "/v1/evaluations", "job", "model", "dataset")


@of("GET /v1/evaluations/{evaluation_id}")
def get_evaluation(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"/v1/evaluations/{new_id('evl')}"), 404, "evaluation_not_found")
    made = w.client.post("/v1/evaluations", json={"job": w.given.succeeded()}).json()["id"]
    yield from too_many_waiters(w, f"/v1/evaluations/{made}")


@of("GET /v1/evaluations/{evaluation_id}/detections")
def download_detections(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"/v1/evaluations/{new_id('evl')}/detections"), 404, "evaluation_not_found")
    made = w.client.post("/v1/evaluations", json={"job": w.given.succeeded()}).json()["id"]
    yield Refusal(w.client.get(f"/v1/evaluations/{made}/detections"), 409, "no_file")
    finished(w.given)
    beyond = w.client.get(f"/v1/evaluations/{made}/detections", headers={"Range": "bytes=99-"})
    yield Refusal(beyond, 416, "range_not_satisfiable")


@of("HEAD /v1/evaluations/{evaluation_id}/detections")
def describe_detections(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.head(f"/v1/evaluations/{new_id('evl')}/detections"), 404, "evaluation_not_found")
    made = w.client.post("/v1/evaluations", json={"job": w.given.succeeded()}).json()["id"]
    yield Refusal(w.client.head(f"/v1/evaluations/{made}/detections"), 409, "no_file")


@of("DELETE /v1/evaluations/{evaluation_id}")
def delete_evaluation(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.delete(f"/v1/evaluations/{new_id('evl')}"), 404, "evaluation_not_found")


@of("POST /v1/exports")
def submit_export(w: World) -> Iterator[Refusal]:
    url = "/v1/exports"
    yield from bad_json(w, url)
    body = {"job": w.given.succeeded()}
    yield from too_many_waiting(w, url, body, "max_waiting_tasks")
    yield from bad_networks(w, url)
    yield Refusal(w.client.post(url, json={**body, "batch": 0}), 422, "invalid_request", "/batch")
    yield Refusal(w.client.post(url, json={**body, "max_ap_loss": 1}), 422, "invalid_request", "/max_ap_loss")
    several = {"job": w.given.succeeded(detector={"kind": "faster_rcnn"}), "batch": 2}
    yield Refusal(w.client.post(url, json=several), 422, "one_image_at_a_time", "/batch")
    other = w.given.dataset(classes=("stranger",)).id
    int8 = {**body, "format": "onnx-int8", "dataset": other}
    yield Refusal(w.client.post(url, json=int8), 422, "no_common_class", "/dataset")
    yield Refusal(w.client.post(url, json={**body, "dataset": new_id("ds")}), 422, "dataset_not_found", "/dataset")
    waiting = w.client.post("/v1/datasets", json={"name": "d"}).json()["id"]
    yield Refusal(w.client.post(url, json={**body, "dataset": waiting}), 409, "dataset_not_ready", "/dataset")


@of("GET /v1/exports")
def list_exports(w: World) -> Iterator[Refusal]:
    yield from bad_pages_of_tasks(w, "/v1/exports", "job", "model", "dataset")


@of("GET /v1/exports/{export_id}")
def get_export(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"/v1/exports/{new_id('exp')}"), 404, "export_not_found")
    made = w.client.post("/v1/exports", json={"job": w.given.succeeded()}).json()["id"]
    yield from too_many_waiters(w, f"/v1/exports/{made}")


def files_of_an_export(w: World, role: str) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"/v1/exports/{new_id('exp')}/{role}"), 404, "export_not_found")
    made = w.client.post("/v1/exports", json={"job": w.given.succeeded()}).json()["id"]
    yield Refusal(w.client.get(f"/v1/exports/{made}/{role}"), 409, "no_file")
    written(w.given)
    beyond = w.client.get(f"/v1/exports/{made}/{role}", headers={"Range": "bytes=99-"})
    yield Refusal(beyond, 416, "range_not_satisfiable")


REFUSALS["GET /v1/exports/{export_id}/content"] = partial(files_of_an_export, role="content")
REFUSALS["GET /v1/exports/{export_id}/usage"] = partial(files_of_an_export, role="usage")
REFUSALS["GET /v1/exports/{export_id}/report"] = partial(files_of_an_export, role="report")


@of(*(f"HEAD /v1/exports/{{export_id}}/{role}" for role in ("content", "usage", "report")))
def describe_files_of_an_export(w: World) -> Iterator[Refusal]:
    for role in ("content", "usage", "report"):
        yield Refusal(w.client.head(f"/v1/exports/{new_id('exp')}/{role}"), 404, "export_not_found")
        made = w.client.post("/v1/exports", json={"job": w.given.succeeded()}).json()["id"]
        yield Refusal(w.client.head(f"/v1/exports/{made}/{role}"), 409, "no_file")


@of("DELETE /v1/exports/{export_id}")
def delete_export(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.delete(f"/v1/exports/{new_id('exp')}"), 404, "export_not_found")


@of("POST /v1/predictions")
def submit_prediction(w: World) -> Iterator[Refusal]:
    job, picture = w.given.succeeded(), b"GIF89a"
    url = f"/v1/predictions?job={job}"
    waiting, running = w.client.post("/v1/models", json=UPLOAD).json()["id"], w.given.running()
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    yield Refusal(w.client.post(url, content=picture, headers=form), 415, "not_raw")
    yield Refusal(w.client.post(url, content=picture, headers={"Content-Encoding": "gzip"}), 415, "not_raw")
    yield Refusal(w.client.post(url, content=b""), 422, "upload_empty", "")
    yield Refusal(w.client.post(url, content=b"text"), 422, "not_a_picture", "")
    yield Refusal(w.client.post("/v1/predictions", content=picture), 422, "invalid_request", "?job")
    yield Refusal(w.client.post(f"{url}&score=x", content=picture), 422, "invalid_request", "?score")
    yield Refusal(w.client.post(f"/v1/predictions?job={new_id('job')}", content=picture), 422, "job_not_found", "?job")
    yield Refusal(w.client.post(f"/v1/predictions?job={running}", content=picture), 409, "job_not_ready")
    yield Refusal(w.client.post(f"/v1/predictions?model={waiting}", content=picture), 409, "model_not_ready")
    yield Refusal(cut(w, "POST", url, {}, SOME), 400, "upload_cut")
    with w.serving(w.settings.model_copy(update={"max_picture_bytes": 5})) as narrow:
        yield Refusal(narrow.post(url, content=picture), 413, "body_too_large")
    with w.serving(w.settings.model_copy(update={"max_waiting_tasks": 1})) as narrow:
        assert narrow.post(url, content=picture).status_code == 202
        yield Refusal(narrow.post(url, content=picture), 429, "too_many_waiting")


@of("GET /v1/predictions")
def list_predictions(w: World) -> Iterator[Refusal]:
    yield from bad_pages_of_tasks(w, "/v1/predictions", "job", "model")


@of("GET /v1/predictions/{prediction_id}")
def get_prediction(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.get(f"/v1/predictions/{new_id('pred')}"), 404, "prediction_not_found")
    made = w.client.post(f"/v1/predictions?job={w.given.succeeded()}", content=b"GIF89a").json()["id"]
    yield from too_many_waiters(w, f"/v1/predictions/{made}")


@of("DELETE /v1/predictions/{prediction_id}")
def delete_prediction(w: World) -> Iterator[Refusal]:
    yield Refusal(w.client.delete(f"/v1/predictions/{new_id('pred')}"), 404, "prediction_not_found")


# --- the tests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", REFUSALS)
def test_each_refusal_has_its_code_and_names_the_place_at_fault(world: World, route: str) -> None:
    met: set[str] = set()
    for refusal in REFUSALS[route](world):
        answer = refusal.answer
        assert answer.status_code == refusal.status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        met.add(str(refusal.status))
        if route.startswith("HEAD"):
            continue
        told = answer.json()
        assert told["code"] == refusal.code, told
        places = [
            error["pointer"] if error["parameter"] is None else f"?{error['parameter']}" for error in told["errors"]
        ]
        assert refusal.at in places if refusal.at is not None else places == [], told
        assert is_of(route, told["instance"])
    assert met == documented(world, route), "the OpenAPI document names other refusals than were met"


def is_of(route: str, address: str) -> bool:
    pattern, parts = route.partition(" ")[2].split("/"), address.split("/")
    return len(pattern) == len(parts) and all(p.startswith("{") or p == q for p, q in zip(pattern, parts, strict=True))


def documented(world: World, route: str) -> set[str]:
    method, _, path = route.partition(" ")
    return {
        status for status in world.client.app.openapi()["paths"][path][method.lower()]["responses"] if status[0] == "4"
    }


def test_every_route_of_these_modules_stands_in_the_table() -> None:
    parts = (dataset_routes, samples, model_routes, study_routes, plans, artifacts, evaluations, exports, predictions)
    found = {f"{method} {route.path}" for part in parts for route in part.router.routes for method in route.methods}
    assert len(found) > 15
    assert found <= REFUSALS.keys()


CALLS = {"Conflict": 0, "Refused": 0, "Busy": 0, "NotFound": 0, "Fault": 1, "fault": 1, "Places": 1}
"""What makes a refusal -> which argument is its code."""
ROLES = ("teacher", "inherit", "weights")
ELSEWHERE = {
    "no_space": "507; see test_uploads",
    "workers_alive": "of the commands backup, restore and doctor; see test_backup",
    "route_not_found": "no route; see test_server",
    "job_has_several_teachers": "see test_evaluations",
    "focus_not_found": "see test_focus",
    "no_detections": "see test_side_by_side",
    "nothing_to_compare": "see test_side_by_side",
    "class_not_found": "see test_side_by_side",
    "image_not_found": "see test_side_by_side",
    "not_a_download": "see test_tickets",
    "file_not_found": "of the dashboard; see test_web",
    "not_exportable": "all families have a graph; see test_exports",
    "no_boxes": "see test_exports",
    "impossible_pair": "all families share strides; for the first that does not",
    "impossible_spec": "references find the same before; for what they do not know",
}


def test_every_code_in_the_source_has_a_line_in_the_table() -> None:
    """The lines are run above; here it is enough that the code is written in one."""
    files = [file for file in Path(api.__path__[0]).rglob("*.py") if file.name not in OTHERS]
    made = {code for file in files for code in codes_made(ast.parse(file.read_text()))}
    assert len(made) > 50
    table = ast.parse(Path(__file__).read_text())
    written = {code for node in ast.walk(table) for code in words(node)}
    assert made - ELSEWHERE.keys() <= written, sorted(made - written)


OTHERS = {"lifecycle.py", "requests.py", "workers.py"}
"""With refusals of their own kind, which stand in other tests: what may be asked of a job, and of a worker."""


def codes_made(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
            for argument in node.args[CALLS.get(name, len(node.args)) :][:1]:
                yield from (f"{word}_not_found" if name == "NotFound" else word for word in words(argument))


def words(node: ast.AST) -> Iterator[str]:
    """The text of a literal; of f"{role}_not_found" that of each role."""
    match node:
        case ast.Constant(str(text)):
            yield text
        case ast.JoinedStr([ast.FormattedValue(ast.Name("role")), ast.Constant(str(rest))]):
            yield from (role + rest for role in ROLES)
