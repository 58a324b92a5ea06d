"""Several hosts that share database, broker and store, and what happens when the cable between them is cut.

Hosts are network namespaces; PostgreSQL, Valkey, an S3 server and the API run on the hub. Only the trainer is scripted,
and in the last test it is the real one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import Engine, func, select

from api.core import datasets
from api.core.errors import Fenced
from api.core.jobs import record, requests
from api.core.lifecycle import State
from api.core.request_bodies import SubmitDataset
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Attempt, Checkpoint, JobEvent, MetricPoint
from deploy import broker
from fgd.events import Stepped
from fgd.spec import SubmitJob
from tests import postgres as databases
from tests import s3 as stores
from tests.chaos import network
from tests.e2e import conftest as e2e
from tests.e2e.parts import ROOT, environment, processes_of, spec_of, until, weights_digest_after

pictures = e2e.pictures
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

TIMES = {"FGD_FREEZE_S": "4", "FGD_KILL_S": "6", "FGD_LEASE_S": "8.5", "FGD_STALL_S": "60", "FGD_GRACE_S": "3"}
LEASE_S = 8.5
PATIENT_S = 400.0
"""For a real training of 40 steps, on a machine that others use too."""
AS_BY_DEFAULT = {
    "FGD_BEAT_S": "3", "FGD_FREEZE_S": "12", "FGD_KILL_S": "16", "FGD_LEASE_S": "20", "FGD_SWEEP_S": "5",
    "FGD_POLL_S": "5",
}  # fmt: skip
REAL = {"FGD_TRAINER": f'["{sys.executable}", "-m", "fgd.train"]', "FGD_STALL_S": "200", "FGD_GRACE_S": "60"}


@dataclass
class Hosts:
    """The hub with all that is shared, and the workers on the other hosts."""

    net: network.Network
    root: Path
    engine: Engine
    database_url: str
    store: dict[str, str]
    dataset: str = ""
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def home(self, host: str) -> Path:
        return self.root / f"host-{host}"

    def start(self, *hosts: str, **more: str) -> None:
        for host in hosts:
            self.home(host).mkdir(exist_ok=True)
            shared = {
                "FGD_DATABASE_URL": self.database_url, "FGD_BROKER_URL": f"redis://{network.BROKER}:6379/0",
            }  # fmt: skip
            with (self.home(host) / "worker.log").open("ab") as log:
                self.workers[host] = subprocess.Popen(
                    [
                        *self.net.inside(host), sys.executable, "-X", f"home={self.home(host)}",
                        "-m", "worker", "--drain-s", "2",
                    ],
                    env=environment(self.home(host), **TIMES, **shared, **self.store) | more,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
        for host in hosts:
            until(lambda host=host: "looks for jobs" in self.log(host), 30, f"the worker of {host}")

    def stop(self, host: str) -> None:
        worker = self.workers.pop(host)
        worker.kill()
        worker.wait()
        until(lambda: not processes_of(self.home(host)), 5, "the end of every process")

    def log(self, host: str) -> str:
        return (self.home(host) / "worker.log").read_text()

    def submit(self, words: str = "", **changes: Any) -> str:
        spec = SubmitJob.model_validate(spec_of(self.dataset, words) | changes)
        with db.transaction(self.engine) as s:
            dataset = datasets.get(s, DEFAULT_PROJECT, self.dataset)
            inputs = {"dataset": {"archive": str(dataset.archive_digest), "index": str(dataset.index_digest)}}
            return requests.submit(s, DEFAULT_PROJECT, spec, spec.spec(), inputs=inputs).id

    def job(self, job: str) -> Any:
        with db.reading(self.engine) as s:
            return requests.get(s, DEFAULT_PROJECT, job)

    def runs_on(self, job: str) -> str:
        """The host of the latest attempt."""
        query = select(Attempt.host).where(Attempt.job_id == job).order_by(Attempt.attempt.desc()).limit(1)
        with db.reading(self.engine) as s:
            return str(s.scalar(query)).removeprefix("host-")

    def attempts(self, job: str) -> list[tuple[str, str | None]]:
        query = select(Attempt).where(Attempt.job_id == job).order_by(Attempt.attempt)
        with db.reading(self.engine) as s:
            return [(row.host.removeprefix("host-"), row.outcome) for row in s.scalars(query)]

    def story(self, job: str) -> list[JobEvent]:
        with db.reading(self.engine) as s:
            rows = list(s.scalars(select(JobEvent).where(JobEvent.job_id == job).order_by(JobEvent.seq)))
        assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
        return rows

    def until_step(self, job: str, step: int, timeout_s: float = 30.0) -> None:
        until(lambda: ((self.job(job).progress or {}).get("step") or 0) >= step, timeout_s, f"step {step}")

    def until_saved(self, job: str) -> None:
        query = select(func.count()).select_from(Checkpoint).where(Checkpoint.job_id == job)

        def saved() -> bool:
            with db.reading(self.engine) as s:
                return bool(s.scalar(query))

        until(saved, 60, "a checkpoint")

    def succeeded(self, job: str, timeout_s: float = 90.0) -> Any:
        until(lambda: State(self.job(job).state).terminal, timeout_s, "the end of the job")
        row = self.job(job)
        logs = "\n".join(self.log(host) for host in self.workers)
        assert row.state == "succeeded", f"{row.failure_code} {row.failure_message}\n{logs}"
        assert [event.type for event in self.story(job)].count("succeeded") == 1
        return row


@dataclass
class Watch:
    """Looks into /proc the whole time: which trainers of a job live, on which host."""

    hosts: Hosts
    job: str
    word: str
    most: int = 0
    samples: int = 0
    last_alive: dict[str, float] = field(default_factory=dict)
    """Host: when a trainer of it was last seen alive, stopped ones too."""

    def look(self) -> None:
        alive = [host for host in network.ADDRESS for _ in self._trainers(host)]
        self.samples += 1
        self.most = max(self.most, len(alive))
        self.last_alive |= dict.fromkeys(alive, time.monotonic())

    def _trainers(self, host: str) -> list[int]:
        found = processes_of(self.hosts.home(host))
        return [pid for pid, command in found.items() if self.word in command and self.job in command]


@contextmanager
def watching(hosts: Hosts, job: str, word: str = "scripted_trainer") -> Iterator[Watch]:
    watch, left = Watch(hosts, job, word), threading.Event()

    def run() -> None:
        while not left.wait(0.03):
            watch.look()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield watch
    finally:
        left.set()
        thread.join()


@pytest.fixture(scope="module")
def net() -> Iterator[network.Network]:
    for reason in (network.why_not(), databases.why_not()):
        if reason:
            pytest.skip(reason)
    with network.running() as net:
        yield net


@pytest.fixture(scope="module")
def hub(net: network.Network, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """PostgreSQL, Valkey and a shared folder; the data set is there already."""
    root = tmp_path_factory.mktemp("hosts")
    program = broker.find_server()
    assert program is not None
    valkey = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{net.namespace('hub')}", program, "--bind", network.BROKER,
         "--protected-mode", "no", "--save", "", "--dir", str(root)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with (
            databases.running(namespace=net.namespace("hub"), network=network.RANGE) as postgres,
            postgres.empty() as url,
        ):
            db.upgrade(url)
            engine = db.make_engine(url)
            name = url.partition("@/")[2].partition("?")[0]
            hosts = Hosts(
                net, root, engine, f"postgresql+psycopg://fgd@{network.DATABASE}/{name}",
                {"FGD_BLOBS": str(root / "shared")},
            )  # fmt: skip
            try:
                hosts.dataset = imported(hosts, pictures)
                yield hosts
            finally:
                engine.dispose()
    finally:
        valkey.kill()
        valkey.wait()


@pytest.fixture
def hosts(hub: Hosts, tmp_path: Path) -> Iterator[Hosts]:
    """New homes, no worker yet, every cable whole."""
    fresh = Hosts(hub.net, tmp_path, hub.engine, hub.database_url, hub.store, hub.dataset)
    try:
        yield fresh
    finally:
        for host in network.ADDRESS:
            fresh.net.mend(host)
            fresh.net.hasten(host)
        for worker in fresh.workers.values():
            worker.kill()
            worker.wait()
    until(lambda: not processes_of(tmp_path), 5, "the end of every process")


def imported(hosts: Hosts, folder: Path) -> str:
    with db.transaction(hosts.engine) as s:
        dataset = datasets.submit(s, DEFAULT_PROJECT, SubmitDataset(name="pictures", path=str(folder))).id

    def ready() -> bool:
        with db.reading(hosts.engine) as s:
            return bool(datasets.get(s, DEFAULT_PROJECT, dataset).state == "ready")

    hosts.start("a")
    until(ready, 60, "the import")
    hosts.stop("a")
    return dataset


def test_both_hosts_take_jobs_and_an_api_of_the_hub_tells_their_results(hosts: Hosts, tmp_path: Path) -> None:
    hosts.start("a", "b")
    submitted = [hosts.submit(f"steps={100 + n} ms=20") for n in range(6)]
    for n, job in enumerate(submitted):
        assert hosts.succeeded(job).weights_digest == weights_digest_after(100 + n)
    assert {hosts.runs_on(job) for job in submitted} == {"a", "b"}

    with api(hosts, tmp_path) as http:
        assert http.get("/readyz").json()["broker"]["detail"] == "reachable"
        job = http.post("/v1/jobs", json=spec_of(hosts.dataset, "steps=20 ms=5")).json()["id"]
        hosts.succeeded(job)
        assert http.get(f"/v1/jobs/{job}").json()["weights_digest"] == weights_digest_after(20)


@contextmanager
def api(hosts: Hosts, folder: Path) -> Iterator[httpx.Client]:
    """The API on the hub; its socket is a file, which every network sees."""
    home = folder / "api"
    home.mkdir()
    shared = {"FGD_DATABASE_URL": hosts.database_url, "FGD_BROKER_URL": f"redis://{network.BROKER}:6379/0"}
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            [*hosts.net.inside("hub"), sys.executable, "-m", "uvicorn", "--factory", "api.main:create_app",
             "--uds", str(home / "s"), "--log-level", "warning"],
            env=environment(home, **TIMES, **shared, **hosts.store), stdout=log, stderr=log, cwd=ROOT,
        )  # fmt: skip
    try:
        until(lambda: (home / "s").exists(), 30, "the API")
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(home / "s")), base_url="http://127.0.0.1") as http:
            yield http
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.parametrize("by", ["a relay", "netem"])
def test_slow_lines_fence_nobody(hosts: Hosts, tmp_path: Path, by: str) -> None:
    """Each round trip takes 50 to 200 ms, at the times that are the default; with netem one packet of 100 is lost."""
    if by == "netem" and (reason := hosts.net.slow("a")):
        pytest.skip(reason)
    with late_database(hosts, needed=by == "a relay") as url:
        hosts.start("a", **AS_BY_DEFAULT, FGD_DATABASE_URL=url)
        job = hosts.submit("steps=600 ms=50 save=50")
        assert hosts.succeeded(job, 150).weights_digest == weights_digest_after(600)
        assert hosts.attempts(job) == [("a", "succeeded")]
    assert "no heartbeat" not in hosts.log("a")
    assert "stopped until" not in hosts.log("a")


@contextmanager
def late_database(hosts: Hosts, needed: bool) -> Iterator[str]:
    if not needed:
        yield hosts.database_url
        return
    relay = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{hosts.net.namespace('hub')}", sys.executable,
         str(ROOT / "tests" / "chaos" / "relay.py"), network.DATABASE, "6432", network.DATABASE, "5432", "25", "100"],
    )  # fmt: skip
    try:
        time.sleep(0.5)
        yield hosts.database_url.replace(network.DATABASE, f"{network.DATABASE}:6432")
    finally:
        relay.kill()
        relay.wait()


@pytest.mark.parametrize("how", ["the cable is cut", "answers are lost"])
def test_f09_host_that_is_cut_off_ends_its_trainer_before_the_other_goes_on(hosts: Hosts, how: str) -> None:
    hosts.start("a", "b")
    job = hosts.submit("steps=600 ms=50 save=40")
    hosts.until_step(job, 100)
    first = hosts.runs_on(job)
    other = {"a": "b", "b": "a"}[first]
    with watching(hosts, job) as watch:
        if how == "the cable is cut":
            hosts.net.cut(first)
        else:
            hosts.net.lose_answers(first)
        cut_at = time.monotonic()
        until(lambda: hosts.runs_on(job) == other, 40, "the other host")
        row = hosts.succeeded(job)
        watch.look()
    assert watch.most == 1, "two trainers of one job lived at once"
    assert watch.samples > 50
    assert watch.last_alive[first] - cut_at < LEASE_S, "it lived longer than its lease"
    assert hosts.attempts(job) == [(first, "lost"), (other, "succeeded")]
    assert row.weights_digest == weights_digest_after(600)
    assert "the trainer is stopped until" in hosts.log(first)
    assert "the trainer is killed" in hosts.log(first)
    story = hosts.story(job)
    lost = next(event.seq for event in story if event.type == "attempt_lost")
    resumed = next(event for event in story if event.type == "note:resumed")
    assert resumed.data["data"]["step"] >= 80

    before = written_by(hosts, job, 1)
    if how == "the cable is cut":
        hosts.net.mend(first)
    else:
        hosts.net.find_answers(first)
    hosts.stop(other)
    again = hosts.submit("steps=30 ms=5")  # only the host that was away is left
    hosts.succeeded(again)
    assert hosts.attempts(again) == [(first, "succeeded")]
    assert "the database answers again" in hosts.log(first)
    assert written_by(hosts, job, 1) == before, "it wrote for an attempt that it had lost"
    assert [event.attempt for event in hosts.story(job) if event.seq > lost + 1] == [2] * (len(story) - lost - 1)
    with pytest.raises(Fenced), db.transaction(hosts.engine) as s:
        record.record(s, job, 1, [Stepped(step=599, epoch=1, values={"loss/total": 0.0})])


def written_by(hosts: Hosts, job: str, attempt: int) -> tuple[int, ...]:
    """How much an attempt has written: events, points, bytes of log."""
    with db.reading(hosts.engine) as s:
        return tuple(
            int(s.scalar(query) or 0)
            for query in (
                select(func.count()).where(JobEvent.job_id == job, JobEvent.attempt == attempt),
                select(func.count()).where(MetricPoint.job_id == job, MetricPoint.attempt == attempt),
                select(Attempt.log_bytes).where(Attempt.job_id == job, Attempt.attempt == attempt),
            )
        )


def test_clocks_that_jump_by_an_hour_lose_no_lease(hosts: Hosts, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the clock that jumps")
    library, shift = tmp_path / "shifted_clock.so", tmp_path / "shift"
    source = ROOT / "tests" / "chaos" / "shifted_clock.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    shift.write_text("3600")
    clock = {"LD_PRELOAD": str(library), "SHIFT_FILE": str(shift)}
    now = subprocess.check_output([sys.executable, "-c", "import time; print(time.time())"], env=os.environ | clock)
    assert 3500 < float(now) - time.time() < 3700
    hosts.start("a", **clock)
    hosts.start("b")
    submitted = [hosts.submit("steps=500 ms=30 save=50") for _ in range(2)]
    with watching(hosts, submitted[0]) as watch:
        for job in submitted:
            hosts.until_step(job, 50)
        for seconds in ("-3600", "3600", "0"):
            shift.write_text(seconds)
            time.sleep(2)
        for job in submitted:
            assert hosts.succeeded(job).weights_digest == weights_digest_after(500)
    assert watch.most == 1
    assert {hosts.runs_on(job) for job in submitted} == {"a", "b"}
    assert [outcome for job in submitted for _, outcome in hosts.attempts(job)] == ["succeeded", "succeeded"]
    assert "no heartbeat" not in hosts.log("a")
    waiting = hosts.submit("steps=10 ms=5")
    hosts.succeeded(waiting)


def test_short_cut_is_a_gap_and_nothing_else(hosts: Hosts) -> None:
    hosts.start("a")
    job = hosts.submit("steps=300 ms=40 save=50")
    hosts.until_step(job, 60)
    hosts.net.cut("a")
    time.sleep(1.5)
    hosts.net.mend("a")
    row = hosts.succeeded(job)
    assert row.weights_digest == weights_digest_after(300)
    assert hosts.attempts(job) == [("a", "succeeded")]
    assert "stopped until" not in hosts.log("a")
    with db.reading(hosts.engine) as s:
        points = select(func.count(func.distinct(MetricPoint.step))).where(MetricPoint.job_id == job)
        assert s.scalar(points) == 300, "what was said meanwhile was kept"


def test_database_that_is_stopped_hangs_no_worker_for_ever(hosts: Hosts) -> None:
    """The server's kernel acknowledges everything, and nobody reads it: TCP never notices."""
    hosts.start("a")
    job = hosts.submit("steps=400 ms=40 save=20")
    hosts.until_step(job, 60)
    backends = [p for p in psutil.process_iter() if network.ADDRESS["a"] in " ".join(p.cmdline())]
    assert backends, "PostgreSQL names the client in its processes' titles"
    for backend in backends:
        backend.send_signal(signal.SIGSTOP)  # these connections only: a new one finds a server that is well
    try:
        until(lambda: "the trainer is killed" in hosts.log("a"), LEASE_S, "the guard")
        other = hosts.submit("steps=20 ms=5")
        hosts.succeeded(other, db.ANSWER_S + 40)  # by the same worker, once its calls have given up
    finally:
        for backend in backends:
            backend.send_signal(signal.SIGCONT)
    # One of them may have held the job's row; now it is free.
    assert hosts.succeeded(job).weights_digest == weights_digest_after(400)
    assert hosts.attempts(job) == [("a", "lost"), ("a", "succeeded")]


def test_without_the_broker_jobs_start_a_poll_later(hosts: Hosts) -> None:
    hosts.start("a")
    running = hosts.submit("steps=150 ms=30 save=50")
    hosts.until_step(running, 20)
    hosts.net.lose("a", network.BROKER)
    try:
        job = hosts.submit("steps=20 ms=5")
        for each in (running, job):
            hosts.succeeded(each)
            assert hosts.attempts(each) == [("a", "succeeded")]
    finally:
        hosts.net.find("a", network.BROKER)
    hosts.succeeded(hosts.submit("steps=20 ms=5"))


def test_without_the_store_training_goes_on_and_the_result_waits_for_it(
    hosts: Hosts, pictures: Path, tmp_path: Path
) -> None:
    if reason := stores.why_not():
        pytest.skip(reason)
    with s3_on_the_hub(hosts, tmp_path) as store:
        hosts.store = store
        hosts.dataset = imported(hosts, pictures)
        hosts.start("a")
        job = hosts.submit("steps=250 ms=40 save=60")
        hosts.until_step(job, 20)
        hosts.net.lose("a", network.STORE)
        try:
            until(lambda: "note:store_away" in {event.type for event in hosts.story(job)}, 150, "the first complaint")
            assert hosts.job(job).state == "running", "its last step is done, its result is not in the store"
            assert hosts.job(job).progress["step"] == 250
        finally:
            hosts.net.find("a", network.STORE)
        row = hosts.succeeded(job, 120)
        assert row.weights_digest == weights_digest_after(250)
        assert hosts.attempts(job) == [("a", "succeeded")]
        assert "note:store_back" in {event.type for event in hosts.story(job)}


@contextmanager
def s3_on_the_hub(hosts: Hosts, folder: Path) -> Iterator[dict[str, str]]:
    endpoint = f"http://{network.STORE}:5000"
    with (folder / "moto.log").open("wb") as log:
        server = subprocess.Popen(
            [*hosts.net.inside("hub"), sys.executable, "-m", "moto.server", "-H", network.STORE, "-p", "5000"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip

    def answers() -> bool:
        try:
            return httpx.get(endpoint, timeout=1).status_code < 500
        except httpx.TransportError:
            return False

    try:
        until(lambda: hosts.net.as_on("hub", answers), 60, "moto")
        bucket = stores.S3(endpoint)
        hosts.net.as_on("hub", lambda: bucket.boto().create_bucket(Bucket=stores.BUCKET))
        yield {f"FGD_{name.upper()}": str(value) for name, value in bucket.settings().items()}
    finally:
        server.kill()
        server.wait()


def test_real_training_that_changes_hosts_ends_with_the_bytes_of_one_that_did_not(hosts: Hosts) -> None:
    schedule = {"epochs": 20, "batch_size": 4, "min_size": 64, "max_size": 64, "evaluate_every": 20}
    tiny = {
        "student": {"kind": "fcos", "backbone": "resnet18", "fpn_channels": 64},
        "schedule": schedule | {"checkpoint_s": 1.0},
        "resources": {"threads": 1},
    }
    hosts.start("a", "b", **REAL)
    undisturbed = hosts.submit("undisturbed", **tiny)
    digest = hosts.succeeded(undisturbed, PATIENT_S).weights_digest

    job = hosts.submit("undisturbed", **tiny)
    hosts.until_saved(job)
    first = hosts.runs_on(job)
    with watching(hosts, job, "fgd.train") as watch:
        hosts.net.cut(first)
        until(lambda: hosts.runs_on(job) != first, 60, "the other host")
        row = hosts.succeeded(job, PATIENT_S)
    hosts.net.mend(first)
    assert watch.most == 1
    assert [outcome for _, outcome in hosts.attempts(job)] == ["lost", "succeeded"]
    assert "note:resumed" in {event.type for event in hosts.story(job)}
    assert row.weights_digest == digest


def test_the_hosts_leave_nothing_behind() -> None:
    if reason := network.why_not():
        pytest.skip(reason)
    with contextlib.suppress(ZeroDivisionError), network.running() as net:
        seen = os.listdir("/run/netns")
        raise ZeroDivisionError
    assert net.namespace("hub") in seen
    assert not [name for name in os.listdir("/run/netns") if name.startswith(net.name)]
