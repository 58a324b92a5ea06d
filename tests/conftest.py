"""What tests of every part share."""

from __future__ import annotations

from pathlib import Path

import pytest

_SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real detection sets that lies beside some checkouts; it is no part of the repository."""
    if not _SHARED_DATA.is_dir():
        pytest.skip("the real detection sets (../shared/data, beside the checkout) are not here")
    return _SHARED_DATA
