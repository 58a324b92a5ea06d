"""What the client reads is a part of what the service answers."""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from api import schemas
from api.core import compared_detections, leaderboard, paired_runs, report_views
from api.routes import studies
from fgd.client import answers, images

VIEWS: dict[type[answers.Answer], type[BaseModel]] = {
    answers.Progress: schemas.ProgressView,
    answers.Failure: schemas.FailureView,
    answers.Job: schemas.JobView,
    answers.Summary: schemas.SummaryView,
    answers.Attempt: schemas.AttemptView,
    answers.Running: schemas.RunningView,
    answers.Worker: schemas.WorkerView,
    answers.StoredEvent: schemas.EventView,
    answers.MetricPoint: schemas.PointView,
    answers.Artifact: schemas.ArtifactView,
    answers.Split: schemas.SplitView,
    answers.Dataset: schemas.DatasetView,
    answers.File: schemas.FileView,
    answers.TaskFile: schemas.FileView,
    answers.TaskError: schemas.ErrorView,
    answers.Task: schemas.TaskView,
    answers.Classes: schemas.ClassesView,
    answers.Looker: schemas.LookerView,
    answers.Prediction: schemas.PredictionView,
    answers.Export: schemas.ExportView,
    answers.Evaluation: schemas.EvaluationView,
    answers.Plan: schemas.PlanView,
    answers.Model: schemas.ModelView,
    answers.Checkpoint: schemas.CheckpointView,
    answers.FocusStep: schemas.FocusStepView,
    answers.JobReport: report_views.JobReport,
    images.NamedSample: schemas.NamedSample,
    images.ImageCounts: compared_detections.ImageCounts,
    images.ComparedImage: compared_detections.ComparedImage,
    images.ComparedDetections: compared_detections.ComparedDetections,
    answers.Study: studies.StudyView,
    answers.OutlinedRun: studies.OutlinedRun,
    answers.StudyOutline: studies.StudyOutline,
    answers.Interval: paired_runs.Interval,
    answers.Quality: leaderboard.Quality,
    answers.StudyRun: leaderboard.RunView,
    answers.BoardRow: leaderboard.Row,
    answers.Leaderboard: leaderboard.Leaderboard,
}


def takes(read: Any, sent: Any) -> bool:
    """Whether a field annotated with `read` can hold all that one annotated with `sent` may."""
    if read is Any or read == sent:
        return True
    if get_origin(sent) in (Union, UnionType):
        return all(takes(read, each) for each in get_args(sent))
    if get_origin(read) in (Union, UnionType):
        return any(takes(each, sent) for each in get_args(read))
    if get_origin(sent) is Literal:
        return all(takes(read, type(word)) for word in get_args(sent))
    if get_origin(read) is tuple and get_origin(sent) is list:
        return takes(get_args(read)[0], get_args(sent)[0])
    if get_origin(read) is dict and get_origin(sent) is dict:
        return all(map(takes, get_args(read), get_args(sent)))
    if get_origin(read) is dict and isinstance(sent, type) and issubclass(sent, BaseModel):
        return all(takes(get_args(read)[1], field.annotation) for field in sent.model_fields.values())
    if not isinstance(read, type) or not isinstance(sent, type):
        return False
    return issubclass(sent, read) or VIEWS.get(read) is sent or (read is float and sent is int)


def test_every_answer_has_its_view() -> None:
    assert set(VIEWS) == below(answers.Answer)


def below(answer: type[answers.Answer]) -> set[type[answers.Answer]]:
    return {found for each in answer.__subclasses__() for found in (each, *below(each))}


@pytest.mark.parametrize("answer", VIEWS, ids=lambda answer: answer.__name__)
def test_the_client_reads_only_what_the_service_sends(answer: type[answers.Answer]) -> None:
    sent = VIEWS[answer].model_fields
    for name, field in answer.model_fields.items():
        assert name in sent, f"{answer.__name__}.{name}: the service sends no such field"
        assert takes(field.annotation, sent[name].annotation), (
            f"{answer.__name__}.{name} is {field.annotation}, the service sends {sent[name].annotation}"
        )


@pytest.mark.parametrize(
    ("read", "sent"),
    [
        (str, str | None),
        (int, float),
        (tuple[str, ...], list[int]),
        (dict[str, str], dict[str, Any]),
        (str, dict),
        (dict[str, int], schemas.FileView),
    ],
)
def test_a_field_that_is_too_narrow_is_found(read: Any, sent: Any) -> None:
    assert not takes(read, sent)
