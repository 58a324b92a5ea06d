"""Real processes: Valkey, API, workers. Only the trainer is scripted, so that a job takes a second."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import Engine, select

import fgd
from api.core import datasets, plans, submission
from api.core.jobs import requests
from api.core.lifecycle import State
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Attempt, JobEvent, LogChunk
from api.core.settings import Settings
from api.core.store.local import LocalStore
from fgd.data.digits import compose
from fgd.detector_specs import FCOS
from fgd.spec import JobSpec, SubmitJob

ROOT = Path(fgd.__path__[0]).parent
TRAINER = json.dumps([sys.executable, str(ROOT / "tests" / "scripted_trainer.py")])
FAST = {
    "FGD_BEAT_S": "0.4",
    "FGD_FREEZE_S": "2",
    "FGD_KILL_S": "3",
    "FGD_LEASE_S": "4.5",
    "FGD_SWEEP_S": "0.5",
    "FGD_POLL_S": "0.5",
    "FGD_GRACE_S": "2",
    "FGD_STALL_S": "3",
    "FGD_THREADS": "1",
    "FGD_TRAINER": TRAINER,
}
"""The default times, shrunk; their order stays."""
PATIENT_S = 60.0
"""Longer than anything takes on a machine that has other things to do."""


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FGD_")}
    return kept | FAST | {"FGD_HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | more


def until(true: Callable[[], Any], timeout_s: float = PATIENT_S, what: str = "") -> Any:
    """The first true answer; fails the test when none comes. A test gives a limit only where it is what is tested."""
    end = time.monotonic() + timeout_s
    while not (answer := true()):
        assert time.monotonic() < end, f"waited {timeout_s} s in vain for {what or true}"
        time.sleep(0.05)
    return answer


def processes_of(home: Path) -> dict[int, str]:
    """Everything alive that has `home` in its command line, environment or working folder, and what it started.

    The last, because the service's own processes show only their command line to others of their user.
    """
    found, parents = {}, {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            command = " ".join(process.cmdline())
            parents[process.pid] = (process.ppid(), command)
            if any(str(home) in trace for trace in (command, *_hidden_traces(process))):
                found[process.pid] = command
    while more := {pid: command for pid, (parent, command) in parents.items() if parent in found and pid not in found}:
        found |= more
    return found


def _hidden_traces(process: psutil.Process) -> list[str]:
    traces = []
    with contextlib.suppress(psutil.Error, OSError):
        traces += [process.environ().get("FGD_HOME", ""), process.cwd()]
    return traces


def pids(home: Path, word: str) -> list[int]:
    return sorted(pid for pid, command in processes_of(home).items() if word in command)


def trainers(home: Path) -> list[int]:
    return pids(home, "scripted_trainer")


def weights_digest_after(steps: int) -> str:
    """What the scripted trainer's weights must be, however often the run was broken."""
    history = ""
    for step in range(steps):
        history = hashlib.sha256(f"{history}{step}".encode()).hexdigest()
    return hashlib.sha256(history.encode()).hexdigest()


@dataclass
class Bench:
    """A database, a store, and as many workers as a test likes; no API, no broker."""

    home: Path
    dataset: str
    engine: Engine
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def worker(self, **more: str) -> subprocess.Popen[bytes]:
        with (self.home / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-X", f"home={self.home}", "-m", "worker", "--drain-s", "2"],
                env=environment(self.home, **more), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def submit(
        self, words: str = "", retries: int = 3, changes: Mapping[str, Any] | None = None, **limits: float
    ) -> str:
        """changes: of the spec."""
        bounds = {"limits": {"max_retries": retries, **limits}, **(changes or {})}
        spec = SubmitJob.model_validate(spec_of(self.dataset, words) | bounds)
        with db.transaction(self.engine) as s:
            dataset = datasets.get(s, DEFAULT_PROJECT, self.dataset)
            assert dataset.archive_digest
            assert dataset.index_digest
            inputs = {"dataset": {"archive": dataset.archive_digest, "index": dataset.index_digest}}
            return requests.submit(s, DEFAULT_PROJECT, spec, spec.spec(), inputs=inputs).id

    def plan(self) -> str:
        """A dry run: the real rehearsal of a small job on the imported pictures."""
        schedule = {"batch_size": 2, "min_size": 64, "max_size": 64}
        spec = spec_of(self.dataset, "plan") | {"student": {"fpn_channels": 64}, "schedule": schedule}
        body, store = SubmitJob.model_validate(spec), LocalStore(self.home / "blobs")
        return submission.plan_job(self.engine, store, Settings(), DEFAULT_PROJECT, body).id

    def look_at(self, plan: str) -> Any:
        with db.reading(self.engine) as s:
            return plans.get(s, DEFAULT_PROJECT, plan)

    def job(self, job: str) -> Any:
        with db.reading(self.engine) as s:
            return requests.get(s, DEFAULT_PROJECT, job)

    def state(self, job: str) -> str:
        return str(self.job(job).state)

    def step(self, job: str) -> int:
        return int((self.job(job).progress or {}).get("step", 0))

    def until_step(self, job: str, step: int) -> None:
        until(lambda: self.state(job) == State.running and self.step(job) >= step, what=f"step {step}")

    def until_state(self, job: str, state: str, timeout_s: float = PATIENT_S) -> Any:
        until(lambda: State(self.state(job)).terminal or self.state(job) == state, timeout_s, state)
        row = self.job(job)
        assert row.state == state, f"{row.state}: {row.failure_code} {row.failure_message}\n{self.log()}"
        return row

    def story(self, job: str) -> list[str]:
        with db.reading(self.engine) as s:
            rows = s.scalars(select(JobEvent).where(JobEvent.job_id == job).order_by(JobEvent.seq)).all()
        assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
        return [row.type for row in rows]

    def attempts(self, job: str) -> list[str | None]:
        with db.reading(self.engine) as s:
            return [
                row.outcome for row in s.scalars(select(Attempt).where(Attempt.job_id == job).order_by(Attempt.attempt))
            ]

    def trainer_log(self, job: str) -> bytes:
        with db.reading(self.engine) as s:
            query = select(LogChunk.data).where(LogChunk.job_id == job)
            return b"".join(s.scalars(query.order_by(LogChunk.attempt, LogChunk.offset)))

    def log(self) -> str:
        return (self.home / "worker.log").read_text()

    def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
            process.kill()
            process.wait()
        self.engine.dispose()


def spec_of(dataset: str, words: str) -> dict[str, Any]:
    spec = JobSpec(name=f"scripted {words}", teacher=None, methods=(), dataset=dataset, student=FCOS())
    return dict(spec.model_dump(mode="json"))


def small_digits(folder: Path) -> Path:
    """A data set that a test trains on in seconds."""
    compose(
        folder,
        counts={"train": 12, "val": 6, "test": 5}, size=64, classes=("0", "7"), box_px=(16, 40), per_image=(1, 2),
    )  # fmt: skip
    return folder


class Api:
    """What a test asks of a service over HTTP, and may count on."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.http = service.http

    def get(self, path: str) -> Any:
        answer = self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self.http.post(path, json=body)
        assert answer.status_code in (201, 202), answer.text
        return answer.json()


@dataclass
class Service:
    """`fgd serve` as a process of its own."""

    home: Path
    dataset: str
    process: subprocess.Popen[bytes]
    http: httpx.Client = field(default_factory=httpx.Client)

    def output(self) -> str:
        return (self.home / "serve.out").read_text()

    def post(self, words: str = "") -> str:
        answer = self.http.post("/v1/jobs", json=spec_of(self.dataset, words))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def job(self, job: str) -> dict[str, Any]:
        end = time.monotonic() + PATIENT_S
        while True:  # the API may be the one that was killed
            try:
                answer = self.http.get(f"/v1/jobs/{job}")
                assert answer.status_code == 200, answer.text
                return dict(answer.json())
            except httpx.TransportError:
                assert time.monotonic() < end
                time.sleep(0.1)

    def cancel(self, job: str, mode: str) -> None:
        answer = self.http.post(f"/v1/jobs/{job}/cancel", json={"mode": mode})
        assert answer.status_code == 202, answer.text

    def until_step(self, job: str, step: int) -> None:
        until(lambda: ((self.job(job)["progress"] or {}).get("step") or 0) >= step, what=f"step {step}")

    def until_state(self, job: str, state: str, timeout_s: float = PATIENT_S) -> dict[str, Any]:
        until(lambda: State(self.job(job)["state"]).terminal or self.job(job)["state"] == state, timeout_s, state)
        view = self.job(job)
        assert view["state"] == state, f"{view}\n{self.worker_log()}"
        return view

    def story(self, job: str) -> list[str]:
        answer = self.http.get(f"/v1/jobs/{job}/events", params={"after": 0, "limit": 200})
        assert answer.status_code == 200, answer.text
        items = answer.json()["items"]
        assert [item["seq"] for item in items] == list(range(1, len(items) + 1))
        return [item["type"] for item in items]

    def worker_log(self) -> str:
        return (self.home / "logs" / "worker.log").read_text()

    def pid(self, word: str) -> int:
        found = until(lambda: pids(self.home, word), what=word)
        return int(found[-1])
