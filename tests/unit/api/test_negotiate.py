from __future__ import annotations

import pytest

from api.http.negotiate import prefers, wait_s


@pytest.mark.parametrize(
    ("accept", "stream"),
    [
        ("text/event-stream", True),
        ("TEXT/Event-Stream; charset=utf-8", True),
        ("text/event-stream, */*;q=0.1", True),
        ("application/json;q=0.9, text/event-stream", True),
        ("*/*, text/event-stream", True),
        ("application/json, text/event-stream", False),
        ("text/event-stream;q=0.5, application/*", False),
        ("text/event-stream;q=0", False),
        ("text/event-stream;q=many", False),
        ("text/*", False),
        ("text/html", False),
        ("", False),
        (None, False),
        ("," * 10_000, False),
    ],
)
def test_a_stream_is_served_to_who_asks_for_one(accept: str | None, stream: bool) -> None:
    assert prefers(accept, "text/event-stream", "application/json") is stream


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ("wait=30", 30),
        ("respond-async, Wait = 5", 5),
        ('wait="7"; x=y', 7),
        ("wait=0", 0),
        ("wait=61", 60),
        ("wait=999999999", 60),
        ("wait=9999999999", None),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait=x", None),
        ("wait", None),
        ("waiting=3", None),
        ("", None),
        (None, None),
    ],
)
def test_a_wait_is_read_and_bounded(prefer: str | None, seconds: int | None) -> None:
    assert wait_s(prefer) == seconds
