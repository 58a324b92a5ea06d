"""What docker-compose.yml starts, started without Docker: its commands, environment, broker and health checks."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from deploy import broker
from tests import compose
from tests.e2e.parts import FAST, PATIENT_S, ROOT, processes_of, spec_of, until
from tests.postgres import Postgres

pytestmark = pytest.mark.e2e
PASSWORD = "0123456789abcdef" * 4
TOLD = dict.fromkeys(("FGD_API_KEY", "POSTGRES_PASSWORD", "REDIS_PASSWORD"), PASSWORD)


@dataclass
class Stack:
    """The services of the file, each as a process of this host; paths and addresses are this test's."""

    folder: Path
    data: Path
    database: str
    api_port: int
    redis_port: int
    file: dict[str, Any] = field(default_factory=lambda: compose.resolved(TOLD))
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def environment(self, service: str, **more: str) -> dict[str, str]:
        image = ROOT / self.file["services"][service]["build"]["dockerfile"]
        said = " ".join(words for instruction, words in compose.dockerfile(image) if instruction == "ENV")
        told = dict(re.findall(r"(\w+)=(\S+)", said)) | self.file["services"][service]["environment"]
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return kept | {"PYTHONPATH": str(ROOT)} | FAST | {name: self._here(name, v) for name, v in told.items()} | more

    def _here(self, name: str, value: str) -> str:
        here = {"FGD_DATABASE_URL": self.database, "FGD_PORT": str(self.api_port), "FGD_DATA_ROOTS": str(self.data)}
        if name in here:
            return here[name]
        value = value.replace("@redis:6379", f"@127.0.0.1:{self.redis_port}")
        return f"{self.folder}{value}" if value.startswith(("/srv/", "/weights")) else value

    def _command(self, words: list[str]) -> list[str]:
        assert words[0] == "python"
        return [sys.executable, *words[1:]]

    def run(self, service: str) -> subprocess.CompletedProcess[str]:
        command = self._command(self.file["services"][service]["command"])
        return subprocess.run(
            command, cwd=self.folder, env=self.environment(service), capture_output=True, text=True, check=False
        )

    def start(self, service: str) -> subprocess.Popen[bytes]:
        command = self._command(self.file["services"][service]["command"])
        with (self.folder / f"{service}.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment(service), stdout=log, stderr=log, start_new_session=True
            )
        self.running.append(process)
        return process

    def health(self, service: str, **more: str) -> tuple[int, str]:
        how, *words = self.file["services"][service]["healthcheck"]["test"]
        assert how == "CMD"
        done = subprocess.run(
            self._command(words), cwd=self.folder, env=self.environment(service, **more), capture_output=True, text=True
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    def start_redis(self) -> subprocess.Popen[bytes]:
        program = broker.find_server()
        assert program is not None
        settings = self.file["configs"]["redis"]["content"].replace("dir /data", f"dir {self.folder}")
        (self.folder / "redis.conf").write_text(f"{settings}port {self.redis_port}\nbind 127.0.0.1\n")
        with (self.folder / "redis.log").open("wb") as log:
            process = subprocess.Popen(
                [program, str(self.folder / "redis.conf")], stdout=log, stderr=log, start_new_session=True
            )
        self.running.append(process)
        until(lambda: b"Ready to accept connections" in (self.folder / "redis.log").read_bytes(), what="Redis")
        return process

    def close(self) -> None:
        for process in reversed(self.running):
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def stack(postgres: Postgres, pictures: Path, tmp_path: Path) -> Iterator[Stack]:
    (tmp_path / "srv" / "fgd" / "home").mkdir(parents=True)
    with postgres.empty() as url:
        stack = Stack(tmp_path, pictures, url, free_port(), free_port())
        try:
            yield stack
        finally:
            stack.close()
    until(lambda: not processes_of(tmp_path), what="the end of every process")


def test_services_of_the_compose_file_come_up_work_and_end(stack: Stack, pictures: Path) -> None:
    stack.start_redis()
    with redis.Redis(port=stack.redis_port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with redis.Redis(port=stack.redis_port, password=PASSWORD) as friend:
        kept = {
            name: friend.config_get(name)[name] for name in ("maxmemory-policy", "appendonly", "appendfsync", "save")
        }
    assert kept == {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec", "save": ""}

    too_early = stack.run("api")
    assert too_early.returncode == 1
    assert "python -m deploy.migrate" in too_early.stderr
    assert stack.run("migrate").returncode == 0

    code, complaint = stack.health("api")
    assert (code, "does not answer" in complaint) == (1, True)
    code, complaint = stack.health("worker")
    assert (code, "no worker on" in complaint) == (1, True)
    api, worker = stack.start("api"), stack.start("worker")
    until(lambda: stack.health("api")[0] == 0, what="a healthy API")
    until(lambda: stack.health("worker")[0] == 0, what="a healthy worker")
    code, complaint = stack.health("api", FGD_API_KEY="x" * 40)
    assert (code, "401" in complaint) == (1, True)

    with httpx.Client(base_url=f"http://127.0.0.1:{stack.api_port}", timeout=PATIENT_S) as http:
        assert http.get("/v1/jobs").status_code == 401
        http.headers["Authorization"] = f"Bearer {PASSWORD}"
        readiness = http.get("/readyz").json()
        assert readiness["broker"]["detail"] == "reachable"
        assert readiness["database"]["detail"].startswith("postgresql")
        added = http.post("/v1/datasets", json={"name": "pictures", "path": str(pictures)})
        dataset = added.json()["id"]
        until(lambda: http.get(f"/v1/datasets/{dataset}").json()["state"] == "ready", what="the import")
        job = http.post("/v1/jobs", json=spec_of(dataset, "steps=5 ms=10 save=5")).json()["id"]
        until(lambda: http.get(f"/v1/jobs/{job}").json()["state"] == "succeeded", what="the job")
        (weights,) = [
            file
            for file in http.get(f"/v1/jobs/{job}/artifacts").json()["items"]
            if file["name"] == "student.safetensors"
        ]
        assert http.get(f"/v1/artifacts/{weights['id']}/content").status_code == 200
    assert list((stack.folder / "srv" / "fgd" / "blobs" / "sha256").rglob("*"))

    for name, process, codes in (("worker", worker, [0]), ("api", api, [0, -signal.SIGTERM])):
        process.send_signal(signal.SIGTERM)
        assert process.wait(compose.seconds(stack.file["services"][name]["stop_grace_period"])) in codes
        assert stack.health(name)[0] == 1
    assert "Application shutdown complete" in (stack.folder / "api.log").read_text()
