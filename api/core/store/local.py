"""Where bytes live: blobs named by their SHA-256, immutable; and private objects by key (checkpoints).

Two stores: a folder (here), and an S3-compatible server (`api/core/store/s3.py`).
Knows nothing of rows: a file that no row names is rubbish, not a result. Names that users see never become paths.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from api.core.store.names import DIGEST, Blob, DigestMismatch, blob_name, object_name, sha256_file

_CHUNK = 1 << 20
_RENAMES = 100


class LocalStore:
    """A folder: `sha256/ab/cd/<hex>` and `objects/<key>`. A crash leaves at most a file in `incoming/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put_file(self, path: Path, expected: str | None = None) -> Blob:
        """Copy a file in. DigestMismatch if its SHA-256 is not `expected`."""
        with path.open("rb") as source:
            return self._put(source, expected)

    def take_file(self, path: Path, expected: str | None = None) -> Blob:
        """Keep a file that nobody writes to any more: by hard link where the disk allows it, else by copy.
        DigestMismatch if its SHA-256 is not `expected`."""
        with self._temporary() as temporary:
            try:
                os.link(path, temporary)
                self._make_ours(temporary)
            except OSError:  # another disk, or another user's file
                return self.put_file(path, expected)
            blob = Blob(sha256_file(temporary), temporary.stat().st_size)
            _refuse_other(blob.digest, expected)
            _fsync(temporary)
            _publish(temporary, self._blob(blob.digest))
        return blob

    def put_bytes(self, data: bytes) -> Blob:
        digest = hashlib.sha256(data).hexdigest()
        with self._temporary() as temporary:
            _write(temporary, data)
            _publish(temporary, self._blob(digest))
        return Blob(digest, len(data))

    def open(self, digest: str) -> BinaryIO:
        return self.path(digest).open("rb")

    def path(self, digest: str, verify: bool = False) -> Path:
        """Where the bytes lie; `verify` reads them all first and raises DigestMismatch if they changed."""
        target = self._blob(digest)
        if not target.is_file():
            raise KeyError(digest)
        if verify and sha256_file(target) != digest:
            raise DigestMismatch(f"blob {digest} has other bytes on disk: {target}")
        return target

    def read(self, digest: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` on, at most `length` of them. Raises KeyError at once, not at the first piece."""
        return _pieces(self.open(digest), start, length)

    @contextmanager
    def local(self, digest: str, scratch: Path | None = None) -> Iterator[Path]:  # noqa: ARG002
        """A file with the blob's bytes, all checked; read it, link it, do not change it. Raises DigestMismatch.

        scratch: the folder of a store that has to copy the bytes here first, for as long as the context.
        """
        yield self.path(digest, verify=True)

    def url(self, digest: str, seconds: int, disposition: str, media_type: str) -> str | None:  # noqa: ARG002
        """Where others can fetch the bytes themselves for so long; None: only through us."""
        return None

    def size(self, digest: str) -> int:
        return self.path(digest).stat().st_size

    def exists(self, digest: str) -> bool:
        return self._blob(digest).is_file()

    def delete(self, digest: str) -> None:
        self._blob(digest).unlink(missing_ok=True)

    def delete_unless_fresh(self, digest: str, fresh_s: float) -> bool:
        """Delete a blob, unless somebody put it, or put it again, within so many seconds; False then.

        It is set aside first: a put in the meantime does not find it, and writes the bytes again.
        """
        target = self._blob(digest)
        with self._temporary() as aside, suppress(FileNotFoundError):
            if time.time() - target.stat().st_mtime < fresh_s:
                return False
            os.rename(target, aside)
            if time.time() - aside.stat().st_mtime < fresh_s:  # put again between these two lines
                _publish(aside, target)
                return False
        return True

    def put_object(self, key: str, path: Path) -> None:
        """Keep a file under `key`, by hard link where the disk allows it: the caller must not change it afterwards."""
        target = self._object(key)
        with self._temporary() as temporary:
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copyfile(path, temporary)
            _fsync(temporary)
            _replace(temporary, target)
            with suppress(FileNotFoundError):  # already deleted again
                for folder in target.parents[: len(key.split("/"))]:  # the job's folders may be new themselves
                    _fsync(folder)

    def object_path(self, key: str) -> Path:
        target = self._object(key)
        if not target.is_file():
            raise KeyError(key)
        return target

    @contextmanager
    def local_object(self, key: str, scratch: Path | None = None) -> Iterator[Path]:  # noqa: ARG002
        """A file with the object's bytes, not checked; see `local`."""
        yield self.object_path(key)

    def delete_object(self, key: str) -> None:
        target = self._object(key)
        target.unlink(missing_ok=True)
        for folder in target.parents:  # a job's folders end with its last object
            if folder == self.root / "objects":
                return
            with suppress(OSError):
                folder.rmdir()

    def objects(self, older_than_s: float) -> Iterator[str]:
        """Keys of the objects that were put at least so long ago, by the clock of the disk's host."""
        root = self.root / "objects"
        for folder, _, names in os.walk(root):  # unlike rglob it bears folders that another sweeper takes away
            for path in (Path(folder, name) for name in names):
                if _is_file_older_than(path, older_than_s):
                    yield path.relative_to(root).as_posix()

    def blobs(self, older_than_s: float) -> Iterator[str]:
        """Digests of the blobs that were put at least so long ago, by the clock of the disk's host."""
        for folder, _, names in os.walk(self.root / "sha256"):
            for name in names:
                if DIGEST.fullmatch(name) and _is_file_older_than(Path(folder, name), older_than_s):
                    yield name

    def drop_partial(self, older_than_s: float) -> None:
        """Delete what was being written when a process died."""
        for path in (self.root / "incoming").glob(".tmp-*"):
            if _is_file_older_than(path, older_than_s):
                path.unlink(missing_ok=True)

    def writable(self) -> bool:
        try:
            with self._temporary() as temporary:
                _write(temporary, b"")
        except OSError:
            return False
        return True

    def _put(self, source: BinaryIO, expected: str | None) -> Blob:
        sha, size = hashlib.sha256(), 0
        with self._temporary() as temporary:
            with temporary.open("xb") as copy:
                while chunk := source.read(_CHUNK):
                    sha.update(chunk)
                    size += len(chunk)
                    copy.write(chunk)
                copy.flush()
                os.fsync(copy.fileno())
            digest = sha.hexdigest()
            _refuse_other(digest, expected)
            _publish(temporary, self._blob(digest))
        return Blob(digest, size)

    def _blob(self, digest: str) -> Path:
        return self.root / blob_name(digest)

    def _object(self, key: str) -> Path:
        return self.root / object_name(key)

    def _make_ours(self, file: Path) -> None:
        """Mode and time of a file that was written here just now: who may read blobs may read it, and it is fresh."""
        if file.is_symlink():
            raise OSError(f"{file} is a link to a file that is not ours")
        with self._temporary() as ours:
            ours.touch()
            file.chmod(stat.S_IMODE(ours.stat().st_mode))
        os.utime(file)

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A fresh name on the disk of the store; gone afterwards whatever happens."""
        folder = self.root / "incoming"
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".tmp-{uuid.uuid4().hex}"
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def _refuse_other(digest: str, expected: str | None) -> None:
    if expected is not None and digest != expected:
        raise DigestMismatch(f"expected sha256 {expected}, but the bytes have {digest}")


def _pieces(file: BinaryIO, start: int, length: int | None) -> Iterator[bytes]:
    with file:
        file.seek(start)
        left = _CHUNK if length is None else length
        while left > 0 and (piece := file.read(min(left, _CHUNK))):
            left -= 0 if length is None else len(piece)
            yield piece


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _publish(temporary: Path, target: Path) -> None:
    """Give the bytes their name; the first to arrive wins, and all who arrive bring the same bytes.

    Those who come later make the file fresh: a process about to delete it as unused must see that it is wanted.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_RENAMES):
        with suppress(FileExistsError):
            os.link(temporary, target)
            break
        with suppress(FileNotFoundError):  # just deleted
            os.utime(target)
            break
    for folder in (target.parent, target.parent.parent, target.parent.parent.parent):  # ab/cd may be new themselves
        _fsync(folder)


def _replace(temporary: Path, target: Path) -> None:
    """Rename into a folder that `delete_object`, called for its last object, may take away at any moment."""
    for _ in range(_RENAMES):
        with suppress(FileNotFoundError, FileExistsError):  # mkdir says the latter if it vanished as mkdir looked
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary, target)
            return
    raise OSError(f"the folder of {target} keeps disappearing")


def _is_file_older_than(path: Path, seconds: float) -> bool:
    """By ctime: a hard link keeps the mtime of the file it came from. False for what is just being deleted."""
    try:
        found = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and time.time() - found.st_ctime >= seconds


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
