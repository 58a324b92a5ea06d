"""`fgd dataset ...`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from fgd.cli import facts
from fgd.cli.connection import URL, client_of
from fgd.cli.options import AsJson, DatasetId, NameFilter, NewName, Url
from fgd.cli.printing import (
    Columns,
    answer,
    byte_bars,
    err,
    fail,
    leave,
    note,
    print_error,
    print_line,
    show_one,
    table,
)
from fgd.data.format_list import TITLES, FormatName
from fgd.process.exit_codes import DONE, FAILED, REFUSED
from fgd.text.printable import printable

if TYPE_CHECKING:
    from fgd.client import Client, Dataset
    from fgd.data.index import Report

app = typer.Typer(no_args_is_help=True, help="Import data sets, and read what the importer found.")


@app.command("add")
def dataset_add(
    name: Annotated[str, typer.Argument(help="Name of the data set.", show_default=False)],
    path: Annotated[
        str,
        typer.Argument(
            help=f"Folder or .zip: {TITLES}; or hf://owner/name[@revision] on the Hugging Face hub.",
            metavar="FOLDER|ZIP|hf://...",
            show_default=False,
        ),
    ],
    verify: Annotated[
        Literal["full", "headers"], typer.Option(help="full decodes every image, headers reads only their headers.")
    ] = "full",
    format: Annotated[FormatName, typer.Option(help="Format of the files; auto detects it.")] = "auto",
    val_fraction: Annotated[
        float | None, typer.Option(help="Share of train that becomes val if there is no val split. [default: 0.1]")
    ] = None,
    group_by: Annotated[
        Literal["none", "prefix"],
        typer.Option(help="prefix keeps photo_1 and photo_2 in the same split when val is made."),
    ] = "none",
    upload: Annotated[
        bool, typer.Option("--upload", help="Upload it, even if the service can read the folder.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait for the import and print its report.")] = True,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Import a folder below one of the service's FGD_DATA_ROOTS; any other folder, or a zip, is uploaded.

    A broken upload resumes by itself; after an interrupted one, run `fgd dataset upload`. Data on the Hugging Face hub
    is downloaded on this machine, into the hub's cache, and uploaded; HF_TOKEN and HF_ENDPOINT work as usual.
    """
    source, links_into = _dataset_source(path)
    how = {"verify": verify, "format": format, "val_fraction": val_fraction, "group_by": group_by}
    with client_of(url) as client:
        here = upload or source.is_file() or links_into is not None
        dataset = None if here else _add_by_path(client, name, source, how)
        if dataset is None:
            dataset = client.add_dataset(name, None, **how)  # type: ignore[arg-type]
            note(f"{dataset.id}: uploading {path}")
            _upload(client, dataset.id, source, links_into)
        _tell_import(client, dataset.id, wait, as_json)


@app.command("upload")
def dataset_upload(
    dataset: DatasetId,
    path: Annotated[
        str,
        typer.Argument(
            help="The same folder, .zip or hf:// address.", metavar="FOLDER|ZIP|hf://...", show_default=False
        ),
    ],
    wait: Annotated[bool, typer.Option(help="Wait for the import and print its report.")] = True,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Resume an upload that was interrupted."""
    source, links_into = _dataset_source(path)
    with client_of(url) as client:
        _upload(client, dataset, source, links_into)
        _tell_import(client, dataset, wait, as_json)


@app.command("change")
def dataset_change(dataset: DatasetId, name: NewName, as_json: AsJson = False, url: Url = URL) -> None:
    """Change the name of a data set, at any time.

    Example: `fgd dataset change DATASET --name cells`
    """
    with client_of(url) as client:
        changed = client.change_dataset(dataset, name=name)
    answer(changed, as_json, lambda dataset: print_line(f"{dataset.id}  changed"))


@app.command("delete")
def dataset_delete(dataset: DatasetId, url: Url = URL) -> None:
    """Delete a data set that no job uses."""
    with client_of(url) as client:
        client.delete_dataset(dataset)
    print_line(f"{dataset}  deleted")


@app.command("list")
def dataset_list(
    name: NameFilter = None,
    state: Annotated[
        list[str] | None, typer.Option(help="awaiting_upload, verifying, ready, rejected; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to list at most, newest first.")] = 20,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """List data sets, newest first, or those that match."""
    with client_of(url) as client:
        columns: Columns = {"id": None, "name": None, "state": None, "images": "right", "classes": "right"}
        answer(client.datasets(limit, name=name, states=state or ()), as_json, table(columns, _cells))


def _cells(dataset: Dataset) -> list[str]:
    images = sum(split.images for split in (dataset.splits or {}).values())
    return [dataset.id, dataset.name, dataset.state, str(images), str(len(dataset.classes or ()))]


@app.command("show")
def dataset_show(dataset: DatasetId, as_json: AsJson = False, url: Url = URL) -> None:
    """Show a data set. With --json, or in a pipe, it prints everything as JSON."""
    with client_of(url) as client:
        show_one(client.dataset(dataset), as_json, facts.of_dataset)


@app.command("report")
def dataset_report(dataset: DatasetId, as_json: AsJson = False, url: Url = URL) -> None:
    """Print what the importer found: counts, and every kind of defect."""
    with client_of(url) as client:
        answer(client.report(dataset), as_json, _print_report)


def _add_by_path(client: Client, name: str, path: Path, how: dict[str, Any]) -> Dataset | None:
    """None: the service cannot read that folder, and here it is, to be sent."""
    from fgd.client import ApiError

    try:
        return client.add_dataset(name, path.absolute(), **how)
    except ApiError as error:
        if error.code not in ("path_not_allowed", "path_not_found"):
            raise
        if path.is_dir():
            return None
        print_error(f"there is no folder or zip {path} on this machine, and the service cannot read it on its own:")
        raise


def _dataset_source(text: str) -> tuple[Path, Path | None]:
    """Folder or zip; of the hub, the folder in its cache, and where its links lead."""
    from fgd.cli import hub

    if not hub.is_address(text):
        return Path(text), None
    address = hub.dataset_address(text)
    note(f"downloading {address}")
    fetched = hub.fetch_dataset(address)
    note(f"it is {fetched.address}")
    return fetched.path, fetched.cache


def _upload(client: Client, dataset_id: str, path: Path, links_into: Path | None = None) -> None:
    """Send a zip, or make one of the folder first, with a bar that shows how far it is."""
    if not path.exists():
        fail(f"{path}: no such folder or zip", REFUSED)
    import tempfile

    from fgd.data import zips
    from fgd.data.zip_choice import choose

    with tempfile.TemporaryDirectory(prefix="fgd-") as folder, byte_bars() as bars:
        zip_path = path
        if not path.is_file():
            for left_out in choose(path, links_into).left_out:
                note(str(left_out))
            packing = bars.add_task("packing", total=None)
            zip_path = Path(folder) / "dataset.zip"
            zips.pack(path, zip_path, links_into)
            bars.remove_task(packing)
        sending = bars.add_task("sending", total=zip_path.stat().st_size)
        client.upload_dataset(dataset_id, zip_path, lambda there: bars.update(sending, completed=there))


def _tell_import(client: Client, dataset_id: str, wait: bool, as_json: bool) -> None:
    """Print what became of a data set, and leave with the exit code for it."""
    dataset = client.dataset(dataset_id)
    if wait:
        with err.status(Text(printable(f"importing {dataset.id}"))):
            dataset = client.wait_dataset(dataset.id)

    def show(dataset: Dataset) -> None:
        if wait:
            _print_report(client.report(dataset.id))
        print_line(f"{dataset.id}  {dataset.state}")
        if dataset.state == "ready" and err.is_terminal:
            note(f"next: fgd job spec --dataset {dataset.id} > teacher.yaml")

    answer(dataset, as_json, show)
    leave(FAILED if dataset.state == "rejected" else DONE)


def _print_report(report: Report) -> None:
    from fgd.cli.watch import report_lines

    for line in report_lines(report):
        print_line(line)
