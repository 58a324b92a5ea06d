"""What every store promises, and how bytes are named in it: blobs by their SHA-256, objects by a key.

Knows nothing of rows: a file that no row names is rubbish, not a result. Names that users see never become paths.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

logger = logging.getLogger(__name__)

DIGEST = re.compile(r"[0-9a-f]{64}")

KEY_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")


class DigestMismatch(ValueError):
    """The bytes are not those that were named: torn, or changed on disk."""


class StoreAway(OSError):
    """The store does not answer, or refuses; the same may work later."""


@dataclass(frozen=True)
class Blob:
    digest: str
    """SHA-256, hex."""
    size: int
    """Bytes."""


class BlobStore(Protocol):
    """Every put is durable when it returns. Raises KeyError for what is not there, ValueError for a bad name.

    put_file copies a file of anybody's. take_file is for one of our own that nobody writes to any more: from then on it
    may be the blob itself under another name, so the caller deletes it and never changes it.
    """

    def put_file(self, path: Path, expected: str | None = None) -> Blob: ...
    def take_file(self, path: Path, expected: str | None = None) -> Blob: ...
    def put_bytes(self, data: bytes) -> Blob: ...
    def read(self, digest: str, start: int = 0, length: int | None = None) -> Iterator[bytes]: ...
    def local(self, digest: str, scratch: Path | None = None) -> AbstractContextManager[Path]: ...
    def url(self, digest: str, seconds: int, disposition: str, media_type: str) -> str | None: ...
    def size(self, digest: str) -> int: ...
    def exists(self, digest: str) -> bool: ...
    def delete(self, digest: str) -> None: ...
    def delete_unless_fresh(self, digest: str, fresh_s: float) -> bool: ...
    def put_object(self, key: str, path: Path) -> None: ...
    def local_object(self, key: str, scratch: Path | None = None) -> AbstractContextManager[Path]: ...
    def delete_object(self, key: str) -> None: ...
    def objects(self, older_than_s: float) -> Iterator[str]: ...
    def blobs(self, older_than_s: float) -> Iterator[str]: ...
    def drop_partial(self, older_than_s: float) -> None: ...
    def writable(self) -> bool: ...
    def __hash__(self) -> int: ...


def delete_objects(store: BlobStore, keys: Iterable[str]) -> None:
    """As far as the store lets us: the next collection finds those that stay."""
    for key in keys:
        try:
            store.delete_object(key)
        except StoreAway as error:  # each would wait as long
            logger.warning("could not delete %s: %s", key, error)
            return
        except OSError as error:
            logger.warning("could not delete %s: %s", key, error)


def blob_name(digest: str) -> str:
    """Where a blob lies, below the root of any store. Raises ValueError for what is no digest."""
    if DIGEST.fullmatch(digest) is None:
        raise ValueError(f"{digest[:80]!r} is not a SHA-256")
    return f"sha256/{digest[:2]}/{digest[2:4]}/{digest}"


def object_name(key: str) -> str:
    """Where a private object lies, below the root of any store. Raises ValueError for what is no key."""
    if len(key) > 512 or any(KEY_PART.fullmatch(part) is None for part in key.split("/")):
        raise ValueError(f"{key[:80]!r} is not a key: letters, digits, '_', '-', '.' in parts separated by '/'")
    return f"objects/{key}"


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
