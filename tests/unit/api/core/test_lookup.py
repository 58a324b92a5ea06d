from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Column, ForeignKey, String, Table

from api.core.errors import Conflict, NotFound
from api.core.rows import db
from api.core.rows.columns import Noun
from api.core.rows.lookup import delete_row, owned
from api.core.rows.tables import DEFAULT_PROJECT, Base, Dataset, Job


@pytest.fixture
def toys(given: Any) -> Iterator[Table]:
    """A table that nothing in the service knows."""
    table = Table("toys", Base.metadata, Column("dataset_id", String(40), ForeignKey("datasets.id"), primary_key=True))
    table.create(given.engine)
    yield table
    table.drop(given.engine)
    Base.metadata.remove(table)


def test_what_another_table_refers_to_cannot_be_deleted(client: Any, given: Any, toys: Table) -> None:
    id = given.dataset().id
    with given.engine.begin() as connection:
        connection.execute(toys.insert().values(dataset_id=id))

    answer = client.delete(f"/v1/datasets/{id}")
    assert (answer.status_code, answer.json()["code"]) == (409, "dataset_in_use")
    assert id in answer.json()["detail"]

    with given.engine.begin() as connection:
        connection.execute(toys.delete())
    assert client.delete(f"/v1/datasets/{id}").status_code == 204


def test_a_refused_deletion_leaves_the_row(given: Any, toys: Table) -> None:
    id = given.dataset().id
    with given.engine.begin() as connection:
        connection.execute(toys.insert().values(dataset_id=id))

    with pytest.raises(Conflict, match="still refers"), db.transaction(given.engine) as s:
        delete_row(s, owned(s, Dataset, DEFAULT_PROJECT, id, locked=True))

    with db.reading(given.engine) as s:
        assert owned(s, Dataset, DEFAULT_PROJECT, id).state == "ready"


def test_errors_name_the_noun(given: Any) -> None:
    class TestRun(Noun):
        """Of two words."""

    with db.reading(given.engine) as s, pytest.raises(NotFound) as caught:
        owned(s, Job, DEFAULT_PROJECT, "job_none")

    assert caught.value.code == "job_not_found"
    assert (Dataset.noun(), TestRun.noun()) == ("dataset", "test_run")
