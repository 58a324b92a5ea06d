"""TensorBoard event files, read back by a reader that shares nothing with the writer: bit by bit, field by field."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from api.core.jobs import record
from api.core.jobs.history import LatestPoint
from api.core.rows import db
from api.http import tensorboard
from fgd.events import Evaluated, Stepped

SINCE = datetime(2026, 5, 1, 12, 0, 0, 250_000, UTC)
LARGEST = 3.4028234663852886e38
"""Of a 32-bit float."""


def slow_crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ 0x82F63B78 if value & 1 else value >> 1
    return value ^ 0xFFFFFFFF


def unmasked(data: bytes) -> int:
    turned = (struct.unpack("<I", data)[0] - 0xA282EAD8) & 0xFFFFFFFF
    return ((turned >> 17) | (turned << 15)) & 0xFFFFFFFF


def records(content: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(content):
        length = content[at : at + 8]
        assert unmasked(content[at + 8 : at + 12]) == slow_crc32c(length)
        start = at + 12
        at = start + struct.unpack("<Q", length)[0]
        assert unmasked(content[at : at + 4]) == slow_crc32c(content[start:at])
        yield content[start:at]
        at += 4
    assert at == len(content)


def varint(data: bytes, at: int) -> tuple[int, int]:
    shift = value = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not data[at - 1] & 0x80:
            return value, at


def fields(message: bytes) -> dict[int, Any]:
    """Field number -> number or bytes; each stands once."""
    found: dict[int, Any] = {}
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        kind, number = key & 7, key >> 3
        if kind == 0:
            value, at = varint(message, at)
        elif kind == 2:
            length, at = varint(message, at)
            value, at = message[at : at + length], at + length
        else:
            code, size = {1: ("<d", 8), 5: ("<f", 4)}[kind]
            value, at = struct.unpack(code, message[at : at + size])[0], at + size
        assert number not in found
        found[number] = value
    return found


def scalars(content: bytes) -> list[tuple[str, int, float, float]]:
    """Tag, step, value, wall time; the first record says the version of the file."""
    first, *rest = (fields(each) for each in records(content))
    assert first[3] == b"brain.Event:2"
    assert set(first) == {1, 3}
    found = []
    for event in rest:
        value = fields(fields(event[5])[1])
        found.append((value[1].decode(), event[2], value[2], event[1]))
    return found


def point(name: str, step: int, value: float | None, split: str = "train") -> LatestPoint:
    return LatestPoint(name, split, step, value, SINCE)


def written(*pieces: list[LatestPoint]) -> list[tuple[str, int, float, float]]:
    return scalars(b"".join(tensorboard.as_events(pieces, SINCE)))


def test_the_checksum_is_that_of_the_rfc() -> None:
    assert tensorboard.crc32c(bytes(32)) == 0x8A9136AA
    assert tensorboard.crc32c(b"123456789") == 0xE3069283
    assert tensorboard.crc32c(b"6789", tensorboard.crc32c(b"12345")) == 0xE3069283


def test_points_are_read_back_with_tags_steps_and_times() -> None:
    loss, ap = [point("loss/total", 1, 0.5), point("loss/total", 300, 0.25)], [point("ap", 10**12, 41.5, "val")]
    at = SINCE.timestamp()
    assert written([*loss, *ap], [point("ap", 10**12, 40.0, "test")]) == [
        ("loss/total", 1, 0.5, at),
        ("loss/total", 300, 0.25, at),
        ("val/ap", 10**12, 41.5, at),
        ("test/ap", 10**12, 40.0, at),
    ]


def test_what_a_single_cannot_hold_is_the_nearest_that_it_can_and_what_is_no_number_is_left_out() -> None:
    found = written([point("a", 0, 1e300), point("a", 1, -1e300), point("a", 2, None), point("a", 3, 1e-300)])
    assert [(step, value) for _, step, value, _ in found] == [(0, LARGEST), (1, -LARGEST), (3, 0.0)]


@pytest.mark.parametrize("name", ["größe \N{GRINNING FACE}", "x" * 1000, "", "a\udcffb"])
def test_any_name_is_a_tag(name: str) -> None:
    ((tag, *_),) = written([point(name, 1, 1.0)])
    assert tag == name.replace("\udcff", "?")


def test_a_job_without_numbers_has_a_file_of_its_version() -> None:
    assert written() == []


def test_the_file_of_a_job_holds_all_its_curves(client: Any, given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.core.jobs.curves.PIECE", 2)
    id = given.running()
    with db.transaction(given.engine) as s:
        steps = [Stepped(step=n, epoch=1, values={"loss/total": n / 4, "lr": math.nan}) for n in range(1, 6)]
        record.record(s, id, 1, [*steps, Evaluated(step=5, epoch=1, split="val", values={"ap": 12.5})])

    answer = client.get(f"/v1/jobs/{id}/metrics/tensorboard")

    assert answer.headers["content-type"] == "application/octet-stream"
    name = answer.headers["content-disposition"]
    assert name.startswith('attachment; filename="events.out.tfevents.')
    assert name.endswith(f'.{id}"')
    found = [(tag, step, value) for tag, step, value, _ in scalars(answer.content)]
    assert found == [("val/ap", 5, 12.5), *(("loss/total", n, n / 4) for n in range(1, 6))]
    assert client.get(f"/v1/jobs/{id}/metrics/tensorboard").headers["content-disposition"] == name
