"""How long a client goes on trying."""

from __future__ import annotations

import pytest

from fgd.client import ApiError, Unreachable
from fgd.client.patience import LONGEST_PAUSE_S, Patience

GONE = Unreachable("http://x", "refused")


def busy(retry_after_s: float | None = None) -> ApiError:
    return ApiError(503, "starting", "not yet", retry_after_s=retry_after_s)


def test_it_ends_with_the_last_error_after_so_many_failures_in_a_row() -> None:
    patience = Patience(attempts=3)
    assert [patience.bear(GONE), patience.bear(busy())] == [0.0, 0.0]
    with pytest.raises(ApiError, match="not yet"):
        patience.bear(busy())


def test_progress_makes_it_new() -> None:
    patience = Patience(backoff_s=1.0, attempts=3)
    for _ in range(5):
        assert 0.5 <= patience.bear(GONE) <= 1.0
        assert 1.0 <= patience.bear(GONE) <= 2.0
        patience.progress()


def test_it_ends_after_so_many_seconds_without_progress() -> None:
    with pytest.raises(Unreachable):
        Patience(for_s=-1.0).bear(GONE)
    Patience(for_s=60.0).bear(GONE)


def test_a_pause_is_as_long_as_the_service_asks_for_but_never_endless() -> None:
    patience = Patience(backoff_s=0.001)
    assert patience.bear(busy(retry_after_s=4.0)) == 4.0
    assert patience.bear(busy(retry_after_s=3600.0)) == LONGEST_PAUSE_S
    many = Patience(backoff_s=1.0)
    assert max(many.bear(GONE) for _ in range(100)) <= LONGEST_PAUSE_S


def test_what_another_try_cannot_help_is_raised_at_once() -> None:
    with pytest.raises(ApiError, match="404"):
        Patience(attempts=5).bear(ApiError(404, "not_found", "no such job"))
    Patience(attempts=5).bear(ApiError(409, "conflict", "later", retryable=True))
