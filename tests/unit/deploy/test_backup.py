"""A backup is read back byte for byte, into both kinds of database and store, or refused with the reason."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update

from api.core import inventory, sweeper, workers
from api.core.jobs import attempts, record
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Artifact, Base, BlobRow, Checkpoint, Job, Project, Restore, Series
from api.core.settings import Settings
from api.core.store.names import BlobStore
from api.core.store.open import open_store
from api.core.sweeper import Sweeper
from deploy import backup as backups
from deploy.backup import BackupError, backup, restore
from deploy.doctor import examine
from fgd.events import Evaluated, Started, Stepped
from tests.unit.api import conftest as service

migrated, Given = service.migrated, service.Given
"""The fixtures of the API's tests."""


@pytest.fixture(params=["sqlite and a folder", "postgresql and s3"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(kind: str, migrated: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Makes settings of an empty service of this kind: another place each time."""
    made: list[Any] = []

    def make(of: str = kind) -> Settings:
        home = tmp_path / f"home-{len(made)}"
        made.append(None)
        if of == "sqlite and a folder":
            return Settings(home=home)
        held = request.getfixturevalue("postgres").empty()
        made[-1] = held
        return Settings(home=home, database_url=held.__enter__(), **request.getfixturevalue("s3").settings())

    yield make
    for held in made:
        if held is not None:
            held.__exit__(None, None, None)


@contextmanager
def parts(settings: Settings) -> Iterator[tuple[Engine, BlobStore]]:
    engine = db.make_engine(settings.database_url)
    try:
        yield engine, open_store(settings)
    finally:
        engine.dispose()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a service, and its backup."""
    folder = tmp_path_factory.mktemp("kept")
    ours = Settings(home=folder / "ours")
    with lived_in(ours, folder):
        backup(ours, folder / "backup")
    return folder


@contextmanager
def lived_in(settings: Settings, tmp_path: Path) -> Iterator[tuple[Any, str, str]]:
    """A service with a finished job that another learns from, and one that runs, with a checkpoint and figures."""
    db.upgrade(settings.database_url)
    with parts(settings) as (engine, store):
        given = Given(engine, store, tmp_path)
        done = given.running()
        files = {name: store.put_bytes(os.urandom(2000)) for name in ("student.safetensors", "model.py")}
        with db.transaction(engine) as s:
            made = [attempts.ArtifactIn(name, blob.digest, blob.size) for name, blob in files.items()]
            attempts.finish(s, done, 1, made, "e" * 64)
        running = given.running()
        tell(engine, running, 1, range(1, 700))
        save(engine, store, running, 1, 600, tmp_path)
        yield given, done, running


def tell(engine: Engine, job: str, attempt: int, steps: range) -> None:
    with db.transaction(engine) as s:
        began = Started(
            step=steps[0] - 1, total_steps=2000, epochs=1, device="cpu", threads=1, versions={}, precision="x"
        )
        points = [Stepped(step=n, epoch=1, values={"loss/total": 1 / 3 + n, "loss/odd": None}) for n in steps]
        record.record(
            s, job, attempt, [began, *points, Evaluated(step=steps[-1], epoch=1, split="val", values={})], b"\0\xff\n"
        )


def save(engine: Engine, store: BlobStore, job: str, attempt: int, step: int, tmp_path: Path) -> str:
    key, file = f"jobs/{job}/a{attempt}/ckpt-{step}.pt", tmp_path / "ckpt"
    file.write_bytes(f"weights of step {step}".encode())
    store.put_object(key, file)
    digest, size = backups.sha256_file(file), file.stat().st_size
    file.unlink()
    with db.transaction(engine) as s:
        for old in attempts.checkpoint(s, job, attempt, step, key, digest, size):
            store.delete_object(old)
    return key


def rows(engine: Engine) -> dict[str, list[Any]]:
    """All that is kept, in an order of its own."""
    with db.reading(engine) as s:
        return {
            table.name: sorted(map(repr, s.execute(select(table).order_by(*table.primary_key.columns))))
            for table in Base.metadata.sorted_tables
            if table not in backups.NOT_KEPT
        }


def files(store: BlobStore) -> dict[str, bytes]:
    found = {digest: b"".join(store.read(digest)) for digest in store.blobs(0.0)}
    for key in store.objects(0.0):
        with store.local_object(key) as file:
            found[key] = file.read_bytes()
    return found


def test_a_restored_service_has_every_row_and_every_byte(place: Any, tmp_path: Path) -> None:
    ours, theirs = place(), place()
    with lived_in(ours, tmp_path) as (given, _, running):
        with db.transaction(given.engine) as s:
            workers.register(s, "wrk_a", host="here", pid=1, slots=1)
            s.execute(update(BlobRow).values(unused_since=None))
        made = backup(ours, tmp_path / "backup")
        assert (made.missing, len(made.objects)) == ((), 1)
        before, bytes_before = rows(given.engine), files(given.store)

    found = restore(theirs, tmp_path / "backup")

    assert found.whole
    with parts(theirs) as (engine, store):
        assert rows(engine) == before
        assert files(store) == bytes_before
        assert not workers_of(engine)
        db.check_schema(engine)
        with db.transaction(engine) as s:  # it goes on: lost by its worker, taken by another, with its checkpoint
            s.execute(update(Job).where(Job.id == running).values(lease_expires=db.now(s)))
        swept = Sweeper(engine, store, None, 20.0).sweep()
        assert not swept
        claim = Given(engine, store, tmp_path).claim("wrk_b")
        assert claim is not None
        assert (claim.job_id, claim.attempt, claim.checkpoint.step) == (running, 2, 600)
        with db.transaction(engine) as s:  # a new series: PostgreSQL counts on from the restored ones
            new = [Stepped(step=700, epoch=1, values={"loss/new": 1.0})]
            record.record(s, running, 2, new)
            assert len(set(s.scalars(select(Series.id)))) == s.scalar(select(func.count()).select_from(Series))


def workers_of(engine: Engine) -> list[str]:
    with db.reading(engine) as s:
        return [row.id for row in workers.live(s, lease_s=20.0)]


def test_a_backup_of_one_kind_is_restored_into_the_other(place: Any, kind: str, tmp_path: Path) -> None:
    other = {"sqlite and a folder": "postgresql and s3", "postgresql and s3": "sqlite and a folder"}[kind]
    ours, theirs = place(), place(other)
    with lived_in(ours, tmp_path) as (given, _, _):
        backup(ours, tmp_path / "backup")
        before, bytes_before = rows(given.engine), files(given.store)
    restore(theirs, tmp_path / "backup")
    with parts(theirs) as (engine, store):
        assert rows(engine) == before
        assert files(store) == bytes_before


def test_a_backup_while_the_service_works_is_of_one_moment_and_whole(place: Any, tmp_path: Path) -> None:
    ours, theirs = place(), place()
    with lived_in(ours, tmp_path) as (given, _, running):
        over = threading.Event()
        steps: list[int] = []

        def work() -> None:
            while not over.is_set():
                step = 700 + len(steps)
                tell(given.engine, running, 1, range(step, step + 1))
                save(given.engine, given.store, running, 1, step, tmp_path)
                steps.append(step)
                time.sleep(0.02)

        worker = threading.Thread(target=work)
        worker.start()
        try:
            made = [backup(ours, tmp_path / f"backup-{n}") for n in range(3)]
        finally:
            over.set()
            worker.join()
        assert steps, "it worked meanwhile"
        assert all(each.objects for each in made)
    found = restore(theirs, tmp_path / "backup-2")
    assert {each.what for each in found.missing} == set(made[2].missing)


def test_a_database_older_than_the_store_is_told_and_nothing_is_deleted(
    place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ours = place()
    with lived_in(ours, tmp_path) as (given, _, running):
        backup(ours, tmp_path / "backup")
        later = save(given.engine, given.store, running, 1, 800, tmp_path)
        newer = given.running("wrk_b")
        of_newer = save(given.engine, given.store, newer, 1, 10, tmp_path)
        result = given.store.put_bytes(b"the result of a job that the backup does not know").digest
        with db.transaction(given.engine) as s:
            attempts.finish(s, running, 1, [attempts.ArtifactIn("student.safetensors", result, 49)], "d" * 64)
        before = files(given.store)
    url = f"sqlite:///{tmp_path}/older.db"
    older = ours.model_copy(update={"database_url": url})
    with pytest.raises(BackupError, match="the store is not empty"):
        restore(older, tmp_path / "backup")

    found = restore(older, tmp_path / "backup", keep_store=True)

    assert (found.stray_blobs, found.stray_objects, found.missing) == ((result,), tuple(sorted((later, of_newer))), ())
    monkeypatch.setattr(sweeper, "ORPHAN_S", 0.0)
    margin_s = 0.2 if ours.store_url is None else 2.0  # S3 tells times in whole seconds
    monkeypatch.setattr(inventory, "MARGIN_S", margin_s)
    with parts(older) as (engine, store):
        time.sleep(margin_s / 2 + 0.1)
        for _ in range(2):
            Sweeper(engine, store, None, 20.0).collect()
        assert files(store) == before
        assert "1 blobs and 2 checkpoints that no row names" in caplog.text
        # What an attempt puts after the restore, and dies before its row, is rubbish as ever.
        time.sleep(margin_s + 0.1)
        mine = save(engine, store, running, 1, 900, tmp_path)
        with db.transaction(engine) as s:
            s.execute(backups.delete_rows(Checkpoint).where(Checkpoint.key == mine))
        time.sleep(margin_s / 2 + 0.1)
        Sweeper(engine, store, None, 20.0).collect()
        assert files(store) == before

        with db.transaction(engine) as s:
            workers.register(s, "wrk_a", host="here", pid=1, slots=1)
        monkeypatch.setattr(inventory, "MARGIN_S", 60.0)
        with pytest.raises(BackupError, match="workers are running on here"):
            examine(older, 0.0, delete=True)
        assert files(store) == before
        with db.transaction(engine) as s:
            workers.forget(s, "wrk_a")
        examine(older, 0.0, delete=True)
        assert before.keys() - files(store).keys() == {result, later, of_newer}
        assert examine(older, 0.0, delete=False).whole


def test_rows_whose_files_are_gone_are_named(place: Any, tmp_path: Path) -> None:
    ours = place()
    with lived_in(ours, tmp_path) as (given, done, running):
        with db.reading(given.engine) as s:
            lost = s.scalars(select(Artifact).where(Artifact.job_id == done)).first()
            key = s.scalars(select(Checkpoint.key)).one()
        given.store.delete(lost.digest)
        given.store.delete_object(key)
        found = examine(ours, 0.0, delete=False)
        assert {each.what: each.needed_by for each in found.missing} == {
            lost.digest: (f"artifacts {lost.id}",),
            key: (f"the checkpoint of step 600 of {running}",),
        }
        with pytest.raises(BackupError, match=running):
            backup(ours, tmp_path / "backup")
        save(given.engine, given.store, running, 1, 700, tmp_path)
        made = backup(ours, tmp_path / "again")
        assert set(made.missing) == {lost.digest, key}


@pytest.fixture
def whole(kept: Path, tmp_path: Path) -> Path:
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    return tmp_path / "backup"


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "which is written last, is missing"),
        (lambda folder: os.truncate(folder / "manifest.json", 300), "damaged: .*manifest.json cannot be read"),
        (lambda folder: change(folder, lambda told: told["content"].update(version="9")), "manifest.json has changed"),
        (lambda folder: change(folder, lambda told: told.update(format=2)), "format 2; this version reads format 1"),
        (lambda folder: reseal(folder, revision="9999"), "is of revision 9999, made by version"),
        (lambda folder: flip(next((folder / "store" / "sha256").rglob("*" * 1 + "[0-9a-f]" * 62))), "has changed"),
        (lambda folder: next((folder / "store" / "objects").rglob("*.pt")).unlink(), "damaged: .*pt is missing"),
        (lambda folder: drop_a_row(folder / "database" / "jobs.jsonl.gz"), "damaged: .*jobs.jsonl.gz has changed"),
    ],
)
def test_a_torn_or_foreign_backup_is_refused_before_anything_is_written(
    whole: Path, tmp_path: Path, harm: Any, told: str
) -> None:
    harm(whole)
    theirs = Settings(home=tmp_path / "theirs")
    with pytest.raises(BackupError, match=told):
        restore(theirs, whole)
    assert not (tmp_path / "theirs").exists()


def change(folder: Path, how: Any) -> None:
    told = json.loads((folder / "manifest.json").read_text())
    how(told)
    (folder / "manifest.json").write_text(json.dumps(told))


def reseal(folder: Path, **content: Any) -> None:
    def how(told: Any) -> None:
        told["content"].update(content)
        told["sha256"] = backups._digest_of(told["content"])

    change(folder, how)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def drop_a_row(path: Path) -> None:
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(lines[:-1])))


def test_a_used_database_and_a_used_folder_are_refused(whole: Path, tmp_path: Path) -> None:
    ours = Settings(home=tmp_path / "ours")
    with parts(ours) as (engine, _):
        before = rows(engine)
    with pytest.raises(BackupError, match="the database is not empty: it has blobs"):
        restore(ours, whole, keep_store=True)
    with pytest.raises(BackupError, match="is not empty; name a new folder"):
        backup(ours, whole)
    with parts(ours) as (engine, _):
        assert rows(engine) == before

    theirs = Settings(home=tmp_path / "theirs")
    db.upgrade(theirs.database_url)
    with parts(theirs) as (engine, _), db.transaction(engine) as s:
        workers.register(s, "wrk_a", host="here", pid=1, slots=1)
    with pytest.raises(BackupError, match="a worker is running on this database"):
        restore(theirs, whole)


def test_a_restore_that_broke_off_is_done_again(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = Settings(home=tmp_path / "theirs")
    with monkeypatch.context() as broken:
        broken.setattr(backups, "_go_on_counting", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            restore(theirs, whole)
    assert restore(theirs, whole, keep_store=True).whole
    with parts(theirs) as (engine, _), db.reading(engine) as s:
        assert s.get(Project, DEFAULT_PROJECT)
        assert s.scalar(select(func.count()).select_from(Restore)) == 1
