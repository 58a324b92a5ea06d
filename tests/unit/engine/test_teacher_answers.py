"""What one training found out about a teacher spares the next one the work, and never lies."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from fgd.engine.laps import process_age_s
from fgd.engine.teacher_answers import FOLDER, TeacherAnswers
from fgd.events import Finished, Note, Phase
from fgd.spec import JobSpec

QUESTION = {"teacher": "ab", "sizes": [64, 64]}


def test_an_answer_is_kept_and_comes_back(tmp_path: Path) -> None:
    TeacherAnswers(tmp_path / "new").keep(QUESTION, {"ap50": 41.25, "rms": {"p3": 0.1}})
    assert TeacherAnswers(tmp_path / "new").answer(QUESTION) == {"ap50": 41.25, "rms": {"p3": 0.1}}
    assert TeacherAnswers(tmp_path / "new").answer(QUESTION | {"teacher": "ac"}) is None


def test_no_box_to_find_is_an_answer_too(tmp_path: Path) -> None:
    TeacherAnswers(tmp_path).keep(QUESTION, {"ap50": math.nan})
    assert math.isnan(TeacherAnswers(tmp_path).answer(QUESTION)["ap50"])


@pytest.mark.parametrize(
    "spoil", [lambda text: text[: len(text) // 2], lambda text: text.replace("41", "99"), lambda _: ""]
)
def test_a_torn_or_changed_file_is_no_answer(tmp_path: Path, spoil: Callable[[str], str]) -> None:
    TeacherAnswers(tmp_path).keep(QUESTION, {"ap50": 41.25})
    (file,) = tmp_path.iterdir()
    file.write_text(spoil(file.read_text()))
    assert TeacherAnswers(tmp_path).answer(QUESTION) is None
    TeacherAnswers(tmp_path).keep(QUESTION, {"ap50": 41.25})
    assert TeacherAnswers(tmp_path).answer(QUESTION) == {"ap50": 41.25}


def test_the_answer_to_another_question_under_this_ones_name_is_none(tmp_path: Path) -> None:
    for number in (1, 2):
        TeacherAnswers(tmp_path).keep({"teacher": number}, number)
    one, two = tmp_path.iterdir()
    shutil.copy(one, two)
    assert [TeacherAnswers(tmp_path).answer({"teacher": number}) for number in (1, 2)].count(None) == 1


def test_a_folder_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    TeacherAnswers(tmp_path / "file" / "cache").keep(QUESTION, 1)
    assert TeacherAnswers(tmp_path / "file" / "cache").answer(QUESTION) is None


def test_only_so_many_answers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgd.engine.teacher_answers.MOST", 3)
    for number in range(5):
        TeacherAnswers(tmp_path).keep({"teacher": number}, number)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_process_has_an_age() -> None:
    assert 0 < process_age_s() < 24 * 3600


# --- in trainings -----------------------------------------------------------------------------------------------

Train = Callable[..., Any]
MakeSpec = Callable[..., JobSpec]


def notes(run: Any) -> dict[str, Note]:
    return {note.code: note for note in run.of(Note)}


def digest(run: Any) -> str:
    (finished,) = run.of(Finished)
    return str(finished.weights_digest)


@pytest.mark.slow
def test_the_second_training_of_a_teacher_neither_checks_nor_calibrates_it(
    train: Train, make_spec: MakeSpec, teacher: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits, data)

    def distilled(**schedule: Any) -> Any:
        reference = {"path": str(teacher), "allow_unfit": True}
        spec = make_spec(
            teacher=reference, methods=[{"kind": "fgd"}], dataset={"path": str(data)}, schedule={"epochs": 1} | schedule
        )
        return train(spec)

    monkeypatch.setenv(FOLDER, str(tmp_path / "teachers"))
    first, second = distilled(), distilled()
    for code in ("teacher_checked", "calibration"):
        assert "cached" not in notes(first)[code].data
        assert notes(second)[code].data == notes(first)[code].data | {"cached": True}
        assert "an earlier training" in notes(second)[code].message
    assert digest(second) == digest(first), "the same steps of the same values"
    assert (second.result / "manifest.json").read_bytes() == (first.result / "manifest.json").read_bytes()
    assert [e.phase for e in second.of(Phase)] == [e.phase for e in first.of(Phase)]

    smaller = distilled(min_size=32, max_size=32)
    assert "cached" not in notes(smaller)["teacher_checked"].data | notes(smaller)["calibration"].data

    changed = min((data / "train").iterdir())
    with Pillow.open(changed) as image:
        Pillow.new("RGB", image.size).save(changed)
    other = distilled()
    assert notes(other)["teacher_checked"].data["cached"] is True
    assert "cached" not in notes(other)["calibration"].data, "the pixels of a training image are others"

    for file in (tmp_path / "teachers").iterdir():
        file.write_bytes(file.read_bytes()[:-9])
    assert "cached" not in notes(distilled())["teacher_checked"].data


@pytest.mark.slow
def test_each_second_before_the_first_step_has_a_name(train: Train, make_spec: MakeSpec, teacher: Path) -> None:
    spec = make_spec(
        teacher={"path": str(teacher), "allow_unfit": True}, methods=[{"kind": "fgd"}], schedule={"epochs": 1}
    )
    told = notes(train(spec))["started_in"]
    named = ["imports", "device", "data", "student", "teacher", "teacher check", "calibration", "optimiser"]
    assert list(told.data) == [*named, "total"]
    assert told.data["total"] == pytest.approx(sum(told.data[name] for name in named), abs=0.01)
    assert json.dumps(told.data)
