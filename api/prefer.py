"""The header Prefer (RFC 7240): how long an answer may wait for work to be done."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Header

T = TypeVar("T")

MAX_WAIT_S = 60
LOOK_S = 0.25
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})\"?(?:$|[,;\s])", re.IGNORECASE)

Prefer = Annotated[
    str | None,
    Header(description=f'"wait=30": answer when it is done, or after so many seconds ({MAX_WAIT_S} at most).'),
]


def wait_s(prefer: str | None) -> int:
    """Seconds that the answer may take; 0 if nothing that is known was preferred."""
    found = _WAIT.search(prefer or "")
    return min(int(found.group(1)), MAX_WAIT_S) if found else 0


def until_done(look: Callable[[], T], done: Callable[[T], bool], seconds: float) -> T:
    """The first that is done, or what there is after `seconds`. Holds nothing between two looks."""
    end = time.monotonic() + seconds
    while not done(it := look()) and time.monotonic() < end:
        time.sleep(min(LOOK_S, max(0.0, end - time.monotonic())))
    return it
