"""Uploads over connections that break (fault F28), past servers and databases that go away, while the sweep runs.

Every test with a `noun` runs for data sets and models: what receives is one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError
from typer.testing import CliRunner

from api import errors
from api.core import datasets, sweeper, uploading
from api.core.rows import db
from api.core.rows.ids import new_id
from api.core.rows.tables import DEFAULT_PROJECT
from api.core.store import uploads
from fgd.cli import main
from fgd.client import ApiError, Client, ClientError
from fgd.data import zips
from tests.unit.api import upload_parts
from tests.unit.api.upload_parts import (
    BEGIN,
    CONTENT,
    DATASETS,
    LARGE,
    MODELS,
    PIECE,
    RAW,
    REST,
    ZIP,
    Cutter,
    Noun,
    Passing,
    digest,
    offset,
    parts,
    patch,
    refused,
    registered,
    row_of,
    send_and_cut,
    slowly,
    until,
    weights,
)

address = upload_parts.address
noun = upload_parts.noun
url = upload_parts.url


def test_an_upload_cut_at_every_megabyte_goes_on_where_it_was_cut(
    address: tuple[str, int], given: Any, settings: Any, noun: Noun
) -> None:
    mega = 1_000_000
    data = weights(random.Random(2).randbytes(8 * mega + 321))
    with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as client:
        url = registered(client, noun)[noun.link]
        for n in range(8):
            assert offset(client, url) == n * mega
            rest = data[n * mega :]
            headers = {"Content-Length": str(len(rest)), **(PIECE if n else RAW)}
            if n:
                headers |= {"Upload-Offset": str(n * mega), "Upload-Length": str(len(data))}
            send_and_cut(address, "PATCH" if n else "PUT", url, headers, rest[:mega])
        assert offset(client, url) == 8 * mega
        answer = patch(client, url, data[8 * mega :], 8 * mega, Repr_Digest=digest(data))
        assert (answer.status_code, answer.headers["upload-complete"]) == (204, "?1")
    sha256 = hashlib.sha256(data).hexdigest()
    assert row_of(given, url).upload_digest == sha256
    assert given.store.path(sha256, verify=True).stat().st_size == len(data)
    assert parts(settings) == []
    assert os.listdir(settings.blobs / "incoming") == []


def test_an_upload_that_outlives_its_server_goes_on_at_the_next(
    serving: Any, settings: Any, given: Any, noun: Noun
) -> None:
    with serving(settings) as client:
        url = registered(client, noun)[noun.link]
        patch(client, url, BEGIN, 0, Upload_Length=str(len(CONTENT)))
    with serving(settings) as client:
        assert offset(client, url) == len(BEGIN)
        patch(client, url, REST, len(BEGIN))
    assert row_of(given, url).upload_digest == hashlib.sha256(CONTENT).hexdigest()


def test_an_upload_that_broke_after_its_last_byte_is_completed_by_an_empty_piece(
    client: Any, given: Any, settings: Any, url: str
) -> None:
    patch(client, url, BEGIN, 0, Upload_Length=str(len(CONTENT)))
    with uploads.writing(settings.uploads, url.split("/")[3]) as file:
        uploads.write_all(file, REST)  # the server died before it put the file away
    answer = patch(client, url, b"", len(CONTENT), Content_Length="0")
    assert (answer.status_code, answer.headers["upload-complete"]) == (204, "?1")
    assert row_of(given, url).upload_digest == hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def taken(client: Any, given: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The blob of an upload whose last piece came when the database was away: the row still waits for it."""

    def away(*_: Any) -> None:
        raise OperationalError("UPDATE", {}, Exception("no answer"))

    patch(client, url, BEGIN, 0, Upload_Length=str(len(CONTENT)))
    with monkeypatch.context() as patched:
        patched.setattr(uploading, "arrived", away)
        refused(patch(client, url, REST, len(BEGIN)), 503, "database_busy")
    assert (row_of(given, url).state, offset(client, url)) == ("awaiting_upload", len(CONTENT))
    return Path(given.store.path(hashlib.sha256(CONTENT).hexdigest()))


def test_an_upload_that_the_store_took_and_the_database_did_not_is_completed_by_an_empty_piece(
    client: Any, given: Any, settings: Any, url: str, taken: Path
) -> None:
    assert patch(client, url, b"", len(CONTENT), Content_Length="0").headers["upload-complete"] == "?1"
    assert row_of(given, url).upload_digest == hashlib.sha256(CONTENT).hexdigest()
    assert (taken.read_bytes(), taken.stat().st_nlink, parts(settings)) == (CONTENT, 1, [])


def test_what_the_store_has_taken_is_never_written_to(client: Any, given: Any, url: str, taken: Path) -> None:
    """Not even by who goes on with an upload, or begins it again, that is whole."""
    longer = {"Upload_Length": str(len(CONTENT) + 9)}
    answer = refused(patch(client, url, b"x" * 9, len(CONTENT), **longer), 409, "upload_offset_mismatch")
    assert answer.headers["upload-offset"] == "0"
    assert client.put(url, content=LARGE, headers=RAW).status_code == 202
    assert row_of(given, url).upload_digest == hashlib.sha256(LARGE).hexdigest()
    assert (taken.read_bytes(), taken.stat().st_nlink) == (CONTENT, 1)


def test_an_upload_whose_row_goes_meanwhile_is_a_404(address: tuple[str, int], settings: Any, noun: Noun) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as client:
        url = registered(client, noun)[noun.link]
        with slowly(address, "PUT", url, RAW, LARGE) as rest:
            until(lambda: parts(settings) != [])
            assert client.delete(url.removesuffix("/content")).is_success
            assert rest() == 404
    assert parts(settings) == []


def test_a_file_that_somebody_deletes_meanwhile_begins_again(
    address: tuple[str, int], settings: Any, noun: Noun
) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as client:
        url = registered(client, noun)[noun.link]
        with slowly(address, "PUT", url, RAW, LARGE) as rest:
            until(lambda: parts(settings) != [])
            (settings.uploads / parts(settings)[0]).unlink()
            assert rest() == 409
        assert offset(client, url) == 0
        assert client.put(url, content=LARGE, headers=RAW).status_code == 202


def test_a_large_body_is_never_held_in_memory(address: tuple[str, int]) -> None:
    piece, count = os.urandom(1 << 16), 40 * 16
    with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}", timeout=60) as client:
        url = registered(client)["upload_url"]
        headers = {**ZIP, "Content-Length": str(len(piece) * count)}
        tracemalloc.start()
        try:
            assert client.put(url, content=(piece for _ in range(count)), headers=headers).status_code == 202
            assert tracemalloc.get_traced_memory()[1] < 16 << 20  # of 40 MiB
        finally:
            tracemalloc.stop()


# --- what is left ---------------------------------------------------------------------------------------------


@pytest.fixture
def sweeping(monkeypatch: pytest.MonkeyPatch, settings: Any, given: Any) -> Iterator[Callable[[], None]]:
    """The sweep collects all the time. Call it to know that since then a whole collection has come to its end."""
    monkeypatch.setattr(sweeper, "COLLECT_S", 0.0)
    ours = sweeper.Sweeper(given.engine, given.store, None, 20.0, settings.uploads)
    rubbish = itertools.count()

    def once_more() -> None:
        settings.uploads.mkdir(exist_ok=True)
        for _ in range(2):  # the first may have been under way
            stray = settings.uploads / f"{new_id('ds')}{next(rubbish)}.part"
            stray.write_bytes(b"of a data set that is gone")
            until(lambda path=stray: not path.exists())

    with sweeper.sweeping(ours.sweep, 0.01):
        yield once_more


def test_uploads_of_both_nouns_stay_while_the_sweep_runs(
    address: tuple[str, int], settings: Any, given: Any, sweeping: Callable[[], None]
) -> None:
    """One of each rests for two days, while one of each comes slowly and comes to its end."""
    with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as client:
        resting = [registered(client, noun)[noun.link] for noun in (DATASETS, MODELS)]
        for url in resting:
            patch(client, url, BEGIN, 0)
        for path in settings.uploads.iterdir():
            os.utime(path, (time.time() - 2 * 86_400,) * 2)

        for noun in (DATASETS, MODELS):
            url = registered(client, noun)[noun.link]
            with slowly(address, "PUT", url, RAW, LARGE) as rest:
                until(lambda url=url: f"{url.split('/')[3]}.part" in parts(settings))
                sweeping()
                assert rest() == 202
            assert row_of(given, url).upload_digest == hashlib.sha256(LARGE).hexdigest()

        sweeping()
        for url in resting:
            assert patch(client, url, REST, len(BEGIN), Upload_Complete="?1").status_code == 204
            assert row_of(given, url).upload_digest == hashlib.sha256(CONTENT).hexdigest()
    assert parts(settings) == []


def test_an_upload_goes_with_its_row(client: Any, settings: Any, url: str) -> None:
    patch(client, url, BEGIN, 0)
    assert len(parts(settings)) == 1
    assert client.delete(url.removesuffix("/content")).is_success
    assert parts(settings) == []


def test_content_that_never_comes_is_given_up(client: Any, given: Any, url: str, settings: Any, noun: Noun) -> None:
    patch(client, url, BEGIN, 0)
    given.earlier(noun.name, "created_at", uploading.UPLOAD_S - 60)
    given.sweep()
    assert row_of(given, url).state == "awaiting_upload"
    given.earlier(noun.name, "created_at", 60)
    given.sweep()
    assert row_of(given, url).state == "rejected"
    assert "within 7 days" in row_of(given, url).error
    sweeper.Sweeper(given.engine, given.store, None, 20.0, settings.uploads).collect()
    assert parts(settings) == []


def test_the_zip_is_let_go_when_its_import_ends(client: Any, given: Any) -> None:
    url = registered(client)["upload_url"]
    client.put(url, content=b"zip", headers=ZIP)
    claim = given.claim_import()
    with db.transaction(given.engine) as s:
        datasets.reject(s, claim.id, claim.attempt, None, "no zip")
    assert row_of(given, url).upload_digest is None


# --- the client -----------------------------------------------------------------------------------------------


def test_the_client_goes_on_by_itself_where_the_network_cut_it(
    address: tuple[str, int], given: Any, tmp_path: Path
) -> None:
    data = random.Random(3).randbytes(5_000_000)
    (tmp_path / "set.zip").write_bytes(data)
    proxy = Cutter(address, 1_200_000)
    heard: list[int] = []
    with proxy.listener, Client(proxy.url, backoff_s=0.01) as client:
        dataset = client.add_dataset("cells", None, format="coco", val_fraction=0.2)
        assert client.upload_dataset(dataset.id, tmp_path / "set.zip", heard.append).state == "verifying"
        assert client.upload_dataset(dataset.id, tmp_path / "set.zip").state == "verifying"  # once more is no harm
        client.delete_dataset(dataset.id)
    assert proxy.cuts >= 4
    assert heard[-1] == len(data)
    assert given.store.path(hashlib.sha256(data).hexdigest(), verify=True).stat().st_size == len(data)


def test_the_client_goes_on_with_weights_in_the_same_way(address: tuple[str, int], given: Any, tmp_path: Path) -> None:
    data = weights(random.Random(4).randbytes(5_000_000))
    (tmp_path / "net.safetensors").write_bytes(data)
    proxy = Cutter(address, 1_200_000)
    heard: list[int] = []
    with proxy.listener, Client(proxy.url, backoff_s=0.01) as client:
        body = MODELS.body
        model = client.add_model(
            tmp_path / "net.safetensors", "net", body["detector"], body["classes"], on_bytes=heard.append
        )
        assert model.state == "verifying"
        assert client.upload_model(model.id, tmp_path / "net.safetensors") == model  # once more is no harm
    assert proxy.cuts >= 4
    assert heard[-1] == len(data)
    assert given.store.path(hashlib.sha256(data).hexdigest(), verify=True).stat().st_size == len(data)


def test_the_client_waits_while_another_request_is_at_the_upload(
    address: tuple[str, int], settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "RETRY_AFTER_S", 0)  # it would wait as long as it is asked to
    (tmp_path / "set.zip").write_bytes(b"x" * 100)
    with Client(f"http://127.0.0.1:{address[1]}", backoff_s=0.001) as client:
        dataset = client.add_dataset("cells", None)
        with uploads.writing(settings.uploads, dataset.id), pytest.raises(ApiError, match="upload_in_progress"):
            client.upload_dataset(dataset.id, tmp_path / "set.zip", poll_s=0.02, patience_s=0.3)
        assert client.upload_dataset(dataset.id, tmp_path / "set.zip").state == "verifying"


def test_the_client_does_not_send_a_refused_zip_again_and_again(serving: Any, settings: Any, tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(b"x" * 11)
    with (
        serving(settings.model_copy(update={"upload_bytes": 10})) as inner,
        Client("http://127.0.0.1:8000", transport=Passing(inner)) as client,
    ):
        dataset = client.add_dataset("cells", None)
        with pytest.raises(ApiError, match="upload_too_large"):
            client.upload_dataset(dataset.id, tmp_path / "set.zip")
        (tmp_path / "set.zip").write_bytes(b"")
        with pytest.raises(ClientError, match="is empty"):
            client.upload_dataset(dataset.id, tmp_path / "set.zip")


@pytest.mark.parametrize("as_zip", [False, True])
def test_the_command_line_uploads_what_the_service_cannot_read(
    address: tuple[str, int], given: Any, tmp_path: Path, as_zip: bool
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "data.yaml").write_text("names: [a]")
    source = folder
    if as_zip:
        source = tmp_path / "set.zip"
        zips.pack(folder, source)
    command = ["dataset", "add", "cells", str(source), "--format", "yolo", "--no-wait", "--json"]
    done = CliRunner().invoke(main.app, [*command, "--url", f"http://127.0.0.1:{address[1]}"])
    assert done.exit_code == 0, done.output
    dataset = json.loads(done.stdout)
    assert dataset["state"] == "verifying"
    with db.reading(given.engine) as s:
        row = datasets.get(s, DEFAULT_PROJECT, dataset["id"])
    assert (row.format, row.path) == ("yolo", None)
    assert zips.unpack(given.store.path(row.upload_digest), tmp_path / "out").files == 1
