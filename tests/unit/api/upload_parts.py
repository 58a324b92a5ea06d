"""What tests of uploads share: the two nouns, contents that both take, and connections that break."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from api.core.rows import db
from api.core.rows.lookup import owned
from api.core.rows.tables import DEFAULT_PROJECT, Dataset, Model
from api.main import create_app
from deploy import http_server

RAW = {"Content-Type": "application/octet-stream"}
ZIP = {"Content-Type": "application/zip"}
PIECE = {"Content-Type": "application/partial-upload"}


@dataclass(frozen=True)
class Noun:
    name: str
    row: type[Dataset] | type[Model]
    body: dict[str, Any]
    link: str
    """Field of the answer that names the address of the content."""
    limit: str
    """The setting of its largest content."""


DATASETS = Noun("datasets", Dataset, {"name": "cells"}, "upload_url", "upload_bytes")
MODELS = Noun(
    "models",
    Model,
    {"name": "t", "detector": {"kind": "fcos", "fpn_channels": 64}, "classes": ["cat", "dog"]},
    "content_url",
    "max_model_bytes",
)


def weights(data: bytes) -> bytes:
    """A sound safetensors file of one tensor; as a zip it is as good as any that nobody has opened yet."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


CONTENT = weights(b"0123456789")
BEGIN, REST = CONTENT[:30], CONTENT[30:]
LARGE = weights(random.Random(7).randbytes(3_000_000))


def digest(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def registered(client: Any, noun: Noun = DATASETS, **body: Any) -> Any:
    answer = client.post(f"/v1/{noun.name}", json=noun.body | body)
    assert answer.status_code in (201, 202), answer.text
    return answer.json()


@pytest.fixture(params=[DATASETS, MODELS], ids=lambda noun: noun.name)
def noun(request: pytest.FixtureRequest) -> Noun:
    return request.param


@pytest.fixture
def url(client: Any, noun: Noun) -> str:
    """Where the content of a row of that noun goes."""
    return str(registered(client, noun)[noun.link])


@pytest.fixture
def address(settings: Any) -> Iterator[tuple[str, int]]:
    app = create_app(settings)
    server = http_server.Server(http_server.config(app, host="127.0.0.1", port=0, lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()
    server.should_exit = True
    thread.join(10)


def row_of(given: Any, url: str) -> Any:
    _, _, name, id, _ = url.split("/")
    with db.reading(given.engine) as s:
        return owned(s, Dataset if name == "datasets" else Model, DEFAULT_PROJECT, id)


def parts(settings: Any) -> list[str]:
    return sorted(os.listdir(settings.uploads)) if settings.uploads.is_dir() else []


def offset(client: Any, url: str) -> int:
    return int(client.head(url).headers["upload-offset"])


def patch(client: Any, url: str, data: bytes, at: int, **headers: str) -> Any:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.patch(url, content=data, headers={**PIECE, "Upload-Offset": str(at), **told})


def refused(answer: Any, status: int, code: str, parameter: str | None = None) -> Any:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    if parameter is not None:
        assert answer.json()["errors"][0]["parameter"].lower() == parameter.lower()
    return answer


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


@contextlib.contextmanager
def slowly(
    address: tuple[str, int], method: str, url: str, headers: dict[str, str], data: bytes
) -> Iterator[Callable[[], int]]:
    """Sends half of the body; call it for the other half, and the status of the answer."""
    told = {"Host": f"127.0.0.1:{address[1]}", "Content-Length": str(len(data)), **headers}
    lines = [f"{method} {url} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items())]
    half = len(data) // 2
    with socket.create_connection(address) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + data[:half])

        def rest() -> int:
            connection.sendall(data[half:])
            return int(connection.recv(4096).split()[1])

        yield rest


def until(done: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not done():
        assert time.monotonic() < give_up
        time.sleep(0.005)


class Cutter:
    """A proxy that hangs up on every connection after so many bytes."""

    def __init__(self, target: tuple[str, int], most: int) -> None:
        self.target, self.most, self.cuts = target, most, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
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


class Passing(httpx.BaseTransport):
    """Carries the client's requests into a test server."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self.inner.request(request.method, str(request.url), content=request.read(), headers=request.headers)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)
