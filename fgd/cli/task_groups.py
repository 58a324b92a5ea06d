"""`fgd evaluation`, `fgd exported`, `fgd prediction`: what workers have worked out, listed, shown, deleted.

`fgd evaluate`, `fgd export` and `fgd predict` of tasks.py and library.py ask for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from fgd.cli.connection import URL, client_of
from fgd.cli.facts import moment
from fgd.cli.names import named
from fgd.cli.options import AsJson, Url
from fgd.cli.printing import Columns, answer, print_line, show_one, table

if TYPE_CHECKING:
    from fgd.client import Evaluation, Export, Prediction

    Asked = Evaluation | Export | Prediction

evaluation = typer.Typer(no_args_is_help=True, help="List, show and delete evaluations; `fgd evaluate` makes one.")
exported = typer.Typer(no_args_is_help=True, help="List, show and delete exported files; `fgd export` makes one.")
prediction = typer.Typer(no_args_is_help=True, help="List, show and delete predictions; `fgd predict` makes one.")

Most = Annotated[int, typer.Option("--limit", min=1, help="How many to list at most.")]
States = Annotated[list[str] | None, typer.Option("--state", help="pending, succeeded, failed; may be repeated.")]
OfJob = Annotated[
    str | None, typer.Option("--job", metavar="JOB", help="Only those of this job.", callback=named("job"))
]
OfModel = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="Only those of this model.", callback=named("model"))
]
OnData = Annotated[
    str | None,
    typer.Option("--dataset", metavar="DATASET", help="Only those on this data set.", callback=named("dataset")),
]
EvaluationId = Annotated[str, typer.Argument(metavar="EVALUATION", help="Its id: evl_...", show_default=False)]
ExportId = Annotated[str, typer.Argument(metavar="EXPORT", help="Its id: exp_...", show_default=False)]
PredictionId = Annotated[str, typer.Argument(metavar="PREDICTION", help="Its id: pred_...", show_default=False)]
COLUMNS: Columns = {"id": None, "state": None, "of": None, "what": None, "created": None}


@evaluation.command("list")
def evaluation_list(
    state: States = None,
    job: OfJob = None,
    model: OfModel = None,
    dataset: OnData = None,
    limit: Most = 20,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """List evaluations, newest first, or those that match."""
    with client_of(url) as client:
        found = client.evaluations(limit, states=state or (), job=job, model=model, dataset=dataset)
        answer(found, as_json, table(COLUMNS, _of_evaluation))


@evaluation.command("show")
def evaluation_show(evaluation: EvaluationId, as_json: AsJson = False, url: Url = URL) -> None:
    """Show an evaluation. With --json, or in a pipe, it prints everything; `fgd evaluate EVALUATION` has its tables."""
    with client_of(url) as client:
        show_one(client.evaluation(evaluation), as_json, _facts_of_evaluation)


@evaluation.command("delete")
def evaluation_delete(evaluation: EvaluationId, url: Url = URL) -> None:
    """Delete an evaluation and its detections."""
    with client_of(url) as client:
        client.delete_evaluation(evaluation)
    print_line(f"{evaluation}  deleted")


@exported.command("list")
def exported_list(
    state: States = None,
    job: OfJob = None,
    model: OfModel = None,
    dataset: OnData = None,
    limit: Most = 20,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """List exports, newest first, or those that match."""
    with client_of(url) as client:
        found = client.exports(limit, states=state or (), job=job, model=model, dataset=dataset)
        answer(found, as_json, table(COLUMNS, _of_export))


@exported.command("show")
def exported_show(export: ExportId, as_json: AsJson = False, url: Url = URL) -> None:
    """Show an export. With --json, or in a pipe, it prints everything as JSON."""
    with client_of(url) as client:
        show_one(client.exported(export), as_json, _facts_of_export)


@exported.command("delete")
def exported_delete(export: ExportId, url: Url = URL) -> None:
    """Delete an export and its files."""
    with client_of(url) as client:
        client.delete_export(export)
    print_line(f"{export}  deleted")


@prediction.command("list")
def prediction_list(
    state: States = None,
    job: OfJob = None,
    model: OfModel = None,
    limit: Most = 20,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """List predictions, newest first, or those that match. They are kept for a day."""
    with client_of(url) as client:
        found = client.predictions(limit, states=state or (), job=job, model=model)
        answer(found, as_json, table(COLUMNS, _of_prediction))


@prediction.command("show")
def prediction_show(prediction: PredictionId, as_json: AsJson = False, url: Url = URL) -> None:
    """Show a prediction. With --json, or in a pipe, it prints every box as JSON."""
    with client_of(url) as client:
        show_one(client.prediction(prediction), as_json, _facts_of_prediction)


@prediction.command("delete")
def prediction_delete(prediction: PredictionId, url: Url = URL) -> None:
    """Delete a prediction."""
    with client_of(url) as client:
        client.delete_prediction(prediction)
    print_line(f"{prediction}  deleted")


# --- what is shown --------------------------------------------------------------------------------------------


def _of_evaluation(found: Evaluation) -> list[str]:
    ap = "" if found.result is None or found.result.ap is None else f", AP {found.result.ap:.1f}"
    return _cells(found, f"{found.network} on {found.split} of {found.dataset}{ap}")


def _of_export(found: Export) -> list[str]:
    int8 = found.result.int8 if found.result is not None else None
    ap = "" if int8 is None else f", AP {int8.int8.ap:.1f} of {int8.float32.ap:.1f}"
    return _cells(found, f"{found.network}, {found.which} weights, {found.format}{ap}")


def _of_prediction(found: Prediction) -> list[str]:
    return _cells(found, ", ".join(each.role for each in found.networks))


def _cells(found: Asked, what: str) -> list[str]:
    created = f"{found.created_at.astimezone():%Y-%m-%d %H:%M}" if found.created_at else "-"
    return [found.id, found.state, found.job or found.model or "-", what, created]


def _facts_of_evaluation(found: Evaluation) -> Iterable[tuple[str, str]]:
    return _facts(found, _of_evaluation(found))


def _facts_of_export(found: Export) -> Iterable[tuple[str, str]]:
    return _facts(found, _of_export(found))


def _facts_of_prediction(found: Prediction) -> Iterable[tuple[str, str]]:
    return _facts(found, _of_prediction(found))


def _facts(found: Asked, cells: list[str]) -> Iterable[tuple[str, str]]:
    yield from zip(("id", "state", "of", "what"), cells, strict=False)
    yield "waits for", found.waiting_reason or ""
    yield "error", f"{found.error.code}: {found.error.message}" if found.error else ""
    yield "files", ", ".join(file.name for file in found.files)
    yield "created", moment(found.created_at)
