"""Many jobs at once (F26), a long curve (F27), and an upload that breaks at every megabyte (F28)."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from api.core import workers
from api.core.jobs import attempts, queue_order, record
from api.core.rows import db
from api.core.rows.ids import new_id
from api.core.rows.tables import Attempt, Dataset, Job, JobEvent
from fgd.events import Stepped
from fgd.spec import SubmitJob
from tests.chaos import invariants
from tests.chaos.conftest import not_on_sqlite
from tests.chaos.parts import Rig
from tests.e2e.parts import environment, spec_of, until

pytestmark = pytest.mark.chaos

JOBS = int(os.environ.get("CHAOS_JOBS", "10000"))
POSTED = 200
WORKERS = 8
POINTS = 1_000_000
PIECE = 5000


@pytest.mark.timeout(1200)
@not_on_sqlite("a SQLite file is for one host and its one API process")
def test_f26_ten_thousand_jobs(rig: Rig, record_property: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """10 000 queued jobs, 4 API replicas, 8 workers (without trainers): every one is claimed once, by priority and age,
    and nothing dead-locks. How long a claim took is printed. (Fair share between projects comes with the projects.)"""
    replicas = [rig.api(FGD_MAX_QUEUED_JOBS=str(2 * JOBS)) for _ in range(4)]
    queued = submitted(rig, JOBS - POSTED)
    for replica in replicas:
        replica.ready()
    outs = [rig.home / f"dummy-{n}.json" for n in range(WORKERS)]
    script = str(Path(__file__).with_name("dummy_worker.py"))
    log = (rig.home / "dummy.log").open("wb")
    workers = [
        subprocess.Popen([sys.executable, script, rig.url, str(out)], env=environment(rig.home), stderr=log)
        for out in outs
    ]
    rig.processes += workers
    posted: list[str] = []
    posting = [
        threading.Thread(
            target=lambda at=at: posted.extend(at.post(rig.dataset, "late", priority=9) for _ in range(POSTED // 4))
        )
        for at in replicas
    ]
    for thread in posting:
        thread.start()
    for thread in posting:
        thread.join()
    for out in outs:
        out.with_suffix(".stop").touch()
    until(lambda: left(rig) == 0, timeout_s=900, what="the last job")
    for worker in workers:
        assert worker.wait(60) == 0, (rig.home / "dummy.log").read_text()[-3000:]
    log.close()

    claims = [claim for out in outs for claim in json.loads(out.read_text())]
    assert sorted(job for job, _ in claims) == sorted([*queued, *posted]), "each once, none twice, none left"
    in_order(rig, set(queued))
    with db.reading(rig.engine) as s:
        assert s.scalar(select(func.count()).select_from(Attempt)) == JOBS
        assert s.scalar(select(func.count()).select_from(JobEvent).where(JobEvent.type == "succeeded")) == JOBS
    took_ms = [1000 * s for _, s in claims]
    p50, p99 = statistics.median(took_ms), statistics.quantiles(took_ms, n=100)[98]
    told = f"F26: {len(claims)} claims, {WORKERS} workers, 4 replicas: p50 {p50:.1f} ms, p99 {p99:.1f} ms"
    record_property("F26", told)
    with capsys.disabled():
        print(f"\n{told}, longest {max(took_ms):.0f} ms, {os.cpu_count()} cores")


def submitted(rig: Rig, count: int) -> list[str]:
    """Jobs of three priorities, in turn."""
    ids = []
    for start in range(0, count, 500):
        with db.transaction(rig.engine) as s:
            for n in range(start, min(start + 500, count)):
                body = spec_of(rig.dataset, f"n={n}") | {"priority": n % 3}
                ids.append(rig.insert_in(s, SubmitJob.model_validate(body)))
    return ids


def left(rig: Rig) -> int:
    time.sleep(0.5)
    with db.reading(rig.engine) as s:
        return int(s.scalar(select(func.count()).select_from(Job).where(Job.state != "succeeded")) or 0)


def in_order(rig: Rig, among: set[str]) -> None:
    """By priority, then age: none is overtaken by more than the workers that claim at the same time can."""
    query = select(Job.id, Job.priority, Job.created_at, Attempt.started_at).join(Attempt, Attempt.job_id == Job.id)
    with db.reading(rig.engine) as s:
        rows = [row for row in s.execute(query.order_by(Attempt.started_at)) if row.id in among]
    right = sorted(rows, key=lambda row: (-row.priority, row.created_at, row.id))
    place = {row.id: n for n, row in enumerate(right)}
    off = [abs(place[row.id] - n) for n, row in enumerate(rows)]
    assert max(off) <= 4 * WORKERS, f"a job was claimed {max(off)} places from where it belongs"


@pytest.mark.timeout(600)
def test_f27_a_million_points(rig: Rig, record_property: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A curve of 10^6 points comes as at most `max_points`, with its ends, its peak and its pit among them, and all of
    it as CSV. How long the plot took over HTTP is printed."""
    peak, pit = 123_456, 765_432
    values = [math.exp(-step / 1e5) for step in range(POINTS)]
    values[peak], values[pit] = 7.5, -7.5
    job = claimed(rig)
    for start in range(0, POINTS, PIECE):
        steps = range(start, min(start + PIECE, POINTS))
        events = [Stepped(step=step, epoch=1, values={"loss/total": values[step]}) for step in steps]
        with db.transaction(rig.engine) as s:
            record.record(s, job, 1, events)
    api, took_ms = rig.api().ready(), []
    url = f"/v1/jobs/{job}/metrics?name=loss/total"
    for _ in range(11):
        began = time.perf_counter()
        points = api.http.get(f"{url}&max_points=1000").raise_for_status().json()["items"]
        took_ms.append(1000 * (time.perf_counter() - began))
    found = {point["step"]: point["value"] for point in points}
    assert len(points) <= 1000
    assert found == {step: values[step] for step in found}
    assert {0, peak, pit, POINTS - 1} <= set(found)
    with api.http.stream("GET", url, headers={"Accept": "text/csv"}, timeout=300) as answer:
        assert sum(1 for _ in answer.iter_lines()) == POINTS + 1, "a header, and every point"
    told = f"F27: {POINTS} points as {len(points)}: median {statistics.median(took_ms):.0f} ms over HTTP"
    record_property("F27", told)
    with capsys.disabled():
        print(f"\n{told}, longest {max(took_ms):.0f} ms, {os.cpu_count()} cores")


def claimed(rig: Rig) -> str:
    """A job that this process has taken."""
    worker = new_id("wrk")
    rig.submit("by hand")
    with db.transaction(rig.engine) as s:
        workers.register(s, worker, host="by hand", pid=0, slots=1)
    with db.transaction(rig.engine) as s:
        claim = attempts.claim(s, worker, queue_order.Free(1, 0), lease_s=600.0)
    assert claim is not None
    return claim.job_id


def test_f28_upload_broken_at_every_megabyte(rig: Rig) -> None:
    """An upload interrupted at every 1 MB boundary: the offset told is exact, the digest at the end is right, and
    nothing is left behind."""
    mega = 1_000_000
    data = random.Random(28).randbytes(6 * mega + 321)
    api = rig.api().ready()
    made = api.http.post("/v1/datasets", json={"name": "upload"})
    assert made.status_code in (201, 202), made.text
    url = made.json()["upload_url"]
    for n in range(6):
        offset = int(api.http.head(url).headers["upload-offset"])
        assert offset == n * mega
        first = {"Content-Type": "application/zip"}
        piece = {"Content-Type": "application/partial-upload", "Upload-Offset": str(offset)}
        headers = {"Content-Length": str(len(data) - offset), "Upload-Length": str(len(data))}
        cut(api.url, "PATCH" if n else "PUT", url, headers | (piece if n else first), data[offset : offset + mega])
    offset = int(api.http.head(url).headers["upload-offset"])
    headers = {"Content-Type": "application/partial-upload", "Upload-Offset": str(offset)}
    answer: httpx.Response = api.http.patch(url, content=data[offset:], headers=headers)
    assert (answer.status_code, answer.headers["upload-complete"]) == (204, "?1"), answer.text
    with db.reading(rig.engine) as s:
        digest = s.scalar(select(Dataset.upload_digest).where(Dataset.id == made.json()["id"]))
    assert digest == hashlib.sha256(data).hexdigest()
    rig.worker()
    until(lambda: state(rig, made.json()["id"]) == "rejected", what="the import, which finds no zip")
    rig.stop_all()
    invariants.holds(rig.engine, rig.home, {})


def state(rig: Rig, dataset: str) -> str:
    with db.reading(rig.engine) as s:
        return str(s.scalar(select(Dataset.state).where(Dataset.id == dataset)))


def cut(base: str, method: str, path: str, headers: dict[str, str], data: bytes) -> None:
    """A request that promises more than it sends, and then hangs up."""
    host, _, port = base.removeprefix("http://").partition(":")
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}:{port}", *(f"{k}: {v}" for k, v in headers.items())]
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(10)
        try:
            while connection.recv(4096):
                pass
        except OSError:
            pass
