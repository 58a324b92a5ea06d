"""`fgd model ...`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from fgd.cli import facts
from fgd.cli.connection import URL, client_of
from fgd.cli.options import AsJson, JobId, ModelId, NameFilter, NewName, Url
from fgd.cli.printing import Columns, answer, byte_bars, err, fail, leave, note, print_line, show_one, table
from fgd.process.exit_codes import DONE, FAILED, REFUSED

if TYPE_CHECKING:
    from fgd.client import Client, Model

app = typer.Typer(no_args_is_help=True, help="Upload weights, or promote those of a job, to use them in jobs.")


@app.command("add")
def model_add(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="FILE|hf://...",
            help="safetensors, or a state dict (.pth); or hf://owner/name/file[@revision] of the hub.",
            show_default=False,
        ),
    ],
    classes: Annotated[str | None, typer.Option(help="Class names in label order: a,b,c.")] = None,
    classes_from: Annotated[
        Path | None, typer.Option(help="File with one class name per line.", exists=True, dir_okay=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model. [default: the file's name]")] = None,
    detector: Annotated[str, typer.Option(help="Family, as in the catalogue, or its whole spec as JSON.")] = "fcos",
    backbone: Annotated[str | None, typer.Option(help="Trunk: resnet18, resnet34, resnet50, ...")] = None,
    fpn_channels: Annotated[int | None, typer.Option(help="Width of the pyramid.")] = None,
    norm: Annotated[
        str | None,
        typer.Option(
            help="Normalisation of the trunk: batch, group; frozen as in torchvision's own functions. [default: batch]"
        ),
    ] = None,
    min_size: Annotated[
        int | None, typer.Option(help="Shorter side of the images it was trained with. [default: 800]")
    ] = None,
    max_size: Annotated[int | None, typer.Option(help="Longest side of the images. [default: 1333]")] = None,
    anchors: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help='Anchors it was trained with: {"anchor_sizes": [[32], [64], ...], "anchor_ratios": [0.5, 1, 2]}. '
            "[default: torchvision's]",
        ),
    ] = None,
    take: Annotated[
        Literal["ema", "raw"], typer.Option(help="Which weights to use if the file contains averaged and raw ones.")
    ] = "ema",
    wait: Annotated[bool, typer.Option(help="Wait until it is checked.")] = True,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Upload weights. The service checks them strictly against the detector you name.

    If the file is rejected, every key that is missing, unexpected or of the wrong shape is reported. A broken upload
    resumes by itself; after an interrupted one, run `fgd model upload`.
    """
    if (classes is None) == (classes_from is None):
        fail("name the classes: --classes a,b,c, or --classes-from FILE", REFUSED)
    text = classes.split(",") if classes is not None else (classes_from or Path()).read_text().splitlines()
    spec = dict(_read_object(detector, "--detector")) if detector.startswith("{") else {"kind": detector}
    spec |= {
        key: value
        for key, value in {"backbone": backbone, "fpn_channels": fpn_channels, "norm": norm}.items()
        if value is not None
    }
    sizes: dict[str, Any] = {
        key: value for key, value in {"min_size": min_size, "max_size": max_size}.items() if value is not None
    }
    sizes |= _read_object(anchors, "--anchors") if anchors is not None else {}
    sizes |= {"take": take} if take != "ema" else {}
    file = _weights_source(weights)
    with client_of(url) as client:
        names = [each.strip() for each in text if each.strip()]
        model = client.add_model(None, name or file.stem[:100], spec, names, **sizes)
        note(f"{model.id}: uploading {file.name}")
        _upload(client, model.id, file, wait, as_json)


@app.command("upload")
def model_upload(
    model: ModelId,
    weights: Annotated[
        str, typer.Argument(metavar="FILE|hf://...", help="The same file or hf:// address.", show_default=False)
    ],
    wait: Annotated[bool, typer.Option(help="Wait until it is checked.")] = True,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Resume an upload that was interrupted."""
    file = _weights_source(weights)
    with client_of(url) as client:
        _upload(client, model, file, wait, as_json)


@app.command("promote")
def model_promote(
    job: JobId,
    checkpoint: Annotated[str, typer.Option(help="last, best, or the id of one of the job's checkpoints.")] = "last",
    name: Annotated[str | None, typer.Option(help="Name of the model. [default: the job's name]")] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it is ready.")] = True,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Make a model of a job's weights."""
    with client_of(url) as client:
        model = client.promote(job, checkpoint, name)
        _tell_check(client, model, wait, as_json)


@app.command("list")
def model_list(
    name: NameFilter = None,
    state: Annotated[
        list[str] | None, typer.Option(help="awaiting_upload, verifying, ready, rejected; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to list at most, newest first.")] = 20,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """List models, newest first, or those that match."""
    with client_of(url) as client:
        columns: Columns = {
            "id": None, "name": None, "state": None, "detector": None, "classes": "right", "MB": "right",
        }  # fmt: skip
        answer(client.models(limit, name=name, states=state or ()), as_json, table(columns, _cells))


def _cells(model: Model) -> list[str]:
    detector = model.recipe.get("detector", {})
    return [
        model.id,
        model.name,
        model.state,
        " ".join(str(detector.get(key, "")) for key in ("kind", "backbone")),
        str(len(model.classes)),
        f"{model.size / 1e6:.1f}" if model.size else "-",
    ]


@app.command("show")
def model_show(model: ModelId, as_json: AsJson = False, url: Url = URL) -> None:
    """Show a model, with the result of its check. With --json, or in a pipe, it prints everything as JSON."""
    with client_of(url) as client:
        show_one(client.model(model), as_json, facts.of_model)


@app.command("change")
def model_change(model: ModelId, name: NewName, as_json: AsJson = False, url: Url = URL) -> None:
    """Change the name of a model, at any time.

    Example: `fgd model change MODEL --name cells`
    """
    with client_of(url) as client:
        changed = client.change_model(model, name=name)
    answer(changed, as_json, lambda model: print_line(f"{model.id}  changed"))


@app.command("delete")
def model_delete(model: ModelId, url: Url = URL) -> None:
    """Delete a model that no unfinished job uses."""
    with client_of(url) as client:
        client.delete_model(model)
    print_line(f"{model}  deleted")


def _weights_source(text: str) -> Path:
    from fgd.cli import hub

    if not hub.is_address(text):
        file = Path(text)
        if not file.is_file():
            fail(f"{text}: no such file", REFUSED)
        if not file.stat().st_size:
            fail(f"{text} is empty; it should contain weights", REFUSED)
        return file
    address = hub.file_address(text)
    note(f"downloading {address}")
    fetched = hub.fetch_file(address)
    note(f"it is {fetched.address}")
    return fetched.path


def _upload(client: Client, model_id: str, file: Path, wait: bool, as_json: bool) -> NoReturn:
    """Send the weights, with a bar that shows how far it is, and leave with what their check found."""
    with byte_bars() as bars:
        sending = bars.add_task("sending", total=file.stat().st_size)
        model = client.upload_model(model_id, file, lambda there: bars.update(sending, completed=there))
    _tell_check(client, model, wait, as_json)


def _tell_check(client: Client, model: Model, wait: bool, as_json: bool) -> NoReturn:
    """Print what became of a model, and leave with the exit code for it."""
    if wait and not model.ended:
        with err.status(f"checking {model.id}"):
            model = client.wait_model(model.id)
    answer(model, as_json, _print_check)
    leave(FAILED if model.state == "rejected" else DONE)


def _print_check(model: Model) -> None:
    for found in (model.report or {}).get("notes", []):
        print_line(found)
    if model.error:
        print_line(model.error)
    print_line(f"{model.id}  {model.state}")


def _read_object(text: str, option: str) -> Mapping[str, Any]:
    try:
        body = json.loads(text)
    except ValueError as error:
        fail(f"{option}: not JSON: {error}", REFUSED)
    if not isinstance(body, dict):
        fail(f"{option}: an object is expected, {{...}}", REFUSED)
    return body
