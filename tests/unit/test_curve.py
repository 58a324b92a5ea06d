from __future__ import annotations

import io

from rich.console import Console

from fgd.cli.curve import ApCurve, curve_lines
from fgd.cli.watch import Board
from fgd.client import Client, Job
from tests.unit.http_fake import Answer, closed_port, job_json, serving

CONTROL = "job_" + "c" * 32


def test_both_curves_have_the_same_steps_and_heights() -> None:
    own, control = {10: 0.0, 20: 7.0, 30: 14.0}, {10: 0.0, 20: 2.0, 30: 4.0, 40: 6.0}
    assert curve_lines(own, control, width=4) == [
        "AP       ▁▅█   14.0",
        "control  ▁▂▃▄  6.0; after step 30 the student has +10.0",
    ]


def test_what_is_level_or_begins_late_is_drawn_too() -> None:
    assert curve_lines({30: 5.0, 40: 5.0}, {}, width=4) == ["AP         ▁▁  5.0"]
    assert curve_lines({10: 5.0}, {}) == []


def watched(ap: float, epoch: int, **more: object) -> Job:
    progress = {"step": 2, "total_steps": 3, "epoch": epoch, "epochs": 3, "values": {"val/ap": ap}}
    return Job.model_validate(job_json(progress=progress, **more))


def series(*values: float) -> Answer:
    points = [{"name": "ap", "split": "val", "step": step, "value": value} for step, value in enumerate(values, 1)]
    return Answer(body={"items": [*points, {"name": "ap", "split": "test", "step": 9, "value": 99.0}]})


def test_a_job_is_drawn_beside_its_control_and_asked_for_again_only_when_it_is_further() -> None:
    job = watched(2.0, 1, spec={"methods": [{"kind": "fgd"}]})
    with serving() as server, Client(server.url) as client:
        summary = {"id": job.id, "name": "a", "state": "running", "created_at": "2026-11-30T10:00:00Z"}
        server.routes[("GET", "/v1/summaries")] = Answer(body={"items": [summary | {"control": CONTROL}]})
        server.routes[("GET", f"/v1/jobs/{job.id}/metrics")] = series(1.0, 2.0)
        server.routes[("GET", f"/v1/jobs/{CONTROL}/metrics")] = series(1.0, 1.5)
        curve = ApCurve(client)
        lines = curve.of(job)
        assert lines[0].endswith("2.0")
        assert lines[1].endswith("after step 2 the student has +0.5")
        asked = len(server.asked)
        assert (curve.of(job), curve.of(None)) == (lines, lines)
        assert len(server.asked) == asked


def test_a_service_that_is_away_does_not_end_the_watching() -> None:
    with Client(f"http://127.0.0.1:{closed_port()}", attempts=1) as client:
        assert ApCurve(client).of(watched(2.0, 1)) == ()


def test_the_curve_stands_below_the_bar_on_a_screen() -> None:
    said = io.StringIO()
    with Board(Console(file=said, width=120, force_terminal=True), ["teacher"]) as board:
        board.draw(["AP  ▁█  3.0"])
        board.show("teacher", watched(3.0, 1))
    shown = said.getvalue()
    assert shown.rindex("▁█") > shown.rindex("epoch 1/3")
