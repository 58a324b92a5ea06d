"""One attempt's supervisor and a store that is away meanwhile; only the training is played."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from api.core import models, uploading
from api.core.jobs import attempts, checkpoints
from api.core.request_bodies import UploadModel
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Model
from api.core.settings import Settings
from api.core.store.local import LocalStore
from api.core.store.names import Blob, StoreAway
from api.core.sweeper import Sweeper
from fgd.data.report import unread
from fgd.detector_specs import FCOS
from fgd.events import Finished, Saved
from worker import devices, kept_results, publish, running_attempt, supervisor
from worker.dataset_import import DatasetImport
from worker.event_writer import EventWriter
from worker.host import Host, Lost
from worker.lease import Lease, Times
from worker.model_import import ModelImport
from worker.outcome import TrainerEnd
from worker.poller import Poller
from worker.running_attempt import RunningAttempt
from worker.slots import Slot, Slots
from worker.staging import Cache

CONTENTS = {"student.safetensors": b"weights", "model.py": b"def build(): ...", "manifest.json": b"{}"}


class Flaky(LocalStore):
    """Puts no blob while `away` says so; it is called before each put, with the file's name."""

    away: Callable[[str], bool] = staticmethod(lambda _name: False)

    def take_file(self, path: Path, expected: str | None = None) -> Blob:
        if self.away(path.name):
            raise StoreAway("no answer")
        return super().take_file(path, expected)

    may_delete = threading.Event()

    def delete_object(self, key: str) -> None:
        """As long as a store takes that does not answer."""
        assert self.may_delete.wait(20)
        super().delete_object(key)


@pytest.fixture
def host(given: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(running_attempt, "RETRY_S", 0.01)
    store = Flaky(settings.blobs)
    store.may_delete = threading.Event()
    found = devices.Hardware((), "a processor", 1, False, 1, 1)
    cache = Cache(settings.home / "cache", 1, store)
    return Host(settings, given.engine, store, None, found, Slots.on_host(1, []), cache, drain_s=0.3)


@pytest.fixture
def lease() -> Lease:
    return Lease(lambda: None, Times(3, 12, 16), time.monotonic())


def trained(out: Path) -> Finished:
    """What a trainer left."""
    (out / "result").mkdir(parents=True)
    for name, content in CONTENTS.items():
        (out / "result" / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}
    return Finished(step=9, folder=str(out / "result"), files=digests, weights_digest="e" * 64)


def running(given: Any) -> attempts.Claim:
    nothing: Any = None
    return attempts.Claim(given.running(), DEFAULT_PROJECT, 1, nothing, {})


def hours_pass(given: Any, store: LocalStore) -> None:
    """The collector comes by every hour."""
    collector = Sweeper(given.engine, store, None, lease_s=20.0)
    for _ in range(2):
        collector.collect()
        given.earlier("blobs", "unused_since", 7200)
        then = time.time() - 7200
        for file in (store.root / "sha256").rglob("*"):
            if file.is_file():
                os.utime(file, (then, then))


@pytest.mark.parametrize("last", list(CONTENTS))
def test_files_that_the_collector_took_while_the_store_was_away_are_brought_again(
    given: Any, host: Host, lease: Lease, tmp_path: Path, last: str
) -> None:
    claim = running(given)
    tries: list[str] = []
    result = trained(tmp_path / "out")

    def away(name: str) -> bool:
        tries.append(name)
        if name != last or tries.count(name) > 1:
            return False
        hours_pass(given, host.store)  # type: ignore[arg-type]
        return True

    host.store.away = away  # type: ignore[attr-defined]
    files = publish.publish(RunningAttempt(host, lease, claim), result, tmp_path / "out")
    with db.transaction(given.engine) as s:
        attempts.finish(s, claim.job_id, 1, files, result.weights_digest)
    hours_pass(given, host.store)  # type: ignore[arg-type]

    assert {file.name for file in files} == CONTENTS.keys()
    for file in files:
        assert host.store.exists(file.digest), file.name


def test_a_row_whose_file_a_collector_may_have_taken_before_it_died_is_not_trusted(given: Any) -> None:
    claim, blob = running(given), given.store.put_bytes(b"weights")
    with db.transaction(given.engine) as s:
        attempts.expect(s, claim.job_id, 1, blob)
        assert attempts.expected(s, claim.job_id, 1, {blob.digest})
        assert not attempts.expected(s, claim.job_id, 1, {blob.digest, "f" * 64})

    Sweeper(given.engine, given.store, None, lease_s=20.0).collect()  # notes it as unused
    given.earlier("blobs", "unused_since", 3700)

    with db.transaction(given.engine) as s:
        assert not attempts.expected(s, claim.job_id, 1, {blob.digest})


# --- no byte of ours is written twice ---------------------------------------------------------------------------


def test_the_files_of_a_result_are_the_blobs_themselves(given: Any, host: Host, lease: Lease, tmp_path: Path) -> None:
    result = trained(tmp_path / "out")

    publish.publish(RunningAttempt(host, lease, running(given)), result, tmp_path / "out")

    for name, digest in result.files.items():
        assert given.store.path(digest, verify=True).samefile(Path(result.folder) / name)


def test_the_files_of_an_import_are_the_blobs_themselves(given: Any, host: Host, tmp_path: Path) -> None:
    recipe = {"format": "fgd-recipe/1", "detector": {"kind": "fcos"}, "classes": ["cat"]}
    files = {
        "archive.tar": b"tar", "index.json": b"index", "student.safetensors": b"weights",
        "recipe.json": json.dumps(recipe).encode(),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "archive.tar").chmod(0o600)  # as a temporary file is that was renamed
    usual = given.store.path(given.store.put_bytes(b"").digest).stat().st_mode
    given.dataset("verifying")
    with db.transaction(given.engine) as s:
        model = models.create(s, DEFAULT_PROJECT, UploadModel(name="m", detector=FCOS(), classes=("cat",)))
        uploading.arrived(s, Model, DEFAULT_PROJECT, model.id, given.store.put_bytes(b"weights as they came"))

    (tmp_path / "report.json").write_text(unread("coco", "").model_copy(update={"ok": True}).model_dump_json())
    DatasetImport(given.claim_import()).ended(host, Slot("cpu"), tmp_path, 0)
    (tmp_path / "report.json").write_text(json.dumps({"weights_digest": "d" * 64}))
    with db.transaction(given.engine) as s:
        claim = models.claim_import(s, host.id, lease_s=20.0)
    assert claim is not None
    ModelImport(claim).ended(host, Slot("cpu"), tmp_path, 0)

    for name, content in files.items():
        kept = given.store.path(hashlib.sha256(content).hexdigest(), verify=True)
        assert kept.samefile(tmp_path / name), name
        assert kept.stat().st_mode == usual, "an API of another user reads it too"


# --- the result outlives its attempt ----------------------------------------------------------------------------


def supervised(given: Any, host: Host, monkeypatch: pytest.MonkeyPatch, trained_at: list[int]) -> str:
    """One attempt of the oldest job that waits, on this host; the state it leaves the job in. Only the training is
    played: what a trainer leaves is there at once."""

    def train(attempt: RunningAttempt, _slot: Any, folder: Path, _at: float) -> TrainerEnd:
        trained_at.append(attempt.claim.attempt)
        return TrainerEnd(0, last=trained(folder / "out"))

    monkeypatch.setattr(supervisor, "staged_and_trained", train)
    claim = given.claim(host.id)
    supervisor.supervise(host, claim, Slot("cpu"), time.monotonic())
    return str(given.look(claim.job_id).state)


def notes(given: Any, id: str) -> list[str]:
    return [type for type in given.events(id) if type.startswith("note:")]


def test_a_worker_told_to_stop_while_the_store_is_away_leaves_the_finished_training_to_the_next_attempt(
    given: Any, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    id, trained_at = given.job(), list[int]()

    def away(_name: str) -> bool:
        host.stop()
        return True

    host.store.away = away  # type: ignore[attr-defined]
    assert supervised(given, host, monkeypatch, trained_at) == "queued"
    assert given.attempts(id) == ["handed_back"]

    host.store.away = lambda _name: False  # type: ignore[attr-defined]
    host.stopping.clear()  # the worker that is started next
    assert supervised(given, host, monkeypatch, trained_at) == "succeeded"
    assert trained_at == [1]
    assert notes(given, id) == ["note:result_kept", "note:store_away", "note:result_found"]
    assert not list(host.settings.home.glob("finished/*"))
    assert not list(host.settings.home.glob("work/*"))


def test_a_worker_told_to_stop_waits_for_the_store_as_long_as_its_grace_lasts(
    given: Any, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    given.job()
    host.drain_s, tries = 30.0, list[str]()

    def away(name: str) -> bool:
        host.stop()
        tries.append(name)
        return len(tries) < 5

    host.store.away = away  # type: ignore[attr-defined]
    assert supervised(given, host, monkeypatch, []) == "succeeded"


def test_a_finished_training_outlives_a_database_that_is_lost(
    given: Any, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    id, trained_at, finish = given.job(), list[int](), attempts.finish

    def gone(*_: Any, **__: Any) -> None:
        raise Lost

    monkeypatch.setattr(attempts, "finish", gone)
    assert supervised(given, host, monkeypatch, trained_at) == "running"
    monkeypatch.setattr(attempts, "finish", finish)
    given.later(60)
    given.sweep()
    assert supervised(given, host, monkeypatch, trained_at) == "succeeded"
    assert (given.attempts(id), trained_at) == (["lost", "succeeded"], [1])


@pytest.mark.parametrize("harm", ["bytes", "missing", "untold"])
def test_half_of_a_kept_result_is_none(tmp_path: Path, harm: str) -> None:
    result = trained(tmp_path / "out")
    assert kept_results.keep(tmp_path, "job_1", result)
    assert not kept_results.keep(tmp_path, "job_1", result)
    found = kept_results.kept(tmp_path, "job_1")
    assert found is not None
    assert found.files == result.files
    file = tmp_path / "finished" / "job_1" / ("finished.json" if harm == "untold" else "model.py")
    file.unlink()
    if harm == "bytes":
        file.write_bytes(b"other")

    assert kept_results.kept(tmp_path, "job_1") is None
    assert not list((tmp_path / "finished").iterdir())
    assert kept_results.keep(tmp_path, "job_1", result)


def test_what_is_kept_for_nobody_goes_after_a_while(tmp_path: Path) -> None:
    for job in ("job_1", "job_2"):
        kept_results.keep(tmp_path, job, trained(tmp_path / job))
    then = time.time() - kept_results.KEPT_S - 1
    os.utime(tmp_path / "finished" / "job_1", (then, then))
    kept_results.forget_old(tmp_path)
    assert [folder.name for folder in (tmp_path / "finished").iterdir()] == ["job_2"]


# --- checkpoints ------------------------------------------------------------------------------------------------


def saved(out: Path, step: int, best: bool = False) -> Saved:
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{step}.pt"
    path.write_bytes(f"checkpoint {step}".encode())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Saved(step=step, path=str(path), sha256=digest, size=path.stat().st_size, best=best)


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def write(diary: EventWriter, *saved: Saved) -> None:
    """Until all of it is in rows."""
    diary.add(saved)
    until(lambda: diary.write() and not diary.keeping)
    assert diary.write()


def test_a_store_that_takes_long_to_delete_keeps_no_supervisor_from_beating(
    given: Any, host: Host, tmp_path: Path
) -> None:
    diary = EventWriter(host, running(given), tmp_path / "work" / "out")
    began = time.monotonic()
    for step in (1, 2, 3):
        write(diary, saved(tmp_path / "work" / "out", step))
    diary.close()
    assert time.monotonic() - began < 5
    assert len(list(host.store.objects(0))) == 3

    host.store.may_delete.set()  # type: ignore[attr-defined]
    until(lambda: len(list(host.store.objects(0))) == 2)


def rows(given: Any, id: str) -> list[tuple[int, int, bool]]:
    """Attempt, step, best; newest first."""
    with db.reading(given.engine) as s:
        return [(row.attempt, row.step, row.best) for row in checkpoints.newest_first(s, id)]


def second_attempt(given: Any, host: Host, out: Path, *, pinned: bool) -> tuple[attempts.Claim, EventWriter]:
    """Of a job whose first attempt saved steps 1 and 2, the second as its best."""
    host.store.may_delete.set()  # type: ignore[attr-defined]
    first = running(given)
    diary = EventWriter(host, first, out)
    write(diary, saved(out, 1))
    write(diary, saved(out, 2, best=True))
    diary.close()
    if pinned:
        with db.transaction(given.engine) as s:
            newest = checkpoints.newest_first(s, first.job_id)[0]
            checkpoints.pin(s, DEFAULT_PROJECT, first.job_id, newest.id)
    given.later(60)
    given.sweep()
    claim = given.claim(host.id)
    return claim, EventWriter(host, claim, out)


@pytest.mark.parametrize("harm", ["torn", "gone"])
@pytest.mark.parametrize("pinned", [True, False])
def test_a_torn_checkpoint_is_offered_no_more_once_the_next_attempt_went_past_it(
    given: Any, host: Host, lease: Lease, tmp_path: Path, harm: str, pinned: bool
) -> None:
    out = tmp_path / "work" / "out"
    claim, diary = second_attempt(given, host, out, pinned=pinned)
    file = host.store.object_path(claim.checkpoints[0].key)  # type: ignore[attr-defined]
    file.unlink()
    if harm == "torn":
        file.write_bytes(b"torn")
    found, _ = supervisor.newest_whole(RunningAttempt(host, lease, claim), tmp_path / "work", diary)
    assert found is not None
    assert found.read_bytes() == b"checkpoint 1"
    assert diary.write()
    assert rows(given, claim.job_id) == [(1, 2, True), (1, 1, False)], "nothing is better yet"

    write(diary, saved(out, 2))
    diary.close()

    assert rows(given, claim.job_id) == [(2, 2, False), (1, 1, False)], "the whole one stays, to fall back on"
    assert sorted(host.store.objects(0)) == [f"jobs/{claim.job_id}/a{n}/ckpt-{step}.pt" for n, step in ((1, 1), (2, 2))]


@pytest.mark.parametrize("pinned", [True, False])
def test_a_whole_checkpoint_that_cannot_be_read_is_left_to_who_pinned_it(
    given: Any, host: Host, tmp_path: Path, pinned: bool
) -> None:
    claim, diary = second_attempt(given, host, tmp_path / "work" / "out", pinned=pinned)
    diary.pass_over(claim.checkpoints[0].key, torn=False)
    diary.add([trained(tmp_path / "work" / "out")])
    assert diary.write()

    assert rows(given, claim.job_id) == [(1, 2, True), (1, 1, False)][0 if pinned else 1 :]


# --- the end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hangs", [True, False])
def test_a_worker_told_to_stop_ends_in_time_whatever_hangs(
    given: Any, host: Host, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    host.settings = host.settings.model_copy(update={"lease_s": 0.5, "poll_s": 0.05, "beat_s": 0.05})
    id, let_go, ended = given.job(), threading.Event(), list[int]()
    monkeypatch.setattr("worker.take.supervise", lambda *_: let_go.wait(20))
    poller = Poller(host, exit=ended.append)
    poller.start()
    try:
        until(lambda: given.look(id).state == "running")
        poller.stop()
        if hangs:
            until(lambda: ended)
            assert time.monotonic() - host.stopped_at < host.drain_s + 0.5 + 2
    finally:
        let_go.set()
        poller.join()
    if not hangs:
        time.sleep(host.drain_s + 0.6)
    assert ended == [1] * hangs


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_heartbeat_gives_up_on_a_server_that_does_not_answer_before_its_lease_is_in_danger(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.host.BEAT_ANSWER_S", 0.1)
    host = Host.create(settings.model_copy(update={"freeze_s": 2.0}), None)
    assert host.pulse is not None

    def hang(s: Session) -> None:
        s.execute(text("SELECT pg_sleep(25)"))

    with pytest.raises(OperationalError, match="did not answer within 1 s"):
        host.beat(hang)
    for engine in (host.engine, host.pulse):
        engine.dispose()
