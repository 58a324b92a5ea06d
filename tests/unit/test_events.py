"""Event lines: what is too long for one, and the words of a log."""

from __future__ import annotations

import io

import pytest

from fgd.event_log import EventLog, without_events
from fgd.events import (
    MAX_LINE,
    Evaluated,
    Event,
    Failed,
    Finished,
    Note,
    Phase,
    Saved,
    Started,
    Stepped,
    from_line,
    to_lines,
)

STARTED = Started(step=0, total_steps=40, epochs=4, device="cpu", threads=2, precision="float32", versions={})


def read(event: Event) -> list[Event]:
    lines = to_lines(event).splitlines(keepends=True)
    assert max(map(len, lines)) <= MAX_LINE
    return [from_line(line) for line in lines]


def test_what_fits_a_line_is_one() -> None:
    event = Evaluated(step=3, epoch=1, split="val", values={"ap": 1.0, "ap/cat": None})
    assert read(event) == [event]


@pytest.mark.parametrize(
    "name", ["cat {}", "\N{GRINNING FACE} \N{CJK UNIFIED IDEOGRAPH-732B} {}", '\x01\\" {}', "c" * 200 + "{}"]
)
def test_numbers_of_many_classes_are_spread_over_lines_and_none_is_lost(name: str) -> None:
    classes = {f"ap/{name.format(n)}": n / 7 if n % 3 else None for n in range(10_000)}
    totals = {"ap": 12.5, "ap50": None}
    first, *others = read(Evaluated(step=8, epoch=2, split="test", values={**classes, **totals}))

    assert first == Evaluated(step=8, epoch=2, split="test", values=totals)
    assert len(others) > 5
    together: dict[str, float | None] = {}
    for each in others:
        assert isinstance(each, Evaluated)
        assert (each.step, each.epoch, each.split) == (8, 2, "test")
        together |= each.values
    assert together == classes


def test_a_name_that_no_line_holds_is_cut_and_its_number_stays() -> None:
    _, of_class = read(Evaluated(step=1, epoch=1, split="val", values={"ap": 1.0, "ap/" + "x" * 100_000: 2.0}))
    assert isinstance(of_class, Evaluated)
    ((name, value),) = of_class.values.items()
    assert name.startswith("ap/xxx")
    assert name.endswith("...")
    assert value == 2.0


@pytest.mark.parametrize("event", [Note(code="inherited", message="m"), Failed(code="user_error", message="m")])
def test_of_a_long_message_or_long_data_the_end_is_cut_and_says_so(event: Note | Failed) -> None:
    keys = [f"head.{n}.weight" for n in range(10_000)]
    (of_data,) = read(event.model_copy(update={"data": {"copied": keys}}))
    (of_message,) = read(event.model_copy(update={"message": "\x01" * 100_000}))

    assert isinstance(of_data, Note | Failed)
    assert isinstance(of_message, Note | Failed)
    assert of_data.message == "m"
    assert "too many for an event" in of_data.data["left_out"]
    assert of_message.message.endswith("(92000 more characters)")


# --- the log --------------------------------------------------------------------------------------------------


def log_of(*events: Event) -> list[str]:
    stream = io.StringIO()
    log = EventLog(stream)
    for event in events:
        log.add(event)
    return [line[20:] for line in stream.getvalue().splitlines()]


def test_a_good_training_has_a_log_in_words() -> None:
    values = {"loss/total": 3.25, "images_per_s": 40.0}
    assert log_of(
        Phase(phase="loading"),
        Note(code="resumed", message="an image \x1b[2J is broken", level="warning"),
        STARTED,
        *(Stepped(step=n, epoch=1, values=values) for n in (1, 2, 3)),
        Stepped(step=10, epoch=1, values={**values, "epoch/loss/total": 3.5}),
        Evaluated(step=10, epoch=1, split="val", values={"ap": 12.0, "ap50": None}),
        Evaluated(step=10, epoch=1, split="val", values={"ap/cat": 12.0}),
        Saved(step=10, path="/x", sha256="c" * 64, size=123, best=True),
        Finished(step=40, folder="/x", files={"b": "", "a": ""}, weights_digest="e" * 64),
    ) == [
        "loading",
        "warning: an image \\u001b[2J is broken",
        "training from step 0 of 40, 4 epochs, on cpu, 2 threads, float32",
        "step 1 of 40, epoch 1: loss 3.25, 40.00 images/s",
        "step 10 of 40, epoch 1: loss 3.25, 40.00 images/s",
        "step 10, epoch 1: val AP 12.00, AP50 -",
        "saved step 10, 123 bytes, the best so far",
        "finished after step 40: a, b",
    ]


def test_what_an_end_is_blamed_on_is_sought_beside_the_log_s_own_lines() -> None:
    stream = io.StringIO()
    stream.write("Traceback\n")
    EventLog(stream).add(Note(code="x", message="No space left on device"))
    stream.write("KeyError: 'x'\n")
    assert without_events(stream.getvalue()) == "Traceback\nKeyError: 'x'\n"
