"""Event lines: what is too long for one, and the words of a log."""

from __future__ import annotations

import io
import json

import pytest

from fgd.event_log import MOST_BYTES, EventLog, duration, without_events
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
from fgd.spec import JobSpec

STARTED = Started(
    step=0, total_steps=40, epochs=4, device="cpu", threads=2, precision="float32", versions={"torch": "2"}
)


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


EPOCH = {
    "epoch/loss/total": 3.5,
    "epoch/loss/detection": 3.0,
    "epoch/loss/detection/bbox_regression": 1.0,
    "epoch/loss/fgd/fg": 0.5,
}


def log_of(*events: Event) -> list[str]:
    stream = io.StringIO()
    done: list[Event] = []
    log = EventLog(stream, lambda: 10.0 * len(done))  # ten seconds from one event to the next
    for event in events:
        log.add(event)
        done.append(event)
    return [line[20:] for line in stream.getvalue().splitlines()]


def test_a_good_training_has_a_log_in_words() -> None:
    values = {"loss/total": 3.25, "images_per_s": 40.0}
    assert log_of(
        Phase(phase="loading"),
        Note(code="resumed", message="an image \x1b[2J is broken", level="warning"),
        STARTED,
        *(Stepped(step=n, epoch=1, values=values) for n in (1, 2, 3)),
        Stepped(step=10, epoch=1, values={**values, "lr": 0.01} | EPOCH),
        Evaluated(step=10, epoch=1, split="val", values={"ap": 12.0, "ap50": None}),
        Evaluated(step=10, epoch=1, split="val", values={"ap/cat": 12.0}),
        Saved(step=10, path="/x", sha256="c" * 64, size=123 * 2**20, best=True),
        Phase(phase="loading"),
        Finished(step=40, folder="/x", files={"b": "", "a": ""}, weights_digest="e" * 64),
    ) == [
        "loading",
        "warning: an image \\u001b[2J is broken",
        "training from step 0 of 40, 4 epochs, on cpu, 2 threads, float32; torch 2",
        "step 1 of 40, epoch 1: loss 3.25, 40.00 images/s, about 6 min 30 s left",
        "step 10 of 40, epoch 1: loss 3.50 (detection 3.00, fgd/fg 0.50), lr 0.01, 40.00 images/s, "
        "about 2 min 00 s left",
        "step 10, epoch 1: val AP 12.00, AP50 -, AP75 -",
        "saved step 10, 123.0 MiB, the best so far",
        "finished after step 40, 1 min 30 s: a, b",
    ]


def test_the_log_of_any_number_of_epochs_is_bounded_and_has_the_end() -> None:
    stream = io.StringIO()
    log = EventLog(stream)
    for n in range(40_000):
        log.add(Stepped(step=n, epoch=n, values={"epoch/loss/total": 1.0}))
        log.add(Evaluated(step=n, epoch=n, split="val", values={"ap": 1.0}))
    log.add(Note(code="x", message="y" * 10_000))
    log.add(Finished(step=40_000, folder="/x", files={"a": ""}, weights_digest="e" * 64))
    written = stream.getvalue()
    assert len(written) < 1.01 * MOST_BYTES
    assert "the log is long: from here on" in written
    assert written.endswith(": a\n")


def test_a_long_line_is_cut_and_says_so() -> None:
    (line,) = log_of(Note(code="x", message="y" * 10_000))
    assert line.endswith("y ... (6000 more characters)")


def test_the_first_line_says_what_is_trained_without_the_workers_folders() -> None:
    spec = {
        "name": "birds",
        "teacher": {"path": "/srv/secret/teacher"},
        "student": {"kind": "retinanet", "fpn_channels": 64},
        "dataset": {"path": "/srv/secret/data"},
        "methods": [{"kind": "fgd", "lambda": 0.5}],
        "seed": 3,
    }
    stream = io.StringIO()
    EventLog(stream).begin(JobSpec.model_validate_json(json.dumps(spec)))
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert "job birds: RetinaNet R18, FPN 64, taught by fgd, seed 3; beside the defaults: " in line
    assert '"methods": [{"kind": "fgd", "lambda": 0.5}]' in line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.4, "0 s"), (75.0, "1 min 15 s"), (3599.9, "1 h 00 min"), (90_000, "25 h 00 min")]
)
def test_durations_in_words(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_what_an_end_is_blamed_on_is_sought_beside_the_log_s_own_lines() -> None:
    stream = io.StringIO()
    stream.write("Traceback\n")
    EventLog(stream).add(Note(code="x", message="No space left on device"))
    stream.write("KeyError: 'x'\n")
    assert without_events(stream.getvalue()) == "Traceback\nKeyError: 'x'\n"
