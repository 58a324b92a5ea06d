"""A store on an S3-compatible server, through obstore: `<prefix>/sha256/ab/cd/<hex>` and `<prefix>/objects/<key>`.

Import it through `storage.open_store`: obstore is an extra. Every put is one atomic request at its end, so a reader
sees all of a blob or nothing. What a killed upload leaves is invisible, but takes room: give the bucket a rule that
ends incomplete multipart uploads after a day.
"""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import gettempdir
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store as Bucket

from api.core.settings import Settings
from api.core.store.names import Blob, DigestMismatch, StoreAway, blob_name, object_name, sha256_file

PART = 8 << 20
"""Bytes: smaller files are one request, larger ones are sent in parts of at least this size."""
MOST_PARTS = 9_000
"""S3 takes 10,000."""
PARTS_AT_ONCE = 4
PIECE = 1 << 20
PROBE_S = 2.0


class S3Store:
    """`api.core.store.local.BlobStore` on a bucket. Raises StoreAway, an OSError, when the server fails."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        *,
        endpoint: str | None,
        region: str,
        account: tuple[str, str] | None,
        patience_s: float,
    ) -> None:
        self._bucket, self._prefix = bucket, prefix
        self._endpoint = endpoint or f"https://s3.{region}.amazonaws.com"
        self._region, self._account = region, account
        known: dict[str, Any] = {"region": region, "disable_bulk_delete": True}
        if endpoint is not None:
            known["endpoint"] = endpoint
        if account is not None:
            known["access_key_id"], known["secret_access_key"] = account
        if prefix:
            known["prefix"] = prefix
        self._s3 = _connect(bucket, known, patience_s, retries=10, most="6h")  # a data set on a slow line
        self._probe = _connect(bucket, known, PROBE_S, retries=0, most=f"{PROBE_S}s")

    @classmethod
    def of(cls, settings: Settings, patience_s: float) -> S3Store:
        """The store that the settings name."""
        assert settings.store_url is not None
        parts = urlsplit(settings.store_url)
        account = None
        if settings.store_key_id is not None and settings.store_secret is not None:
            account = settings.store_key_id.get_secret_value(), settings.store_secret.get_secret_value()
        return cls(
            parts.netloc,
            parts.path.strip("/"),
            endpoint=settings.store_endpoint,
            region=settings.store_region,
            account=account,
            patience_s=patience_s,
        )

    def put_file(self, path: Path, expected: str | None = None) -> Blob:
        """Copy a file in. DigestMismatch if its SHA-256 is not `expected`, or changes on the way."""
        digest, size = sha256_file(path), path.stat().st_size
        if expected is not None and digest != expected:
            raise DigestMismatch(f"expected sha256 {expected}, but the bytes have {digest}")
        if not self._has(digest, size):
            with path.open("rb") as file:
                self._put(blob_name(digest), _checked(file, digest), size)
        return Blob(digest, size)

    def take_file(self, path: Path, expected: str | None = None) -> Blob:
        return self.put_file(path, expected)

    def put_bytes(self, data: bytes) -> Blob:
        digest = hashlib.sha256(data).hexdigest()
        if not self._has(digest, len(data)):
            self._put(blob_name(digest), iter([data]), len(data))
        return Blob(digest, len(data))

    def read(self, digest: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` on, at most `length` of them. Raises KeyError at once, not at the first piece."""
        left = self.size(digest) - start if length is None else length
        if left <= 0:
            self.size(digest)  # an empty range is no request
            return iter(())
        with _answered(digest):
            found = obstore.get(self._s3, blob_name(digest), options={"range": (start, start + left)})
        return _stream(digest, found)

    @contextmanager
    def local(self, digest: str, scratch: Path | None = None) -> Iterator[Path]:
        """A copy of the blob in `scratch`, all checked; it goes with the context. Raises DigestMismatch."""
        with self._copy(digest, blob_name(digest), scratch) as (file, found):
            if found != digest:
                raise DigestMismatch(f"blob {digest} has other bytes in the store: sha256 {found}")
            yield file

    def url(self, digest: str, seconds: int, disposition: str, media_type: str) -> str | None:
        """A signed address of the bytes, good for so long; None without an account of our own."""
        if self._account is None:
            return None
        name = "/".join(part for part in (self._bucket, self._prefix, blob_name(digest)) if part)
        answer = {"response-content-disposition": disposition, "response-content-type": media_type}
        return signed(f"{self._endpoint}/{name}", self._account, self._region, datetime.now(UTC), seconds, answer)

    def size(self, digest: str) -> int:
        with _answered(digest):
            return int(obstore.head(self._s3, blob_name(digest))["size"])

    def exists(self, digest: str) -> bool:
        try:
            self.size(digest)
        except KeyError:
            return False
        return True

    def delete(self, digest: str) -> None:
        self._delete(blob_name(digest))

    def delete_unless_fresh(self, digest: str, fresh_s: float) -> bool:
        """Delete a blob, unless it was put within this many seconds by the server's clock; False then.

        Content that is there already is not put again, so its age is that of its first put: a row that names it
        again is what keeps it.
        """
        name = blob_name(digest)
        try:
            with _answered(digest):
                put_at = obstore.head(self._s3, name)["last_modified"]
        except KeyError:
            return True
        with _answered(digest):
            if put_at > self._clock() - timedelta(seconds=fresh_s):
                return False
        self._delete(name)
        return True

    def put_object(self, key: str, path: Path) -> None:
        """Keep a copy of a file under `key`."""
        name = object_name(key)
        with path.open("rb") as file:  # open all the while: its owner may delete it meanwhile
            self._put(name, iter(lambda: file.read(PIECE), b""), path.stat().st_size)

    @contextmanager
    def local_object(self, key: str, scratch: Path | None = None) -> Iterator[Path]:
        """A copy of the object in `scratch`, not checked; it goes with the context."""
        with self._copy(key, object_name(key), scratch) as (file, _):
            yield file

    def delete_object(self, key: str) -> None:
        self._delete(object_name(key))

    def objects(self, older_than_s: float) -> Iterator[str]:
        """Keys of the objects that were put at least so long ago, by the server's clock."""
        for path in self._listed("objects", older_than_s):
            yield path.removeprefix("objects/")

    def blobs(self, older_than_s: float) -> Iterator[str]:
        """Digests of the blobs that were put at least so long ago, by the server's clock."""
        for path in self._listed("sha256", older_than_s):
            yield path.rpartition("/")[2]

    def drop_partial(self, older_than_s: float) -> None:
        """Nothing: the bucket's own rule does it."""

    def writable(self) -> bool:
        try:
            with _answered("probe"):
                obstore.put(self._probe, "probe", b"")
        except (KeyError, OSError):
            return False
        return True

    def _clock(self) -> datetime:
        obstore.put(self._s3, "probe", b"")
        at = obstore.head(self._s3, "probe")["last_modified"]
        assert isinstance(at, datetime)
        return at

    def _listed(self, prefix: str, older_than_s: float) -> Iterator[str]:
        with _answered(prefix):
            latest = self._clock() - timedelta(seconds=older_than_s)
            for batch in obstore.list(self._s3, prefix=prefix):
                for found in batch:
                    if found["last_modified"] <= latest:
                        yield str(found["path"])

    def _has(self, digest: str, size: int) -> bool:
        try:
            return self.size(digest) == size
        except KeyError:
            return False

    def _put(self, name: str, pieces: Iterator[bytes], size: int) -> None:
        """What `pieces` raises ends the upload, and nothing of it is seen."""
        data = b"".join(pieces) if size <= PART else pieces
        part = max(PART, size // MOST_PARTS + 1)
        try:
            with _answered(name):
                obstore.put(self._s3, name, data, chunk_size=part, max_concurrency=PARTS_AT_ONCE)
        except KeyError as error:  # of a put: there is no such bucket
            raise StoreAway(f"the store does not know the bucket {self._bucket}") from error

    def _delete(self, name: str) -> None:
        try:
            with _answered(name):
                obstore.delete(self._s3, name)
        except KeyError:
            pass

    @contextmanager
    def _copy(self, what: str, name: str, scratch: Path | None) -> Iterator[tuple[Path, str]]:
        """A copy of an object as a file, and the SHA-256 of its bytes. Raises KeyError."""
        file, sha = (scratch or Path(gettempdir())) / f".{what.rpartition('/')[2]}.{uuid.uuid4().hex}", hashlib.sha256()
        with _answered(what):
            found = obstore.get(self._s3, name)
        try:
            with file.open("xb") as copy:
                for piece in _stream(what, found):
                    sha.update(piece)
                    copy.write(piece)
            yield file, sha.hexdigest()
        finally:
            file.unlink(missing_ok=True)


def _connect(bucket: str, known: Mapping[str, Any], patience_s: float, retries: int, most: str) -> Any:
    return Bucket(
        bucket,
        **known,
        client_options={
            "allow_http": str(known.get("endpoint", "")).startswith("http:"),
            "connect_timeout": "2s",
            "read_timeout": "30s",
            "timeout": most,
        },
        retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=patience_s)},
    )


@contextmanager
def _answered(what: str) -> Iterator[None]:
    """obstore's errors as ours: KeyError for what is not there, StoreAway for everything else."""
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise StoreAway("the store does not know the bucket") from error
        raise KeyError(what) from error
    except BaseError as error:
        raise StoreAway(str(error).partition("\n")[0]) from error  # what follows is obstore's own inside


def _stream(what: str, found: Any) -> Iterator[bytes]:
    with _answered(what):
        for piece in found.stream(min_chunk_size=PIECE):
            yield bytes(piece)


def _checked(file: BinaryIO, digest: str) -> Iterator[bytes]:
    """The file's pieces; the last one only if all of them have this SHA-256, so that no other bytes get its name."""
    sha, piece = hashlib.sha256(), file.read(PIECE)
    while piece:
        sha.update(piece)
        following = file.read(PIECE)
        if not following and sha.hexdigest() != digest:
            raise DigestMismatch(f"{file.name} changed while it was being read")
        yield piece
        piece = following


def signed(
    url: str, account: tuple[str, str], region: str, at: datetime, seconds: int, answer: Mapping[str, str]
) -> str:
    """A GET address that carries its own permission: AWS Signature Version 4 in the query.

    obstore signs too, but not the `answer`: the headers that the store is to send, such as the file's name.
    """
    key_id, secret = account
    stamp = at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    parts = urlsplit(url)
    asked = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{key_id}/{scope}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(seconds),
        "X-Amz-SignedHeaders": "host",
        **answer,
    }
    query = "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in sorted(asked.items()))
    path = quote(parts.path, safe="/~")
    request = "\n".join(["GET", path, query, f"host:{parts.netloc}", "", "host", "UNSIGNED-PAYLOAD"])
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{secret}".encode()
    for word in (stamp[:8], region, "s3", "aws4_request"):
        key = hmac.digest(key, word.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    return f"{parts.scheme}://{parts.netloc}{path}?{query}&X-Amz-Signature={signature}"
