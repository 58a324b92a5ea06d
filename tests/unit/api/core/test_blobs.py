"""A blob that a row names stays, whatever the table: columns say by their type that they name blobs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Column, String, Table

from api.core import blobs
from api.core.rows import db
from api.core.rows.columns import BlobDigest, BlobFiles
from api.core.rows.tables import DEFAULT_PROJECT, Base
from api.core.sweeper import Sweeper


@pytest.fixture
def toys(given: Any) -> Iterator[Table]:
    """A noun that nothing in the service knows."""
    columns = Column("id", String(40), primary_key=True), Column("inputs", BlobFiles()), Column("preview", BlobDigest())
    table = Table("toys", Base.metadata, *columns)
    table.create(given.engine)
    yield table
    table.drop(given.engine)
    Base.metadata.remove(table)


def put(given: Any, content: bytes) -> str:
    """The digest of a blob of the service, which no row names yet."""
    with db.transaction(given.engine) as s:
        blob = given.store.put_bytes(content)
        blobs.remember_blobs(s, DEFAULT_PROJECT, db.now(s), blob)
    return str(blob.digest)


def name(given: Any, toys: Table, **columns: Any) -> None:
    with given.engine.begin() as connection:
        connection.execute(toys.insert().values(id="toy_1", **columns))


def forget(given: Any, toys: Table) -> None:
    with given.engine.begin() as connection:
        connection.execute(toys.delete())


def unused(given: Any) -> set[str]:
    with db.reading(given.engine) as s:
        return {digest for _, digest in blobs.unused(s)}


def hours_pass(given: Any) -> None:
    given.earlier("blobs", "unused_since", 7200)
    then = time.time() - 7200
    for file in (given.store.root / "sha256").rglob("*"):
        if file.is_file():
            os.utime(file, (then, then))


def collect(given: Any, digest: str) -> bool:
    with db.transaction(given.engine) as s:
        return blobs.collect_blob(s, given.store, DEFAULT_PROJECT, digest)


@pytest.mark.parametrize("column", ["inputs", "preview"])
def test_a_new_noun_keeps_its_blobs(given: Any, toys: Table, column: str) -> None:
    named, other = put(given, b"named"), put(given, b"other")
    name(given, toys, **{column: {"dataset": {"index": named}} if column == "inputs" else named})

    assert unused(given) == {other}

    forget(given, toys)
    assert unused(given) == {named, other}


@pytest.mark.parametrize("column", ["inputs", "preview"])
def test_a_new_noun_that_comes_after_the_look_keeps_its_blobs(given: Any, toys: Table, column: str) -> None:
    """The row is written between the search for unused blobs and the deletion."""
    digest = put(given, b"named late")
    Sweeper(given.engine, given.store, None, lease_s=20.0).collect()  # notes it as unused
    hours_pass(given)
    name(given, toys, **{column: {"dataset": {"index": digest}} if column == "inputs" else digest})

    assert not collect(given, digest)
    assert given.store.exists(digest)

    forget(given, toys)
    assert collect(given, digest)
    assert not given.store.exists(digest)
