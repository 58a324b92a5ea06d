"""A few inputs of each kind, and that the fuzzer sees what it looks for. `make fuzz` for millions."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fuzz.__main__ import table
from tests.fuzz.runner import Counts, input_of, run
from tests.fuzz.targets import Target, targets

TARGETS = {target.name: target for target in targets()}
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a child for each batch")


@pytest.mark.parametrize("name", TARGETS)
def test_what_it_begins_with_is_taken(name: str) -> None:
    counts, count = Counts(), len(TARGETS[name].corpus)
    run(replace(TARGETS[name], change=lambda rng, item: item), 1, 0, 3 * count, counts)  # most of them come up
    assert counts.accepted == 3 * count, counts


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_of_a_short_run_is_a_fault(name: str) -> None:
    counts = Counts()
    run(TARGETS[name], 1, 0, 20, counts)
    assert counts.faults == 0, counts.seen
    assert counts.inputs == counts.refused + counts.accepted == 20


def test_damaged_statistics_of_a_column_end_no_process() -> None:
    """Found by a long run: pyarrow 26 aborts where a reader asks it for such a column's sizes."""
    counts = Counts()
    run(TARGETS["Parquet"], 1, 1207, 1, counts)
    assert counts.refused == 1, counts


def test_the_same_seed_makes_the_same_inputs() -> None:
    for target in TARGETS.values():
        assert input_of(target, 3, 4) == input_of(target, 3, 4)
    assert len({input_of(TARGETS["JobSpec bodies"], 3, n) for n in range(50)}) > 40


def deed(number: int, _: Path) -> bool:
    match number:
        case 3:
            raise KeyError("nobody expects it")
        case 5:
            os.kill(os.getpid(), signal.SIGKILL)
        case 7:
            signal.setitimer(signal.ITIMER_PROF, 0.01)
            while True:
                pass
        case 9:
            raise MemoryError
    return number % 2 == 0


def test_crashes_of_every_kind_are_counted_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target("deeds", [0], lambda rng, item: item, deed)
    monkeypatch.setattr("tests.fuzz.runner.input_of", lambda target, seed, number: number)
    counts = Counts()
    run(target, 0, 0, 12, counts)
    assert (counts.inputs, counts.crashes, counts.slow, counts.large) == (12, 2, 1, 1)
    assert (counts.accepted, counts.refused) == (6, 2)
    assert counts.seen["SIGKILL"] == 5
    assert any(what.startswith("KeyError") and number == 3 for what, number in counts.seen.items())
    assert table({"deeds": counts})[-1] == "| all | 12 | 2 | 6 | 2 | 1 | 1 |"
