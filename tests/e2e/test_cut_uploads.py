"""Uploads to a real server process, over connections that break at every megabyte, and past a killed server (F28)."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import signal
import socket
import time
from collections.abc import Mapping

import httpx
import pytest

from tests.e2e.parts import Service, until

pytestmark = pytest.mark.e2e

MEGA = 1_000_000
DATA = random.Random(5).randbytes(5 * MEGA + 321)


def send_and_cut(service: Service, method: str, url: str, headers: Mapping[str, str], data: bytes) -> None:
    """Announce more than is sent, then hang up when the server has begun to write."""
    host, port = service.http.base_url.host, service.http.base_url.port
    lines = [f"{method} {url} HTTP/1.1", f"Host: {host}:{port}", *(f"{k}: {v}" for k, v in headers.items())]
    with socket.create_connection((host, port or 80)) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        until(lambda: parts(service), what="the file that is written to")


def parts(service: Service) -> list[str]:
    folder = service.home / "uploads"
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def offset(service: Service, url: str) -> int:
    return int(service.http.head(url).headers["upload-offset"])


def answers(service: Service) -> bool:
    try:
        return service.http.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def send_in_cut_pieces(service: Service, url: str, data: bytes) -> None:
    """Every connection breaks after a megabyte, and after the third the server is killed; the last one does not."""
    for n in range(5):
        rest = data[n * MEGA :]
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(rest))}
        if n:
            headers |= {"Upload-Offset": str(n * MEGA), "Upload-Length": str(len(data))}
        send_and_cut(service, "PATCH" if n else "PUT", url, headers, rest[:MEGA])
        until(lambda n=n: offset(service, url) == (n + 1) * MEGA, what=f"megabyte {n + 1}")
        if n == 2:
            os.kill(service.pid("deploy.api"), signal.SIGKILL)
            time.sleep(0.2)
            until(lambda: answers(service), what="the next server")
            assert offset(service, url) == 3 * MEGA

    digest = f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"
    headers = {"Content-Type": "application/octet-stream", "Upload-Offset": str(5 * MEGA), "Repr-Digest": digest}
    last = service.http.patch(url, content=data[5 * MEGA :], headers=headers)
    assert (last.status_code, last.headers["upload-complete"]) == (204, "?1"), last.text
    assert parts(service) == []


def test_a_zip_cut_at_every_megabyte_and_by_the_server_s_death_is_whole_in_the_end(service: Service) -> None:
    dataset = service.http.post("/v1/datasets", json={"name": "cut"}).json()

    send_in_cut_pieces(service, dataset["upload_url"], DATA)

    until(lambda: service.http.get(f"/v1/datasets/{dataset['id']}").json()["state"] == "rejected", what="the import")
    assert "zip" in service.http.get(f"/v1/datasets/{dataset['id']}").json()["error"]  # it is noise, and all of it came


def test_weights_cut_at_every_megabyte_and_by_the_server_s_death_are_whole_in_the_end(service: Service) -> None:
    body = {"name": "cut", "detector": {"kind": "fcos", "fpn_channels": 64}, "classes": ["a"]}
    model = service.http.post("/v1/models", json=body).json()
    header = b'{"a":{"dtype":"U8","shape":[5000321],"data_offsets":[0,5000321]}}'
    weights = len(header).to_bytes(8, "little") + header + DATA

    send_in_cut_pieces(service, model["content_url"], weights)

    came = service.http.get(f"/v1/models/{model['id']}").json()
    assert came["upload_sha256"] == hashlib.sha256(weights).hexdigest()
    until(lambda: service.http.get(f"/v1/models/{model['id']}").json()["state"] == "rejected", what="the check")
    assert "missing" in str(service.http.get(f"/v1/models/{model['id']}").json()["report"])  # no detector, and sound
