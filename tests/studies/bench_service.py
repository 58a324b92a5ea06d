"""What the API answers in a second, beside an empty route in the same run: one table, in Markdown.

    PYTHONPATH=. python tests/studies/bench_service.py --postgres

One API process (`python -m deploy.api`, on 127.0.0.1) over a database with thousands of jobs. The empty route is a
bare FastAPI application with one route that returns {}, in a process of its own, under the same uvicorn with the same
options. Eight kept-alive connections of a third process ask one of them at a time, each the next question as soon as it
has its answer. The items run in turn, in random order, within each round, so that whatever else runs on the machine
meets them alike; ratios are of the same round, medians with the 95 % interval of a bootstrap. "cpu" is the server's
processor time for one answer: it depends less on neighbours than the clock. A metric write is an event with twelve
numbers, through api.core, twenty to a transaction, as a worker writes them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import uvloop
from sqlalchemy import Engine, insert, update

from api.core import datasets, workers
from api.core.jobs import record
from api.core.request_bodies import SubmitDataset
from api.core.rows import db
from api.core.rows.ids import new_id
from api.core.rows.tables import DEFAULT_PROJECT, Attempt, Dataset, Job, JobEvent, Model, WorkerRow
from fgd.events import Started, Stepped
from fgd.presets import resolve
from fgd.spec import JobSpec
from tests import postgres

CONNECTIONS = 8
BATCH = 20
"""Events of one transaction."""
RESAMPLES = 2000
EMPTY, WRITES = "empty route", "metric writes"
AIMS = {"a job, 304": "0.4", "a job": "0.25", "50 jobs": "0.05"}
NUMBERS = [
    *(f"loss/fgd/{part}" for part in ("foreground", "background", "attention", "relation")),
    *(f"loss/{part}" for part in ("total", "detection", "classification", "box_regression")),
    *("lr", "images_per_s", "data/wait_share", "device/utilisation"),
]
BODY = {
    "name": "cells, R50 to R18",
    "teacher": {"path": "/data/teacher"},
    "methods": [{"kind": "fgd"}],
    "student": {"kind": "fcos", "backbone": "resnet18", "fpn_channels": 128},
    "dataset": {"path": "/data/cells"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.7, help="of each item in each round")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--postgres", action="store_true", help="the tests' PostgreSQL instead of SQLite")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as opened:
        home = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="fgd-bench-")))
        url = opened.enter_context(database(home, arguments.postgres))
        engine = db.make_engine(url)
        opened.callback(engine.dispose)
        rows = fill(engine, arguments.jobs)
        environment = {"FGD_HOME": str(home), "FGD_DATABASE_URL": url, "FGD_SWEEP_S": "3600"}
        api = opened.enter_context(serving(["-m", "deploy.api", "--fd"], environment))
        bare = opened.enter_context(serving([__file__, "--serve-empty"], environment))
        load = opened.enter_context(client())
        print(f"{processor_name()}, {os.cpu_count()} cores, {engine.dialect.name}, commit {commit()},")
        print(f"{arguments.rounds} rounds of {arguments.seconds} s an item, {arguments.jobs} jobs, {busy()} before\n")
        items = [*questions(api, bare, rows), Writes(engine, rows.written)]
        times: dict[str, list[tuple[float, float]]] = {item.name: [] for item in items}
        for round_ in range(-1, arguments.rounds):  # the first only warms up
            for item in random.Random(round_).sample(items, len(items)):
                took = load(item, arguments.seconds) if isinstance(item, Question) else item.run(arguments.seconds)
                if round_ >= 0:
                    times[item.name].append(took)
        print_table(times)
        print(f"\n{busy()} after")


def print_table(times: dict[str, list[tuple[float, float]]]) -> None:
    columns = ["item", "a second", "of the empty route", "aim", "cpu, µs", "of the empty route, cpu"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name, each in times.items():
        rates, cpus = zip(*each, strict=True)
        empty_rates, empty_cpus = zip(*times[EMPTY], strict=True)
        cells = [
            name,
            f"{statistics.median(rates):.0f}",
            ratio(rates, empty_rates),
            AIMS.get(name, ""),
            f"{1e6 * statistics.median(cpus):.0f}",
            ratio(empty_cpus, cpus),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def ratio(numerators: tuple[float, ...], denominators: tuple[float, ...]) -> str:
    """Median over rounds, and the bootstrap's 95 % interval."""
    each = [a / b for a, b in zip(numerators, denominators, strict=True)]
    draw = random.Random(0)
    resampled = sorted(statistics.median(draw.choices(each, k=len(each))) for _ in range(RESAMPLES))
    low, high = resampled[RESAMPLES // 40], resampled[-RESAMPLES // 40]
    return f"{statistics.median(each):.3f} ({low:.3f}-{high:.3f})"


# --- the items ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    port: int
    pid: int

    def etag(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}") as answer:
            return str(answer.headers["ETag"])


@dataclass(frozen=True)
class Question:
    """A GET that is sent over and over."""

    name: str
    server: Server
    path: str
    if_none_match: str | None = None

    def wire(self) -> bytes:
        condition = f"If-None-Match: {self.if_none_match}\r\n" if self.if_none_match else ""
        return f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n{condition}\r\n".encode()

    def status(self) -> int:
        return 304 if self.if_none_match else 200


def questions(api: Server, bare: Server, rows: Rows) -> Iterator[Question]:
    yield Question(EMPTY, bare, "/")
    yield Question("the API's /healthz", api, "/healthz")
    for name, path in (("a job", f"jobs/{rows.job}"), ("a data set", f"datasets/{rows.dataset}")):
        yield Question(f"{name}, 304", api, f"/v1/{path}", api.etag(f"/v1/{path}"))
        yield Question(name, api, f"/v1/{path}")
    yield Question("a model", api, f"/v1/models/{rows.model}")
    yield Question("a queued job", api, f"/v1/jobs/{rows.queued}")
    yield Question("50 jobs", api, "/v1/jobs?limit=50&state=succeeded")
    yield Question("50 jobs, 10 queued", api, "/v1/jobs?limit=50")
    yield Question("latest metrics", api, f"/v1/jobs/{rows.job}/metrics/latest")


class Writes:
    """A worker that trains fast."""

    name = WRITES

    def __init__(self, engine: Engine, job: str) -> None:
        self.engine, self.job, self.steps = engine, job, itertools.count(1)

    def run(self, seconds: float) -> tuple[float, float]:
        """Events a second, and seconds of this process's processor for one."""
        began, began_cpu, batches = time.perf_counter(), time.process_time(), 0
        while (took := time.perf_counter() - began) < seconds:
            self.write()
            batches += 1
        return batches * BATCH / took, (time.process_time() - began_cpu) / (batches * BATCH)

    def write(self) -> None:
        values: dict[str, float | None] = {name: random.random() for name in NUMBERS}
        told = [Stepped(step=next(self.steps), epoch=1, values=values) for _ in range(BATCH)]
        with db.transaction(self.engine) as s:
            record.record(s, self.job, 1, told)


# --- the rows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Ids of what is asked for."""

    job: str
    """It runs."""
    written: str
    """It runs too; the metrics go there."""
    queued: str
    dataset: str
    model: str


@contextlib.contextmanager
def database(home: Path, postgresql: bool) -> Iterator[str]:
    if postgresql:
        with postgres.running(postgres.DURABLE) as server, server.migrated() as url:
            yield url
    else:
        url = f"sqlite:///{home}/fgd.db"
        db.upgrade(url)
        yield url


def fill(engine: Engine, count: int) -> Rows:
    with db.transaction(engine) as s:
        at = db.now(s)
        dataset = datasets.submit(s, DEFAULT_PROJECT, SubmitDataset(name="cells", path="/data/cells")).id
        s.execute(update(Dataset).values(classes=["cat", "dog"], splits={"train": {"images": 4000, "boxes": 9000}}))
        workers.register(s, "wrk_a", host="here", pid=1, slots=2, devices=[], facts={"cores": 8})
        s.execute(update(WorkerRow).values(last_beat=at + timedelta(days=1)))
        jobs = [job_row(at, dataset, number) for number in range(count)]
        s.execute(insert(Job), jobs)
        running, written = jobs[10]["id"], jobs[11]["id"]
        s.execute(insert(JobEvent), [event_row(at, running, seq) for seq in range(1, 201)])
        attempt = {"attempt": 1, "project_id": DEFAULT_PROJECT, "worker_id": "wrk_a", "host": "here", "started_at": at}
        s.execute(insert(Attempt), [{**attempt, "job_id": id, "log_bytes": 0} for id in (running, written)])
        model = model_row(at)
        s.execute(insert(Model), [model])
        started = Started(
            step=0, total_steps=9000, epochs=12, device="cpu", threads=2, precision="float32", versions={"torch": "2"}
        )
        for id in (running, written):
            record.record(s, id, 1, [started])
    Writes(engine, running).write()
    return Rows(running, written, jobs[0]["id"], dataset, model["id"])


def job_row(now: datetime, dataset: str, number: int) -> dict[str, Any]:
    """The newest ten are queued, then two run; the others have ended, each twentieth failed."""
    state = "queued" if number < 10 else "running" if number < 12 else "succeeded" if number % 20 else "failed"
    at, begun, ended = now - timedelta(minutes=number), number >= 10, number >= 12
    counters = {"step": 9000, "total_steps": 9000, "epoch": 12, "epochs": 12}
    return {
        "id": new_id("job"),
        "project_id": DEFAULT_PROJECT,
        "name": f"cells {number}",
        "state": state,
        "phase": "training" if state == "running" else None,
        "spec": SPEC,
        "inputs": {"dataset": {"archive": "a" * 64, "index": "b" * 64}},
        "labels": {"owner": "me", "run": str(number)},
        "priority": 0,
        "device": "auto",
        "limits": {"max_runtime_s": None, "max_wait_s": None, "max_retries": 2},
        "dataset_id": dataset,
        "attempt": int(begun),
        "retries": 0,
        "not_before": at,
        "lease_owner": "wrk_a" if state == "running" else None,
        "lease_expires": now + timedelta(days=1) if state == "running" else None,
        "event_seq": 200,
        "version": 41,
        "progress": {**counters, "values": dict.fromkeys(NUMBERS, 0.123456789)} if begun else None,
        "failure_code": "stalled" if state == "failed" else None,
        "failure_message": "no step for 300 s" if state == "failed" else None,
        "failure_data": {"silent_s": 300.0} if state == "failed" else None,
        "weights_digest": "e" * 64 if state == "succeeded" else None,
        "created_at": at,
        "started_at": at if begun else None,
        "finished_at": at if ended else None,
    }


SPEC = resolve(JobSpec.model_validate_json(json.dumps(BODY))).model_dump(mode="json")


def event_row(at: datetime, job: str, seq: int) -> dict[str, Any]:
    told = {"split": "val", "step": seq, "values": {"ap": 31.2, "ap50": 52.0}}
    row = {"job_id": job, "seq": seq, "project_id": DEFAULT_PROJECT, "type": "evaluated", "at": at, "attempt": 1}
    return {**row, "data": told}


def model_row(at: datetime) -> dict[str, Any]:
    recipe = {"format": "fgd-recipe/1", "detector": {"kind": "fcos", "backbone": "resnet50"}, "classes": ["cat", "dog"]}
    row = {"id": new_id("mdl"), "project_id": DEFAULT_PROJECT, "name": "teacher", "state": "awaiting_upload"}
    return {**row, "recipe": recipe, "source": {"kind": "upload"}, "version": 3, "created_at": at}


# --- processes ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(command: list[str], environment: dict[str, str]) -> Iterator[Server]:
    """A server on a socket that it inherits as the command's last argument."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FGD_")}
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        fd, port = listener.fileno(), listener.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, *command, str(fd)], env=kept | environment, pass_fds=[fd], stderr=subprocess.DEVNULL
        )
        try:
            for path in ("/healthz", "/"):  # the socket listens already: this waits for the server
                with contextlib.suppress(urllib.error.HTTPError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60).close()
            yield Server(port, process.pid)
        finally:
            process.terminate()
            process.wait(20)


def serve_empty(fd: int) -> None:
    """As `deploy.api` serves the API."""
    from fastapi import FastAPI

    from deploy import http_server

    app = FastAPI()

    @app.get("/")
    async def empty() -> dict[str, str]:
        return {}

    http_server.Server(http_server.config(app)).run(sockets=[socket.socket(fileno=fd)])


@contextlib.contextmanager
def client() -> Iterator[Any]:
    """What asks a question for some seconds: answers a second, and seconds of the server's processor for one."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=ask_when_told, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # or its end would be waited for in vain

    def load(question: Question, seconds: float) -> tuple[float, float]:
        server = psutil.Process(question.server.pid)
        before = server.cpu_times()
        ours.send((question, seconds))
        answers, took = ours.recv()
        after = server.cpu_times()
        cpu_s = after.user + after.system - before.user - before.system
        return answers / took, cpu_s / answers

    try:
        yield load
    finally:
        process.terminate()
        process.join()


def ask_when_told(pipe: Connection) -> None:
    while True:
        question, seconds = pipe.recv()
        loop = uvloop.new_event_loop()
        pipe.send(loop.run_until_complete(ask(question, seconds)))
        loop.close()


async def ask(question: Question, seconds: float) -> tuple[int, float]:
    """The number of answers, and the seconds they took."""
    loop = asyncio.get_running_loop()
    protocols = []
    for _ in range(CONNECTIONS):
        _, protocol = await loop.create_connection(lambda: Asking(question), "127.0.0.1", question.server.port)
        protocols.append(protocol)
    began = time.perf_counter()
    for protocol in protocols:
        protocol.ask()
    await asyncio.sleep(seconds)
    answers, took = sum(protocol.answers for protocol in protocols), time.perf_counter() - began
    for protocol in protocols:
        assert protocol.fault is None, protocol.fault
        protocol.transport.abort()
    assert answers, f"{question.name}: no answer within {seconds} s"
    return answers, took


class Asking(asyncio.Protocol):
    """One connection: the next question as soon as an answer is whole."""

    transport: asyncio.Transport

    def __init__(self, question: Question) -> None:
        self.wire, self.status = question.wire(), f"HTTP/1.1 {question.status()} ".encode()
        self.answers, self.fault = 0, None
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self) -> None:
        self.transport.write(self.wire)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        length = _LENGTH.search(head)
        if len(body) < (int(length[1]) if length else 0):
            return
        if not head.startswith(self.status):
            self.fault = self.buffer[:500]
            return
        self.answers += 1
        self.buffer = b""
        self.ask()


_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)


def processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown processor"


def commit() -> str:
    """Of the checkout, and whether it has changes."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def busy() -> str:
    return "load " + ", ".join(f"{each:.1f}" for each in os.getloadavg())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve-empty"]:
        serve_empty(int(sys.argv[2]))
    else:
        main()
