"""The tests of tallies, which test_breadth_noun.py runs in a copy of the packages that has them. Not collected here."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from api.core import datasets, tallies  # type: ignore[attr-defined]
from api.core.errors import Fenced
from api.core.request_bodies import SubmitDataset
from api.core.rows import db, leases
from api.core.rows.tables import DEFAULT_PROJECT, Tally  # type: ignore[attr-defined]
from api.core.settings import Settings
from api.core.store.names import sha256_file
from api.core.store.open import open_store
from api.core.sweeper import Sweeper
from deploy.backup import backup, restore
from fgd.data.index import Image, Index, Report
from worker import devices, tally  # type: ignore[attr-defined]
from worker.host import Host
from worker.slots import BESIDE, Slots
from worker.staging import Cache
from worker.take import take

BOX = (0.0, 0.0, 4.0, 4.0)
URL = "/v1/tallies"


def image(number: int, *labels: int) -> Image:
    boxes, crowd = (BOX,) * len(labels), (False,) * len(labels)
    return Image(id=number, file=f"{number}.png", name=f"{number}", width=8, height=8, boxes=boxes, labels=labels, crowd=crowd)  # fmt: skip  # noqa: E501


INDEX = Index(classes=("cat", "dog"), splits={"train": (image(1, 1, 2), image(2, 1)), "val": (image(3),)})
REPORT = Report(ok=True, format="coco", classes=INDEX.classes, splits={}, defect_counts={}, defects=())


@pytest.fixture
def host(given: Any, settings: Any) -> Host:
    found = devices.Hardware((), "a processor", 1, False, 1, 1)
    cache = Cache(settings.home / "cache", 1, given.store)
    host = Host(settings, given.engine, given.store, None, found, Slots.on_host(1, []), cache, drain_s=1.0)
    host.announced.set()
    return host


def dataset(given: Any, index: bytes = INDEX.model_dump_json().encode()) -> str:
    with db.transaction(given.engine) as s:
        id = datasets.submit(s, DEFAULT_PROJECT, SubmitDataset(name="cells", path="/data/cells")).id
        claim = datasets.claim_import(s, "wrk_a", lease_s=20.0)
        assert claim is not None
        blobs = given.store.put_bytes(b"archive"), given.store.put_bytes(index)
        datasets.finish_import(s, id, claim.attempt, *blobs, REPORT)
    return str(id)


def begun(given: Any, of: str | None = None, key: str | None = None) -> str:
    body = tallies.SubmitTally(name="t", dataset=of or dataset(given))
    return str(tallies.submit(given.engine, DEFAULT_PROJECT, body, key)[0].id)


def look(given: Any, id: str) -> Tally:
    with db.reading(given.engine) as s:
        return s.get_one(Tally, id)


def claimed(given: Any, worker: str = "wrk_a") -> Any:
    with db.transaction(given.engine) as s:
        return tallies.claim(s, worker, lease_s=20.0)


def worked(host: Host) -> int:
    """Everything that waits, done; how much that was."""
    done = 0
    while work := take(host):
        work()
        done += 1
    return done


# --- the worker -------------------------------------------------------------------------------------------------


def test_a_worker_counts_and_stores_the_listing(given: Any, host: Host) -> None:
    id = begun(given)

    assert worked(host) == 1

    row = look(given, id)
    assert (row.state, row.counts, row.lease_owner) == ("counted", {"cat": 2, "dog": 1}, None)
    assert row.finished_at is not None
    assert b"".join(given.store.read(row.listing_digest)) == b"1\t2\n2\t1\n3\t0\n"
    assert host.slots.free("import") == BESIDE["import"]
    assert list((host.settings.home / "work").iterdir()) == []


def test_what_the_child_refuses_fails_at_once_with_its_words(given: Any, host: Host) -> None:
    id = begun(given, dataset(given, b"not an index"))

    assert worked(host) == 1

    row = look(given, id)
    assert (row.state, row.attempt) == ("failed", 1)
    assert "no index that can be read" in row.error


def test_inputs_that_are_gone_from_the_store_fail_at_once(given: Any, host: Host) -> None:
    id = begun(given)
    given.store.delete(look(given, id).inputs["dataset"]["index"])

    assert worked(host) == 1

    assert look(given, id).state == "failed"
    assert "can no longer be read" in look(given, id).error


def test_a_child_that_is_killed_again_and_again_is_given_up(
    given: Any, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def dies(*_: Any) -> Iterator[list[str]]:
        yield ["sh", "-c", "echo last words; kill -9 $$"]

    monkeypatch.setattr(tally.Counting, "command", dies)
    id = begun(given)

    assert worked(host) == tallies.MAX_TRIES

    row = look(given, id)
    assert (row.state, row.losses) == ("failed", tallies.MAX_TRIES)
    assert "signal 9" in row.error
    assert "last words" in row.error


def test_a_worker_that_goes_down_hands_it_back_and_the_try_does_not_count(
    given: Any, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def sleeps(*_: Any) -> Iterator[list[str]]:
        yield ["sh", "-c", "sleep 600"]

    monkeypatch.setattr(tally.Counting, "command", sleeps)
    id, work = begun(given), take(host)
    assert work is not None
    host.stop()
    work()

    row = look(given, id)
    assert (row.state, row.lease_owner, row.losses) == ("counting", None, 0)


# --- leases, the sweep and blobs --------------------------------------------------------------------------------


def test_an_expired_lease_is_swept_a_bell_rings_and_the_old_worker_is_fenced(given: Any) -> None:
    id = begun(given)
    old = claimed(given)
    given.later(60)
    given.worker("wrk_b")
    assert given.sweep().ring == [id]
    assert given.sweep().ring == [id]
    new = claimed(given, "wrk_b")
    assert (old.attempt, new.attempt) == (1, 2)

    listing = given.store.put_bytes(b"listing")
    for write in (
        lambda s: leases.beat(s, Tally, id, old.attempt, "wrk_a", lease_s=20.0),
        lambda s: tallies.finish(s, id, old.attempt, {}, listing),
        lambda s: tallies.fail(s, id, old.attempt, "late"),
        lambda s: tallies.lose(s, id, old.attempt, "late"),
        lambda s: leases.hand_back(s, Tally, id, old.attempt),
    ):
        with pytest.raises(Fenced), db.transaction(given.engine) as s:
            write(s)
    assert look(given, id).state == "counting"


def collect(given: Any) -> None:
    """Two sweeps, with the grace between them."""
    sweeper = Sweeper(given.engine, given.store, None, lease_s=20.0)
    for _ in range(2):
        sweeper.collect()
        given.earlier("blobs", "unused_since", 7200)
        then = time.time() - 7200
        for file in (given.store.root / "sha256").rglob("*"):
            if file.is_file():
                os.utime(file, (then, then))


def test_its_blobs_stay_as_long_as_it_does(given: Any, host: Host) -> None:
    of = dataset(given)
    id = begun(given, of)
    worked(host)
    blobs = [look(given, id).inputs["dataset"]["index"], look(given, id).listing_digest]
    with db.transaction(given.engine) as s:
        datasets.delete(s, DEFAULT_PROJECT, of)

    collect(given)
    assert [sha256_file(given.store.path(digest)) for digest in blobs] == blobs

    with db.transaction(given.engine) as s:
        tallies.delete(s, DEFAULT_PROJECT, id)
    collect(given)
    assert not any(map(given.store.exists, blobs))


def test_a_backup_brings_it_back_with_its_blobs(given: Any, host: Host, settings: Settings, tmp_path: Path) -> None:
    id = begun(given)
    worked(host)
    before = look(given, id)
    backup(settings, tmp_path / "backup")

    other = Settings(home=tmp_path / "other")
    assert restore(other, tmp_path / "backup").whole
    engine, store = db.make_engine(other.database_url), open_store(other)
    with db.reading(engine) as s:
        after = s.get_one(Tally, id)
    engine.dispose()

    assert (after.counts, after.inputs) == (before.counts, before.inputs)
    assert store.exists(str(after.listing_digest))
    assert store.exists(after.inputs["dataset"]["index"])


# --- HTTP -------------------------------------------------------------------------------------------------------


def post(client: Any, of: str, name: str = "t", **headers: str) -> Any:
    return client.post(URL, json={"name": name, "dataset": of}, headers=headers)


def test_it_is_made_once_under_a_key_and_found_at_its_address(client: Any, given: Any) -> None:
    of, key = dataset(given), {"Idempotency-Key": "once"}

    first, again, other = post(client, of, **key), post(client, of, **key), post(client, of, "other", **key)

    assert (first.status_code, again.status_code, other.status_code) == (202, 200, 422)
    assert first.json()["id"] == again.json()["id"]
    found = client.get(first.headers["location"])
    assert (found.status_code, found.json()["state"], found.json()["counts"]) == (200, "counting", None)
    assert len(client.get(URL).json()["items"]) == 1


def test_the_key_of_a_deleted_one_makes_a_new_one(client: Any, given: Any) -> None:
    of, key = dataset(given), {"Idempotency-Key": "once"}
    id = post(client, of, **key).json()["id"]

    assert client.delete(f"{URL}/{id}").status_code == 204

    answer = client.get(f"{URL}/{id}")
    assert (answer.status_code, answer.json()["code"]) == (404, "tally_not_found")
    assert client.delete(f"{URL}/{id}").status_code == 404
    assert post(client, of, **key).json()["id"] != id


@pytest.mark.parametrize(("state", "status", "code"), [(None, 404, "dataset_not_found"), ("verifying", 409, "dataset_not_ready")])  # fmt: skip  # noqa: E501
def test_a_data_set_that_is_not_there_or_not_ready_is_refused(
    client: Any, given: Any, state: str | None, status: int, code: str
) -> None:
    of = given.dataset(state).id if state else "ds_" + "0" * 32

    answer = post(client, of)

    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_they_are_listed_in_pages_newest_first(client: Any, given: Any) -> None:
    of = dataset(given)
    ids = [post(client, of).json()["id"] for _ in range(3)]

    first = client.get(f"{URL}?limit=2")
    second = client.get(first.links["next"]["url"]).json()

    assert [each["id"] for each in first.json()["items"] + second["items"]] == ids[::-1]
    assert second["next"] is None
    assert client.get(f"{URL}?cursor=abc").json()["code"] == "bad_cursor"


def test_an_unchanged_one_answers_304_and_a_long_poll_hears_of_its_end(client: Any, given: Any, host: Host) -> None:
    url = f"{URL}/{begun(given)}"
    tag = client.get(url).headers["etag"]
    assert client.get(url, headers={"If-None-Match": tag}).status_code == 304

    work = take(host)  # the lease counts as a change: it says who counts
    assert work is not None
    tag = client.get(url).headers["etag"]
    counting = threading.Timer(0.3, work)
    counting.start()
    seen = client.get(url, headers={"If-None-Match": tag, "Prefer": "wait=60"})
    counting.join()

    assert (seen.status_code, seen.json()["state"]) == (200, "counted")
    assert seen.json()["counts"] == {"cat": 2, "dog": 1}
    assert seen.headers["etag"] != tag


def test_the_document_has_its_routes(client: Any) -> None:
    paths = client.get("/openapi.json").json()["paths"]

    assert {URL: {"get", "post"}, f"{URL}/{{tally_id}}": {"get", "delete"}} == {
        path: set(paths[path]) for path in paths if path.startswith(URL)
    }
