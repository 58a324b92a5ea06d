"""Names and messages of strangers never steer the terminal they are shown on."""

from __future__ import annotations

import io
import json
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import fgd
from fgd.cli.watch import Board, report_lines
from fgd.client import ApiError, FieldError, Job
from fgd.data.index import Defect, Report
from fgd.detectors import trunks
from fgd.engine.progress import draw
from fgd.events import Finished, Note, Phase, Started
from fgd.text.printable import printable
from tests.unit.http_fake import job_json

NASTY = "\x1b]0;owned\x07\x9b31m\x7f\u202egpj\u2066[bold red]x[/nothing]"
SHOWN = "\\u001b]0;owned\\u0007\\u009b31m\\u007f\\u202egpj\\u2066[bold red]x[/nothing]"


def test_what_steers_a_terminal_is_written_out_and_the_rest_is_left_alone() -> None:
    assert printable(NASTY) == SHOWN
    assert printable("Käfer 甲虫 🪲 [x]\\u") == "Käfer 甲虫 🪲 [x]\\u"
    assert printable("a\n\tb", keep="\n\t") == "a\n\tb"
    assert printable("a\n\tb") == "a\\u000a\\u0009b"
    assert printable("\ud800") == "\\ud800"


@given(st.text())
def test_a_json_text_means_the_same_after_it(text: str) -> None:
    document = json.dumps({"name": text}, ensure_ascii=False)
    assert json.loads(printable(document)) == {"name": text}
    assert printable(printable(text)) == printable(text)


@pytest.mark.parametrize("what", ["model.py", "student_onnx.py"])
def test_the_scripts_beside_a_student_show_class_names_as_they_are_spelt(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if what == "model.py":
        source = trunks.MODEL_PY.format(classes=[NASTY], build="    pass")
    else:
        source = Path(fgd.__path__[0], "export/usage.py").read_text()
    loop = source[source.rindex("\n    for box, score, label in ") :].split("\n", 2)[2]
    found = {"CLASSES": [NASTY], "names": ("background", NASTY), "label": 1, "score": 0.5, "least": 0.3, "box": [1.0]}
    exec(textwrap.dedent(loop), found)  # the body of its last loop
    shown = capsys.readouterr().out
    assert "owned" in shown
    assert "[bold red]x[/nothing] 0.50 [1.0]" in shown
    assert not steers(shown)


def screen() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=300, color_system=None)


def seen(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def steers(text: str) -> bool:
    """Whether something of NASTY came through; the bars' own sequences are others."""
    return any(piece in text for piece in ("\x1b]", "\x07", "\x9b", "\x7f", "\u202e", "\u2066"))


def test_a_board_shows_a_job_s_name_and_reason_as_they_are_spelt() -> None:
    for console in (screen(), Console(file=io.StringIO(), width=300)):
        with Board(console, [NASTY]) as board:
            board.show(NASTY, Job.model_validate(job_json("queued") | {"waiting_reason": NASTY}))
            board.say(NASTY, NASTY)
        assert not steers(seen(console))
        assert seen(console).count(SHOWN) >= 4


def test_a_report_shows_class_and_file_names_as_they_are_spelt() -> None:
    defect = Defect(code="image_broken", file=NASTY, message=NASTY, action="dropped_image")
    report = Report(
        ok=True, format="coco", classes=(NASTY,), splits={}, defect_counts={"image_broken": 1}, defects=(defect,)
    )
    text = "".join(report_lines(report))
    assert not steers(text)
    assert text.count(SHOWN) == 3


def test_progress_shows_events_as_they_are_spelt() -> None:
    console = screen()
    emit = draw(console)
    emit(Started(step=0, total_steps=1, epochs=1, device=NASTY, threads=1, precision="fp32", versions={}))
    emit(Phase(phase=NASTY))
    emit(Note(code="inherited", message=NASTY))
    emit(Finished(step=1, folder=NASTY, files={}, weights_digest=""))
    assert not steers(seen(console))
    assert seen(console).count(SHOWN) >= 4


def test_an_error_of_the_service_keeps_its_lines_and_no_others() -> None:
    error = ApiError(422, "bad", "d", (FieldError("/a\n/b", "c", NASTY),), title="t")
    assert str(error).splitlines() == ["d (422 bad)", f"  /a\\u000a/b: {SHOWN}"]
