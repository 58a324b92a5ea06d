"""Changes inputs at random: their bytes, and the values that they spell. The same seed gives the same changes."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

VALUES: Sequence[Any] = (
    None, True, False, 0, 1, -1, 7, 2**31 - 1, 2**31, -(2**31), 2**53, 2**63, 2**64, 10**400, 0.0, -0.0, 0.5, 1e-320,
    1e308, -1e308, float("nan"), float("inf"), float("-inf"), "", " ", "0", "-1", "1e999", "nan", "true", "null", "a",
    "\0", "\n", "\ud800", "\u202e", "é", "ﬃ", "🪲", "..", "../x", "/etc/passwd", "a/../b", "C:\\x", "%00", "a" * 300,
    [], {}, [[]], [{}], {"": ""}, [0] * 50, ["a"] * 50, {"kind": "fgd"}, {"kind": "nothing"}, {"path": "x"},
)  # fmt: skip
"""Of JSON, and in the place of any other."""
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
MAX_BYTES = 1 << 20


def change_bytes(rng: Random, content: bytes, words: Sequence[bytes] = ()) -> bytes:
    """One to four changes of any place and size. words: pieces that mean something in such a file."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _change_once(rng, changed, words)
    return bytes(changed[:MAX_BYTES])


def _change_once(rng: Random, data: bytearray, words: Sequence[bytes]) -> None:
    place = rng.randrange(len(data) + 1)
    end = min(len(data), place + rng.choice((1, 1, 2, 4, 8, 64, 1024)))
    match rng.randrange(9):
        case 0 if data:
            data[min(place, len(data) - 1)] ^= 1 << rng.randrange(8)
        case 1:
            data[place:end] = rng.randbytes(end - place)
        case 2:
            del data[place:end]
        case 3:
            data[place:place] = data[place:end] * rng.choice((1, 2, 50))
        case 4:
            del data[place:]
        case 5:
            width = rng.choice((1, 2, 4, 8))
            order = rng.choice(("little", "big"))
            data[place : place + width] = (rng.choice(NUMBERS) & ((1 << 8 * width) - 1)).to_bytes(width, order)
        case 6:
            source = rng.randrange(len(data) + 1)
            data[place:end] = data[source : source + end - place]
        case 7 if words:
            data[place : rng.choice((place, end))] = rng.choice(words)
        case _:
            data[place:place] = rng.choice((b"0", b"\0", b"\xff", b" ", b"\n", b'"', b"[", b"{", b"-", b"/"))


def change_value(rng: Random, value: Any, more: Sequence[Any] = ()) -> Any:
    """A copy with one to three of its nodes changed. more: values that mean something here."""
    changed = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder, key = rng.choice(list(_places(changed)))
        _change_node(rng, holder, key, [*VALUES, *more])
    return changed[0] if changed else None


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(holder, key) of every node below."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return found


def _change_node(rng: Random, holder: Any, key: Any, values: Sequence[Any]) -> None:
    node = holder[key]
    match rng.randrange(8):
        case 0:
            for _ in range(rng.choice((1, 3, 40))):
                node = rng.choice(([node], {"a": node}))
            holder[key] = node
        case 1 if isinstance(holder, dict):
            del holder[key]
        case 2 if isinstance(holder, dict):
            holder[str(rng.choice(values))[:50]] = holder.pop(key)
        case 3 if isinstance(holder, list) and len(holder) < 10_000:
            holder[key:key] = [copy.deepcopy(node) for _ in range(rng.choice((1, 2, 30)))]
        case 4 if isinstance(node, int | float | str):
            holder[key] = str(node) if not isinstance(node, str) else _as_number(node)
        case 5 if isinstance(node, list | dict) and node:
            holder[key] = type(node)()
        case _:
            holder[key] = copy.deepcopy(rng.choice(values))


def _as_number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text[::-1]


def change_json(rng: Random, content: bytes, more: Sequence[Any] = ()) -> bytes:
    """Most often the values, sometimes the bytes, as always where it is no JSON any more."""
    if rng.random() >= 0.25:
        with contextlib.suppress(ValueError, RecursionError):
            return json.dumps(change_value(rng, json.loads(content), more)).encode()
    return change_bytes(rng, content, (b"null", b"NaN", b"-Infinity", b"1e999", b'"\\ud800"', b"[" * 500, b'{"a":'))


def change_name(rng: Random, name: str) -> str:
    """Of a file in a data set."""
    folder, _, last = name.rpartition("/")
    changes: Sequence[Callable[[], str]] = (
        lambda: f"{last}/{last}", lambda: last.upper(), lambda: f" {last} ", lambda: last[::-1],
        lambda: f"{last}.txt", lambda: f"e\u0301{last}", lambda: f"\u202e{last}", lambda: f"{last * 20}"[:200],
        lambda: rng.choice(("train", "val", "test", "images", "labels", "README.md", "data.yaml")),
    )  # fmt: skip
    new = rng.choice(changes)()
    return f"{folder}/{new}" if folder and rng.random() < 0.8 else new
