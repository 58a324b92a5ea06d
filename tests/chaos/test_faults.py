"""The faults of the list, one test each, with real processes: what is injected, and what must come of it.

F9 and partitions between hosts are in the tests of hosts, F16 in those of several devices. On SQLite F8, F9, F21, F24
and F26 do not apply: its database is a file of the one host, which is never away while a worker of that host runs, and
several API replicas or hosts cannot share it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Engine, String, inspect, select, text, update

from api.core.errors import Conflict
from api.core.jobs import queue_order
from api.core.jobs.attempts import claim
from api.core.lifecycle import Requested
from api.core.queue import make_app, ring
from api.core.rows import db
from api.core.rows.tables import Attempt, Base, Checkpoint, Job, JobEvent, WorkerRow
from api.core.sweeper import sweep_rows
from tests.chaos import invariants
from tests.chaos.conftest import not_on_sqlite, opened
from tests.chaos.parts import REAL_TIMES, Replica, Rig
from tests.e2e.parts import ROOT, pids, until, weights_digest_after
from worker.launcher import boot_id

pytestmark = pytest.mark.chaos

LONG = "steps=100000 ms=10"


def settled(rig: Rig, *ended: str, steps: int | None = None) -> None:
    """Everything ends; then nothing may be left behind."""
    rig.stop_all()
    invariants.holds(rig.engine, rig.home, dict.fromkeys(ended, weights_digest_after(steps) if steps else None))


# --- processes ------------------------------------------------------------------------------------------------


def test_f01_killed_worker(rig: Rig) -> None:
    """SIGKILL worker during training: lost within the lease, attempt 2 goes on from the last checkpoint."""
    job = rig.submit("steps=80 ms=30 save=20")
    first = rig.worker()
    rig.until_step(job, 45)
    first.kill()
    killed_at = time.monotonic()
    until(lambda: not rig.trainers(), timeout_s=2, what="the end of the trainer")
    rig.worker()
    until(lambda: rig.attempts(job)[0] == "lost", what="the loss")
    assert time.monotonic() - killed_at < 15
    rig.until_state(job, "succeeded")
    assert rig.attempts(job) == ["lost", "succeeded"]
    assert "note:resumed" in rig.story(job)
    settled(rig, job, steps=80)


def test_f02_killed_trainer(rig: Rig) -> None:
    """SIGKILL trainer only: signal 9 is recorded, and it is tried again. (By the kernel for want of memory: the counter
    of the control group decides, see tests/unit/worker/test_outcome.py.)"""
    job = rig.submit("steps=80 ms=20 save=20")
    rig.worker()
    rig.until_step(job, 30)
    os.kill(rig.trainers(job)[0], signal.SIGKILL)
    rig.until_state(job, "succeeded")
    assert rig.attempts(job) == ["failed", "succeeded"]
    assert rig.exits(job) == [-9, 0]
    settled(rig, job, steps=80)


def test_f03_zombie(rig: Rig) -> None:
    """SIGSTOP worker past its lease, then SIGCONT: the new attempt owns the job, the old one writes nothing, and there
    is never a second trainer that runs: the old one ends by itself, though its supervisor is stopped."""
    job = rig.submit("steps=250 ms=20 save=20")
    zombie = rig.worker()
    rig.until_step(job, 30)
    [old] = rig.trainers(job)
    rig.freeze(zombie, job)
    rig.worker()
    most = 0

    def second() -> bool:
        nonlocal most
        most = max(most, len(rig.trainers(job)))
        return len(rig.attempts(job)) == 2 and rig.trainers(job) not in ([], [old])

    until(second, what="the second attempt")
    os.kill(zombie.pid, signal.SIGCONT)
    until(lambda: most == 1 and "nothing more is written" in rig.log(), what="the fence")
    rig.until_state(job, "succeeded")
    assert rig.attempts(job) == ["lost", "succeeded"]
    assert zombie.poll() is None, "the worker itself lives on"
    settled(rig, job, steps=250)


def test_f04_hundred_bells(rig: Rig) -> None:
    """Duplicate wake x100 to 4 workers: exactly one attempt, one trainer ever alive."""
    rig.valkey()
    patient = {"FGD_POLL_S": "600", "FGD_LEASE_S": "20", "FGD_KILL_S": "16", "FGD_FREEZE_S": "12"}
    for _ in range(4):
        rig.worker(**patient)
    until(lambda: len(live(rig)) == 4, timeout_s=120, what="four workers")
    job = rig.submit("steps=100 ms=20")
    app = make_app(rig.told["FGD_BROKER_URL"])
    seen: set[int] = set()
    with watched(lambda: seen.update(rig.trainers(job))):
        for _ in range(100):
            assert ring(app, job)
        assert ring(app, "job_of_a_forger")
        rig.until_state(job, "succeeded", timeout_s=90)
    assert len(seen) == 1
    assert rig.story(job).count("job_claimed") == 1
    settled(rig, job, steps=100)


def live(rig: Rig) -> list[str]:
    with db.reading(rig.engine) as s:
        return list(s.scalars(select(WorkerRow.id)))


# --- broker ---------------------------------------------------------------------------------------------------


def test_f05_broker_down_at_post(rig: Rig) -> None:
    """Redis down at POST: 201, the job starts at the next poll, /readyz is degraded and not failed."""
    rig.told["FGD_BROKER_URL"] = "redis+socket:///nowhere/valkey.sock"
    api = rig.api().ready()
    rig.worker()
    until(lambda: live(rig), what="a worker")
    job = api.post(rig.dataset, "steps=5 ms=1")
    posted_at = time.monotonic()
    until(lambda: rig.attempts(job), what="the claim")
    assert time.monotonic() - posted_at < 5, "a poll is 0.3 s"
    rig.until_state(job, "succeeded")
    ready = api.http.get("/readyz")
    assert (ready.status_code, ready.json()["broker"]["ok"]) == (200, False)
    settled(rig, job, steps=5)


@pytest.mark.parametrize("how", ["flushall", "restart"])
def test_f06_broker_forgets(rig: Rig, how: str) -> None:
    """FLUSHALL, or a restart without persistence, with 20 queued jobs: all 20 run once."""
    server = rig.valkey()
    api = rig.api().ready()
    queued = [api.post(rig.dataset, "steps=3 ms=1") for _ in range(20)]
    if how == "flushall":
        with redis.Redis(unix_socket_path=str(rig.home / "valkey" / "valkey.sock")) as client:
            client.flushall()
    else:
        server.kill()
        server.wait()
        rig.forget_broker()
        rig.valkey()
    rig.worker(FGD_SLOTS="3")
    for job in queued:
        rig.until_state(job, "succeeded", timeout_s=90)
        assert rig.attempts(job) == ["succeeded"]
    settled(rig, *queued, steps=3)


def test_f07_broker_killed_for_long(rig: Rig) -> None:
    """Redis killed in mid-training and gone for long (8 s, which is 25 polls and 2 leases here; the row says 10 min):
    training and metrics go on, the event stream too, and a cancel works within 5 s."""
    server = rig.valkey()
    api = rig.api().ready()
    rig.worker()
    job = api.post(rig.dataset, f"{LONG} save=50")
    rig.until_step(job, 10)
    server.kill()
    server.wait()
    before = rig.step(job)
    heard = stream(api, job, until_s=8.0)
    assert rig.step(job) > before + 100
    assert [event["seq"] for event in heard] == list(range(1, len(heard) + 1))
    assert any(event["type"] == "checkpoint_saved" for event in heard[-3:])
    assert rig.attempts(job) == [None]
    asked_at = time.monotonic()
    assert api.http.post(f"/v1/jobs/{job}/cancel", json={"mode": "graceful"}).status_code == 202
    rig.until_state(job, "cancelled")
    assert time.monotonic() - asked_at < 5
    settled(rig, job)


def stream(api: Replica, job: str, *, after: int = 0, until_s: float = 30.0, most: int = 10**6) -> list[dict[str, Any]]:
    """Events as they come, with their numbers; until there are enough, the stream breaks, or the time is over."""
    heard: list[dict[str, Any]] = []
    end = time.monotonic() + until_s
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(after)} if after else {})
    try:
        with api.http.stream("GET", f"/v1/jobs/{job}/events", headers=headers, timeout=httpx.Timeout(5.0)) as answer:
            assert answer.status_code == 200
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                name, _, value = line.partition(":")
                fields[name] = value.strip()
                if not line:
                    if "id" in fields and "data" in fields:
                        told = json.loads(fields["data"]) | {"seq": int(fields["id"])}
                        heard += [told] if "type" in told else []  # the last says that the stream is over
                    fields = {}
                if time.monotonic() > end or len(heard) >= most:
                    break
    except httpx.TransportError:
        pass
    return heard


# --- database -------------------------------------------------------------------------------------------------


@not_on_sqlite("a file of the worker's own host is not away while the worker lives; a lock held for long: tests/e2e")
@pytest.mark.parametrize(("down_s", "attempts"), [(0.7, ["succeeded"]), (5.0, ["lost", "succeeded"])])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
def test_f08_database_down(
    request: pytest.FixtureRequest, database: str, how: signal.Signals, down_s: float, attempts: list[str]
) -> None:
    """DB down during training (60 s there, times shrunk here). Shorter than the freeze: metrics are kept and written
    without loss or double. Longer than the lease: the worker fences itself, and goes on later; never two trainers."""
    rig, server = request.getfixturevalue("durable_rig")
    job = rig.submit("steps=300 ms=20 save=20")
    rig.worker()
    rig.until_step(job, 40)
    most = [0]
    with watched(lambda: most.append(len(rig.trainers(job)))):
        server.stop(how)
        time.sleep(down_s)
        if down_s > 3.4:
            assert not rig.trainers(job)
        server.start()
        rig.engine.dispose()
        rig.until_state(job, "succeeded", timeout_s=60)
    assert max(most) == 1
    assert rig.attempts(job) == attempts
    assert sorted(rig.points(job)) == list(range(1, 301))
    settled(rig, job, steps=300)


@contextmanager
def watched(look: Callable[[], object]) -> Iterator[None]:
    """Call `look` all the time."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.03):
            look()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# --- bytes ----------------------------------------------------------------------------------------------------


def test_f10_crash_between_checkpoint_file_and_row(rig: Rig) -> None:
    """The file is ignored and collected; the next attempt goes on from the one before."""
    job = rig.submit("steps=60 ms=40 save=20")
    first = rig.worker(**rig.armed("after_checkpoint_blob=kill@2"))
    first.wait(30)
    kept = sorted(path.name for path in (rig.home / "blobs" / "objects").rglob("*.pt"))
    assert kept == ["ckpt-20.pt", "ckpt-40.pt"], "the second has no row"
    rig.worker()
    rig.until_state(job, "succeeded")
    assert resumed_at(rig, job) == [20]
    settled(rig, job, steps=60)


def resumed_at(rig: Rig, job: str) -> list[int]:
    with db.reading(rig.engine) as s:
        notes = s.scalars(select(JobEvent).where(JobEvent.job_id == job, JobEvent.type == "note:resumed"))
        return [int(note.data["data"]["step"]) for note in notes]


def test_f11_crash_between_artifact_and_final_state(rig: Rig) -> None:
    """The next attempt finishes without training again: it goes on from the checkpoint of the last step."""
    job = rig.submit("steps=60 ms=5 save=20")
    rig.worker(**rig.armed("after_artifact_blob=kill@4")).wait(30)
    rig.worker()
    rig.until_state(job, "succeeded")
    assert rig.attempts(job) == ["lost", "succeeded"]
    assert resumed_at(rig, job) == [60]
    assert set(rig.points(job).values()) == {1}, "attempt 2 took no step"
    settled(rig, job, steps=60)


@pytest.mark.parametrize("harm", ["flipped", "truncated", "gone"])
@pytest.mark.parametrize("torn", [1, 2])
def test_f12_torn_checkpoint(rig: Rig, harm: str, torn: int) -> None:
    """A flipped byte, a missing end, a missing file: the one before is used, else none; an event says so."""
    job = rig.submit("steps=120 ms=20 save=20")
    first = rig.worker()
    rig.until_step(job, 70)
    first.kill()
    first.wait()
    files = checkpoints(rig, job)
    assert len(files) == 2
    for file in files[-torn:]:
        harmed(file, harm)
    rig.worker()
    rig.until_state(job, "succeeded")
    assert rig.story(job).count("note:checkpoint_corrupt") == torn
    assert resumed_at(rig, job) == ([int(files[0].stem[5:])] if torn == 1 else [])
    settled(rig, job, steps=120)


def checkpoints(rig: Rig, job: str) -> list[Path]:
    """Files of the committed ones, oldest first; the store may hold one more, whose row never came."""
    with db.reading(rig.engine) as s:
        keys = s.scalars(select(Checkpoint.key).where(Checkpoint.job_id == job).order_by(Checkpoint.step))
        return [rig.home / "blobs" / "objects" / key for key in keys]


def harmed(file: Path, harm: str) -> None:
    content = bytearray(file.read_bytes())
    file.unlink()
    if harm == "truncated":
        file.write_bytes(content[:-3])
    elif harm == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m tmpfs '{folder}' 2>/dev/null"):
        pytest.skip("only root may mount a small disk; no other way gives a real ENOSPC")
    try:
        yield folder
    finally:
        os.system(f"umount '{folder}'")


def test_f13_full_disk(rig: Rig, small_disk: Path) -> None:
    """Disk full while saving: the attempt fails with no_space, the checkpoint before is whole, the worker says that it
    is not well, and the job goes on at another."""
    job = rig.submit("steps=60 ms=20 save=10 pad=450")
    cramped = rig.worker(
        FGD_HOME=str(small_disk),
        FGD_BLOBS=str(rig.home / "blobs"),
        FGD_CACHE_BYTES="1000000",
        FGD_MIN_FREE_BYTES="0",  # else it takes nothing to begin with
    )
    until(lambda: rig.attempts(job)[:1] == ["failed"], what="the full disk")
    with db.reading(rig.engine) as s:
        [first] = s.scalars(select(Attempt).where(Attempt.job_id == job, Attempt.attempt == 1))
    assert "disk is full" in str(first.reason)

    def complaint() -> str | None:
        with db.reading(rig.engine) as s:
            [worker] = s.scalars(select(WorkerRow))
            return worker.complaint

    until(complaint, what="the worker's complaint")  # with its next heartbeat
    rig.worker()
    rig.until_state(job, "succeeded")
    assert cramped.poll() is None
    assert rig.attempts(job)[-1] == "succeeded"
    settled(rig, job, steps=60)


# --- trainers -------------------------------------------------------------------------------------------------


def test_f14_trainer_ignores_sigterm(rig: Rig) -> None:
    """SIGKILL at the end of the grace; cancelled; what it had saved before was kept until then."""
    job = rig.submit(f"{LONG} save=20 fault=ignore-term at=2")
    rig.worker()
    rig.until_step(job, 50)
    rig.ask(job, Requested.cancel)
    asked_at = time.monotonic()
    rig.until_state(job, "cancelled")
    assert 1.4 < time.monotonic() - asked_at < 10
    assert rig.exits(job) == [-9]
    assert "checkpoint_saved" in rig.story(job)
    assert not rig.trainers()
    settled(rig, job)


def test_f15_trainer_hangs(rig: Rig) -> None:
    """The stall detector: stacks in the log, and another try; `stalled` when there are no more."""
    healed = rig.submit("steps=30 ms=1 save=10 fault=hang at=15 once=1")
    poison = rig.submit("steps=30 ms=1 fault=hang at=15", retries=0)
    rig.worker(FGD_SLOTS="2")
    rig.until_state(healed, "succeeded")
    assert rig.attempts(healed) == ["failed", "succeeded"]
    assert rig.until_state(poison, "failed").failure_code == "stalled"
    assert b'scripted_trainer.py", line' in rig.trainer_log(poison)
    settled(rig, healed, poison, steps=30)


def test_f17_out_of_device_memory(rig: Rig) -> None:
    """CUDA out of memory, by the words of its exception: failed with its code and advice, and not tried again."""
    job = rig.submit("steps=10 ms=1 fault=oom-text at=3")
    rig.worker()
    row = rig.until_state(job, "failed")
    assert row.failure_code == "gpu_out_of_memory"
    assert "batch_size" in rig.api().ready().http.get(f"/v1/jobs/{job}").json()["failure"]["advice"]
    assert rig.attempts(job) == ["failed"]
    settled(rig, job)


def test_f18_poison_job(rig: Rig) -> None:
    """A segfault at each start: it stops after max_retries, and the queue goes on behind it."""
    poison = rig.submit("steps=10 ms=1 fault=segv at=0", retries=1)
    next_ = rig.submit("steps=10 ms=1")
    rig.worker()
    row = rig.until_state(poison, "failed")
    assert (row.failure_code, row.retries) == ("trainer_killed", 1)
    assert rig.exits(poison) == [-11, -11]
    rig.until_state(next_, "succeeded")
    settled(rig, poison, next_, steps=10)


def test_f19_loss_is_not_finite(rig: Rig) -> None:
    """JSON stays JSON, the job fails with loss_non_finite and says at which step; nothing is tried again."""
    job = rig.submit("steps=10 ms=1 fault=nan at=3")
    api = rig.api().ready()
    rig.worker()
    row = rig.until_state(job, "failed")
    assert (row.failure_code, row.failure_data) == ("loss_non_finite", {"step": 3})
    for path in ("", "/events", "/metrics?name=loss/total", "/metrics/latest"):
        body = api.http.get(f"/v1/jobs/{job}{path}").text
        json.loads(body, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert rig.attempts(job) == ["failed"]
    settled(rig, job)


# --- people ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "ends"),
    [
        ("before_staging", "cancelled"),
        ("after_staging", "cancelled"),
        ("after_checkpoint_blob", "cancelled"),
        ("before_artifact_blob", "succeeded"),
        ("after_artifact_blob", "succeeded"),
    ],
)
def test_f20_cancel_races(rig: Rig, place: str, ends: str) -> None:
    """Cancel while the worker stands at `place`. Artifacts committed is succeeded, whatever was asked meanwhile; never
    an event of both."""
    job = rig.submit(f"steps={10**5 if ends == 'cancelled' else 60} ms=20 save=20")
    rig.worker(**rig.armed(f"{place}=wait"))
    until(lambda: rig.struck(place), timeout_s=60, what=place)
    rig.ask(job, Requested.cancel)
    rig.go_on(place)
    rig.until_state(job, ends)
    story = rig.story(job)
    assert [type for type in story if type in ("succeeded", "failed", "cancelled")] == [ends]
    again = rig.api().ready().http.post(f"/v1/jobs/{job}/cancel", json={"mode": "graceful"})
    assert again.status_code == (409 if ends == "succeeded" else 202)
    settled(rig, job, steps=60)


def test_f20_cancel_before_the_claim_twice_and_after_the_end(rig: Rig) -> None:
    """A queued job is cancelled at once and never claimed; the same again changes nothing; an ended job refuses."""
    job, other = rig.submit("steps=10 ms=1"), rig.submit("steps=10 ms=1")
    rig.ask(job, Requested.cancel)
    rig.ask(job, Requested.cancel)
    rig.worker()
    rig.until_state(other, "succeeded")
    with pytest.raises(Conflict):
        rig.ask(other, Requested.cancel)
    assert rig.attempts(job) == []
    assert rig.story(job).count("cancelled") == 1
    settled(rig, job, other)


@not_on_sqlite("one API process serves a SQLite file; killed, it is started again: tests/e2e/test_service.py")
def test_f21_api_replica_killed_during_a_stream(rig: Rig) -> None:
    """The client goes on at another replica with Last-Event-ID: no gap, nothing twice."""
    one, two = rig.api(), rig.api()
    job = rig.submit("steps=200 ms=20 save=5")
    rig.worker()
    one.ready()
    heard = stream(one, job, most=12)
    assert len(heard) == 12

    def kill_soon() -> None:
        time.sleep(0.5)
        one.process.kill()

    threading.Thread(target=kill_soon).start()
    heard += stream(one, job, after=heard[-1]["seq"])
    assert one.process.wait(10) == -9
    two.ready()
    while heard[-1]["type"] != "succeeded":
        heard += stream(two, job, after=heard[-1]["seq"])
    assert [event["seq"] for event in heard] == list(range(1, rig.job(job).event_seq + 1))
    assert [event["type"] for event in heard] == rig.story(job)
    settled(rig, job, steps=200)


def test_f22_rolling_deploy(rig: Rig) -> None:
    """SIGTERM to the worker while another starts: checkpoint and requeue within the grace, not counted as a failure."""
    job = rig.submit("steps=300 ms=20 save=100")
    first = rig.worker()
    rig.until_step(job, 30)
    rig.worker()
    first.terminate()
    told_at = time.monotonic()
    assert first.wait(timeout=10) == 0
    assert time.monotonic() - told_at < 5
    row = rig.until_state(job, "succeeded")
    assert rig.attempts(job) == ["handed_back", "succeeded"]
    assert row.retries == 0
    assert resumed_at(rig, job)[0] > 29, "it saved when it was told to end"
    settled(rig, job, steps=300)


def test_f23_two_sweepers(rig: Rig) -> None:
    """Eight sweeps at once find one expired lease: it is lost once and queued once."""
    job = rig.submit("steps=10 ms=1")
    with db.transaction(rig.engine) as s:
        assert claim(s, "wrk_gone", queue_order.Free(1, 0), lease_s=2.6)
    with db.transaction(rig.engine) as s:
        s.execute(update(Job).values(lease_expires=db.now(s) - timedelta(seconds=1)))
    engines = [db.make_engine(rig.url) for _ in range(8)]
    barrier = threading.Barrier(8)

    def sweep_thrice(engine: Engine) -> None:
        barrier.wait()
        for _ in range(3):
            with db.transaction(engine) as s:
                sweep_rows(s, 2.6)

    sweepers = [threading.Thread(target=sweep_thrice, args=(engine,)) for engine in engines]
    for thread in sweepers:
        thread.start()
    for thread in sweepers:
        thread.join()
    for engine in engines:
        engine.dispose()
    story = rig.story(job)
    assert (story.count("attempt_lost"), story.count("requeued")) == (1, 1)
    rig.worker()
    rig.worker()
    rig.until_state(job, "succeeded")
    assert rig.attempts(job) == ["lost", "succeeded"]
    settled(rig, job, steps=10)


@not_on_sqlite("the database's clock is the host's own: there is no other host whose clock could jump")
@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_f24_clock_jumps(rig: Rig, jump_s: int) -> None:
    """The clock of worker and API jumps by an hour in mid-training: leases go by the database's clock and the monotonic
    one, so nothing is lost; and a new job is claimed, finished and told as ever."""
    clock = rig.home / "clock"
    clock.write_text("0")
    told = {"FGD_TEST_CLOCK": str(clock), "PYTHONPATH": f"{Path(__file__).parent / 'clock'}:{ROOT}"}
    rig.valkey()
    api = rig.api(**told).ready()
    rig.worker(**told)
    job = api.post(rig.dataset, "steps=300 ms=20 save=50")
    rig.until_step(job, 40)
    clock.write_text(str(jump_s))
    rig.until_state(job, "succeeded")
    other = api.post(rig.dataset, "steps=5 ms=1")
    rig.until_state(other, "succeeded")
    assert rig.attempts(job) == rig.attempts(other) == ["succeeded"]
    assert abs((rig.job(other).created_at - rig.job(job).created_at).total_seconds()) < 120
    assert api.http.get("/readyz").status_code == 200
    assert "clock shifted" in rig.log()
    settled(rig, job, steps=300)


def test_f25_migration_while_an_old_worker_runs(rig: Rig) -> None:
    """A newer version adds columns and tables; the worker that runs goes on with its job and its heartbeats, and one of
    the old version that is started afterwards says that it is too old."""
    job = rig.submit("steps=250 ms=20 save=50")
    rig.worker()
    rig.until_step(job, 30)
    before = rig.step(job)
    with rig.engine.begin() as connection:
        newer = Operations(MigrationContext.configure(connection))
        for table in ("jobs", "job_attempts", "checkpoints", "workers"):
            newer.add_column(table, Column("of_a_newer_version", String(40), nullable=True))
        newer.create_table("of_a_newer_version", Column("id", String(40), primary_key=True))
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    try:
        until(lambda: rig.step(job) > before + 50, what="steps after the migration")
        old = rig.worker()
        assert old.wait(30) == 1
        assert "newer version" in rig.log()
        rig.until_state(job, "succeeded")
        assert rig.attempts(job) == ["succeeded"]
        settled(rig, job, steps=250)
    finally:
        with rig.engine.begin() as connection:  # PostgreSQL's database serves the next test
            older = Operations(MigrationContext.configure(connection))
            older.drop_table("of_a_newer_version")
            for table in ("jobs", "job_attempts", "checkpoints", "workers"):
                older.drop_column(table, "of_a_newer_version")
            connection.execute(text(f"UPDATE alembic_version SET version_num = '{db.head()}'"))


@pytest.mark.parametrize("database", ["postgres"])
def test_f25_migrations_only_add(postgres: Any, database: str) -> None:
    """From the first revision on no table, no column is taken away, and no new column of an old table needs a value:
    workers of the version before still write."""
    from alembic import command

    with postgres.empty() as url:
        engine = db.make_engine(url)
        seen: dict[str, dict[str, Any]] = {}
        config = db.alembic_config()
        for number in range(1, len(list(db.MIGRATIONS.glob("versions/0*.py"))) + 1):
            with db.migrating(engine) as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, f"{number:04d}")
            found = {
                table: {column["name"]: column for column in inspect(engine).get_columns(table)}
                for table in inspect(engine).get_table_names()
            }
            for table, columns in seen.items():
                assert columns.keys() <= found[table].keys(), f"{number:04d} drops from {table}"
                for name in found[table].keys() - columns.keys():
                    new = found[table][name]
                    assert new["nullable"] or new["default"] is not None, f"{number:04d}: {table}.{name}"
            seen = found
            engine.dispose()
        assert {table.name for table in Base.metadata.sorted_tables} <= seen.keys()


# --- hosts ----------------------------------------------------------------------------------------------------


def test_f29_stale_run_files(rig: Rig) -> None:
    """Run files of a worker that died: only what has the boot, number and start time of the file is killed."""
    runs = rig.home / "run"
    runs.mkdir(exist_ok=True)
    mark = {"FGD_RUN": "of-the-dead"}
    ours, reused, rebooted = (sleeper(rig, more) for more in (mark, {}, {}))
    for name, process, change in (
        ("ours", ours, {}),
        ("reused", reused, {"created": 1.0, "mark": "of-another"}),
        ("rebooted", rebooted, {"boot_id": "another", "mark": "of-another"}),
    ):
        run = {
            "boot_id": boot_id(), "pid": process.pid, "created": started(process.pid), "mark": "of-the-dead",
            "supervisor_pid": 2**22 + 1, "supervisor_created": 1.0,
        }  # fmt: skip
        (runs / f"{name}.json").write_text(json.dumps(run | change))
    (runs / "torn.json").write_text('{"pid": 1')
    job = rig.submit("steps=5 ms=1")
    rig.worker()
    rig.until_state(job, "succeeded")
    assert ours.poll() == -9
    assert (reused.poll(), rebooted.poll()) == (None, None)
    assert not list(runs.iterdir())
    settled(rig, job, steps=5)


def sleeper(rig: Rig, told: dict[str, str]) -> Any:
    command = [sys.executable, "-c", "import time; time.sleep(3600)"]
    process = subprocess.Popen(command, env=told, start_new_session=True)
    rig.processes.append(process)
    until(lambda: psutil.Process(process.pid).environ() == told or not told)
    return process


def started(pid: int) -> float:
    return float(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])


# --- the real trainer -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(template: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights digest of the real training when nobody disturbs it."""
    home = Path(shutil.copytree(template[0], tmp_path_factory.mktemp("undisturbed") / "home"))
    with opened(home, template[1], f"sqlite:///{home}/fgd.db") as rig:
        job = rig.submit_real()
        rig.worker(**REAL_TIMES)
        return str(rig.until_state(job, "succeeded", timeout_s=180).weights_digest)


def until_saved(rig: Rig, job: str, step: int) -> None:
    def saved() -> bool:
        with db.reading(rig.engine) as s:
            kept = s.scalars(select(JobEvent).where(JobEvent.job_id == job, JobEvent.type == "checkpoint_saved"))
            return any(event.data["step"] >= step for event in kept)

    until(saved, timeout_s=120, what=f"a checkpoint of step {step}")


def real_end(rig: Rig, job: str, undisturbed: str, attempts: list[str]) -> None:
    row = rig.until_state(job, "succeeded", timeout_s=180)
    assert row.weights_digest == undisturbed
    assert rig.attempts(job) == attempts
    rig.stop_all()
    invariants.holds(rig.engine, rig.home, {job: undisturbed})


def test_f01_killed_worker_real(rig: Rig, undisturbed: str) -> None:
    """F1 with the real trainer: the weights are those of the undisturbed run, to the byte."""
    job = rig.submit_real()
    first = rig.worker(**REAL_TIMES)
    until_saved(rig, job, 6)
    first.kill()
    until(lambda: not pids(rig.home, "fgd.train"), timeout_s=3, what="the end of the trainer")
    rig.worker(**REAL_TIMES)
    real_end(rig, job, undisturbed, ["lost", "succeeded"])
    assert resumed_at(rig, job)[0] >= 6


def test_f03_zombie_real(rig: Rig, undisturbed: str) -> None:
    """F3 with the real trainer, which ends itself while its supervisor is stopped."""
    job = rig.submit_real()
    zombie = rig.worker(**REAL_TIMES)
    until_saved(rig, job, 4)
    [old] = rig.trainers(job)
    rig.freeze(zombie, job)
    until(lambda: old not in rig.trainers(job), timeout_s=10, what="the end of the old trainer")
    assert rig.attempts(job) == [None]
    rig.worker(**REAL_TIMES)
    until(lambda: len(rig.attempts(job)) == 2, what="the second attempt")
    os.kill(zombie.pid, signal.SIGCONT)
    real_end(rig, job, undisturbed, ["lost", "succeeded"])


@pytest.mark.parametrize("harm", ["flipped", "truncated"])
def test_f12_torn_checkpoint_real(rig: Rig, undisturbed: str, harm: str) -> None:
    """F12 with the real trainer: it goes on from the checkpoint before."""
    job = rig.submit_real()
    first = rig.worker(**REAL_TIMES)
    until_saved(rig, job, 6)
    first.kill()
    first.wait()
    harmed(checkpoints(rig, job)[-1], harm)
    rig.worker(**REAL_TIMES)
    real_end(rig, job, undisturbed, ["lost", "succeeded"])
    assert "note:checkpoint_corrupt" in rig.story(job)


def test_f14_trainer_is_killed_at_the_end_of_its_grace_real(rig: Rig) -> None:
    """F14 with the real trainer: stopped, it can not heed SIGTERM; it is killed, and the job cancelled."""
    job = rig.submit_real()
    rig.worker(**REAL_TIMES | {"FGD_GRACE_S": "1.5"})
    until_saved(rig, job, 2)
    os.kill(rig.trainers(job)[0], signal.SIGSTOP)
    rig.ask(job, Requested.cancel)
    rig.until_state(job, "cancelled")
    assert rig.exits(job) == [-9]
    settled(rig, job)


def test_f22_rolling_deploy_real(rig: Rig, undisturbed: str) -> None:
    """F22 with the real trainer."""
    job = rig.submit_real()
    first = rig.worker(**REAL_TIMES)
    until_saved(rig, job, 4)
    first.terminate()
    assert first.wait(timeout=15) == 0
    assert rig.job(job).retries == 0
    rig.worker(**REAL_TIMES)
    real_end(rig, job, undisturbed, ["handed_back", "succeeded"])
