"""Logs by Range, metrics that are drawn or put into a spreadsheet, checkpoints."""

from __future__ import annotations

import csv
import io
import math
import random
from typing import Any

import pytest

from api.core.jobs import attempts, history, record
from api.core.rows import db
from fgd.events import Evaluated, Stepped


def reported(given: Any, id: str, *events: Any, log: bytes = b"") -> None:
    with db.transaction(given.engine) as s:
        record.record(s, id, 1, list(events), log)


# --- logs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def log(client: Any, given: Any) -> tuple[str, bytes]:
    id = given.running()
    pieces = [bytes([number]) * 700 for number in range(40)]
    for piece in pieces:
        reported(given, id, log=piece)
    return f"/v1/jobs/{id}/logs", b"".join(pieces)


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=0-0", 0, 1), ("bytes=699-701", 699, 702), ("bytes=1000-", 1000, 28000), ("bytes=-5", 27995, 28000),
     ("bytes=-99999999", 0, 28000), ("bytes=27999-99999999999", 27999, 28000)],
)  # fmt: skip
def test_a_range_of_a_log_is_of_its_whole_length(
    client: Any, log: Any, monkeypatch: pytest.MonkeyPatch, asked: str, start: int, stop: int
) -> None:
    monkeypatch.setattr(history, "MAX_LOG_ANSWER", 3000)  # many looks for one answer
    url, content = log

    answer = client.get(url, headers={"Range": asked})

    assert answer.status_code == 206
    assert answer.content == content[start:stop]
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(content)}"
    assert answer.headers["content-length"] == str(stop - start)
    assert answer.headers["x-attempt"] == "1"


@pytest.mark.parametrize("asked", ["bytes=28000-", "bytes=99999999999-", "bytes=-0"])
def test_a_range_beyond_the_end_is_a_416_that_tells_the_length(client: Any, log: Any, asked: str) -> None:
    answer = client.get(log[0], headers={"Range": asked})

    assert answer.status_code == 416
    assert answer.json()["code"] == "range_not_satisfiable"
    assert answer.headers["content-range"] == "bytes */28000"


@pytest.mark.parametrize("asked", ["bytes=5-2", "lines=1-2", "bytes=0-1,5-6", "bytes=" + "0-1," * 10000, "bytes=-"])
def test_odd_ranges_get_the_whole(client: Any, log: Any, asked: str) -> None:
    answer = client.get(log[0], headers={"Range": asked})

    assert (answer.status_code, answer.content) == (200, log[1])


def test_a_range_under_a_condition_is_ignored_and_one_beside_an_offset_refused(client: Any, log: Any) -> None:
    conditional = client.get(log[0], headers={"Range": "bytes=0-1", "If-Range": '"x"'})
    both = client.get(f"{log[0]}?after_offset=3", headers={"Range": "bytes=0-1"})

    assert (conditional.status_code, conditional.content) == (200, log[1])
    assert (both.status_code, both.json()["code"]) == (400, "range_and_offset")


def test_head_tells_the_length_of_a_log(client: Any, given: Any, log: Any) -> None:
    answer = client.head(log[0])
    never_ran = client.head(f"/v1/jobs/{given.job()}/logs")

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == "28000"
    assert (answer.headers["accept-ranges"], answer.headers["x-attempt"]) == ("bytes", "1")
    assert (never_ran.headers["content-length"], never_ran.headers["x-attempt"]) == ("0", "0")
    assert client.head(f"{log[0]}?attempt=2").status_code == 404


def test_no_byte_of_an_empty_log_can_be_asked_for(client: Any, given: Any) -> None:
    answer = client.get(f"/v1/jobs/{given.running()}/logs", headers={"Range": "bytes=0-"})

    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */0")


# --- metrics --------------------------------------------------------------------------------------------------


@pytest.fixture
def curve(given: Any) -> tuple[str, dict[int, float]]:
    """A noisy curve with two single-step peaks, and holes between its steps."""
    dice = random.Random(0)
    values = {step * 3 + 7: math.sin(step / 90) + dice.random() / 10 for step in range(4000)}
    values[6004], values[7501 // 3 * 3 + 1] = 99.0, -99.0
    id = given.running()
    reported(given, id, *(Stepped(step=step, epoch=1, values={"loss/total": value}) for step, value in values.items()))
    return f"/v1/jobs/{id}/metrics", values


def read(client: Any, url: str, **query: Any) -> dict[int, Any]:
    answer = client.get(url, params=query)
    assert answer.status_code == 200, answer.text
    return {point["step"]: point["value"] for point in answer.json()["items"]}


@pytest.mark.parametrize("most", [4, 5, 100, 999, 3999])
def test_few_points_keep_the_ends_and_every_peak_of_every_bucket(client: Any, curve: Any, most: int) -> None:
    url, values = curve
    steps = sorted(values)

    found = read(client, url, max_points=most)

    assert 4 <= len(found) <= most
    assert list(found) == sorted(found)
    assert all(values[step] == value for step, value in found.items())
    assert {steps[0], steps[-1]} <= found.keys()
    assert (max(found.values()), min(found.values())) == (99.0, -99.0)
    # the slow obvious way: the extremes of each of equally wide buckets
    count = (most - 2) // 2
    width = -(-(steps[-1] - steps[0] + 1) // count)
    for bucket in range(count):
        inside = [values[s] for s in steps if bucket * width <= s - steps[0] < (bucket + 1) * width]
        if inside:
            assert {min(inside), max(inside)} <= set(found.values())


def test_as_many_points_as_there_are_come_unchanged(client: Any, curve: Any) -> None:
    url, values = curve

    assert read(client, url, max_points=4000) == read(client, url) == dict(sorted(values.items()))


def test_steps_bound_what_is_read_from_both_sides_inclusive(client: Any, curve: Any) -> None:
    url, values = curve
    wanted = {step: value for step, value in sorted(values.items()) if 100 <= step <= 1000}

    assert read(client, url, **{"from": 100, "to": 1000}) == wanted
    few = read(client, url, **{"from": 100, "to": 1000, "max_points": 10})
    assert len(few) <= 10
    assert {min(wanted), max(wanted)} <= few.keys()
    assert {max(wanted.values()), min(wanted.values())} <= set(few.values())
    assert read(client, url, **{"from": 10**9}) == {}


def test_each_series_gets_its_own_points_and_what_is_not_finite_is_no_peak(client: Any, given: Any) -> None:
    id = given.running()
    for step in range(1, 101):
        bad = float("nan") if step % 2 else None
        reported(given, id, Stepped(step=step, epoch=1, values={"a": float(step), "b": bad if step > 50 else -1.0}),
               Evaluated(step=step, epoch=1, split="val", values={"ap": None}))  # fmt: skip

    items = client.get(f"/v1/jobs/{id}/metrics?max_points=8").json()["items"]

    found: dict[tuple[str, str], list[Any]] = {}
    for point in items:
        found.setdefault((point["name"], point["split"]), []).append((point["step"], point["value"]))
    assert list(found) == [("a", "train"), ("ap", "val"), ("b", "train")]
    assert all(len(points) <= 8 for points in found.values())
    assert found["ap", "val"] == [(1, None), (100, None)]
    assert found["b", "train"][-1] == (100, None)
    assert (1, -1.0) in found["b", "train"]


@pytest.mark.parametrize(
    ("query", "parameter"),
    [("max_points=3", "max_points"), ("max_points=10001", "max_points"), ("from=-1", "from"), ("to=x", "to"),
     ("from=5&to=4", "from"), ("first=1", "first"), ("to=99999999999999999999", "to")],
)  # fmt: skip
def test_a_window_that_cannot_be_is_a_422(client: Any, given: Any, query: str, parameter: str) -> None:
    answer = client.get(f"/v1/jobs/{given.job()}/metrics?{query}")

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["parameter"] == parameter


def test_csv_has_a_header_one_line_a_point_and_no_formula(client: Any, given: Any) -> None:
    id = given.running()
    odd = '=HYPERLINK("http://x";"a,b")\n+1'
    reported(given, id, Stepped(step=3, epoch=1, values={odd: -0.5, "@x": 1e-300, "loss, total": float("inf")}))

    answer = client.get(f"/v1/jobs/{id}/metrics", headers={"Accept": "text/csv, */*"})

    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert answer.text.startswith("name,split,step,value,at\r\n")
    header, *rows = csv.reader(io.StringIO(answer.text, newline=""), strict=True)
    assert header == ["name", "split", "step", "value", "at"]
    assert [row[:4] for row in rows] == [
        ["'" + odd, "train", "3", "-0.5"],
        ["'@x", "train", "3", "1e-300"],
        ["loss, total", "train", "3", ""],
    ]
    assert all(row[4].endswith("+00:00") for row in rows)


@pytest.mark.parametrize("accept", [None, "*/*", "application/json, text/csv", "text/csv;q=0.1, */*", "text/csv;q=0"])
def test_json_is_served_unless_csv_is_wanted_more(client: Any, given: Any, accept: str | None) -> None:
    headers = {} if accept is None else {"Accept": accept}
    answer = client.get(f"/v1/jobs/{given.job()}/metrics", headers=headers)

    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"items": []}


def test_many_points_come_in_pieces_without_a_gap(client: Any, curve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, values = curve
    monkeypatch.setattr("api.core.jobs.curves.PIECE", 1000)  # divides the number of points: the last piece is empty

    assert read(client, url) == dict(sorted(values.items()))
    assert client.get(url, headers={"Accept": "text/csv"}).text.count("\r\n") == 4001


# --- checkpoints ----------------------------------------------------------------------------------------------


def test_checkpoints_are_listed_newest_first(client: Any, given: Any) -> None:
    id = given.running()
    with db.transaction(given.engine) as s:
        for step in (10, 20):
            attempts.checkpoint(s, id, 1, step, f"jobs/{id}/a1/{step}.pt", "c" * 64, 7)

    items = client.get(f"/v1/jobs/{id}/checkpoints").json()["items"]

    told = [(item["step"], item["attempt"], item["size"], item["sha256"]) for item in items]
    assert told == [(20, 1, 7, "c" * 64), (10, 1, 7, "c" * 64)]
    assert all(item["id"].startswith("ckpt_") and item["created_at"] for item in items)
    assert client.get(f"/v1/jobs/{given.job()}/checkpoints").json() == {"items": []}
