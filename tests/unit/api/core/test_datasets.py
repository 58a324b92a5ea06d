from __future__ import annotations

import threading
from typing import Any

import pytest

from api.core import datasets, imports
from api.core.errors import Fenced
from api.core.rows import db, leases
from api.core.rows.tables import DEFAULT_PROJECT, Dataset
from api.core.store.names import Blob
from fgd.data.index import Report

REPORT = Report(ok=True, format="coco", classes=("a",), splits={}, defect_counts={}, defects=())
BLOBS = Blob("a" * 64, 1), Blob("b" * 64, 2)


def claim(given: Any, worker: str = "wrk_a") -> datasets.DatasetClaim | None:
    with db.transaction(given.engine) as s:
        return datasets.claim_import(s, worker, lease_s=20.0)


def state(given: Any, id: str) -> str:
    with db.reading(given.engine) as s:
        return datasets.get(s, DEFAULT_PROJECT, id).state


def test_one_of_many_workers_gets_an_import(given: Any) -> None:
    id, claims = given.dataset("verifying").id, []
    threads = [threading.Thread(target=lambda: claims.append(claim(given))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [(won.id, won.attempt) for won in claims if won] == [(id, 1)]


def test_an_expired_import_can_be_claimed_again_and_the_old_one_is_fenced(given: Any) -> None:
    id = given.dataset("verifying").id
    claim(given)
    given.later(60)
    given.worker("wrk_b")
    assert given.sweep().ring == [id]
    assert given.sweep().ring == [id]
    assert claim(given, "wrk_b").attempt == 2  # type: ignore[union-attr]

    for write in (
        lambda s: leases.beat(s, Dataset, id, 1, "wrk_a", lease_s=20.0),
        lambda s: datasets.finish_import(s, id, 1, *BLOBS, REPORT),
        lambda s: datasets.reject(s, id, 1, None, "x"),
        lambda s: leases.hand_back(s, Dataset, id, 1),
        lambda s: imports.lose(s, Dataset, id, 1, "x"),
    ):
        with pytest.raises(Fenced), db.transaction(given.engine) as s:
            write(s)
    assert state(given, id) == "verifying"


def test_a_beat_keeps_an_import_from_being_swept(given: Any) -> None:
    id = given.dataset("verifying").id
    claim(given)
    given.later(15)
    with db.transaction(given.engine) as s:
        leases.beat(s, Dataset, id, 1, "wrk_a", lease_s=20.0)
    given.later(15)
    given.worker("wrk_a")

    assert given.sweep().ring == []
    with pytest.raises(Fenced), db.transaction(given.engine) as s:
        leases.beat(s, Dataset, id, 1, "wrk_b", lease_s=20.0)


def test_an_import_that_takes_every_worker_down_is_given_up(given: Any) -> None:
    id = given.dataset("verifying").id
    for _ in range(imports.MAX_IMPORTS):
        assert claim(given) is not None
        given.later(60)
        given.sweep()

    assert state(given, id) == "rejected"
    assert claim(given) is None


def test_an_import_whose_reader_dies_is_tried_again_and_the_last_reason_is_told(given: Any) -> None:
    id = given.dataset("verifying").id
    for _ in range(imports.MAX_IMPORTS):
        assert state(given, id) == "verifying"
        taken = claim(given)
        assert taken is not None
        with db.transaction(given.engine) as s:
            imports.lose(s, Dataset, id, taken.attempt, "the reader was ended by signal 9")

    with db.reading(given.engine) as s:
        dataset = datasets.get(s, DEFAULT_PROJECT, id)
    assert dataset.state == "rejected"
    assert "3 tries" in (dataset.error or "")
    assert "signal 9" in (dataset.error or "")


def test_an_import_handed_back_is_not_counted(given: Any) -> None:
    id = given.dataset("verifying").id
    for _ in range(imports.MAX_IMPORTS + 1):
        taken = claim(given)
        assert taken is not None
        with db.transaction(given.engine) as s:
            leases.hand_back(s, Dataset, id, taken.attempt)

    assert state(given, id) == "verifying"


def test_a_ready_data_set_is_never_written_again(given: Any) -> None:
    id = given.dataset().id

    with pytest.raises(Fenced), db.transaction(given.engine) as s:
        datasets.reject(s, id, 1, None, "too late")
    assert state(given, id) == "ready"
