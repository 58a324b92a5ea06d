"""Brings a job's inputs to this host and writes the spec that the trainer reads: paths only.

    <home>/cache/<archive digest>/        a data set, unpacked once for all jobs
    <home>/cache/<archive digest>.lock    held (shared) while in use; its content is the size, its mtime the last use
    <home>/cache/teachers/                what trainings know of teachers (fgd/engine/teacher_answers.py), under 1 MB
    <home>/work/<job>/a<attempt>/         spec.json, teacher/, teachers/NAME/, inherit/, weights/, checkpoint.pt, out/;
                                          goes with it
    <home>/work/<job>/a<attempt>.lock     held as long as the attempt's supervisor lives
    <home>/finished/<job>/                a result that waits for the store (worker/kept_results.py)

Knows blobs and files. Knows no rows and no torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from api.core.store.names import BlobStore, DigestMismatch, sha256_file
from fgd.budget import FindStudent
from fgd.data import archive
from fgd.spec import JobSpec
from fgd.spec_fields import FromPath, TeacherFromPath

logger = logging.getLogger(__name__)

SPARE = 1.2
"""Free space asked for before an archive is unpacked, as a multiple of its size; `archive.unpack` asks for no more."""
Inputs = Mapping[str, Mapping[str, str]]
"""{"dataset": {"archive": sha256, "index": sha256}, "teacher": {file: sha256}, "teachers/<name>": ..., "inherit": ...,
"weights": ...}"""


class InputGone(Exception):
    """A blob that the job was accepted with is no longer in the store, or has other bytes."""


@dataclass(frozen=True)
class Cache:
    """Unpacked data sets, at most `max_bytes` of them, least recently used out first. Shared by processes."""

    folder: Path
    max_bytes: int
    store: BlobStore

    @contextmanager
    def dataset(self, digest: str) -> Iterator[Path]:
        """The folder of the archive `digest`; it stays as long as the context is open."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / digest
        while True:
            with self._locked(digest, fcntl.LOCK_SH) as lock:
                if target.is_dir():
                    os.utime(lock)
                    yield target
                    return
            with self._locked(digest, fcntl.LOCK_EX) as lock:
                if not target.is_dir():
                    self._unpack(digest, target, lock)

    def _unpack(self, digest: str, target: Path, lock: int) -> None:
        for torn in self.folder.glob(f".{digest}.*"):  # of an unpacking that was killed
            shutil.rmtree(torn) if torn.is_dir() else torn.unlink()
        with _named(digest):
            size = self.store.size(digest)  # stored uncompressed: the files are as large
        self._make_room(size, keep=digest)
        with fetched(self.store, digest, self.folder) as tar:
            if shutil.disk_usage(self.folder).free < size * SPARE:  # said as the host's fault, not as the archive's
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
            archive.unpack(tar, target)
        os.truncate(lock, 0)
        os.pwrite(lock, str(size).encode(), 0)

    def _make_room(self, size: int, keep: str) -> None:
        """Delete what nobody uses, oldest first, until `size` more bytes fit."""
        locks = sorted(self.folder.glob("*.lock"), key=lambda lock: lock.stat().st_mtime)
        held = {lock.stem: int(lock.read_text() or 0) for lock in locks}
        excess = sum(held.values()) + size - self.max_bytes
        for digest, freed in held.items():
            if excess <= 0:
                return
            if digest != keep and freed and self._evict(digest):
                excess -= freed
        if excess > 0:
            logger.warning("the cache is %d bytes over its limit: everything in it is in use", excess)

    def _evict(self, digest: str) -> bool:
        try:
            with self._locked(digest, fcntl.LOCK_EX | fcntl.LOCK_NB) as lock:
                shutil.rmtree(self.folder / digest, ignore_errors=True)
                os.truncate(lock, 0)  # the file stays: removing it would give two processes two locks
        except BlockingIOError:
            return False
        return True

    @contextmanager
    def _locked(self, digest: str, how: int) -> Iterator[int]:
        lock = os.open(self.folder / f"{digest}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, how)
            yield lock
        finally:
            os.close(lock)


@contextmanager
def fetched(store: BlobStore, digest: str, scratch: Path) -> Iterator[Path]:
    """The blob as a file, checked; it may lie in `scratch`, as long as the context. Raises InputGone."""
    with contextlib.ExitStack() as held:
        with _named(digest):
            file = held.enter_context(store.local(digest, scratch))
        yield file


@contextmanager
def _named(digest: str) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise InputGone(f"blob {digest} is no longer in the store") from error
    except DigestMismatch as error:
        raise InputGone(str(error)) from error


@contextmanager
def work_folder(home: Path, job: str, attempt: int) -> Iterator[Path]:
    """Empty at first, removed with all that is in it at the end."""
    folder = home / "work" / job / f"a{attempt}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # says that someone is at work here; ends with us, however we end
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            _forget_work(folder)


def clear_stale_work(home: Path) -> None:
    """Remove the work folders of workers that died."""
    for path in (home / "work").glob("*/*.lock"):
        with path.open("w") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _forget_work(path.with_suffix(""))


def _forget_work(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()  # unless another attempt is at work


@contextmanager
def staged(spec: JobSpec, inputs: Inputs, folder: Path, cache: Cache) -> Iterator[Path]:
    """spec.json in `folder`, every reference a path. What it names stays until the context ends."""
    with cache.dataset(inputs["dataset"]["archive"]) as dataset:
        changes: dict[str, object] = {"dataset": FromPath(path=str(dataset))}
        if spec.teacher is not None:
            teacher = stage_files(cache.store, inputs["teacher"], folder / "teacher")
            changes["teacher"] = TeacherFromPath(path=str(teacher), allow_unfit=spec.teacher.allow_unfit)
        if spec.teachers:
            changes["teachers"] = {
                name: TeacherFromPath(
                    path=str(stage_files(cache.store, inputs[f"teachers/{name}"], folder / "teachers" / name)),
                    allow_unfit=ref.allow_unfit,
                )
                for name, ref in spec.teachers.items()
            }
        student: dict[str, object] = {}
        if spec.student.inherit is not None:
            inherit = stage_files(cache.store, inputs["inherit"], folder / "inherit")
            student["inherit"] = FromPath(path=str(inherit))
        if not isinstance(spec.student.weights, str):
            begin = stage_files(cache.store, inputs["weights"], folder / "weights")
            student["weights"] = FromPath(path=str(begin))
        if student:
            changes["student"] = spec.student.but(**student)
        file = folder / "spec.json"
        file.write_text(spec.but(**changes).model_dump_json(indent=2))
        yield file


@contextmanager
def staged_question(question: FindStudent, inputs: Inputs, folder: Path, cache: Cache) -> Iterator[Path]:
    """question.json in `folder`, every reference a path. What it names stays until the context ends."""
    with cache.dataset(inputs["dataset"]["archive"]) as dataset:
        changes: dict[str, object] = {"dataset": FromPath(path=str(dataset))}
        if question.teacher is not None:
            teacher = stage_files(cache.store, inputs["teacher"], folder / "teacher")
            changes["teacher"] = TeacherFromPath(path=str(teacher))
        file = folder / "question.json"
        file.write_text(question.but(**changes).model_dump_json(indent=2))
        yield file


def stage_files(store: BlobStore, files: Mapping[str, str], folder: Path) -> Path:
    """A new folder with these blobs under their names. Raises InputGone."""
    shutil.rmtree(folder, ignore_errors=True)  # of a try that the store broke off
    folder.mkdir(parents=True)
    for name, digest in files.items():
        with fetched(store, digest, folder) as file:
            link(file, folder / Path(name).name)
    return folder


def link(source: Path, target: Path) -> None:
    """The same bytes under another name, without copying where the disk allows it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def stage_checkpoint(store: BlobStore, key: str, sha256: str, folder: Path) -> Path | None:
    """The checkpoint as a file of this attempt; None if it is gone or its bytes are not those that were saved.

    Raises OSError where the store fails: a checkpoint that cannot be read now is not one that is gone.
    """
    target = folder / "checkpoint.pt"
    target.unlink(missing_ok=True)
    try:
        with store.local_object(key, folder) as file:
            link(file, target)
        return target if sha256_file(target) == sha256 else None
    except (KeyError, FileNotFoundError):
        return None
