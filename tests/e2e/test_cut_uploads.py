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
DIGEST = f"sha-256=:{base64.b64encode(hashlib.sha256(DATA).digest()).decode()}:"


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


def test_a_zip_cut_at_every_megabyte_and_by_the_server_s_death_is_whole_in_the_end(service: Service) -> None:
    dataset = service.http.post("/v1/datasets", json={"name": "cut"}).json()
    url = dataset["upload_url"]
    for n in range(5):
        rest = DATA[n * MEGA :]
        headers = {"Content-Type": "application/zip", "Content-Length": str(len(rest))}
        if n:
            headers |= {"Upload-Offset": str(n * MEGA), "Upload-Length": str(len(DATA))}
        send_and_cut(service, "PATCH" if n else "PUT", url, headers, rest[:MEGA])
        until(lambda n=n: offset(service, url) == (n + 1) * MEGA, what=f"megabyte {n + 1}")
        if n == 2:
            os.kill(service.pid("deploy.api"), signal.SIGKILL)
            time.sleep(0.2)
            until(lambda: answers(service), what="the next server")
            assert offset(service, url) == 3 * MEGA

    headers = {"Content-Type": "application/zip", "Upload-Offset": str(5 * MEGA), "Repr-Digest": DIGEST}
    last = service.http.patch(url, content=DATA[5 * MEGA :], headers=headers)

    assert (last.status_code, last.headers["upload-complete"]) == (204, "?1"), last.text
    until(lambda: service.http.get(f"/v1/datasets/{dataset['id']}").json()["state"] == "rejected", what="the import")
    assert "zip" in service.http.get(f"/v1/datasets/{dataset['id']}").json()["error"]  # it is noise, and all of it came
    assert parts(service) == []


def test_weights_cut_at_every_megabyte_leave_nothing_and_come_whole_the_next_time(service: Service) -> None:
    body = {"name": "cut", "detector": {"kind": "fcos", "fpn_channels": 64}, "classes": ["a"]}
    model = service.http.post("/v1/models", json=body).json()
    header = b'{"a":{"dtype":"U8","shape":[5000321],"data_offsets":[0,5000321]}}'
    weights = len(header).to_bytes(8, "little") + header + DATA
    for n in range(1, 6):
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(weights))}
        send_and_cut(service, "PUT", model["content_url"], headers, weights[: n * MEGA])
        until(lambda: not parts(service), what=f"the end of what came of {n} MB")
        assert service.http.get(f"/v1/models/{model['id']}").json()["state"] == "awaiting_upload"

    sent = service.http.put(model["content_url"], content=weights, headers={"Content-Type": "application/octet-stream"})

    assert sent.status_code == 202, sent.text
    assert sent.json()["upload_sha256"] == hashlib.sha256(weights).hexdigest()
