"""What a slow import costs: itself, once. Nothing behind it, and no second try."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from api.core import datasets
from api.core.request_bodies import SubmitDataset
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Dataset
from worker.dataset_import import DatasetImport
from worker.host import Host
from worker.take import take


def submitted(given: Any) -> str:
    with db.transaction(given.engine) as s:
        return str(datasets.submit(s, DEFAULT_PROJECT, SubmitDataset(name="cells", path="/data/cells")).id)


def look(given: Any, id: str) -> Dataset:
    with db.reading(given.engine) as s:
        return s.get_one(Dataset, id)


def played(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    @contextmanager
    def command(*_: Any) -> Iterator[list[str]]:
        yield ["sh", "-c", script]

    monkeypatch.setattr(DatasetImport, "command", command)


def test_an_import_that_takes_longer_than_it_may_is_rejected_at_once(
    given: Any, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    played(monkeypatch, "sleep 600")
    id = submitted(given)
    work = take(replace(host, settings=host.settings.model_copy(update={"import_minutes": 0.005})))
    assert work is not None
    work()

    row = look(given, id)
    assert (row.state, row.attempt, row.lease_owner) == ("rejected", 1, None)
    assert "longer than 0.005 minutes" in row.error
    assert "FGD_IMPORT_MINUTES" in row.error


def test_an_import_that_used_up_its_processor_time_is_rejected_at_once(
    given: Any, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    played(monkeypatch, "kill -XCPU $$")
    id = submitted(given)
    work = take(host)
    assert work is not None
    work()

    row = look(given, id)
    assert (row.state, row.attempt) == ("rejected", 1)
    assert "processor time" in row.error


def test_the_second_import_is_taken_while_the_first_is_read(given: Any, host: Host) -> None:
    first, second = submitted(given), submitted(given)
    assert take(host) is not None
    assert take(host) is not None
    assert [look(given, id).attempt for id in (first, second)] == [1, 1]
    assert (host.slots.free("import"), host.slots.free("plan")) == (0, 1)
