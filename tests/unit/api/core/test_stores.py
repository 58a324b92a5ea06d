"""What every store promises: the same tests on a folder and on an S3 server (moto, with boto3 as another's client)."""

from __future__ import annotations

import hashlib
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from pydantic import ValidationError

from api.core.settings import Settings
from api.core.store.local import LocalStore
from api.core.store.names import Blob, BlobStore, DigestMismatch, StoreAway, blob_name, object_name
from api.core.store.open import open_store
from tests.s3 import BOTH_STORES, BUCKET, KEY_ID, S3, SECRET

DATA = b"some weights" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()
NOTHING = "0" * 64
ON_S3 = pytest.mark.parametrize("store_settings", ["s3"], indirect=True)


@pytest.fixture
def settings(tmp_path: Path, store_settings: dict[str, Any]) -> Settings:
    return Settings(home=tmp_path / "home", **store_settings)


@pytest.fixture
def store(settings: Settings) -> Any:
    return open_store(settings)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return path


def large() -> bytes:
    """More than two parts of an upload, no two pieces of it alike."""
    return b"".join(hashlib.sha256(number.to_bytes(4, "big")).digest() * 1024 for number in range(600))


def place(settings: Settings, name: str) -> str:
    """The key of an object in the bucket."""
    assert settings.store_url is not None
    return f"{urlsplit(settings.store_url).path.strip('/')}/{name}"


def spoil(settings: Settings, store: BlobStore, s3: S3 | None, digest: str, data: bytes) -> None:
    """Other bytes under the name of a blob."""
    if isinstance(store, LocalStore):
        store.path(digest).write_bytes(data)
    else:
        assert s3 is not None
        s3.boto().put_object(Bucket=BUCKET, Key=place(settings, blob_name(digest)), Body=data)


# --- both -----------------------------------------------------------------------------------------------------


@BOTH_STORES
def test_a_file_is_kept_under_its_digest(store: BlobStore, file: Path) -> None:
    assert store.put_file(file, expected=DIGEST) == store.put_bytes(DATA) == Blob(DIGEST, len(DATA))
    file.write_bytes(b"changed later")

    assert b"".join(store.read(DIGEST)) == DATA
    assert store.exists(DIGEST)
    assert store.size(DIGEST) == len(DATA)
    with store.local(DIGEST) as local:
        assert local.read_bytes() == DATA

    store.delete(DIGEST)
    assert not store.exists(DIGEST)


@BOTH_STORES
def test_a_file_that_is_given_away_is_kept_when_it_is_gone(store: BlobStore, file: Path) -> None:
    assert store.take_file(file, expected=DIGEST) == store.take_file(file) == Blob(DIGEST, len(DATA))
    file.unlink()

    assert b"".join(store.read(DIGEST)) == DATA


@BOTH_STORES
def test_bytes_that_are_not_those_promised_are_not_kept(store: BlobStore, file: Path) -> None:
    for put in (store.put_file, store.take_file):
        with pytest.raises(DigestMismatch):
            put(file, expected=NOTHING)

    assert not store.exists(DIGEST)
    assert not store.exists(NOTHING)


@BOTH_STORES
@pytest.mark.parametrize(
    ("start", "length"), [(0, 1), (10, 10), (11_999, 1), (11_990, 100), (100, None), (0, None), (5, 0), (0, 12_000)]
)
def test_any_range_can_be_read(store: BlobStore, start: int, length: int | None) -> None:
    store.put_bytes(DATA)

    end = None if length is None else start + length
    assert b"".join(store.read(DIGEST, start, length)) == DATA[start:end]


@BOTH_STORES
def test_nothing_is_a_content_too(store: BlobStore, file: Path) -> None:
    file.write_bytes(b"")
    blob = store.put_file(file)

    assert blob == store.put_bytes(b"") == Blob(hashlib.sha256(b"").hexdigest(), 0)
    assert list(store.read(blob.digest)) == list(store.read(blob.digest, 0, 0)) == []
    with store.local(blob.digest) as local:
        assert local.read_bytes() == b""


@BOTH_STORES
def test_a_large_file_comes_back_as_it_was(store: BlobStore, file: Path, tmp_path: Path) -> None:
    file.write_bytes(large())
    blob = store.put_file(file)
    store.put_object("jobs/x/a1/large", file)

    with store.local(blob.digest, tmp_path) as one, store.local_object("jobs/x/a1/large", tmp_path) as other:
        assert one.stat().st_size == other.stat().st_size == blob.size == len(large())
        assert other.read_bytes() == large()
    start = blob.size - 5_000_000
    assert b"".join(store.read(blob.digest, start)) == large()[start:]


@BOTH_STORES
def test_what_is_not_there_is_a_key_error_at_once(store: BlobStore) -> None:
    for look in (
        lambda: store.size(NOTHING),
        lambda: store.read(NOTHING),
        lambda: store.read(NOTHING, 0, 10),
        lambda: store.read(NOTHING, 0, 0),
        lambda: store.local(NOTHING).__enter__(),
        lambda: store.local_object("jobs/x").__enter__(),
    ):
        with pytest.raises(KeyError):
            look()
    store.delete(NOTHING)
    store.delete_object("jobs/x")


@BOTH_STORES
@pytest.mark.parametrize("digest", ["", "..", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_what_is_no_digest_is_refused(store: BlobStore, digest: str) -> None:
    for look in (store.size, store.read, store.exists, store.delete):
        with pytest.raises(ValueError, match="not a SHA-256"):
            look(digest)


@BOTH_STORES
@pytest.mark.parametrize("key", ["", "/etc/passwd", "a/../b", ".hidden", "a//b", "a\0b", "x" * 600])
def test_what_is_no_key_is_refused(store: BlobStore, file: Path, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        store.put_object(key, file)


@BOTH_STORES
def test_many_writers_of_one_content_agree(store: BlobStore, file: Path) -> None:
    results: list[Any] = []

    def put() -> None:
        try:
            results.append(store.put_file(file))
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(results) == {Blob(DIGEST, len(DATA))}
    with store.local(DIGEST) as local:
        assert local.read_bytes() == DATA


@BOTH_STORES
def test_a_blob_that_changed_in_the_store_is_not_used(
    store: BlobStore, settings: Settings, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    store.put_bytes(DATA)
    s3 = request.getfixturevalue("s3") if settings.store_url else None
    spoil(settings, store, s3, DIGEST, DATA[:-1] + b"!")
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    with pytest.raises(DigestMismatch, match="other bytes"), store.local(DIGEST, scratch):
        pass
    assert list(scratch.iterdir()) == []


@BOTH_STORES
def test_an_object_outlives_the_file_it_came_from_and_is_replaced_whole(store: BlobStore, file: Path) -> None:
    store.put_object("jobs/job_1/a1/40.ckpt", file)
    file.unlink()
    file.write_bytes(b"another")
    store.put_object("jobs/job_1/a1/40.ckpt", file)
    file.unlink()

    with store.local_object("jobs/job_1/a1/40.ckpt") as local:
        assert local.read_bytes() == b"another"
    store.delete_object("jobs/job_1/a1/40.ckpt")
    with pytest.raises(KeyError), store.local_object("jobs/job_1/a1/40.ckpt"):
        pass


@BOTH_STORES
def test_objects_are_listed_by_key_once_they_are_old_enough_and_blobs_never(store: BlobStore, file: Path) -> None:
    keys = {"jobs/job_1/a1/40.ckpt", "jobs/job_1/a2/40.ckpt", "jobs/job_2/a1/1.ckpt"}
    store.put_file(file)
    for key in keys:
        store.put_object(key, file)

    assert list(store.objects(older_than_s=60)) == []
    assert sorted(store.objects(older_than_s=0)) == sorted(keys)


@BOTH_STORES
def test_a_store_says_that_it_can_be_written(store: BlobStore) -> None:
    assert store.writable()


# --- S3 -------------------------------------------------------------------------------------------------------


@ON_S3
def test_another_s3_client_reads_what_we_wrote(store: BlobStore, settings: Settings, s3: S3, file: Path) -> None:
    file.write_bytes(large())
    blob = store.put_file(file)
    store.put_object("jobs/x/a1/1.ckpt", file)

    for name in (blob_name(blob.digest), object_name("jobs/x/a1/1.ckpt")):
        assert s3.boto().get_object(Bucket=BUCKET, Key=place(settings, name))["Body"].read() == large()


@ON_S3
def test_we_read_what_another_s3_client_wrote(store: BlobStore, settings: Settings, s3: S3) -> None:
    s3.boto().put_object(Bucket=BUCKET, Key=place(settings, blob_name(DIGEST)), Body=DATA)
    s3.boto().put_object(Bucket=BUCKET, Key=place(settings, object_name("jobs/x/y")), Body=b"theirs")

    assert b"".join(store.read(DIGEST)) == DATA
    assert list(store.objects(older_than_s=0)) == ["jobs/x/y"]
    with store.local_object("jobs/x/y") as local:
        assert local.read_bytes() == b"theirs"


@ON_S3
@pytest.mark.parametrize("size", [1000, 20_000_000])
def test_a_file_that_changes_while_it_is_sent_gets_no_name(
    store: BlobStore, settings: Settings, s3: S3, file: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_bytes(bytes(size))
    monkeypatch.setattr("api.core.store.s3.sha256_file", lambda _path: DIGEST)  # what it was when it was looked at

    with pytest.raises(DigestMismatch, match="changed"):
        store.put_file(file)

    assert not store.exists(DIGEST)
    uploads = s3.boto().list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    assert not [upload for upload in uploads if upload["Key"] == place(settings, blob_name(DIGEST))]


@ON_S3
def test_a_signed_address_is_the_one_that_boto3_signs(store: BlobStore, settings: Settings, s3: S3) -> None:
    from api.core.store.s3 import signed

    store.put_bytes(DATA)
    key = place(settings, blob_name(DIGEST))
    name = "attachment; filename=\"a b.bin\"; filename*=UTF-8''a%20b%2B~.bin"
    asked = {"Bucket": BUCKET, "Key": key, "ResponseContentDisposition": name, "ResponseContentType": "text/x~y+z"}
    theirs = s3.boto().generate_presigned_url("get_object", Params=asked, ExpiresIn=900)
    at = datetime.strptime(parse_qs(urlsplit(theirs).query)["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    answer = {"response-content-disposition": name, "response-content-type": "text/x~y+z"}

    ours = signed(f"{s3.endpoint}/{BUCKET}/{key}", (KEY_ID, SECRET), "us-east-1", at, 900, answer)

    assert urlsplit(ours)[:3] == urlsplit(theirs)[:3]
    assert parse_qs(urlsplit(ours).query) == parse_qs(urlsplit(theirs).query)
    url = store.url(DIGEST, 900, name, "text/x~y+z")
    assert url is not None
    answered = httpx.get(url, headers={"Range": "bytes=5-9"})
    assert (answered.status_code, answered.content) == (206, DATA[5:10])
    assert answered.headers["content-disposition"] == name
    assert answered.headers["content-type"].startswith("text/x~y+z")


@ON_S3
def test_a_server_that_is_away_or_knows_no_such_bucket_is_an_os_error(settings: Settings, file: Path) -> None:
    gone = settings.model_copy(update={"store_endpoint": "http://127.0.0.1:9"})
    nowhere = settings.model_copy(update={"store_url": "s3://no-such-bucket/x"})
    for store in (open_store(gone, patience_s=0.2), open_store(nowhere)):
        for work in (
            lambda store=store: store.put_file(file),
            lambda store=store: store.put_object("jobs/x", file),
            lambda store=store: store.read(DIGEST, 0, 3),
            lambda store=store: list(store.objects(0)),
            lambda store=store: store.local_object("jobs/x").__enter__(),
        ):
            with pytest.raises(StoreAway) as caught:
                work()
            assert SECRET not in str(caught.value)
            assert "\n" not in str(caught.value)
        assert not store.writable()


@ON_S3
def test_the_account_is_not_printed(settings: Settings, store: BlobStore) -> None:
    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json() + repr(store)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"store_url": "https://bucket/x"}, "FGD_STORE_URL"),
        ({"store_url": "s3://bucket/../x y"}, "FGD_STORE_URL"),
        ({"store_endpoint": "minio:9000"}, "FGD_STORE_ENDPOINT"),
        ({"store_endpoint": "http://me:SECRET@minio:9000"}, "FGD_STORE_ENDPOINT"),
        ({"store_key_id": "SECRET"}, "FGD_STORE_SECRET"),
        ({"store_url": "s3://bucket", "store_proxy": False}, "FGD_STORE_PROXY"),
        ({"database_url": "mysql://me:SECRET@host/db"}, "FGD_DATABASE_URL"),
    ],
)
def test_a_setting_that_cannot_be_is_named_and_not_printed(given: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=named) as caught:
        Settings(home=tmp_path, **given)
    assert "SECRET" not in str(caught.value).replace("FGD_STORE_SECRET", "")
