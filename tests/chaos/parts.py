"""Real processes to kill: workers, API replicas, Valkey, on either database, each of which a test ends as it likes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import Engine, insert, select, text
from sqlalchemy.exc import OperationalError

from api.core import datasets, sweeper
from api.core.jobs import requests
from api.core.lifecycle import Requested
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Attempt, Base, Job, MetricPoint, Series
from deploy import broker
from fgd.process import failpoints
from fgd.spec import JobSpec, SubmitJob
from tests.e2e.parts import Bench, environment, processes_of, spec_of, until

SHORT = {
    "FGD_BEAT_S": "0.2",
    "FGD_FREEZE_S": "1.6",
    "FGD_KILL_S": "2.4",
    "FGD_LEASE_S": "3.4",
    "FGD_SWEEP_S": "0.3",
    "FGD_POLL_S": "0.3",
    "FGD_GRACE_S": "1.5",
    "FGD_STALL_S": "3",
}
"""The default times, shrunk by about six; their order stays."""
REAL = {
    "name": "real",
    "schedule": {
        "epochs": 6,
        "batch_size": 2,
        "min_size": 64,
        "max_size": 64,
        "evaluate_every": 6,
        "checkpoint_s": 0.01,
    },
    "student": {"kind": "fcos", "backbone": "resnet18", "fpn_channels": 64},
    "resources": {"threads": 1},
}
"""A real training of 24 steps on the pictures of the template."""
REAL_TIMES = {"FGD_TRAINER": f'["{sys.executable}", "-m", "fgd.train"]', "FGD_STALL_S": "120", "FGD_GRACE_S": "30"}


@dataclass
class Rig(Bench):
    """A bench on SQLite or PostgreSQL, with what surrounds the workers."""

    url: str = ""
    told: dict[str, str] = field(default_factory=dict)
    """Settings of every process from now on."""
    _replicas: list[Replica] = field(default_factory=list)

    @property
    def struck_folder(self) -> Path:
        return self.home / "struck"

    def worker(self, **more: str) -> subprocess.Popen[bytes]:
        return super().worker(**{"FGD_DATABASE_URL": self.url, **SHORT, **self.told, **more})

    def armed(self, *places: str) -> dict[str, str]:
        """Variables for a process that is to die, or to stop, at one of the places."""
        self.struck_folder.mkdir(exist_ok=True)
        return {failpoints.PLACES: ",".join(places), failpoints.TEST: str(self.struck_folder)}

    def struck(self, place: str) -> bool:
        return (self.struck_folder / place).exists()

    def go_on(self, place: str) -> None:
        """Let go of the thread that waits there."""
        (self.struck_folder / f"{place}.go").touch()

    def valkey(self) -> subprocess.Popen[bytes]:
        """A broker; processes started from now on know it. The same again after its end."""
        program = broker.find_server()
        assert program is not None
        folder = self.home / "valkey"
        folder.mkdir(exist_ok=True)
        listens = broker.socket_path(self.home)
        with (self.home / "valkey.log").open("ab") as log:
            server = subprocess.Popen(broker.command(program, folder, listens), stdout=log, stderr=log)
        self.processes.append(server)
        self.told["FGD_BROKER_URL"] = broker.url(listens)
        until(lambda: answers(listens), what="Valkey")
        return server

    def forget_broker(self) -> None:
        """What a broker without persistence keeps when it is started again."""
        shutil.rmtree(self.home / "valkey")

    def api(self, port: int = 0, **more: str) -> Replica:
        replica = Replica.start(self.home, {"FGD_DATABASE_URL": self.url, **SHORT, **self.told, **more}, port)
        self.processes.append(replica.process)
        self._replicas.append(replica)
        return replica

    def submit_real(self) -> str:
        body = spec_of(self.dataset, "") | REAL
        return self.insert(SubmitJob.model_validate(body | {"limits": {"max_retries": 3}}))

    def insert(self, spec: SubmitJob) -> str:
        with db.transaction(self.engine) as s:
            return self.insert_in(s, spec)

    def insert_in(self, s: Any, spec: SubmitJob) -> str:
        dataset = datasets.get(s, DEFAULT_PROJECT, self.dataset)
        inputs = {"dataset": {"archive": str(dataset.archive_digest), "index": str(dataset.index_digest)}}
        resolved: JobSpec = spec.spec()
        return requests.submit(s, DEFAULT_PROJECT, spec, resolved, inputs=inputs).id

    def ask(self, job: str, wish: Requested) -> None:
        with db.transaction(self.engine) as s:
            requests.request(s, DEFAULT_PROJECT, job, wish)

    def exits(self, job: str) -> list[int | None]:
        with db.reading(self.engine) as s:
            return list(s.scalars(select(Attempt.exit).where(Attempt.job_id == job).order_by(Attempt.attempt)))

    def points(self, job: str, name: str = "loss/total") -> dict[int, int]:
        """Step -> the attempt that measured it."""
        query = select(MetricPoint.step, MetricPoint.attempt).join(Series, Series.id == MetricPoint.series_id)
        with db.reading(self.engine) as s:
            rows = s.execute(query.where(MetricPoint.job_id == job, Series.name == name)).all()
        assert len({step for step, _ in rows}) == len(rows)
        return {step: attempt for step, attempt in rows}  # noqa: C416

    def trainers(self, job: str = "") -> list[int]:
        """Trainers that run: those that are stopped do no harm."""
        return trainers_of(self.home, job)

    def freeze(self, process: subprocess.Popen[bytes], job: str) -> None:
        """SIGSTOP, at a moment at which it holds no lock of the database that would hold up all others."""

        def frozen() -> bool:
            os.kill(process.pid, signal.SIGSTOP)
            until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
            if lockable(self.engine, job):
                return True
            os.kill(process.pid, signal.SIGCONT)
            return False

        until(frozen, what="a moment without a lock")

    def stop_all(self) -> None:
        """Every process of ours ends in order; those that died already are no matter."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
            process.terminate()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()
            process.wait()
        until(lambda: not processes_of(self.home), timeout_s=5, what="the end of every process")

    def close(self) -> None:
        super().close()
        for replica in self._replicas:
            os.close(replica.lifeline)
            replica.http.close()
        self._replicas.clear()


@dataclass
class Replica:
    """One API process with an address of its own."""

    process: subprocess.Popen[bytes]
    url: str
    http: httpx.Client
    lifeline: int

    @classmethod
    def start(cls, home: Path, told: dict[str, str], port: int = 0) -> Replica:
        listener = socket.create_server(("127.0.0.1", port), backlog=2048)
        port = listener.getsockname()[1]
        parent_in, lifeline = os.pipe()
        command = [sys.executable, "-X", f"home={home}", "-m", "deploy.api"]
        command += ["--fd", str(listener.fileno()), "--parent-fd", str(parent_in)]
        with (home / "api.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment(home, **told, FGD_PORT=str(port)), stdout=log, stderr=log,
                pass_fds=[listener.fileno(), parent_in], start_new_session=True,
            )  # fmt: skip
        listener.close()
        os.close(parent_in)
        url = f"http://127.0.0.1:{port}"
        return cls(process, url, httpx.Client(base_url=url, timeout=30), lifeline)

    def ready(self) -> Replica:
        until(self._answers, timeout_s=60, what="the API")
        return self

    def _answers(self) -> bool:
        assert self.process.poll() is None
        try:
            return self.http.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def post(self, dataset: str, words: str, **more: Any) -> str:
        answer = self.http.post("/v1/jobs", json=spec_of(dataset, words) | more)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])


def answers(unix_socket: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(os.fspath(unix_socket))
            client.sendall(b"PING\r\n")
            return client.recv(7) == b"+PONG\r\n"
        except OSError:
            return False


@dataclass(frozen=True)
class Training:
    """A process that trains: it bears the mark of a run, and its spec is a job's."""

    pid: int
    job: str
    mark: str


def trainings(home: Path) -> Iterator[Training]:
    """From /proc alone; not those that are stopped, which do no harm."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
            spec = re.search(rf"{re.escape(str(home))}/work/(job_[^/]+)/a\d+/spec\.json", command)
            if spec is None:
                continue
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            mark = re.search(rb"FGD_RUN=(\w+)", (folder / "environ").read_bytes())
        except (OSError, IndexError):
            continue
        if mark is not None and state not in "TtZX":
            yield Training(int(folder.name), spec[1], mark[1].decode())


def trainers_of(home: Path, job: str = "") -> list[int]:
    return sorted(each.pid for each in trainings(home) if job in ("", each.job))


def marks_of(home: Path) -> dict[str, set[str]]:
    """Job -> the runs of it that are alive. A run may be several processes."""
    found: dict[str, set[str]] = {}
    for each in trainings(home):
        found.setdefault(each.job, set()).add(each.mark)
    return found


def lockable(engine: Engine, job: str) -> bool:
    """Whether nobody holds a lock that the sweep or another worker would meet."""
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                connection.connection.driver_connection.execute("PRAGMA busy_timeout=0").close()  # type: ignore[union-attr]
                connection.invalidate()
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(select(Job.id).where(Job.id == job).with_for_update(nowait=True)).all()
                connection.execute(text("SELECT id FROM workers FOR UPDATE NOWAIT")).all()
    except OperationalError:
        return False
    return True


def copy_rows(source: Engine, target: Engine) -> None:
    """What the template's database holds, into an empty one of whatever kind."""
    with db.reading(source) as old, db.transaction(target) as new:
        for table in Base.metadata.sorted_tables:
            rows = [dict(row._mapping) for row in old.execute(select(table)) if table.name != "projects"]
            if rows:
                new.execute(insert(table), rows)


@contextmanager
def no_patience() -> Iterator[None]:
    """The collector's grace periods are over at once."""
    from api.core import blobs

    names = [(sweeper, "ORPHAN_S"), (sweeper, "PARTIAL_S"), (blobs, "UNUSED_S")]
    before = [getattr(module, name) for module, name in names]
    for module, name in names:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for (module, name), value in zip(names, before, strict=True):
            setattr(module, name, value)
