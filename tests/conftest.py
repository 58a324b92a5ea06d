"""What tests of every part share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgres as servers

_SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real detection sets that lies beside some checkouts; it is no part of the repository."""
    if not _SHARED_DATA.is_dir():
        pytest.skip("the real detection sets (../shared/data, beside the checkout) are not here")
    return _SHARED_DATA


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Postgres]:
    """A PostgreSQL server of this test process."""
    if reason := servers.why_not():
        pytest.skip(reason)
    with servers.running() as server:
        yield server
