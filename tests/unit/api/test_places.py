"""Streams and long polls: so many at once, and not all for one."""

from __future__ import annotations

import pytest

from api.core.errors import Busy
from api.live import Places


def places(most: int) -> Places:
    return Places(most, "too_many_streams", "event streams")


def test_one_client_gets_half_of_the_places_and_another_the_rest() -> None:
    some = places(4)
    ours = [some.take("10.0.0.1") for _ in range(2)]
    with pytest.raises(Busy, match="2 event streams per client"):
        some.take("10.0.0.1")
    for _ in range(2):
        some.take("10.0.0.2")
    with pytest.raises(Busy, match="keeps 4 event streams"):
        some.take("10.0.0.3")
    ours[0]()
    ours[0]()
    assert some.taken == 3
    some.take("10.0.0.3")


def test_a_server_of_one_place_gives_it_out() -> None:
    one = places(1)
    give_back = one.take("10.0.0.1")
    give_back()
    one.take("10.0.0.1")
    assert one.taken == 1
