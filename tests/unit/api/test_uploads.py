"""The zip of a data set comes in one stream, or in pieces over connections that break (fault F28)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner

from api.core import datasets
from api.core.rows import db
from api.core.rows.ids import new_id
from api.core.rows.tables import DEFAULT_PROJECT
from api.core.store import uploads
from api.core.sweeper import Sweeper
from api.main import create_app
from fgd.cli import main
from fgd.client import ApiError, Client, ClientError
from fgd.data import zips

ZIP = {"Content-Type": "application/zip"}
PIECE = {"Content-Type": "application/partial-upload"}


def digest(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def registered(client: Any, **body: Any) -> Any:
    answer = client.post("/v1/datasets", json={"name": "cells", **body})
    assert answer.status_code == 202, answer.text
    return answer.json()


@pytest.fixture
def url(client: Any) -> str:
    return str(registered(client)["upload_url"])


def upload_of(given: Any, url: str) -> Any:
    with db.reading(given.engine) as s:
        return datasets.get(s, DEFAULT_PROJECT, url.split("/")[3])


def parts(settings: Any) -> list[str]:
    return sorted(os.listdir(settings.uploads)) if settings.uploads.is_dir() else []


def test_a_data_set_without_a_path_waits_for_its_zip(client: Any) -> None:
    dataset = registered(client, format="yolo", val_fraction=0.2, group_by="prefix")
    assert (dataset["state"], dataset["path"]) == ("awaiting_upload", None)
    assert (dataset["format"], dataset["val_fraction"], dataset["group_by"]) == ("yolo", 0.2, "prefix")
    assert dataset["upload_url"] == f"/v1/datasets/{dataset['id']}/content"
    report = client.get(f"/v1/datasets/{dataset['id']}/report")
    assert (report.status_code, report.json()["code"]) == (409, "dataset_not_ready")


def test_a_zip_in_one_stream_goes_to_the_store_and_its_import_is_due(
    client: Any, given: Any, settings: Any, url: str
) -> None:
    data = random.Random(0).randbytes(3_000_000)
    answer = client.put(url, content=data, headers={**ZIP, "Content-Digest": digest(data)})
    assert answer.status_code == 202, answer.text
    assert (answer.json()["state"], answer.json()["upload_url"]) == ("verifying", None)
    sha256 = hashlib.sha256(data).hexdigest()
    assert upload_of(given, url).upload_digest == sha256
    assert given.store.path(sha256, verify=True).read_bytes() == data
    assert parts(settings) == []
    head = client.head(url)
    assert (head.headers["upload-offset"], head.headers["upload-complete"]) == ("3000000", "?1")
    with db.transaction(given.engine) as s:
        claim = datasets.claim_import(s, "wrk_a", lease_s=20.0)
    assert claim is not None
    assert (claim.upload_digest, claim.path) == (sha256, None)


def test_a_zip_in_pieces_is_whole_when_its_length_is_there(client: Any, given: Any, url: str) -> None:
    data = random.Random(1).randbytes(250_000)
    for start in range(0, len(data), 100_000):
        piece = data[start : start + 100_000]
        headers = {**PIECE, "Upload-Offset": str(start), "Upload-Length": "250000", "Content-Digest": digest(piece)}
        answer = client.patch(url, content=piece, headers=headers)
        assert answer.status_code == 204, answer.text
        assert answer.headers["upload-offset"] == str(start + len(piece))
        assert answer.headers["upload-complete"] == ("?1" if start == 200_000 else "?0")
        head = client.head(url)
        assert (head.headers["upload-offset"], head.headers["upload-length"]) == (str(start + len(piece)), "250000")
    assert upload_of(given, url).upload_digest == hashlib.sha256(data).hexdigest()


def test_a_zip_in_pieces_is_whole_when_the_last_says_so(client: Any, given: Any, url: str) -> None:
    for start, piece, last in ((0, b"abc", "?0"), (3, b"def", "?1")):
        headers = {**PIECE, "Upload-Offset": str(start), "Upload-Complete": last}
        assert client.patch(url, content=piece, headers=headers).headers["upload-complete"] == last
    assert upload_of(given, url).upload_digest == hashlib.sha256(b"abcdef").hexdigest()


# --- refusals -------------------------------------------------------------------------------------------------


def refused(answer: Any, status: int, code: str, parameter: str | None = None) -> Any:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    if parameter is not None:
        assert answer.json()["errors"][0]["parameter"].lower() == parameter.lower()
    return answer


@pytest.mark.parametrize("method", ["put", "patch"])
def test_other_types_than_a_zip_are_a_415(client: Any, url: str, method: str) -> None:
    for kind in ({"Content-Type": "application/json"}, {"Content-Type": "multipart/form-data; boundary=x"}, {}):
        answer = client.request(method, url, content=b"x", headers={"Upload-Offset": "0", **kind})
        assert "application/zip" in refused(answer, 415, "not_a_zip_type").headers["accept"]


@pytest.mark.parametrize("method", ["put", "patch"])
def test_a_stream_of_unknown_length_is_a_411(client: Any, url: str, method: str) -> None:
    answer = client.request(method, url, content=iter([b"x", b"y"]), headers={**ZIP, "Upload-Offset": "0"})
    refused(answer, 411, "length_required")
    assert client.head(url).headers["upload-offset"] == "0"


@pytest.mark.parametrize("method", ["put", "patch"])
def test_more_than_the_limit_is_a_413_before_it_is_read(serving: Any, settings: Any, method: str) -> None:
    with serving(settings.model_copy(update={"upload_bytes": 10})) as client:
        url = registered(client)["upload_url"]
        answer = client.request(method, url, content=b"x" * 11, headers={**ZIP, "Upload-Offset": "0"})
        assert "FGD_UPLOAD_BYTES" in refused(answer, 413, "upload_too_large").json()["detail"]
        announced = client.patch(url, content=b"x", headers={**PIECE, "Upload-Offset": "0", "Upload-Length": "11"})
        refused(announced, 413, "upload_too_large")
        assert client.head(url).headers["upload-limit"] == "max-size=10"
    assert parts(settings) == []


def test_a_disk_without_room_is_a_507(client: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.core.store.uploads.SPARE", 1e18)
    refused(client.put(url, content=b"x", headers=ZIP), 507, "no_space")


@pytest.mark.parametrize("header", ["Content-Digest", "Repr-Digest"])
def test_bytes_other_than_promised_are_dropped(client: Any, given: Any, settings: Any, url: str, header: str) -> None:
    answer = client.put(url, content=b"these", headers={**ZIP, header: digest(b"those")})
    refused(answer, 422, "digest_mismatch", "Content-Digest")
    assert client.head(url).headers["upload-offset"] == "0"
    assert list(settings.blobs.rglob("*.tmp*")) == []
    assert not given.store.exists(hashlib.sha256(b"these").hexdigest())
    assert client.put(url, content=b"those", headers={**ZIP, header: digest(b"those")}).status_code == 202


def test_a_torn_piece_is_dropped_and_those_before_it_stay(client: Any, url: str) -> None:
    client.patch(url, content=b"abc", headers={**PIECE, "Upload-Offset": "0"})
    headers = {**PIECE, "Upload-Offset": "3", "Content-Digest": digest(b"def")}
    refused(client.patch(url, content=b"dXf", headers=headers), 422, "digest_mismatch", "Content-Digest")
    assert client.head(url).headers["upload-offset"] == "3"
    headers |= {"Upload-Complete": "?1", "Repr-Digest": digest(b"abcdef")}
    assert client.patch(url, content=b"def", headers=headers).status_code == 204


@pytest.mark.parametrize("value", ["sha-256=abc", "md5=:abcd:", "sha-256=:!!!:", "sha-256=:YWJj:", ""])
def test_a_digest_that_cannot_be_read_is_a_422(client: Any, url: str, value: str) -> None:
    for header in ("Content-Digest", "Repr-Digest"):
        refused(client.put(url, content=b"x", headers={**ZIP, header: value}), 422, "digest_unreadable", header)


def test_a_wrong_offset_is_a_409_with_the_right_one(client: Any, url: str) -> None:
    client.patch(url, content=b"abc", headers={**PIECE, "Upload-Offset": "0"})
    for offset in ("0", "2", "4", "999999999999"):
        answer = client.patch(url, content=b"x", headers={**PIECE, "Upload-Offset": offset})
        if offset == "999999999999":
            refused(answer, 413, "upload_too_large")
            continue
        assert refused(answer, 409, "upload_offset_mismatch").headers["upload-offset"] == "3"


@pytest.mark.parametrize(
    ("changes", "code", "parameter"),
    [
        ({"Upload-Offset": "-1"}, "greater_than_equal", "Upload-Offset"),
        ({"Upload-Offset": "x"}, "int_parsing", "Upload-Offset"),
        ({"Upload-Length": "0"}, "greater_than_equal", "Upload-Length"),
        ({"Upload-Complete": "yes"}, "string_pattern_mismatch", "Upload-Complete"),
        ({"Upload-Length": "2"}, "upload_length_exceeded", "Upload-Length"),
        ({"Upload-Length": "9", "Upload-Complete": "?1"}, "upload_length_differs", "Upload-Length"),
    ],
)
def test_headers_that_make_no_sense_are_a_422(
    client: Any, url: str, changes: dict[str, str], code: str, parameter: str
) -> None:
    answer = client.patch(url, content=b"abc", headers={**PIECE, "Upload-Offset": "0", **changes})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["code"] == code
    assert answer.json()["errors"][0]["parameter"].lower().endswith(parameter.lower())
    assert client.head(url).headers["upload-offset"] == "0"


def test_a_piece_without_an_offset_is_a_422(client: Any, url: str) -> None:
    answer = client.patch(url, content=b"abc", headers=PIECE)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "missing")


def test_an_empty_zip_is_a_422(client: Any, url: str) -> None:
    refused(client.put(url, content=b"", headers=ZIP), 422, "upload_empty")


def test_content_for_a_data_set_that_wants_none_is_a_409(client: Any, given: Any) -> None:
    for state in ("verifying", "ready", "rejected"):
        url = f"/v1/datasets/{given.dataset(state).id}/content"
        refused(client.put(url, content=b"x", headers=ZIP), 409, "upload_not_expected")
        refused(client.patch(url, content=b"x", headers={**PIECE, "Upload-Offset": "0"}), 409, "upload_not_expected")
        if state == "verifying":
            given.claim_import()


@pytest.mark.parametrize("id", ["ds_" + "0" * 32, "nonsense", "..%2f..%2fetc%2fpasswd", "%00", "ds_%2e%2e"])
def test_content_of_an_unknown_data_set_is_a_404(client: Any, settings: Any, id: str) -> None:
    url = f"/v1/datasets/{id}/content"
    answers = [
        client.put(url, content=b"x", headers=ZIP),
        client.patch(url, content=b"x", headers={**PIECE, "Upload-Offset": "0"}),
    ]
    assert [answer.status_code for answer in [*answers, client.head(url)]] == [404, 404, 404]
    assert parts(settings) == []


def test_two_requests_do_not_write_the_same_upload(client: Any, settings: Any, url: str) -> None:
    with uploads.writing(settings.uploads, url.split("/")[3]):
        for answer in (
            client.put(url, content=b"x", headers=ZIP),
            client.patch(url, content=b"x", headers={**PIECE, "Upload-Offset": "0"}),
        ):
            assert refused(answer, 409, "upload_in_progress").json()["retryable"] is True


# --- a real server, and connections that break ----------------------------------------------------------------


@pytest.fixture
def address(settings: Any) -> Iterator[tuple[str, int]]:
    app = create_app(settings)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()
    server.should_exit = True
    thread.join(10)


def send_and_cut(address: tuple[str, int], method: str, url: str, headers: dict[str, str], data: bytes) -> None:
    """Announce more than is sent, then hang up."""
    lines = [f"{method} {url} HTTP/1.1", f"Host: 127.0.0.1:{address[1]}", *(f"{k}: {v}" for k, v in headers.items())]
    with socket.create_connection(address) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(10)
        try:
            while connection.recv(4096):
                pass
        except OSError:
            pass


def test_an_upload_cut_at_every_megabyte_goes_on_where_it_was_cut(
    address: tuple[str, int], given: Any, settings: Any
) -> None:
    mega = 1_000_000
    data = random.Random(2).randbytes(8 * mega + 321)
    with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as client:
        url = registered(client)["upload_url"]
        for n in range(8):
            offset = int(client.head(url).headers["upload-offset"])
            assert offset == n * mega
            rest = data[offset:]
            headers = {"Content-Length": str(len(rest)), **(PIECE if n else ZIP)}
            if n:
                headers |= {"Upload-Offset": str(offset), "Upload-Length": str(len(data))}
            send_and_cut(address, "PATCH" if n else "PUT", url, headers, rest[:mega])
        offset = int(client.head(url).headers["upload-offset"])
        assert offset == 8 * mega
        headers = {**PIECE, "Upload-Offset": str(offset), "Repr-Digest": digest(data)}
        answer = client.patch(url, content=data[offset:], headers=headers)
        assert (answer.status_code, answer.headers["upload-complete"]) == (204, "?1")
    sha256 = hashlib.sha256(data).hexdigest()
    assert upload_of(given, url).upload_digest == sha256
    assert given.store.path(sha256, verify=True).stat().st_size == len(data)
    assert parts(settings) == []
    assert os.listdir(settings.blobs / "incoming") == []


def test_an_upload_that_outlives_its_server_goes_on_at_the_next(serving: Any, settings: Any, given: Any) -> None:
    with serving(settings) as client:
        url = registered(client)["upload_url"]
        client.patch(url, content=b"abc", headers={**PIECE, "Upload-Offset": "0", "Upload-Length": "6"})
    with serving(settings) as client:
        assert client.head(url).headers["upload-offset"] == "3"
        client.patch(url, content=b"def", headers={**PIECE, "Upload-Offset": "3"})
    assert upload_of(given, url).upload_digest == hashlib.sha256(b"abcdef").hexdigest()


# --- what is left ---------------------------------------------------------------------------------------------


def test_the_sweep_leaves_what_is_awaited_and_nothing_else(client: Any, given: Any, settings: Any, url: str) -> None:
    client.patch(url, content=b"abc", headers={**PIECE, "Upload-Offset": "0"})
    (settings.uploads / f"{new_id('ds')}.part").write_bytes(b"of a data set that is gone")
    sweeper = Sweeper(given.engine, given.store, None, 20.0, settings.uploads)
    sweeper.collect()
    assert parts(settings) == [f"{url.split('/')[3]}.part"]
    assert client.delete(url.removesuffix("/content")).status_code == 204
    assert parts(settings) == []


def test_a_zip_that_never_comes_is_given_up(client: Any, given: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given.sweep()
    assert upload_of(given, url).state == "awaiting_upload"
    monkeypatch.setattr(datasets, "UPLOAD_S", 0.0)
    given.sweep()
    assert upload_of(given, url).state == "rejected"


def test_the_zip_is_let_go_when_its_import_ends(client: Any, given: Any, url: str) -> None:
    client.put(url, content=b"zip", headers=ZIP)
    claim = given.claim_import()
    with db.transaction(given.engine) as s:
        datasets.reject(s, claim.id, claim.attempt, None, "no zip")
    assert upload_of(given, url).upload_digest is None


class Cutter:
    """A proxy that hangs up on every connection after so many bytes."""

    def __init__(self, target: tuple[str, int], most: int) -> None:
        self.target, self.most, self.cuts = target, most, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.carry, args=(client,), daemon=True).start()

    def carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(self.target) as server:
            back = threading.Thread(target=self.answer, args=(server, client), daemon=True)
            back.start()
            left = self.most
            with contextlib.suppress(OSError):  # the API may answer and hang up before it has read everything
                while left and (data := client.recv(min(left, 1 << 16))):
                    server.sendall(data)
                    left -= len(data)
            if not left:
                self.cuts += 1
            with contextlib.suppress(OSError):  # the other side may have hung up first
                if not left:
                    client.shutdown(socket.SHUT_RDWR)
                server.shutdown(socket.SHUT_WR)
            back.join(10)

    @staticmethod
    def answer(server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(1 << 16):
                client.sendall(data)
        except OSError:
            pass


def test_the_client_goes_on_by_itself_where_the_network_cut_it(
    address: tuple[str, int], given: Any, tmp_path: Path
) -> None:
    data = random.Random(3).randbytes(5_000_000)
    (tmp_path / "set.zip").write_bytes(data)
    proxy = Cutter(address, 1_200_000)
    heard: list[int] = []
    with proxy.listener, Client(f"http://127.0.0.1:{proxy.listener.getsockname()[1]}", backoff_s=0.01) as client:
        dataset = client.add_dataset("cells", None, format="coco", val_fraction=0.2)
        assert client.upload(dataset.id, tmp_path / "set.zip", heard.append).state == "verifying"
        assert client.upload(dataset.id, tmp_path / "set.zip").state == "verifying"  # once more is no harm
        client.delete_dataset(dataset.id)
    assert proxy.cuts >= 4
    assert heard[-1] == len(data)
    assert given.store.path(hashlib.sha256(data).hexdigest(), verify=True).stat().st_size == len(data)


def test_an_upload_that_broke_after_its_last_byte_is_completed_by_an_empty_piece(
    client: Any, given: Any, settings: Any, url: str
) -> None:
    client.patch(url, content=b"ab", headers={**PIECE, "Upload-Offset": "0", "Upload-Length": "3"})
    with uploads.writing(settings.uploads, url.split("/")[3]) as file:
        uploads.write_all(file, b"c")  # the server died before it put the zip away
    answer = client.patch(url, content=b"", headers={**PIECE, "Upload-Offset": "3", "Content-Length": "0"})
    assert (answer.status_code, answer.headers["upload-complete"]) == (204, "?1")
    assert upload_of(given, url).upload_digest == hashlib.sha256(b"abc").hexdigest()


def test_the_client_waits_while_another_request_is_at_the_upload(
    address: tuple[str, int], settings: Any, tmp_path: Path
) -> None:
    (tmp_path / "set.zip").write_bytes(b"x" * 100)
    with Client(f"http://127.0.0.1:{address[1]}", backoff_s=0.001) as client:
        dataset = client.add_dataset("cells", None)
        with uploads.writing(settings.uploads, dataset.id), pytest.raises(ApiError, match="upload_in_progress"):
            client.upload(dataset.id, tmp_path / "set.zip", poll_s=0.02, patience_s=0.3)
        assert client.upload(dataset.id, tmp_path / "set.zip").state == "verifying"


def test_the_client_does_not_send_a_refused_zip_again_and_again(serving: Any, settings: Any, tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(b"x" * 11)
    with (
        serving(settings.model_copy(update={"upload_bytes": 10})) as inner,
        Client("http://127.0.0.1:8000", transport=Passing(inner)) as client,
    ):
        dataset = client.add_dataset("cells", None)
        with pytest.raises(ApiError, match="upload_too_large"):
            client.upload(dataset.id, tmp_path / "set.zip")
        (tmp_path / "set.zip").write_bytes(b"")
        with pytest.raises(ClientError, match="is empty"):
            client.upload(dataset.id, tmp_path / "set.zip")


@pytest.mark.parametrize("as_zip", [False, True])
def test_the_command_line_uploads_what_the_service_cannot_read(
    address: tuple[str, int], given: Any, tmp_path: Path, as_zip: bool
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "data.yaml").write_text("names: [a]")
    source = folder
    if as_zip:
        source = tmp_path / "set.zip"
        zips.pack(folder, source)
    command = ["dataset", "add", "cells", str(source), "--format", "yolo", "--no-wait", "--json"]
    done = CliRunner().invoke(main.app, [*command, "--url", f"http://127.0.0.1:{address[1]}"])
    assert done.exit_code == 0, done.output
    dataset = json.loads(done.stdout)
    assert dataset["state"] == "verifying"
    with db.reading(given.engine) as s:
        row = datasets.get(s, DEFAULT_PROJECT, dataset["id"])
    assert (row.format, row.path) == ("yolo", None)
    assert zips.unpack(given.store.path(row.upload_digest), tmp_path / "out").files == 1


class Passing(httpx.BaseTransport):
    """Carries the client's requests into a test server."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self.inner.request(request.method, str(request.url), content=request.read(), headers=request.headers)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


def test_a_large_body_is_never_held_in_memory(address: tuple[str, int]) -> None:
    piece, count = os.urandom(1 << 16), 40 * 16
    with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}", timeout=60) as client:
        url = registered(client)["upload_url"]
        headers = {**ZIP, "Content-Length": str(len(piece) * count)}
        tracemalloc.start()
        try:
            assert client.put(url, content=(piece for _ in range(count)), headers=headers).status_code == 202
            assert tracemalloc.get_traced_memory()[1] < 16 << 20  # of 40 MiB
        finally:
            tracemalloc.stop()
