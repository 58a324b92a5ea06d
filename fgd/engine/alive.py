"""Signs of life during work that has no steps."""

from __future__ import annotations

import time
from collections.abc import Callable

from fgd.errors import Stopped
from fgd.events import Alive, Emit

ALIVE_S = 10.0
"""Seconds between signs of life during work that has no steps."""


def alive(stop: Callable[[], bool], emit: Emit) -> Callable[[], None]:
    """Called between batches of whatever takes long: raises Stopped if a stop was asked, and now and then says that
    work goes on, so that a long evaluation is not taken for a hang."""
    said_at = time.monotonic()

    def check() -> None:
        nonlocal said_at
        if stop():
            raise Stopped("asked to stop")
        if time.monotonic() - said_at > ALIVE_S:
            emit(Alive())
            said_at = time.monotonic()

    return check
