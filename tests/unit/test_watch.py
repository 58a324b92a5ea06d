from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from fgd.cli.watch import Board, Eta, clock, figures, report_lines, told
from fgd.client import Job, StoredEvent
from fgd.data.index import Defect, Report
from tests.unit.http_fake import job_json


def job(state: str = "running", **more: Any) -> Job:
    return Job.model_validate(job_json(state, **more))


def at(step: int, **values: float | None) -> dict[str, Any]:
    named = {name.replace("__", "/"): value for name, value in values.items()}
    return {"step": step, "total_steps": 100, "epoch": step // 10, "epochs": 10, "values": named}


def test_a_distilled_jobs_loss_shows_what_the_teacher_adds() -> None:
    progress = at(20, loss__total=1.5, loss__detection=1.2, val__ap=33.33)
    plain = figures(job(phase="training", progress=progress))
    taught = figures(job(phase="training", progress=progress, spec={"methods": [{"kind": "fgd"}]}))
    assert (plain.epoch, plain.loss, plain.ap) == ("epoch 2/10", "loss 1.50", "AP 33.3")
    assert taught.loss == "loss 1.20+0.30"


def test_figures_that_are_not_known_yet_are_left_out() -> None:
    early = {"step": 0, "total_steps": None, "epoch": 0, "epochs": None, "values": {"loss/total": None}}
    seen = figures(job(progress=early))
    assert (seen.epoch, seen.loss, seen.ap, seen.total) == ("", "", "", 0)


def test_a_queued_job_says_why_it_waits() -> None:
    assert figures(job("queued", waiting_reason="no worker is running")).status == "queued: no worker is running"


def test_a_cancelled_run_is_shown_as_cancelling_until_it_has_ended() -> None:
    assert figures(job(requested="cancel", phase="training")).status == "cancelling"
    assert figures(job("cancelled")).status == "cancelled"


def test_the_time_left_counts_only_steps_seen_here() -> None:
    eta = Eta()
    assert eta.left_s(0.0, 50, 100) is None  # resumed at step 50
    assert eta.left_s(10.0, 60, 100) == 40.0


def test_the_time_left_starts_anew_when_a_lost_attempt_falls_back() -> None:
    eta = Eta()
    eta.left_s(0.0, 50, 100)
    assert eta.left_s(10.0, 40, 100) is None
    assert eta.left_s(12.0, 50, 100) == 10.0


def test_seconds_are_shown_as_a_clock() -> None:
    assert [clock(s) for s in (5, 75, 3661)] == ["0:05", "1:15", "1:01:01"]


def test_without_a_screen_a_line_comes_every_ten_seconds_and_at_each_change() -> None:
    said = io.StringIO()
    now_s = 0.0
    with Board(Console(file=said, width=200), ["teacher"], now=lambda: now_s) as board:
        for second in range(21):
            now_s = float(second)
            board.show("teacher", job(phase="training", progress=at(second)))
        board.show("teacher", job(phase="evaluating", progress=at(21)))
        board.show("teacher", None)
    lines = said.getvalue().splitlines()
    assert len(lines) == 5
    assert "epoch 1/10  1:30 left" in lines[1]
    assert "evaluating" in lines[3]
    assert "no answer" in lines[4]


def test_on_a_screen_the_bar_is_full_when_the_job_succeeded() -> None:
    said = io.StringIO()
    with Board(Console(file=said, width=120, force_terminal=True), ["teacher"]) as board:
        board.show("teacher", job(phase="training", progress=at(50)))
        board.show("teacher", job("succeeded", progress=at(99)))
    assert "100%" in said.getvalue()
    assert "succeeded" in said.getvalue()


def test_names_from_elsewhere_are_no_markup() -> None:
    said = io.StringIO()
    with Board(Console(file=said, width=120), ["t"]) as board:
        board.show("t", job("queued", waiting_reason="[red]no[/red]"))
        board.say("t", "[bold]x[/bold]")
    assert "[red]no[/red]" in said.getvalue()
    assert "[bold]x[/bold]" in said.getvalue()


def test_a_lost_attempt_and_warnings_are_told_and_daily_events_are_not() -> None:
    def event(type: str, **data: Any) -> StoredEvent:
        return StoredEvent.model_validate(
            {"seq": 1, "type": type, "at": "2026-11-22T10:00:00Z", "attempt": 1, "data": data}
        )

    assert (
        told(event("attempt_lost", reason="lease expired")) == "attempt 1 was lost (lease expired); the job continues"
    )
    assert told(event("note:checkpoint_corrupt", level="warning", message="took another")) == "warning: took another"
    assert told(event("note:calibration", level="info", message="")) is None
    assert told(event("evaluated")) is None


def test_a_report_names_the_defects_and_how_many_more_there_are() -> None:
    defects = tuple(Defect(code="box_outside", file=f"{n}.jpg", message="is out", action="kept") for n in range(30))
    report = Report(
        ok=True, format="coco", classes=("a",), splits={}, defect_counts={"box_outside": 30}, defects=defects
    )
    lines = report_lines(report)
    assert "  30 x box_outside" in lines
    assert lines[-2].strip() == "and 10 more"
    assert lines[-1].endswith(report.docs)


def test_what_was_asked_is_shown_until_it_is_done() -> None:
    assert figures(job("running", phase="training", requested="pause")).status == "pausing"
    assert figures(job("running", phase="training", requested="stop")).status == "finishing early"
    assert figures(job("paused")).status.startswith("paused")


def test_halved_batches_are_told() -> None:
    event = StoredEvent.model_validate(
        {"seq": 1, "type": "batch_halved", "at": "2026-11-22T10:00:00Z", "data": {"batch_size": 4, "accumulate": 2}}
    )
    assert told(event) == "out of memory; it continues with batches of 4, 2 per step"
