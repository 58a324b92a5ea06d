from __future__ import annotations

from typing import Any

import pytest

from api.core.jobs import attempts, curves, history, requests
from api.core.jobs.record import record
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT
from fgd.events import Evaluated, Event, Failed, Finished, Phase, Saved, Started, Stepped, from_line, to_lines


def started(step: int) -> Started:
    return Started(step=step, total_steps=40, epochs=4, device="cpu", threads=1, precision="float32", versions={})


def step(number: int, loss: float | None) -> Stepped:
    return Stepped(step=number, epoch=1, values={"loss/total": loss})


def tell(given: Any, id: str, attempt: int, *events: Event, log: bytes = b"") -> None:
    with db.transaction(given.engine) as s:
        record(s, id, attempt, list(events), log)


def curve(given: Any, id: str, name: str = "loss/total") -> dict[int, float | None]:
    window = curves.Window(name=name)
    with db.reading(given.engine) as s:
        found = curves.curves(s, id, window)
    return {p.step: p.value for piece in curves.points(given.engine, found, window) for p in piece}


def latest(given: Any, id: str) -> dict[str, tuple[int, float | None]]:
    with db.reading(given.engine) as s:
        return {p.name: (p.step, p.value) for p in history.latest(s, DEFAULT_PROJECT, id)}


def test_after_a_resume_the_curve_has_no_zigzag(given: Any) -> None:
    id = given.running()
    tell(given, id, 1, started(0), step(10, 5.0), step(20, 4.0), step(30, 3.0))
    tell(given, id, 1, Evaluated(step=30, epoch=3, split="val", values={"ap": 7.0}))
    given.later(60)
    given.sweep()
    given.claim()

    tell(given, id, 2, started(20))
    assert curve(given, id) == {10: 5.0, 20: 4.0}
    assert latest(given, id) == {"loss/total": (20, 4.0)}
    assert given.look(id).progress["values"] == {"loss/total": 4.0}

    tell(given, id, 2, step(30, 2.5))
    assert curve(given, id) == {10: 5.0, 20: 4.0, 30: 2.5}
    assert curve(given, id, "ap") == {}


def test_the_epoch_stays_with_the_step_over_a_resume(given: Any) -> None:
    id = given.running()
    tell(given, id, 1, started(0))
    assert given.look(id).progress["epoch"] == 0
    tell(given, id, 1, *(Stepped(step=n, epoch=3, values={"loss/total": 1.0}) for n in (21, 25, 30)))
    assert given.look(id).progress["epoch"] == 3
    given.later(60)
    given.sweep()
    given.claim()

    for step, epoch in ((30, 3), (25, 3), (21, 3), (20, 2), (1, 1), (0, 0)):
        tell(given, id, 2, started(step))
        assert (given.look(id).progress["step"], given.look(id).progress["epoch"]) == (step, epoch)


def test_ten_thousand_classes_have_an_ap_each_and_the_job_shows_the_whole(given: Any) -> None:
    id = given.running()
    values = {"ap": 40.0, "ap50": 70.0, **{f"ap/class {n}": float(n % 100) for n in range(10_000)}}
    lines = to_lines(Evaluated(step=10, epoch=1, split="val", values=values)).splitlines()
    tell(given, id, 1, started(0), *map(from_line, lines))

    assert {name: value for name, (_, value) in latest(given, id).items()} == values
    assert given.look(id).progress["values"] == {"val/ap": 40.0, "val/ap50": 70.0}
    assert given.events(id).count("evaluated") == 1

    tell(given, id, 1, started(10))
    assert given.look(id).progress["values"] == {"val/ap": 40.0, "val/ap50": 70.0}


def test_a_batch_that_is_sent_twice_is_stored_once(given: Any) -> None:
    id = given.running()
    for _ in range(2):
        tell(given, id, 1, step(10, 5.0), step(20, float("inf")), step(20, 4.0))

    assert curve(given, id) == {10: 5.0, 20: 4.0}
    assert latest(given, id) == {"loss/total": (20, 4.0)}


def test_a_late_older_point_does_not_become_the_latest(given: Any) -> None:
    id = given.running()
    tell(given, id, 1, step(20, 4.0))
    tell(given, id, 1, step(10, 5.0))

    assert latest(given, id) == {"loss/total": (20, 4.0)}


def test_the_phase_is_shown_while_the_job_runs(given: Any) -> None:
    id = given.running()
    tell(given, id, 1, Phase(phase="training"))
    assert given.look(id).phase == "training"

    with db.transaction(given.engine) as s:
        attempts.requeue(s, id, 1, "x")
    assert given.look(id).phase is None


def test_what_the_supervisor_answers_itself_is_not_recorded(given: Any) -> None:
    id = given.running()
    before = given.events(id)

    tell(
        given, id, 1, Saved(step=1, path="x", sha256="c" * 64, size=1), Failed(code="x", message="y"),
        Finished(step=1, folder="x", files={}, weights_digest="e" * 64),
    )  # fmt: skip

    assert given.events(id) == before


def test_a_log_ends_where_it_is_full_and_says_so(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.core.jobs.record.MAX_LOG_BYTES", 10)
    id = given.running()
    for piece in (b"12345", b"67890abc", b"never"):
        tell(given, id, 1, log=piece)

    with db.reading(given.engine) as s:
        log = history.log(s, history.log_of(s, requests.get(s, DEFAULT_PROJECT, id), None), 0)
    assert log.data.startswith(b"1234567890\n[the log is full")
    assert b"never" not in log.data


def test_a_log_comes_in_answers_of_bounded_size(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MAX_LOG_ANSWER", 1000)
    id = given.running()
    whole = bytes(range(256)) * 40
    for start in range(0, len(whole), 300):
        tell(given, id, 1, log=whole[start : start + 300])

    read, offset = b"", 0
    while True:
        with db.reading(given.engine) as s:
            log = history.log(s, history.log_of(s, requests.get(s, DEFAULT_PROJECT, id), 1), offset)
        if not log.data:
            break
        assert len(log.data) < 1300
        read, offset = read + log.data, log.next_offset

    assert read == whole


def test_each_attempt_has_its_own_log(given: Any) -> None:
    id = given.running()
    tell(given, id, 1, log=b"first")
    given.later(60)
    given.sweep()
    given.claim()
    tell(given, id, 2, log=b"second")

    with db.reading(given.engine) as s:
        job = requests.get(s, DEFAULT_PROJECT, id)
        assert history.log(s, history.log_of(s, job, None), 0).data == b"second"
        assert history.log(s, history.log_of(s, job, 1), 2).data == b"rst"
