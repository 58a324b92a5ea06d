"""`fgd evaluate`, `fgd predict`, and `fgd export` by a worker: what a worker of a service works out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import typer
from rich.text import Text

from fgd.cli.connection import URL, client_of
from fgd.cli.names import id_of, named
from fgd.cli.options import AsJson, Url
from fgd.cli.printing import Columns, answer, err, fail, leave, note, out, print_error, print_line, table
from fgd.process.exit_codes import DONE, FAILED, REFUSED
from fgd.text.printable import printable

if TYPE_CHECKING:
    from fgd.client import Evaluation, Export, Prediction, Task
    from fgd.evaluated import ClassFigures

app = typer.Typer()

T = TypeVar("T", bound="Task")

Teacher = Annotated[bool, typer.Option("--teacher", help="The teacher of the job, not its student.")]
Best = Annotated[bool, typer.Option("--best", help="The student's best weights instead of the last ones.")]
Wait = Annotated[bool, typer.Option(help="Wait until it has ended.")]
FIGURES = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l", "ar1", "ar10", "ar100")


@app.command(rich_help_panel="Use a service")
def evaluate(
    network: Annotated[
        str,
        typer.Argument(
            metavar="JOB|MODEL|EVALUATION",
            help="Id or name of a job or a model; or the id of an evaluation that was asked for before.",
            show_default=False,
        ),
    ],
    dataset: Annotated[
        str | None, typer.Option(help="Id or name of a data set. [default: the job's own]", callback=named("dataset"))
    ] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which of its images.")] = "val",
    teacher: Teacher = False,
    best: Best = False,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where; auto takes a GPU if one is free.")
    ] = "auto",
    detections: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Download detections.npz into this folder.", file_okay=False)
    ] = None,
    wait: Wait = True,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Evaluate a model, or a job's student or teacher, on a split of any data set.

    Classes are matched by name. Prints AP and AR, of each class as well; --json has precision-recall curves and the
    confusion matrix too. Detections of each image are in detections.npz.
    """
    with client_of(url) as client:
        if network.startswith("evl_"):
            found = client.evaluation(network)
        else:
            chosen = named_network(id_of(client, network, "job", "model"), teacher, best)
            found = client.evaluate(**chosen, dataset=dataset, split=split, device=device)
        if wait:
            found = waited(client.wait_evaluation, found, "evaluating")
        answer(found, as_json, _show_evaluation)
        if detections is not None and found.files:
            note(f"{client.download_file(found.files[0], detections)}")
    end(found)


def _show_evaluation(found: Evaluation) -> None:
    print_line(found.id)
    if names := found.classes.only_dataset:
        note(f"the network does not know {_some(names)}: their boxes are left out")
    if names := found.classes.only_network:
        note(f"the data set does not have {_some(names)}: detections of these are left out")
    if found.result is None:
        return
    result = found.result
    print_line(f"{result.images} images, {result.boxes} boxes, {result.seconds:.1f} s on {result.device}")
    figures = [[name, _number(getattr(result, name))] for name in FIGURES]
    table({"figure": None, "value": "right"}, _as_it_is)(figures)
    columns: Columns = {"class": None, "boxes": "right", "ap": "right"}
    table(columns, _class_cells)(result.per_class)


def _as_it_is(cells: list[str]) -> list[str]:
    return cells


def _class_cells(figures: ClassFigures) -> list[str]:
    return [figures.name, str(figures.boxes), _number(figures.ap)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _some(names: Iterable[str], most: int = 8) -> str:
    found = list(names)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


# --- exports: the command is `fgd export` of library.py ---------------------------------------------------------


def export(network: dict[str, Any], onnx: Path, more: dict[str, Any], as_json: bool, url: str) -> NoReturn:
    """Have a worker write the file, and fetch it with the program that shows how to use it and, in INT8, the report."""
    if onnx.suffix != ".onnx":
        fail(f"--onnx: {onnx}: must end in .onnx", REFUSED)
    names = {"content": onnx.name, "usage": f"{onnx.stem}_onnx.py", "report": f"{onnx.stem}_int8.json"}
    with client_of(url) as client:
        made = waited(client.wait_export, client.export(**network, **more), "a worker is writing the file")
        files = [file for file in made.files if file.role in names]
        fetched = [client.download_file(file, onnx.parent, name=names[file.role]) for file in files]
    answer(made, as_json, _show_export)
    for file in fetched:
        note(str(file))
    end(made)


def _show_export(made: Export) -> None:
    if (result := made.result) is None:
        return
    height, width = result.size
    print_line(
        f"input     float32 {result.batch or 'batch'} x 3 x {height} x {width}, RGB in 0..1, opset {result.opset}"
    )
    print_line(f"compared  {result.detections} detections on {result.compared_on}")
    print_line(f"largest   difference: boxes {result.box_px:.1e} px, scores {result.score:.1e}")
    print_line(
        f"ms/batch  torch {result.torch_ms:.1f}, onnxruntime {result.onnxruntime_ms:.1f}, "
        f"on {result.threads} thread{'s' * (result.threads != 1)} of the worker"
    )
    if result.int8 is not None:
        from fgd.text import int8_table

        int8_table.show(result.int8, out)


# --- predictions ------------------------------------------------------------------------------------------------


@app.command(rich_help_panel="Use a service")
def predict(
    picture: Annotated[
        Path, typer.Argument(metavar="PHOTO", help="JPEG, PNG, WebP, BMP, TIFF or GIF.", exists=True, dir_okay=False)
    ],
    job: Annotated[
        str | None, typer.Option(help="Job whose student, teacher and control look at it.", callback=named("job"))
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model that looks at it, instead of a job.", callback=named("model"))
    ] = None,
    best: Best = False,
    score: Annotated[float, typer.Option(min=0, max=1, help="Leave out detections with a lower score.")] = 0.3,
    to: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.png", help="Draw the boxes, one picture for each network.", dir_okay=False),
    ] = None,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Show what the networks of a job find in a picture: teacher, control and student.

    Boxes are left, top, right, bottom in pixels of the picture as it is shown. A worker computes them; nothing needs to
    be installed here.

    Example: `fgd predict photo.jpg --job JOB --out found.png`
    """
    if (job is None) == (model is None):
        fail("name the networks: --job JOB, or --model MODEL", REFUSED)
    if model is not None and best:
        fail("a model has one set of weights: leave out --best", REFUSED)
    if to is not None and to.suffix.lower() != ".png":
        fail(f"--out: {to}: must end in .png", REFUSED)
    with client_of(url) as client:
        found = client.predict(picture, job=job, model=model, which="best" if best else "last", score=score)
        found = waited(client.wait_prediction, found, "looking")
    answer(found, as_json, _show_prediction)
    if to is not None and found.result is not None:
        from fgd.cli.drawing import draw

        draw(picture, found.result, to)
        note(str(to))
    end(found)


def _show_prediction(found: Prediction) -> None:
    if found.result is None:
        return
    for each in found.result.networks:
        if not each.detections:
            note(f"{each.role}: nothing with this score")
    columns: Columns = {"network": None, "class": None, "score": "right", "box": None}
    rows = [
        [each.role, found.name, f"{found.score:.2f}", " ".join(f"{side:.0f}" for side in found.box)]
        for each in found.result.networks
        for found in each.detections
    ]
    table(columns, _as_it_is)(rows)


# --- what all of them do ----------------------------------------------------------------------------------------


def named_network(id: str, teacher: bool, best: bool) -> dict[str, Any]:
    """The network as the service wants it named."""
    if id.startswith("mdl_"):
        if teacher or best:
            fail("a model is one network with one set of weights: leave out --teacher and --best", REFUSED)
        return {"model": id}
    if not id.startswith("job_"):
        fail(f"{id}: neither a job's id (job_...) nor a model's (mdl_...)", REFUSED)
    return {"job": id, "network": "teacher" if teacher else "student", "which": "best" if best else "last"}


def waited(wait: Callable[[str], T], found: T, doing: str) -> T:
    """What became of it. Ctrl-C leaves it to the worker."""
    if found.ended:
        return found
    with err.status(Text(printable(found.waiting_reason or doing))):
        return wait(found.id)


def end(found: Task) -> NoReturn:
    """Leave with the exit code for it."""
    if found.error is not None:
        where = f"{found.error.pointer}: " if found.error.pointer else ""
        print_error(f"{found.error.code}: {where}{found.error.message}")
    leave(FAILED if found.state == "failed" else DONE)
