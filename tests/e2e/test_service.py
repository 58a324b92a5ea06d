"""The whole service as `fgd serve` starts it: Valkey, API, worker. One part after the other is killed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
import redis

from api.core.queue import make_app, ring
from deploy.broker import socket_path
from tests.e2e.parts import PATIENT_S, Service, environment, pids, processes_of, trainers, until, weights_digest_after
from worker import devices

pytestmark = pytest.mark.e2e

Start = Callable[..., Service]
LONG = "steps=300 ms=20 save=20"


def bell_server(service: Service) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(socket_path(service.home)))


def serve_in_vain(home: Path, port: int = 0) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "fgd.cli", "serve"]
    return subprocess.run(command, env=environment(home, FGD_PORT=str(port)), capture_output=True, timeout=PATIENT_S)


def test_posted_job_succeeds_and_its_result_can_be_downloaded(service: Service) -> None:
    job = service.post("steps=30 ms=5")
    view = service.until_state(job, "succeeded")
    assert view["attempt"] == 1
    assert view["weights_digest"]
    files = service.http.get(f"/v1/jobs/{job}/artifacts").json()["items"]
    assert {file["name"] for file in files} == {"student.safetensors", "model.py", "recipe.json", "manifest.json"}
    for file in files:
        content = service.http.get(f"/v1/artifacts/{file['id']}/content").content
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
    said = (service.home / "logs" / "api.log").read_text()
    assert "POST /v1/jobs 201" in said
    assert "GET /v1/jobs" not in said, "polls would fill the disk"
    assert "training from step 0 of 30" in service.http.get(f"/v1/jobs/{job}/logs").text
    latest = service.http.get(f"/v1/jobs/{job}/metrics/latest").json()["items"]
    assert {"loss/total", "ap"} <= {item["name"] for item in latest}


def test_bell_wakes_the_worker_long_before_its_poll(odd_service: Service) -> None:
    time.sleep(1.0)  # the first look of the poller is over
    job = odd_service.post("steps=5 ms=1")
    odd_service.until_state(job, "succeeded")


def test_messages_that_are_no_notifications_leave_the_worker_hearing(odd_service: Service) -> None:
    time.sleep(1.0)  # the first look of the poller is over
    with bell_server(odd_service) as server:
        for junk in ("junk", "[]", "5", "null", "{}", b"\xff", '{"body": "", "headers": null, "properties": {}}'):
            for _ in range(3):  # more than it has threads
                server.lpush("fgd.fgd", junk)
    job = odd_service.post("steps=5 ms=1")
    odd_service.until_state(job, "succeeded")


@pytest.mark.parametrize("part", ["worker", "trainer", "valkey", "api"])
def test_job_survives_the_kill_of_a_part_and_succeeds_once(service: Service, part: str) -> None:
    job = service.post(LONG)
    service.until_step(job, 60)
    words = {"worker": "-m worker", "trainer": "scripted_trainer", "valkey": "valkey-server", "api": "deploy.api"}
    os.kill(service.pid(words[part]), signal.SIGKILL)
    if part == "worker":
        until(lambda: not trainers(service.home), timeout_s=4, what="the end of the trainer")
    view = service.until_state(job, "succeeded")
    assert view["weights_digest"] == weights_digest_after(300)
    story = service.story(job)
    assert story.count("succeeded") == 1
    if part in ("worker", "trainer"):
        assert view["attempt"] == 2
        told = [
            story.index(type) for type in ("checkpoint_saved", "attempt_lost", "requeued", "note:resumed", "succeeded")
        ]
        assert told == sorted(told)
    else:
        assert view["attempt"] == 1
        assert "requeued" not in story
    until(lambda: pids(service.home, words[part]) or part == "trainer", what=f"a new {part}")
    assert not trainers(service.home)
    service.until_state(service.post("steps=5 ms=1"), "succeeded")


def test_emptied_broker_loses_no_job(service: Service) -> None:
    running = service.post("steps=100 ms=10")
    waiting = [service.post("steps=3 ms=1") for _ in range(3)]
    with bell_server(service) as server:
        server.flushall()
    for job in [running, *waiting]:
        assert service.until_state(job, "succeeded")["attempt"] == 1


def test_broker_that_is_down_delays_a_job_and_no_more(start_service: Start) -> None:
    service = start_service(FGD_BROKER_URL="redis+socket:///nowhere/valkey.sock")
    asked = time.monotonic()
    job = service.post("steps=5 ms=1")
    assert time.monotonic() - asked < 20.0, "nobody waits for a broker"
    assert service.until_state(job, "succeeded")["attempt"] == 1
    ready = service.http.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["broker"]["ok"] is False


def test_hundred_bells_make_one_attempt(service: Service) -> None:
    job = service.post("steps=200 ms=10")
    app = make_app(f"redis+socket://{service.home}/valkey/valkey.sock")
    for _ in range(100):
        assert ring(app, job)
    ring(app, "job_of_a_forger")
    seen = set()
    while service.job(job)["state"] != "succeeded":
        seen |= set(trainers(service.home))
        time.sleep(0.1)
    assert len(seen) == 1
    assert service.story(job).count("job_claimed") == 1


def test_queued_and_running_jobs_are_cancelled(service: Service) -> None:
    running = service.post("steps=100000 ms=10")
    service.until_step(running, 10)
    queued = service.post("steps=10 ms=1")
    service.cancel(queued, "graceful")
    assert service.job(queued)["state"] == "cancelled"
    service.cancel(running, "graceful")
    service.until_state(running, "cancelled")
    assert "checkpoint_saved" in service.story(running)[-3:]
    hasty = service.post("steps=100000 ms=10 fault=ignore-term at=1")
    service.until_step(hasty, 5)
    service.cancel(hasty, "now")
    service.until_state(hasty, "cancelled")
    assert not trainers(service.home)


def test_second_server_on_the_home_is_refused_and_disturbs_nothing(service: Service) -> None:
    job = service.post(LONG)
    second = serve_in_vain(service.home)
    assert second.returncode == 1
    said = second.stdout.decode().strip()
    assert "already running" in said
    assert "\n" not in said
    assert service.until_state(job, "succeeded")["attempt"] == 1


def test_second_server_on_the_port_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        second = serve_in_vain(tmp_path, port)
    assert second.returncode == 1
    assert f"127.0.0.1:{port}" in second.stdout.decode()
    assert not (tmp_path / "fgd.db").exists()


def test_database_of_a_newer_version_is_refused_in_one_line(service: Service, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    newer.mkdir()
    shutil.copy(service.home / "fgd.db", newer)
    with sqlite3.connect(newer / "fgd.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    refused = serve_in_vain(newer)
    assert refused.returncode == 1
    assert "newer version" in refused.stdout.decode()


def test_server_told_to_end_saves_its_job_and_goes_on_with_it_when_it_is_started_again(start_service: Start) -> None:
    service = start_service()
    job = service.post(LONG)
    service.until_step(job, 60)
    service.process.terminate()
    assert service.process.wait(timeout=PATIENT_S) == 0
    assert not processes_of(service.home)
    again = start_service()
    view = again.until_state(job, "succeeded")
    assert view["attempt"] == 2
    assert view["weights_digest"] == weights_digest_after(300)
    assert "attempt_lost" not in again.story(job)


def test_trainer_that_ignores_everything_does_not_hold_the_server_up(start_service: Start) -> None:
    service = start_service()
    job = service.post("steps=100000 ms=10 fault=ignore-term at=1")
    service.until_step(job, 5)
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(timeout=PATIENT_S) == 0
    assert not processes_of(service.home)


def test_killed_server_leaves_no_process(start_service: Start) -> None:
    service = start_service()
    job = service.post("steps=100000 ms=10")
    service.until_step(job, 10)
    assert len(processes_of(service.home)) >= 5  # the server, Valkey, API, worker, trainer
    service.process.kill()
    service.process.wait()
    until(lambda: not processes_of(service.home), what="the end of every process")


def environ_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def test_nobody_finds_the_key_in_an_environment(odd_service: Service) -> None:
    job = odd_service.post("steps=100000 ms=10")
    odd_service.until_step(job, 1)
    told = psutil.Process(trainers(odd_service.home)[0]).environ()
    allowed = {"FGD_RUN", "FGD_DEADLINE", "FGD_TEACHER_CACHE"}
    assert not [name for name in told if name.startswith("FGD_") and name not in allowed]
    assert "k" * 40 not in json.dumps(told)
    shown = b"".join(environ_of(pid) for pid in processes_of(odd_service.home))
    assert b"FGD_HOME" in shown or os.getuid() != 0  # only the superuser sees any of it
    assert b"k" * 40 not in shown
    assert b"sqlite" not in shown
    odd_service.cancel(job, "now")


def test_nobody_else_may_look_into_the_home(service: Service) -> None:
    service.until_state(service.post("steps=20 ms=1 save=5"), "succeeded")
    of_the_test = {"fgd.db", "fgd.db-shm", "fgd.db-wal", "worker.log", "serve.out"}  # made before the service
    written = [service.home, *(path for path in service.home.rglob("*") if path.name not in of_the_test)]
    open_to_others = [str(path) for path in written if path.lstat().st_mode & 0o077 and not path.is_symlink()]
    assert len(written) > 20
    assert open_to_others == []


def test_server_says_where_it_is_and_what_its_worker_found(service: Service) -> None:
    url = json.loads((service.home / "serve.lock").read_text())["url"]
    said = service.output()
    assert url in said
    assert f"{url}/docs" in said
    found = devices.look(service.home)
    for part in (found.cpu, f"{found.cores} cores", f"bf16 {'yes' if found.bf16 else 'no'}", "threads: 1 per training"):
        assert part in said, said
    assert re.search(r"free disk: \d+\.\d GiB", said)
    assert ("GPU 0: " in said and "driver " in said) if found.gpus else "GPU: none" in said
    assert "/readyz" not in (service.home / "logs" / "api.log").read_text()
    assert httpx.get(f"{url}/docs").status_code == 200
