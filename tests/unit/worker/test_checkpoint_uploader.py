from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from api.core.store.local import LocalStore
from api.core.store.names import StoreAway
from fgd.events import Saved
from worker.checkpoint_uploader import CheckpointUploader


class SlowStore(LocalStore):
    """Puts nothing before it may."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.may = threading.Event()

    def put_object(self, key: str, path: Path) -> None:
        assert self.may.wait(20)
        super().put_object(key, path)


@pytest.fixture
def store(tmp_path: Path) -> SlowStore:
    return SlowStore(tmp_path / "store")


@pytest.fixture
def keeper(store: SlowStore, tmp_path: Path) -> Any:
    (tmp_path / "work" / "out").mkdir(parents=True)
    return CheckpointUploader(store, tmp_path / "work" / "out", "jobs/j/a1")


def saved(tmp_path: Path, step: int, best: bool = False) -> Saved:
    path = tmp_path / "work" / "out" / f"{step}.pt"
    path.write_bytes(f"checkpoint {step}".encode())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Saved(step=step, path=str(path), sha256=sha256, size=path.stat().st_size, best=best)


def until_idle(keeper: CheckpointUploader) -> None:
    end = time.monotonic() + 20
    while not keeper.idle:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_slow_store_keeps_nobody_waiting_and_the_trainer_may_delete_its_file(
    keeper: CheckpointUploader, store: SlowStore, tmp_path: Path
) -> None:
    one = saved(tmp_path, 1)
    began = time.monotonic()
    keeper.keep(one)
    Path(one.path).unlink()
    assert time.monotonic() - began < 1
    assert keeper.taken() == []
    assert not keeper.idle
    store.may.set()
    until_idle(keeper)
    (stored,) = keeper.taken()
    assert stored.saved == one
    assert store.object_path(stored.key).read_bytes() == b"checkpoint 1"
    assert not list((tmp_path / "work" / "keeping").iterdir())


def test_those_that_wait_are_given_up_for_a_newer_one_but_not_the_best(
    keeper: CheckpointUploader, store: SlowStore, tmp_path: Path
) -> None:
    keeper.keep(saved(tmp_path, 1))
    time.sleep(0.2)  # that one is on its way
    for step in (2, 3, 4, 5):
        keeper.keep(saved(tmp_path, step, best=step == 3))
    store.may.set()
    until_idle(keeper)
    assert [stored.saved.step for stored in keeper.taken()] == [1, 3, 5]


class AwayStore(LocalStore):
    """Does not answer at first."""

    tries = 0

    def put_object(self, key: str, path: Path) -> None:
        self.tries += 1
        if self.tries < 3:
            raise StoreAway("no answer")
        super().put_object(key, path)


def test_the_newest_waits_for_a_store_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.checkpoint_uploader.AGAIN_S", 0.05)
    (tmp_path / "work" / "out").mkdir(parents=True)
    store = AwayStore(tmp_path / "store")
    keeper = CheckpointUploader(store, tmp_path / "work" / "out", "jobs/j/a1")
    keeper.keep(saved(tmp_path, 7))
    until_idle(keeper)
    (stored,) = keeper.taken()
    assert store.object_path(stored.key).read_bytes() == b"checkpoint 7"
    assert keeper.complaints() == []
    assert not list((tmp_path / "work" / "keeping").iterdir())


def test_what_arrives_after_the_end_leaves_nothing_in_the_store(
    keeper: CheckpointUploader, store: SlowStore, tmp_path: Path
) -> None:
    keeper.keep(saved(tmp_path, 1))
    time.sleep(0.2)
    keeper.close()
    store.may.set()
    end = time.monotonic() + 20
    while list((tmp_path / "work" / "keeping").iterdir()) or list(store.objects(0)):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert keeper.taken() == []


def test_a_file_outside_the_trainer_s_folder_is_not_kept(keeper: CheckpointUploader, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    keeper.keep(Saved(step=1, path=str(tmp_path / "secret"), sha256="0" * 64, size=1))
    assert keeper.idle
    (told,) = keeper.complaints()
    assert told.step == 1
    assert "is not below" in str(told.error)
    assert keeper.complaints() == []


def test_what_is_not_needed_is_deleted_at_the_end_and_left_to_the_collector_by_a_store_that_is_away(
    keeper: CheckpointUploader, store: SlowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.may.set()
    for step in (1, 2):
        keeper.keep(saved(tmp_path, step))
        until_idle(keeper)
    stored = [each.key for each in keeper.taken()]
    keeper.drop(stored[:1])
    keeper.close()
    assert list(store.objects(0)) == stored[1:]

    def away(_key: str) -> None:
        raise StoreAway("no answer")

    monkeypatch.setattr(store, "delete_object", away)
    again = CheckpointUploader(store, tmp_path / "work" / "out", "jobs/j/a2")
    again.drop(["jobs/j/a1/ckpt-1.pt", stored[1]])
    began = time.monotonic()
    again.close()
    assert time.monotonic() - began < 0.9
    assert list(store.objects(0)) == stored[1:]
