"""The header Prefer (RFC 7240): how long an answer may wait for work to be done."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Header

T = TypeVar("T")

MAX_WAIT_S = 60
LOOK_S = 0.25
MAX_WAITERS = 16
"""Fewer than the server has threads (40)."""
_WAITERS = threading.BoundedSemaphore(MAX_WAITERS)
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})\"?(?:$|[,;\s])", re.IGNORECASE)

Prefer = Annotated[
    str | None,
    Header(description=f'"wait=30": answer when it is done, or after so many seconds ({MAX_WAIT_S} at most).'),
]


def wait_s(prefer: str | None) -> int:
    """Seconds that the answer may take; 0 if nothing that is known was preferred."""
    found = _WAIT.search(prefer or "")
    return min(int(found.group(1)), MAX_WAIT_S) if found else 0


def until_done(look: Callable[[], T], done: Callable[[T], bool], seconds: float, closing: threading.Event) -> T:
    """The first that is done, or what there is after `seconds` or when the server closes.

    Holds nothing between two looks but its thread, so only so many wait at once: one more is answered at once, as if
    it had preferred nothing.
    """
    if done(it := look()) or seconds <= 0 or not _WAITERS.acquire(blocking=False):
        return it
    try:
        end = time.monotonic() + seconds
        while not done(it) and (left_s := end - time.monotonic()) > 0 and not closing.wait(min(LOOK_S, left_s)):
            it = look()
        return it
    finally:
        _WAITERS.release()
