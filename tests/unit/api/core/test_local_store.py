from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from api.core.store.local import LocalStore
from api.core.store.names import Blob, DigestMismatch

DATA = b"some weights" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "blobs")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return path


def leftovers(store: LocalStore) -> list[Path]:
    return list(store.root.rglob(".tmp-*"))


def test_a_file_is_kept_under_its_digest(store: LocalStore, file: Path) -> None:
    assert store.put_file(file) == store.put_bytes(DATA) == Blob(DIGEST, len(DATA))
    file.write_bytes(b"changed later")

    with store.open(DIGEST) as opened:
        assert opened.read() == DATA
    assert store.exists(DIGEST)
    assert leftovers(store) == []


def test_a_file_that_is_given_away_is_not_written_again(store: LocalStore, file: Path) -> None:
    file.chmod(0o600)
    os.utime(file, (0, 0))
    inode, before = file.stat().st_ino, time.time()

    assert store.take_file(file, expected=DIGEST) == Blob(DIGEST, len(DATA))

    kept = store.path(DIGEST, verify=True).stat()
    assert kept.st_ino == inode
    assert kept.st_mtime >= before - 1, "nobody shall take it for one that was put long ago"
    usual = file.with_name("usual")
    usual.touch()
    assert kept.st_mode == usual.stat().st_mode, "who may read blobs may read this one"
    file.unlink()
    assert store.path(DIGEST, verify=True).stat().st_nlink == 1
    assert leftovers(store) == []


def test_what_was_there_before_stays_when_the_same_is_given_away(store: LocalStore, file: Path) -> None:
    store.put_bytes(DATA)
    inode = store.path(DIGEST).stat().st_ino
    os.utime(store.path(DIGEST), (0, 0))

    assert store.take_file(file) == Blob(DIGEST, len(DATA))

    assert store.path(DIGEST).stat().st_ino == inode
    assert not store.delete_unless_fresh(DIGEST, 60.0)


def test_a_file_is_copied_where_it_cannot_be_linked(
    store: LocalStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def only_in_the_store(source: Path, target: Path) -> None:
        if source == file:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target)

    monkeypatch.setattr(os, "link", only_in_the_store)
    assert store.take_file(file, expected=DIGEST) == Blob(DIGEST, len(DATA))

    assert store.path(DIGEST, verify=True).stat().st_ino != file.stat().st_ino
    assert leftovers(store) == []


def test_what_a_link_leads_to_is_copied_for_it_is_not_ours(store: LocalStore, file: Path, tmp_path: Path) -> None:
    file.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(file)

    assert store.take_file(link) == Blob(DIGEST, len(DATA))

    assert file.stat().st_nlink == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not store.path(DIGEST).is_symlink()


def test_bytes_that_are_not_those_promised_are_not_kept(store: LocalStore, file: Path) -> None:
    for put in (store.put_file, store.take_file):
        with pytest.raises(DigestMismatch):
            put(file, expected="0" * 64)

    assert not store.exists(DIGEST)
    assert leftovers(store) == []


def test_a_blob_that_changed_on_disk_is_noticed_when_asked(store: LocalStore) -> None:
    store.put_bytes(DATA)
    path = store.path(DIGEST, verify=True)
    path.write_bytes(DATA[:-1] + b"!")

    assert store.path(DIGEST) == path
    with pytest.raises(DigestMismatch, match="other bytes"):
        store.path(DIGEST, verify=True)


def test_many_writers_of_one_content_agree(store: LocalStore, file: Path) -> None:
    blobs: list[Blob] = []
    threads = [threading.Thread(target=lambda: blobs.append(store.put_file(file))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(blobs) == {Blob(DIGEST, len(DATA))}
    assert store.path(DIGEST, verify=True).stat().st_nlink == 1


@pytest.mark.parametrize("digest", ["", "..", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n", "/" * 64])
def test_what_is_no_digest_is_refused(store: LocalStore, digest: str) -> None:
    with pytest.raises(ValueError, match="not a SHA-256"):
        store.path(digest)


@pytest.mark.parametrize("key", ["", "/etc/passwd", "a/../b", "..", ".hidden", "a//b", "a/", "a\0b", "a b", "x" * 600])
def test_what_is_no_key_is_refused(store: LocalStore, file: Path, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        store.put_object(key, file)


def test_missing_things_are_key_errors(store: LocalStore) -> None:
    with pytest.raises(FileNotFoundError):
        store.take_file(Path("/nowhere"))
    with pytest.raises(KeyError):
        store.path("0" * 64)
    with pytest.raises(KeyError):
        store.object_path("jobs/x")
    store.delete("0" * 64)
    store.delete_object("jobs/x")


def test_an_object_outlives_the_file_it_came_from_and_is_replaced_whole(store: LocalStore, file: Path) -> None:
    store.put_object("jobs/job_1/a1/40.ckpt", file)
    store.put_object("jobs/job_1/a1/40.ckpt", file)
    file.unlink()
    assert store.object_path("jobs/job_1/a1/40.ckpt").read_bytes() == DATA
    assert leftovers(store) == []

    store.delete_object("jobs/job_1/a1/40.ckpt")
    assert list((store.root / "objects").iterdir()) == []


def test_an_object_is_copied_where_it_cannot_be_linked(
    store: LocalStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_disk(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    store.put_object("k", file)

    assert store.object_path("k").read_bytes() == DATA


def test_objects_are_listed_by_key_once_they_are_old_enough(store: LocalStore, file: Path) -> None:
    os.utime(file, (0, 0))  # a linked file keeps its time; when it was put is what counts
    store.put_object("jobs/job_1/a1/40.ckpt", file)

    assert list(store.objects(older_than_s=60)) == []
    assert list(store.objects(older_than_s=0)) == ["jobs/job_1/a1/40.ckpt"]


def test_objects_are_put_deleted_and_listed_at_once_without_stumbling(store: LocalStore, file: Path) -> None:
    failed: list[Exception] = []

    def work(attempt: int) -> None:
        try:
            for step in range(150):
                key = f"jobs/job_1/a{attempt}/{step}.ckpt"
                store.put_object(key, file)
                store.delete_object(key)
                list(store.objects(older_than_s=60))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(attempt,)) for attempt in (1, 1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert list((store.root / "objects").iterdir()) == []


def test_what_a_crash_left_half_written_is_dropped_once_it_is_old_enough(store: LocalStore) -> None:
    assert store.writable()
    torn = store.root / "incoming" / ".tmp-torn"
    torn.write_bytes(b"half")

    store.drop_partial(older_than_s=60)
    assert torn.exists()
    store.drop_partial(older_than_s=0)
    assert not torn.exists()


def test_a_store_says_whether_it_can_be_written(store: LocalStore, file: Path) -> None:
    assert store.writable()
    assert not LocalStore(file).writable()
