"""A worker that is told to end, whenever that is."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from worker.__main__ import SIGNALS, Asked


@pytest.fixture
def asked() -> Iterator[Asked]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield Asked()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("early", [True, False])
def test_a_signal_before_the_work_begins_counts_as_one_after_it(
    asked: Asked, number: signal.Signals, early: bool
) -> None:
    heard: list[int] = []
    if early:
        os.kill(os.getpid(), number)
        assert asked.to_end
        asked.then(lambda: heard.append(1))
    else:
        asked.then(lambda: heard.append(1))
        os.kill(os.getpid(), number)
    assert heard == [1]


def test_after_the_handover_a_signal_does_what_it_usually_does(asked: Asked) -> None:
    asked.hand_over()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert not asked.to_end
