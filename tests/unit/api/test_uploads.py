"""What a request with the content of a data set or a model is answered.

Every test with a `url` runs for both nouns: what receives is one.
"""

from __future__ import annotations

import errno
import hashlib
import os
from typing import Any

import pytest

from api.core.rows import db
from api.core.store import room, uploads
from tests.s3 import BOTH_STORES
from tests.unit.api import upload_parts
from tests.unit.api.upload_parts import (
    BEGIN,
    CONTENT,
    LARGE,
    MODELS,
    PIECE,
    RAW,
    REST,
    ZIP,
    Noun,
    digest,
    offset,
    parts,
    patch,
    refused,
    registered,
    row_of,
)

noun = upload_parts.noun
url = upload_parts.url


def test_a_data_set_without_a_path_waits_for_its_zip(client: Any) -> None:
    dataset = registered(client, format="yolo", val_fraction=0.2, group_by="prefix")
    assert (dataset["state"], dataset["path"]) == ("awaiting_upload", None)
    assert (dataset["format"], dataset["val_fraction"], dataset["group_by"]) == ("yolo", 0.2, "prefix")
    assert dataset["upload_url"] == f"/v1/datasets/{dataset['id']}/content"
    report = client.get(f"/v1/datasets/{dataset['id']}/report")
    assert (report.status_code, report.json()["code"]) == (409, "dataset_not_ready")


@BOTH_STORES
def test_a_file_in_one_stream_goes_to_the_store_and_its_import_is_due(
    client: Any, given: Any, settings: Any, noun: Noun, url: str
) -> None:
    answer = client.put(url, content=LARGE, headers={**RAW, "Content-Digest": digest(LARGE)})
    assert answer.status_code == 202, answer.text
    assert (answer.json()["state"], answer.json()[noun.link]) == ("verifying", None)
    assert answer.headers["location"] == url.removesuffix("/content")
    sha256 = hashlib.sha256(LARGE).hexdigest()
    assert row_of(given, url).upload_digest == sha256
    assert b"".join(given.store.read(sha256)) == LARGE
    assert parts(settings) == []
    head = client.head(url)
    assert (head.headers["upload-offset"], head.headers["upload-complete"]) == (str(len(LARGE)), "?1")


def test_the_import_of_an_uploaded_data_set_reads_the_zip(client: Any, given: Any) -> None:
    client.put(registered(client)["upload_url"], content=b"zip", headers=ZIP)
    claim = given.claim_import()
    assert claim is not None
    assert (claim.upload_digest, claim.path) == (hashlib.sha256(b"zip").hexdigest(), None)


@pytest.mark.parametrize("kind", [RAW, ZIP, PIECE, {}, {"Content-Type": "application/octet-stream; a=b"}])
def test_a_body_that_is_the_file_itself_may_be_called_so_in_many_ways(client: Any, url: str, kind: Any) -> None:
    assert client.put(url, content=CONTENT, headers=kind).status_code == 202


def test_a_file_in_pieces_is_whole_when_its_length_is_there(client: Any, given: Any, url: str) -> None:
    size, step = len(LARGE), 1_200_000
    for start in range(0, size, step):
        piece = LARGE[start : start + step]
        answer = patch(client, url, piece, start, Upload_Length=str(size), Content_Digest=digest(piece))
        assert answer.status_code == 204, answer.text
        there = start + len(piece)
        assert answer.headers["upload-offset"] == str(there)
        assert answer.headers["upload-complete"] == ("?1" if there == size else "?0")
        head = client.head(url)
        assert (head.headers["upload-offset"], head.headers["upload-length"]) == (str(there), str(size))
    assert row_of(given, url).upload_digest == hashlib.sha256(LARGE).hexdigest()


def test_a_piece_waits_for_nobody_who_writes_to_the_database(client: Any, given: Any, url: str) -> None:
    size = str(len(CONTENT))
    patch(client, url, BEGIN, 0, Upload_Length=size)
    with db.transaction(given.engine):  # on SQLite nobody else writes meanwhile
        answer = patch(client, url, REST[:5], len(BEGIN), Upload_Length=size)
    assert answer.status_code == 204, answer.text


def test_a_file_in_pieces_is_whole_when_the_last_says_so(client: Any, given: Any, url: str) -> None:
    for start, piece, last in ((0, BEGIN, "?0"), (len(BEGIN), REST, "?1")):
        assert patch(client, url, piece, start, Upload_Complete=last).headers["upload-complete"] == last
    assert row_of(given, url).upload_digest == hashlib.sha256(CONTENT).hexdigest()


def test_the_same_content_may_be_sent_again_by_its_digest(client: Any, given: Any, url: str) -> None:
    promise = {**RAW, "Content-Digest": digest(CONTENT)}
    first, again = (client.put(url, content=CONTENT, headers=promise) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()
    refused(client.put(url, content=CONTENT, headers=RAW), 409, "upload_not_expected")
    other = {**RAW, "Content-Digest": digest(b"other")}
    refused(client.put(url, content=b"other", headers=other), 409, "upload_not_expected")


def test_a_new_stream_begins_from_scratch(client: Any, given: Any, url: str) -> None:
    patch(client, url, b"something else, and longer than the file that is meant" * 5, 0)
    assert client.put(url, content=CONTENT, headers=RAW).status_code == 202
    assert row_of(given, url).upload_digest == hashlib.sha256(CONTENT).hexdigest()


def test_the_file_that_was_received_is_the_blob_itself(client: Any, given: Any, settings: Any, url: str) -> None:
    patch(client, url, BEGIN, 0)
    (received,) = settings.uploads.iterdir()
    inode = received.stat().st_ino
    patch(client, url, REST, len(BEGIN), Upload_Complete="?1")
    blob = given.store.path(hashlib.sha256(CONTENT).hexdigest(), verify=True).stat()
    assert (blob.st_ino, blob.st_nlink) == (inode, 1)


# --- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["put", "patch"])
def test_a_body_that_is_not_the_file_itself_is_a_415(client: Any, url: str, method: str) -> None:
    for kind in (
        "application/json",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "text/plain",
    ):
        answer = client.request(method, url, content=b"x", headers={"Upload-Offset": "0", "Content-Type": kind})
        assert "application/zip" in refused(answer, 415, "not_raw").headers["accept"]
    packed = {**RAW, "Upload-Offset": "0", "Content-Encoding": "gzip"}
    assert (
        "accept-encoding" in refused(client.request(method, url, content=b"x", headers=packed), 415, "not_raw").headers
    )


@pytest.mark.parametrize("method", ["put", "patch"])
def test_a_stream_of_unknown_length_is_a_411(client: Any, url: str, method: str) -> None:
    answer = client.request(method, url, content=iter([b"x", b"y"]), headers={**RAW, "Upload-Offset": "0"})
    refused(answer, 411, "length_required")
    assert offset(client, url) == 0


@pytest.mark.parametrize("method", ["put", "patch"])
def test_more_than_the_limit_is_a_413_before_it_is_read(serving: Any, settings: Any, noun: Noun, method: str) -> None:
    with serving(settings.model_copy(update={noun.limit: 10})) as client:
        url = registered(client, noun)[noun.link]
        answer = client.request(method, url, content=b"x" * 11, headers={**RAW, "Upload-Offset": "0"})
        assert f"FGD_{noun.limit.upper()}" in refused(answer, 413, "upload_too_large").json()["detail"]
        refused(patch(client, url, b"x", 0, Upload_Length="11"), 413, "upload_too_large")
        assert client.head(url).headers["upload-limit"] == "max-size=10"
    assert parts(settings) == []


class Disk:
    """What shutil.disk_usage says of it."""

    def __init__(self, free: int) -> None:
        self.free = free

    def __call__(self, _: Any) -> Any:
        return self


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(free=10**12)
    monkeypatch.setattr(room.shutil, "disk_usage", disk)
    return disk


def test_uploads_leave_twice_the_minimum_free(client: Any, settings: Any, url: str, disk: Disk) -> None:
    disk.free = 2 * settings.min_free_bytes + len(CONTENT) - 1
    answer = refused(client.put(url, content=CONTENT, headers=RAW), 507, "no_space")
    assert "uploads must leave 512 MiB" in answer.json()["detail"]
    disk.free += 1
    assert client.put(url, content=CONTENT, headers=RAW).status_code == 202


def test_what_uploads_on_their_way_have_announced_is_no_longer_free(tmp_path: Any, disk: Disk) -> None:
    disk.free = 1000
    space = room.Room([tmp_path], keep_bytes=100)
    with space.promised(500) as take:
        with pytest.raises(OSError, match="uploads must leave"), space.promised(400):
            pass
        with space.promised(300):
            pass
        take(200)
        disk.free -= 200
        with space.promised(300):
            pass
        with pytest.raises(OSError, match="uploads must leave"), space.promised(301):
            pass
    with space.promised(600) as take:
        disk.free = 300  # by others
        with pytest.raises(OSError, match="uploads must leave"):
            take(101)


def test_a_full_disk_begins_nothing_and_ends_everything(
    client: Any, given: Any, settings: Any, noun: Noun, disk: Disk
) -> None:
    job, body, url = given.job(), given.body(), registered(client, noun)[noun.link]
    patch(client, url, BEGIN, 0)
    disk.free = settings.min_free_bytes - 1

    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["disk"]["ok"]) == (503, False)
    assert "FGD_MIN_FREE_BYTES" in ready.json()["disk"]["detail"]
    for path, more in (("/v1/jobs", body), ("/v1/plans", body), (f"/v1/{noun.name}", noun.body)):
        assert refused(client.post(path, json=more), 507, "no_space").json()["retryable"] is False
    assert client.get(url.removesuffix("/content")).status_code == 200
    assert client.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    assert client.delete(f"/v1/jobs/{job}").status_code == 204
    assert client.delete(url.removesuffix("/content")).status_code == 204
    assert parts(settings) == []


def test_a_row_that_cannot_be_deleted_for_want_of_disk_gives_its_upload_up_first(
    client: Any, settings: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(client, url, BEGIN, 0)
    with monkeypatch.context() as patched:
        patched.setattr("api.core.rows.lookup.delete_row", None)
        patched.setattr("api.core.datasets.delete_row", None)
        patched.setattr("api.core.models.delete_row", None)
        assert client.delete(url.removesuffix("/content")).status_code == 500
    assert parts(settings) == []
    assert client.delete(url.removesuffix("/content")).status_code == 204


def test_a_disk_that_is_full_in_the_middle_keeps_what_it_took(
    client: Any, given: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all, room = uploads.write_all, 30

    def into_little_room(file: Any, data: bytes) -> None:
        nonlocal room
        write_all(file, data[:room])
        if len(data) > room:
            room = 10**9  # the next write would find some
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(uploads, "write_all", into_little_room)
    refused(client.put(url, content=CONTENT, headers=RAW), 507, "no_space")
    assert offset(client, url) == 30
    assert patch(client, url, REST, 30).headers["upload-complete"] == "?1"
    assert row_of(given, url).upload_digest == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("header", ["Content-Digest", "Repr-Digest"])
def test_bytes_other_than_promised_are_dropped(client: Any, given: Any, settings: Any, url: str, header: str) -> None:
    answer = client.put(url, content=CONTENT, headers={**RAW, header: digest(b"those")})
    refused(answer, 422, "digest_mismatch", header)
    assert offset(client, url) == 0
    assert parts(settings) == []
    assert list(settings.blobs.rglob(".tmp*")) == []
    assert not given.store.exists(hashlib.sha256(CONTENT).hexdigest())
    assert client.put(url, content=CONTENT, headers={**RAW, header: digest(CONTENT)}).status_code == 202


def test_torn_weights_are_called_torn_rather_than_no_weights(client: Any) -> None:
    url = registered(client, MODELS)["content_url"]
    torn = CONTENT[:-1] + b"\0\0"
    refused(client.put(url, content=torn, headers={**RAW, "Content-Digest": digest(CONTENT)}), 422, "digest_mismatch")
    refused(client.put(url, content=torn, headers={**RAW, "Content-Digest": digest(torn)}), 422, "weights_damaged")


def test_two_promises_that_differ_are_a_422(client: Any, url: str) -> None:
    headers = {**RAW, "Content-Digest": digest(CONTENT), "Repr-Digest": digest(b"other")}
    refused(client.put(url, content=CONTENT, headers=headers), 422, "digest_mismatch", "Repr-Digest")
    assert offset(client, url) == 0


def test_a_torn_piece_is_dropped_and_those_before_it_stay(client: Any, url: str) -> None:
    patch(client, url, BEGIN, 0)
    torn = REST.replace(b"5", b"X")
    answer = patch(client, url, torn, len(BEGIN), Upload_Complete="?1", Content_Digest=digest(REST))
    refused(answer, 422, "digest_mismatch", "Content-Digest")
    assert offset(client, url) == len(BEGIN)
    promise = {"Content_Digest": digest(REST), "Repr_Digest": digest(CONTENT)}
    assert patch(client, url, REST, len(BEGIN), Upload_Complete="?1", **promise).status_code == 204


def test_pieces_that_do_not_make_the_file_that_was_promised_are_dropped(client: Any, settings: Any, url: str) -> None:
    patch(client, url, BEGIN, 0)
    answer = patch(client, url, REST, len(BEGIN), Upload_Complete="?1", Repr_Digest=digest(b"other"))
    refused(answer, 422, "digest_mismatch", "Repr-Digest")
    assert parts(settings) == []


@pytest.mark.parametrize("value", ["sha-256=abc", "md5=:abcd:", "sha-256=:!!!:", "sha-256=:YWJj:", "sha-256=::", ""])
def test_a_digest_that_cannot_be_read_is_a_422(client: Any, url: str, value: str) -> None:
    for header in ("Content-Digest", "Repr-Digest"):
        refused(client.put(url, content=b"x", headers={**RAW, header: value}), 422, "digest_unreadable", header)


@pytest.mark.parametrize("header", [b"Content-Digest", b"Repr-Digest"])
def test_a_digest_of_other_than_ascii_is_a_400(client: Any, url: str, header: bytes) -> None:
    for value in (b"sha-256=:\xff\xfe:", "sha-256=:é:".encode()):
        answer = client.put(
            url, content=b"x", headers=[(b"Content-Type", b"application/octet-stream"), (header, value)]
        )
        refused(answer, 400, "header_not_ascii")


def test_a_wrong_offset_is_a_409_with_the_right_one(client: Any, url: str) -> None:
    patch(client, url, b"abc", 0)
    for at in (0, 2, 4):
        assert refused(patch(client, url, b"x", at), 409, "upload_offset_mismatch").headers["upload-offset"] == "3"
    refused(patch(client, url, b"x", 999_999_999_999), 413, "upload_too_large")


@pytest.mark.parametrize(
    ("changes", "code", "parameter"),
    [
        ({"Upload-Offset": "-1"}, "greater_than_equal", "Upload-Offset"),
        ({"Upload-Offset": "x"}, "int_parsing", "Upload-Offset"),
        ({"Upload-Length": "0"}, "greater_than_equal", "Upload-Length"),
        ({"Upload-Complete": "yes"}, "string_pattern_mismatch", "Upload-Complete"),
        ({"Upload-Length": "2"}, "upload_length_exceeded", "Upload-Length"),
        ({"Upload-Length": "9", "Upload-Complete": "?1"}, "upload_length_differs", "Upload-Length"),
    ],
)
def test_headers_that_make_no_sense_are_a_422(
    client: Any, url: str, changes: dict[str, str], code: str, parameter: str
) -> None:
    answer = client.patch(url, content=b"abc", headers={**PIECE, "Upload-Offset": "0", **changes})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["code"] == code
    assert answer.json()["errors"][0]["parameter"].lower().endswith(parameter.lower())
    assert offset(client, url) == 0


def test_a_piece_without_an_offset_is_a_422(client: Any, url: str) -> None:
    answer = client.patch(url, content=b"abc", headers=PIECE)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "missing")


def test_an_empty_file_is_a_422(client: Any, url: str) -> None:
    refused(client.put(url, content=b"", headers=RAW), 422, "upload_empty")


def test_what_is_no_weights_is_told_by_its_first_bytes(client: Any, settings: Any) -> None:
    """Long before its end."""
    url = registered(client, MODELS)["content_url"]
    assert patch(client, url, b"hello, th", 0).status_code == 204, "too little to tell"
    refused(patch(client, url, b"is is text, and much of it", 9, Upload_Length="1000000"), 415, "not_weights")
    assert parts(settings) == []


def test_content_for_a_row_that_wants_none_is_a_409(client: Any, given: Any) -> None:
    promoted = client.post("/v1/models", json={"name": "m", "job": given.succeeded()}).json()["id"]
    urls = [f"/v1/models/{promoted}/content"]
    for state in ("verifying", "ready", "rejected"):
        urls.append(f"/v1/datasets/{given.dataset(state).id}/content")
        if state == "verifying":
            given.claim_import()
    for url in urls:
        refused(client.put(url, content=b"x", headers=RAW), 409, "upload_not_expected")
        refused(patch(client, url, b"x", 0), 409, "upload_not_expected")


@pytest.mark.parametrize(
    "id", ["ds_" + "0" * 32, "mdl_" + "0" * 32, "nonsense", "..%2f..%2fetc%2fpasswd", "%00", "ds_%2e%2e"]
)
def test_content_of_an_unknown_row_is_a_404(client: Any, settings: Any, noun: Noun, id: str) -> None:
    url = f"/v1/{noun.name}/{id}/content"
    answers = [client.put(url, content=b"x", headers=RAW), patch(client, url, b"x", 0), client.head(url)]
    assert [answer.status_code for answer in answers] == [404, 404, 404]
    assert parts(settings) == []


def test_two_requests_do_not_write_the_same_upload(client: Any, settings: Any, url: str) -> None:
    with uploads.writing(settings.uploads, url.split("/")[3]):
        for answer in (client.put(url, content=b"x", headers=RAW), patch(client, url, b"x", 0)):
            assert refused(answer, 409, "upload_in_progress").json()["retryable"] is True
