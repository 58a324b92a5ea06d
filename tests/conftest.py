"""What tests of every part share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import s3 as stores

if TYPE_CHECKING:
    from tests import postgres as databases

_SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real detection sets that lies beside some checkouts; it is no part of the repository."""
    if not _SHARED_DATA.is_dir():
        pytest.skip("the real detection sets (../shared/data, beside the checkout) are not here")
    return _SHARED_DATA


@pytest.fixture(scope="session")
def postgres() -> Iterator[databases.Postgres]:
    """A PostgreSQL server of this test process."""
    from tests import postgres as databases  # `make gpu` runs where there is no SQLAlchemy

    if reason := databases.why_not():
        pytest.skip(reason)
    with databases.running() as server:
        yield server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stores.S3]:
    """An S3 server of this test process."""
    if reason := stores.why_not():
        pytest.skip(reason)
    with stores.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["local"])
def store_settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What Settings say about the store: a folder, unless a test is parametrised with BOTH_STORES."""
    return {} if request.param == "local" else dict(request.getfixturevalue("s3").settings())
