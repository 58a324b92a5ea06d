"""A stream of jobs while random parts are killed and frozen; then everything settles and the invariants are checked.

    python -m tests.chaos.soak --minutes 30 --database postgres --seed 1

API, three workers, Valkey and the database are real processes; most jobs have the scripted trainer, some the real one.
Whom it strikes, how and after which pause follows from the seed; who is there to be struck, of course not. At the end a
Markdown table for docs/studies.md; exit status 1 if an invariant does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import func, select, update
from sqlalchemy.exc import DBAPIError

from api.core import datasets
from api.core.lifecycle import TERMINAL, State
from api.core.request_bodies import SubmitDataset
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Attempt, Job
from tests import postgres
from tests.chaos.conftest import filled
from tests.chaos.invariants import violations
from tests.chaos.parts import REAL, Replica, Rig, marks_of, trainers_of
from tests.e2e.conftest import drawn
from tests.e2e.parts import ROOT, spec_of, until, weights_digest_after

TIMES = {
    "FGD_BEAT_S": "0.3", "FGD_FREEZE_S": "2", "FGD_KILL_S": "3", "FGD_LEASE_S": "4.5", "FGD_SWEEP_S": "0.5",
    "FGD_POLL_S": "0.5", "FGD_GRACE_S": "3", "FGD_STALL_S": "120", "FGD_SLOTS": "2",
}  # fmt: skip
"""The default times, shrunk by about five; their order stays."""
WORKERS = 3
IN_FLIGHT = 6
PAST_THE_LEASE_S = 7.0
SETTLE_S = 420.0
HOST_TROUBLE = {"worker_lost", "trainer_killed", "stalled", "host_wedged"}
"""Codes of a job that was struck more often than limits.max_retries allows."""


@dataclass(frozen=True)
class Strike:
    part: str
    how: str
    """kill, freeze, end (in order)."""
    weight: int
    seconds: tuple[float, float] = (0.0, 0.0)
    """How long it is frozen."""

    def __str__(self) -> str:
        return f"{self.how} {self.part}"


STRIKES = (
    Strike("trainer", "kill", 6),
    Strike("worker", "kill", 6),
    Strike("api", "kill", 3),
    Strike("valkey", "kill", 2),
    Strike("postgres", "kill", 2),
    Strike("worker", "end", 2),
    Strike("worker", "freeze", 3, (PAST_THE_LEASE_S, PAST_THE_LEASE_S + 3)),
    Strike("trainer", "freeze", 1, (0.5, 4.0)),
    Strike("api", "freeze", 1, (1.0, 5.0)),
    Strike("valkey", "freeze", 1, (1.0, 5.0)),
    Strike("postgres", "freeze", 1, (1.0, 6.0)),
)


@dataclass
class Parts:
    """The service. Every process is started, struck and started again in the main thread, which outlives them all."""

    rig: Rig
    server: postgres.Postgres | None
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    start_at: dict[str, float] = field(default_factory=dict)
    frozen: list[tuple[float, list[int]]] = field(default_factory=list)
    api: Replica | None = None
    port: int = 0

    def keep(self) -> None:
        """Start what is not there; let go on what was frozen for long enough."""
        now = time.monotonic()
        for end, held in [entry for entry in self.frozen if entry[0] <= now]:
            self.frozen.remove((end, held))
            signalled(held, signal.SIGCONT)
        for name in ("valkey", "api", *(f"worker {n}" for n in range(WORKERS))):
            process = self.started.get(name)
            if process is not None and process.poll() is None:
                continue
            if process is not None and name not in self.start_at:
                self.start_at[name] = now + 0.5
            if now >= self.start_at.get(name, 0.0):
                self.start_at.pop(name, None)
                self.started[name] = self.start(name)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        if name == "valkey":
            return self.rig.valkey()
        if name == "api":
            self.api = self.rig.api(port=self.port)
            self.port = int(self.api.url.rpartition(":")[2])
            return self.api.process
        return self.rig.worker()

    def strike(self, strike: Strike, choice: random.Random) -> bool:
        """False: there is nobody to strike just now."""
        pids = sorted(self.pids(strike.part))
        if not pids:
            return False
        if strike.part == "postgres":
            self.strike_postgres(strike, pids, choice)
            return True
        pid = choice.choice(pids)
        if strike.how == "freeze":
            signalled([pid], signal.SIGSTOP)
            self.frozen.append((time.monotonic() + choice.uniform(*strike.seconds), [pid]))
        else:
            signalled([pid], signal.SIGKILL if strike.how == "kill" else signal.SIGTERM)
        return True

    def strike_postgres(self, strike: Strike, pids: list[int], choice: random.Random) -> None:
        assert self.server is not None
        if strike.how == "freeze":
            signalled(pids, signal.SIGSTOP)
            self.frozen.append((time.monotonic() + choice.uniform(*strike.seconds), pids))
            return
        self.server.stop(choice.choice([signal.SIGQUIT, signal.SIGINT]))
        time.sleep(choice.uniform(0.0, 3.0))
        self.server.start()

    def pids(self, part: str) -> list[int]:
        """Of what can be struck: not what is frozen already."""
        held = {pid for _, pids in self.frozen for pid in pids}
        if part == "trainer":
            found = trainers_of(self.rig.home)
        elif part == "postgres":
            found = self.server.pids() if self.server else []
        else:
            found = [p.pid for name, p in self.started.items() if name.startswith(part) and p.poll() is None]
        return [] if part == "postgres" and held & set(found) else [pid for pid in found if pid not in held]

    def thaw(self) -> None:
        for _, held in self.frozen:
            signalled(held, signal.SIGCONT)
        self.frozen.clear()


def signalled(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@dataclass
class Stream:
    """A client that keeps some jobs in flight, whatever happens to the API."""

    rig: Rig
    parts: Parts
    choice: random.Random
    real_digest: str | None
    digests: dict[str, str | None] = field(default_factory=dict)
    may_end_as: dict[str, set[str]] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)
    complaint: str | None = None
    real: str | None = None

    def run(self) -> None:
        in_flight: set[str] = set()
        number = 0
        while not self.over.is_set():
            if len(in_flight) < IN_FLIGHT:
                in_flight.add(self.submit(number))
                number += 1
            else:
                self.over.wait(0.3)
            in_flight = {job for job in in_flight if not self.ended(job)}
            if self.real not in in_flight:
                self.real = None

    def submit(self, number: int) -> str:
        choice = self.choice
        steps, cancel = choice.randrange(40, 200), choice.random() < 0.12
        fault = choice.choice(["segv", "flood", "bad-lines", "exit"]) if choice.random() < 0.12 else None
        real = choice.random() < 0.08 and self.real_digest is not None and self.real is None
        words = f"n={number} steps={steps} ms=25 save={choice.choice([5, 10, 40])}"
        body = spec_of(self.rig.dataset, words + (f" fault={fault} at={steps // 2} once=1" if fault else ""))
        if real:
            body |= REAL | {"name": f"real n={number}"}
        job = self.post(body | {"limits": {"max_retries": 100}}, key=f"soak-{number}")
        self.digests[job] = self.real_digest if real else weights_digest_after(steps)
        self.may_end_as[job] = {"succeeded"} | ({"failed"} if fault == "exit" and not real else set())
        if real:
            self.real = job
        if cancel:
            self.may_end_as[job].add("cancelled")
            threading.Timer(choice.uniform(0.0, 4.0), self.cancel, (job, choice.choice(["graceful", "now"]))).start()
        return job

    def post(self, body: dict[str, Any], key: str) -> str:
        """Again and again until it is answered; the key makes it one job."""
        while True:
            answer = self.asked("POST", "/v1/jobs", json=body, headers={"Idempotency-Key": key})
            if answer is not None and answer.status_code in (200, 201):
                return str(answer.json()["id"])
            if answer is not None and answer.status_code not in (409, 500, 503):
                self.complaint = f"{answer.status_code} {answer.text}"
            time.sleep(0.3)

    def cancel(self, job: str, mode: str) -> None:
        while (answer := self.asked("POST", f"/v1/jobs/{job}/cancel", json={"mode": mode})) is None or (
            answer.status_code in (500, 503)
        ):
            if self.over.wait(0.3):
                return

    def ended(self, job: str) -> bool:
        answer = self.asked("GET", f"/v1/jobs/{job}")
        if answer is not None and answer.status_code not in (200, 500, 503):
            self.complaint = f"GET {job}: {answer.status_code} {answer.text}"
        return answer is not None and answer.status_code == 200 and answer.json()["state"] in TERMINAL

    def asked(self, method: str, path: str, **what: Any) -> httpx.Response | None:
        try:
            return httpx.request(method, f"http://127.0.0.1:{self.parts.port}{path}", timeout=5.0, **what)
        except httpx.HTTPError:
            return None


@dataclass
class Sampler:
    """Looks for trainers in /proc all the time."""

    home: Path
    most: int = 0
    looks: int = 0
    doubles: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.over.wait(0.05):
            self.looks += 1
            for job, marks in marks_of(self.home).items():
                if len(marks) > 1:  # seen one after the other: both must still be there
                    marks &= marks_of(self.home).get(job, set())
                self.most = max(self.most, len(marks))
                if len(marks) > 1:
                    self.doubles.append(f"{job}: {sorted(marks)}")


@dataclass
class Figures:
    database: str
    seed: int
    minutes: float
    struck: Counter[str]
    states: Counter[str]
    attempts: int
    sampler: Sampler
    broken: dict[str, list[str]]

    def table(self) -> str:
        kills = sum(n for name, n in self.struck.items() if not name.startswith("freeze"))
        freezes = sum(n for name, n in self.struck.items() if name.startswith("freeze"))
        rows = [
            ("database, seed, minutes", f"{self.database}, {self.seed}, {self.minutes:.1f}"),
            ("jobs", f"{sum(self.states.values())}: {listed(self.states)}"),
            ("attempts", str(self.attempts)),
            ("kills", f"{kills}: {listed(of(self.struck, 'kill', 'end'))}"),
            ("freezes", f"{freezes}: {listed(of(self.struck, 'freeze'))}"),
            ("most trainers of a job at once", f"{self.sampler.most}, in {self.sampler.looks} looks"),
            *((name, f"{len(faults)} broken" if faults else "holds") for name, faults in self.broken.items()),
        ]
        return "\n".join(["| what | figure |", "|---|---|", *(f"| {name} | {figure} |" for name, figure in rows)])


def of(struck: Counter[str], *hows: str) -> Counter[str]:
    return Counter(
        {
            (part if how != "end" else f"{part} (SIGTERM)"): n
            for name, n in struck.items()
            for how, part in [name.split(" ")]
            if how in hows
        }
    )


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items())) or "none"


def soak(rig: Rig, server: postgres.Postgres | None, options: argparse.Namespace, real_digest: str | None) -> Figures:
    choice = random.Random(options.seed)
    strikes = [strike for strike in STRIKES if server or strike.part != "postgres"]
    parts = Parts(rig, server)
    stream = Stream(rig, parts, random.Random(options.seed + 1), real_digest)
    sampler = Sampler(rig.home)
    parts.keep()
    until(lambda: parts.api is not None and parts.api.ready(), timeout_s=60, what="the API")
    threads = [threading.Thread(target=stream.run, daemon=True), threading.Thread(target=sampler.run, daemon=True)]
    for thread in threads:
        thread.start()
    struck: Counter[str] = Counter()
    began = time.monotonic()
    due, strike, say_at = began + 5, pick(strikes, choice), began
    while time.monotonic() < began + options.minutes * 60:
        parts.keep()
        if time.monotonic() >= due and parts.strike(strike, choice):
            struck[str(strike)] += 1
            strike, due = pick(strikes, choice), time.monotonic() + choice.uniform(0.5, 2 * options.pause - 0.5)
        if time.monotonic() >= say_at:
            say_at += 30
            print(f"{time.monotonic() - began:5.0f} s: {len(stream.digests)} jobs, {listed(struck)}", flush=True)
        time.sleep(0.1)
    print("settling ...", flush=True)
    parts.thaw()
    stream.over.set()
    settle(parts)
    threads[0].join(30)
    settle(parts)
    sampler.over.set()
    threads[1].join(10)
    minutes = (time.monotonic() - began) / 60
    rig.stop_all()
    broken = violations(rig.engine, rig.home, stream.digests)
    broken["at most one trainer of a job at any time"] = sampler.doubles
    with db.reading(rig.engine) as s:
        rows = list(s.scalars(select(Job)))
        attempts = int(s.scalar(select(func.count()).select_from(Attempt)) or 0)
    broken["every request one job, ended as it should"] = [
        *(f"{row.id} was never asked for" for row in rows if row.id not in stream.digests),
        *(
            f"{row.id} {row.name!r} is {row.state}: {row.failure_code} {row.failure_message}"
            for row in rows
            if row.state not in stream.may_end_as.get(row.id, {row.state}) and row.failure_code not in HOST_TROUBLE
        ),
        *([stream.complaint] if stream.complaint else []),
    ]
    states = Counter(row.state for row in rows)
    return Figures(options.database, options.seed, minutes, struck, states, attempts, sampler, broken)


def pick(strikes: list[Strike], choice: random.Random) -> Strike:
    return choice.choices(strikes, [strike.weight for strike in strikes])[0]


def settle(parts: Parts) -> None:
    """Until every job has ended. Time passes faster for jobs that wait for their next retry."""
    end = time.monotonic() + SETTLE_S
    while True:
        parts.keep()
        with contextlib.suppress(DBAPIError, sqlite3.Error):
            with db.transaction(parts.rig.engine) as s:
                s.execute(update(Job).where(Job.state == State.queued).values(not_before=db.now(s)))
            with db.reading(parts.rig.engine) as s:
                left = s.scalars(select(Job.id).where(Job.state.not_in(TERMINAL))).all()
            if not left:
                return
            assert time.monotonic() < end, f"after {SETTLE_S:.0f} s these have not ended: {left}"
        time.sleep(0.5)


def imported(home: Path) -> str:
    """A home with a data set, as the tests' template; its id."""
    url = f"sqlite:///{home}/fgd.db"
    db.upgrade(url)
    pictures = drawn(home.parent / "pictures")
    engine = db.make_engine(url)
    with db.transaction(engine) as s:
        dataset = datasets.submit(s, DEFAULT_PROJECT, SubmitDataset(name="pictures", path=str(pictures))).id
    rig = Rig(home, dataset, engine, url=url)
    try:
        rig.worker()

        def ready() -> bool:
            with db.reading(engine) as s:
                return bool(datasets.get(s, DEFAULT_PROJECT, dataset).state == "ready")

        until(ready, timeout_s=60, what="the import")
        rig.stop_all()
    finally:
        rig.close()
    return dataset


def undisturbed(home: Path, dataset: str) -> str:
    url = f"sqlite:///{home}/fgd.db"
    rig = Rig(home, dataset, db.make_engine(url), url=url, told=TIMES | {"FGD_TRAINER": BOTH_TRAINERS})
    try:
        job = rig.submit_real()
        rig.worker()
        return str(rig.until_state(job, "succeeded", timeout_s=400).weights_digest)
    finally:
        rig.close()


BOTH_TRAINERS = json.dumps([sys.executable, str(ROOT / "tests" / "chaos" / "either_trainer.py")])


@contextlib.contextmanager
def opened(options: argparse.Namespace, folder: Path) -> Iterator[tuple[Rig, postgres.Postgres | None, str | None]]:
    (folder / "template").mkdir()
    dataset = imported(folder / "template")
    digest = None
    if options.real:
        shutil.copytree(folder / "template", folder / "quiet")
        digest = undisturbed(folder / "quiet", dataset)
    home = Path(shutil.copytree(folder / "template", folder / "home"))
    url, server = f"sqlite:///{home}/fgd.db", None
    with ExitStack() as held:
        if options.database == "postgres":
            server = held.enter_context(postgres.running(postgres.DURABLE))
            url = held.enter_context(server.empty())
            db.upgrade(url)
            filled(f"sqlite:///{home}/fgd.db", url)
        rig = Rig(home, dataset, db.make_engine(url), url=url, told=TIMES | {"FGD_TRAINER": BOTH_TRAINERS})
        held.callback(rig.close)
        yield rig, server, digest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--pause", type=float, default=5.0, help="seconds between two strikes, on average")
    parser.add_argument("--no-real", dest="real", action="store_false", help="scripted trainers only")
    parser.add_argument("--keep", type=Path, help="keep everything in this folder, for finding out")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    if options.database == "postgres" and (reason := postgres.why_not()):
        sys.exit(reason)
    print(f"soak: {options.minutes:g} min on {options.database}, seed {options.seed}", flush=True)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="fgd-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    broken = True
    try:
        with opened(options, folder) as (rig, server, digest):
            figures = soak(rig, server, options, digest)
        print("\n" + figures.table())
        broken = any(figures.broken.values())
        for name, faults in figures.broken.items():
            for fault in faults[:20]:
                print(f"BROKEN {name}: {fault}")
        return int(broken)
    finally:
        if broken or options.keep:
            print(f"logs and data: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    assert psutil.LINUX, "it reads /proc"
    sys.exit(main())
