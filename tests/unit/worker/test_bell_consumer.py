"""What a worker takes for a notification."""

from __future__ import annotations

import base64
import json
import pickle
from typing import Any

import pytest
from kombu import Connection
from kombu.message import Message

from api.core import queue
from worker.bell_consumer import complaint_about


class Odd:
    """Says that it is a header, a body or anything."""


@pytest.fixture
def message() -> Any:
    """As our own API sends it."""
    assert queue.ring(queue.make_app("memory://"), "job_1")
    with Connection("memory://", transport_options={"global_keyprefix": "fgd."}) as connection:
        found = connection.SimpleQueue(queue.QUEUE).get(timeout=1)
    kept = {name: getattr(found, name) for name in ("content_type", "content_encoding", "headers")}
    return Message(json.dumps(found.payload), **kept)  # not decoded yet


def test_ours_is_one(message: Any) -> None:
    assert complaint_about(message) is None


@pytest.mark.parametrize("headers", [None, [], 5, "x", {}, {"task": "other", "id": "x"}])
def test_headers_that_are_none_or_of_another_task_are_not(message: Any, headers: Any) -> None:
    message.headers = headers
    assert complaint_about(message) is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", ["fgd.wake"]),
        ("id", None),
        ("id", {}),
        ("eta", "2030-01-01T00:00:00"),
        ("expires", {}),
        ("retries", "x"),
        ("timelimit", [5, 5]),
        ("timelimit", 5),
        ("group", "x"),
        ("stamps", {"a": 1}),
        ("stamped_headers", "x"),
        ("something", {"else": 1}),
    ],
)
def test_a_header_of_another_kind_makes_it_none(message: Any, name: str, value: Any) -> None:
    message.headers[name] = value
    assert complaint_about(message) is not None


@pytest.mark.parametrize(
    "body",
    [
        None, 5, "x", [], {}, [1, 2], [[], {}], [[], {}, {}, {}], [5, {"id": "x"}, {}], [["x"], {}, {}], [[], [], {}],
        [[], {"id": 5}, {}], [[], {"other": "x"}, {}], [[], {"id": "x", "more": 1}, {}], [[], {"id": "x"}, None],
        [[], {"id": "x"}, {"chain": [{"task": queue.WAKE}]}], [[], {"id": "x"}, {"callbacks": [{}]}],
        [[], {"id": "x"}, {"chord": 5}],
    ],
)  # fmt: skip
def test_a_body_that_says_something_else_makes_it_none(message: Any, body: Any) -> None:
    message.body = json.dumps(body)
    assert complaint_about(message) is not None


def test_no_other_form_than_json_is_read(message: Any) -> None:
    message.body = base64.b64encode(pickle.dumps(Odd())).decode()
    message.content_type, message.content_encoding = "application/x-python-serialize", "base64"
    assert complaint_about(message) == "it is not JSON"
    message.content_type, message.content_encoding, message.body = "application/json", "no such", "[]"
    assert "cannot be read" in str(complaint_about(message))
