"""The command `fgd`. Knows options, tables and exit codes; the work is done by the client or by other processes.

Everything but typer is imported inside the commands: `fgd --help` answers at once, and no command loads torch.
"""

from __future__ import annotations

import codecs
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from fgd.text.printable import printable

if TYPE_CHECKING:
    from datetime import datetime

    from pydantic import BaseModel

    from api.core.settings import Settings
    from fgd.client import Artifact, Client, Dataset, Model, StoredEvent
    from fgd.data.index import Report

DONE, FAILED, REFUSED, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

ENDS = """
Environment: FGD_URL, the address of the service; FGD_API_KEY, its key.

Exit codes:

- 0: done
- 1: what was asked for failed: a job failed or was cancelled, a data set was rejected, a checksum did not match
- 2: the command or the request is wrong
- 3: no service answers, or it is broken
- 130: interrupted
"""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    # A traceback must not print local variables: one may be a key.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Distil a large detector into a small one: submit a job, watch it, download the student.",
    epilog=ENDS,
)
dataset_app = typer.Typer(no_args_is_help=True, help="Import data sets, and see what the importer found.")
job_app = typer.Typer(no_args_is_help=True, help="Submit jobs, watch them, cancel them.")
model_app = typer.Typer(no_args_is_help=True, help="Upload weights, promote those of a job, and see what they are.")
artifact_app = typer.Typer(no_args_is_help=True, help="List and download what a job made.")
app.add_typer(dataset_app, name="dataset", rich_help_panel="Use a service")
app.add_typer(job_app, name="job", rich_help_panel="Use a service")
app.add_typer(model_app, name="model", rich_help_panel="Use a service")
app.add_typer(artifact_app, name="artifact", rich_help_panel="Use a service")

out = Console()
err = Console(stderr=True)

Url = Annotated[str, typer.Option("--url", envvar="FGD_URL", help="Address of the service.", rich_help_panel="Service")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Home = Annotated[Path | None, typer.Option(help="Folder of everything the service writes. [default: .fgd]")]
JobIdArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job: job_...", show_default=False)]
DatasetIdArgument = Annotated[
    str, typer.Argument(metavar="DATASET", help="Id of a data set: ds_...", show_default=False)
]

ModelIdArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Id of a model: mdl_...", show_default=False)]

TIMES = ["%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]

URL = "http://127.0.0.1:8000"
"""`fgd.client.DEFAULT_URL`, which would cost the help its speed."""


# --- processes ------------------------------------------------------------------------------------------------


@app.command(rich_help_panel="Start here")
def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of your own (COCO, VOC, YOLO), not the handwritten digits.", exists=True, file_okay=False
        ),
    ] = None,
    home: Annotated[Path, typer.Option(help="Folder for service, data and results.")] = Path(".fgd/demo"),
    url: Annotated[
        str | None,
        typer.Option(envvar="FGD_URL", help="Use a running service on this machine instead of an embedded one."),
    ] = None,
) -> None:
    """Train a teacher, distil it into a student, and compare the two.

    Everything goes through the REST API of a service that the demo starts and stops itself. On two cores it takes
    at most 15 minutes. Ctrl-C stops it; the same command goes on where it stopped.
    """
    from fgd.cli.demo import run

    raise typer.Exit(run(home=home, data=data, url=url, api_key=_api_key(), console=out))


@app.command(rich_help_panel="Start here")
def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind. [default: 8000]")] = None,
    home: Home = None,
    data_root: Annotated[
        list[Path] | None,
        typer.Option(help="Folder below which data sets and teachers may be read; may be given several times."),
    ] = None,
) -> None:
    """Run the whole service on this machine: API, queue, database, blob store and one worker.

    Ctrl-C stops it within ten seconds; jobs go on from their last checkpoint at the next start. Every other setting
    is an FGD_* variable. A bind that is not loopback needs FGD_API_KEY (at least 32 characters).
    """
    from deploy.local import serve as run

    _exit(run(_settings(host=host, port=port, home=home, data_roots=tuple(data_root) if data_root else None)))


@app.command(rich_help_panel="Start here")
def worker(home: Home = None) -> None:
    """Run one more worker, for the database, broker and blob store that the FGD_* variables name."""
    if home is not None:
        os.environ["FGD_HOME"] = str(home.absolute())
    _become("worker")


@app.command(rich_help_panel="Look after a service")
def backup(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)],
    home: Home = None,
) -> None:
    """Copy database, blobs and checkpoints into a folder, while the service runs.

    For the database and store that the FGD_* variables name. Exits 1 if rows name files that the store has lost.
    """
    from deploy.backup import backup as run

    made = run(_settings(home=home), folder, say=err.print)
    _line(f"{folder}  {made.taken_at}  {len(made.blobs)} blobs, {len(made.objects)} checkpoints")
    for missing in made.missing:
        _line(f"missing from the store, and so from the backup: {missing}")
    _exit(FAILED if made.missing else DONE)


@app.command(rich_help_panel="Look after a service")
def restore(
    folder: Annotated[Path, typer.Argument(help="What `fgd backup` wrote.", exists=True, file_okay=False)],
    keep_store: Annotated[
        bool, typer.Option("--keep-store", help="The store still has its files; all stay, what is missing is added.")
    ] = False,
    home: Home = None,
) -> None:
    """Bring a backup back into the empty database and store that the FGD_* variables name, checked to the last byte.

    Jobs that ran when it was made go on from their last checkpoint as soon as a worker runs.
    """
    from deploy.backup import restore as run

    found = run(_settings(home=home), folder, keep_store, say=err.print)
    for line in found.lines():
        _line(line)
    _exit(FAILED if found.missing else DONE)


@app.command(rich_help_panel="Look after a service")
def doctor(
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the files that no row names. No worker may run.")
    ] = False,
    older_than_h: Annotated[
        float, typer.Option(min=1.0, help="Only files at least so many hours old; younger ones may get a row.")
    ] = 24.0,
    home: Home = None,
) -> None:
    """Compare database and store: files that no row names, and rows whose files are gone (exit code 1)."""
    from deploy.doctor import examine

    found = examine(_settings(home=home), older_than_h * 3600.0, delete)
    for line in found.lines():
        _line(line)
    if found.whole:
        _line("database and store agree")
    elif delete:
        _line(f"deleted {len(found.stray_blobs)} blobs and {len(found.stray_objects)} checkpoints")
    _exit(FAILED if found.missing else DONE)


@app.command(
    rich_help_panel="Without a service",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(
    context: typer.Context,
    spec: Annotated[Path, typer.Argument(metavar="SPEC.json", help="A JobSpec whose references are paths.")],
    to: Annotated[Path, typer.Option("--out", help="Folder for checkpoints and the result.")],
) -> None:
    """Train on this machine, no service involved: `python -m fgd.train`, which gets all further options.

    Exit codes are the trainer's: 0 finished, 1 failed, 75 stopped after writing a checkpoint.
    """
    _become("fgd.train", str(spec), "--out", str(to), *context.args)


@app.command(rich_help_panel="Without a service")
def plan(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.json", help="A JobSpec whose references are paths.")],
) -> None:
    """Try a few steps on this machine and print what the whole training would cost, as JSON: `python -m fgd.plan`."""
    _become("fgd.plan", str(spec))


@app.command(
    rich_help_panel="Without a service",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def parity(context: typer.Context) -> None:
    """Compare our FGD with recorded numbers of the reference: `fgd parity FILE.npz FILE.json`.

    Prints the largest error of each quantity; exits 1 if one is off.
    """
    _become("fgd.parity", *context.args)


@app.command(rich_help_panel="Without a service")
def export(
    source: Annotated[
        str, typer.Argument(metavar="FOLDER|JOB", help="What a job made, or its id: job_...", show_default=False)
    ],
    onnx: Annotated[Path, typer.Option(help="The file to write; must end in .onnx.", show_default=False)],
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="H W", help="Of the images. [default: of --image when evaluated, else min_size max_size]"),
    ] = None,
    batch: Annotated[str, typer.Option(help="Images at once: a number, or dynamic (not for faster_rcnn).")] = "1",
    opset: Annotated[int, typer.Option(help="Version of ONNX's operators, 16 to 20.")] = 18,
    image: Annotated[
        list[Path] | None, typer.Option(help="Compare on this image, not a synthetic one; may be given often.")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="Take best.safetensors.")] = False,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Write a student as ONNX, for onnxruntime: final boxes, scores and labels, as torch finds them.

    Normalisation and suppression are inside. The file is written only if onnxruntime finds in it what torch does, and
    beside it, as `NAME_onnx.py`, how to feed it. A job's files are downloaded into a folder of its id beside it.
    """
    folder = Path(source)
    if source.startswith("job_") and not folder.exists():
        folder = onnx.parent / source
        artifact_download(source, folder, ["recipe.json", "manifest.json", _weights(best)], url)
    options = ["--onnx", str(onnx), "--batch", batch, "--opset", str(opset)]
    options += ["--size", *map(str, size)] if size else []
    options += [part for path in image or () for part in ("--image", str(path))]
    options += ["--best"] * best + ["--json"] * as_json
    _become("fgd.export", *options, "--", str(folder))


def _weights(best: bool) -> str:
    return "best.safetensors" if best else "student.safetensors"


@app.command(rich_help_panel="Use a service")
def workers(as_json: AsJson = False, url: Url = URL) -> None:
    """List the workers: what each has, whether it is there, and what it runs."""
    with _client(url) as client:
        found = client.workers()
    if as_json:
        _print_json(found)
        return
    _print_table(
        {
            "id": None, "host": None, "state": None, "slots": "right", "devices": None, "torch": None,
            "last beat": None, "runs": None,
        },
        (
            [
                worker.id,
                worker.host,
                (worker.complaint or "ready") if worker.live else "silent",
                f"{worker.free_slots} of {worker.slots} free",
                ", ".join(str(device.get("name", "?")) for device in worker.devices) or worker.facts.get("cpu", "cpu"),
                worker.versions.get("torch", "-"),
                _clock(worker.last_beat),
                ", ".join(f"{run.job} ({run.name})" for run in worker.running) or "-",
            ]
            for worker in found
        ),
    )  # fmt: skip


# --- data sets ------------------------------------------------------------------------------------------------


@dataset_app.command("add")
def dataset_add(
    name: Annotated[str, typer.Argument(help="What to call it.", show_default=False)],
    path: Annotated[
        str,
        typer.Argument(
            help="Folder or .zip: COCO, Pascal VOC, YOLO or Hugging Face; or hf://owner/name[@revision] of the hub.",
            metavar="FOLDER|ZIP|hf://...",
            show_default=False,
        ),
    ],
    verify: Annotated[
        Literal["full", "headers"], typer.Option(help="Decode every image, or read only the headers.")
    ] = "full",
    format: Annotated[
        Literal["auto", "coco", "voc", "yolo", "huggingface"],
        typer.Option(help="What it is; auto finds it by content."),
    ] = "auto",
    val_fraction: Annotated[
        float | None, typer.Option(help="Share of train that becomes val where there is none. [default: 0.1]")
    ] = None,
    group_by: Annotated[
        Literal["none", "prefix"], typer.Option(help="prefix keeps photo_1 and photo_2 in one split when val is made.")
    ] = "none",
    upload: Annotated[
        bool, typer.Option("--upload", help="Send it, even if the service could read the folder.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait for the import and print its report.")] = True,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Import a folder below one of the service's FGD_DATA_ROOTS; any other folder, or a zip, is uploaded.

    An upload that breaks off goes on by itself; for one that was interrupted, type `fgd dataset upload`. What is on
    the Hugging Face hub is downloaded here, into its own cache, and uploaded; HF_TOKEN and HF_ENDPOINT count.
    """
    source, links_into = _dataset_source(path)
    how = {"verify": verify, "format": format, "val_fraction": val_fraction, "group_by": group_by}
    with _client(url) as client:
        here = upload or source.is_file() or links_into is not None
        dataset = None if here else _add_by_path(client, name, source, how)
        if dataset is None:
            dataset = client.add_dataset(name, None, **how)  # type: ignore[arg-type]
            err.print(Text(printable(f"{dataset.id}: uploading {path}")))
            _upload(client, dataset.id, source, links_into)
        _tell_import(client, dataset.id, wait, as_json)


@dataset_app.command("upload")
def dataset_upload(
    dataset: DatasetIdArgument,
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
    """Go on with an upload that was interrupted."""
    source, links_into = _dataset_source(path)
    with _client(url) as client:
        _upload(client, dataset, source, links_into)
        _tell_import(client, dataset, wait, as_json)


@dataset_app.command("delete")
def dataset_delete(dataset: DatasetIdArgument, url: Url = URL) -> None:
    """Delete a data set that no job uses."""
    with _client(url) as client:
        client.delete_dataset(dataset)
    _line(f"{dataset}  deleted")


def _add_by_path(client: Client, name: str, path: Path, how: dict[str, Any]) -> Dataset | None:
    """None: the service cannot read that folder, and here it is, to be sent."""
    from fgd.client import ApiError

    try:
        return client.add_dataset(name, path.absolute(), **how)
    except ApiError as error:
        if path.is_dir() and error.code in ("path_not_allowed", "path_not_found"):
            return None
        raise


def _dataset_source(text: str) -> tuple[Path, Path | None]:
    """Folder or zip; of the hub, the folder in its cache, and where its links lead."""
    from fgd.cli import hub

    if not hub.is_address(text):
        return Path(text), None
    address = hub.dataset_address(text)
    err.print(Text(printable(f"downloading {address}")))
    fetched = hub.fetch_dataset(address)
    err.print(Text(printable(f"it is {fetched.address}")), soft_wrap=True)
    return fetched.path, fetched.cache


def _weights_source(text: str) -> Path:
    from fgd.cli import hub

    if not hub.is_address(text):
        file = Path(text)
        if not file.is_file():
            _fail(f"{text}: no such file", REFUSED)
        return file
    address = hub.file_address(text)
    err.print(Text(printable(f"downloading {address}")))
    fetched = hub.fetch_file(address)
    err.print(Text(printable(f"it is {fetched.address}")), soft_wrap=True)
    return fetched.path


def _upload(client: Client, dataset_id: str, path: Path, links_into: Path | None = None) -> None:
    """Send a zip, or make one of the folder first, with a bar that shows how far it is."""
    import tempfile

    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from fgd.data import zips

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with tempfile.TemporaryDirectory(prefix="fgd-") as folder, Progress(*columns, console=err) as progress:
        zip_path = path
        if not path.is_file():
            packing = progress.add_task("packing", total=None)
            zip_path = Path(folder) / "dataset.zip"
            zips.pack(path, zip_path, links_into)
            progress.remove_task(packing)
        sending = progress.add_task("sending", total=zip_path.stat().st_size)
        client.upload(dataset_id, zip_path, lambda there: progress.update(sending, completed=there))


def _tell_import(client: Client, dataset_id: str, wait: bool, as_json: bool) -> None:
    """Print what became of a data set, and leave with the exit code for it."""
    dataset = client.dataset(dataset_id)
    if wait:
        with err.status(Text(printable(f"importing {dataset.id}"))):
            dataset = client.wait_dataset(dataset.id)
        if not as_json:
            _print_report(client.report(dataset.id))
    if as_json:
        _print_json(dataset)
    else:
        _line(f"{dataset.id}  {dataset.state}")
    _exit(FAILED if dataset.state == "rejected" else DONE)


@dataset_app.command("list")
def dataset_list(
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """List data sets."""
    with _client(url) as client:
        found = client.datasets(limit)
    if as_json:
        _print_json(found)
        return
    _print_table(
        {"id": None, "name": None, "state": None, "images": "right", "classes": "right"},
        (
            [
                dataset.id,
                dataset.name,
                dataset.state,
                str(sum(split.images for split in (dataset.splits or {}).values())),
                str(len(dataset.classes or ())),
            ]
            for dataset in found
        ),
    )


@dataset_app.command("show")
def dataset_show(dataset: DatasetIdArgument, url: Url = URL) -> None:
    """Print a data set as JSON."""
    with _client(url) as client:
        _print_json(client.dataset(dataset))


@dataset_app.command("report")
def dataset_report(dataset: DatasetIdArgument, as_json: AsJson = False, url: Url = URL) -> None:
    """Print what the importer saw: counts, and every kind of defect."""
    with _client(url) as client:
        report = client.report(dataset)
    if as_json:
        _print_json(report)
        return
    _print_report(report)


# --- jobs -----------------------------------------------------------------------------------------------------


@job_app.command("submit")
def job_submit(
    spec: Annotated[str, typer.Argument(metavar="SPEC.json", help="File with the job's spec; - is standard input.")],
    watch: Annotated[bool, typer.Option("--watch", help="Stay and watch it.")] = False,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Submit a job and print its id."""
    body = _read_json(spec)
    with _client(url) as client:
        job = client.submit(body)
        if as_json:
            _print_json(job)
        else:
            _line(job.id)
        if watch:
            _exit(_watch(client, job.id))


@job_app.command("plan")
def job_plan(
    spec: Annotated[str, typer.Argument(metavar="SPEC.json", help="File with the job's spec; - is standard input.")],
    wait: Annotated[bool, typer.Option(help="Wait until a worker has tried a few steps.")] = True,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Tell what a job would do and cost, without submitting it."""
    from fgd.cli.plan_lines import measured_lines, outline_lines

    body = _read_json(spec)
    with _client(url) as client:
        plan = client.plan(body)
        if not as_json:
            for line in outline_lines(plan.outline):
                _line(line)
        if wait and not plan.ended:
            with err.status(plan.waiting_reason or "a worker tries a few steps"):
                plan = client.wait_plan(plan.id)
    if as_json:
        _print_json(plan)
    elif plan.measured is not None:
        for line in measured_lines(plan.measured):
            _line(line)
    elif plan.error is not None:
        where = f"{plan.error.pointer}: " if plan.error.pointer else ""
        err.print(f"{plan.error.code}: {where}{plan.error.message}", style="red", markup=False, highlight=False)
    _exit(FAILED if plan.state == "failed" else DONE)


@job_app.command("list")
def job_list(
    state: Annotated[
        list[str] | None,
        typer.Option(help="queued, running, paused, succeeded, failed, cancelled; may be given several times."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Whole name; with * at the end, how it begins: 'cells*'.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Metadata says so; may be given several times.")
    ] = None,
    created_after: Annotated[
        datetime | None, typer.Option(formats=TIMES, metavar="TIME", help="Submitted then or later; local time.")
    ] = None,
    created_before: Annotated[
        datetime | None, typer.Option(formats=TIMES, metavar="TIME", help="Submitted earlier than that.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first; any number.")] = 20,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """List jobs, the newest first. Of several filters all must hold; of several states one.

    Examples:

    - `fgd job list --state running --state queued`
    - `fgd job list --name 'cells*' --metadata owner=ada --limit 500 --json`
    - `fgd job list --created-after 2026-11-01 --created-before 2026-12-01`
    """
    from fgd.cli.watch import figures

    labels = dict(_label(text) for text in metadata or ())
    with _client(url) as client:
        jobs = client.jobs(
            limit,
            states=state or (),
            name=name,
            metadata=labels,
            created_after=created_after,
            created_before=created_before,
        )
    if as_json:
        _print_json(jobs)
        return
    seen = ((job, figures(job)) for job in jobs)
    _print_table(
        {"id": None, "name": None, "state": None, "epoch": None, "AP": "right", "created": None},
        (
            [
                job.id,
                job.name,
                f"{job.state}, {now.status}" if job.state == "running" else now.status,
                now.epoch.removeprefix("epoch "),
                now.ap.removeprefix("AP "),
                f"{job.created_at.astimezone():%Y-%m-%d %H:%M}",
            ]
            for job, now in seen
        ),
    )


@job_app.command("show")
def job_show(job: JobIdArgument, url: Url = URL) -> None:
    """Print a job, its resolved spec included, as JSON."""
    with _client(url) as client:
        _print_json(client.job(job))


@job_app.command("watch")
def job_watch(job: JobIdArgument, url: Url = URL) -> None:
    """Follow a job to its end. Ctrl-C stops the watching, not the job; the same command goes on with it.

    A service that restarts meanwhile is waited for. Exits 0 if the job succeeded, 1 if it failed or was cancelled.
    """
    with _client(url) as client:
        _exit(_watch(client, job))


@job_app.command("cancel")
def job_cancel(
    job: JobIdArgument,
    now: Annotated[bool, typer.Option("--now", help="Kill it; by default it may write a checkpoint first.")] = False,
    url: Url = URL,
) -> None:
    """End a job."""
    with _client(url) as client:
        found = client.cancel(job, "now" if now else "graceful")
    _line(f"{found.id}  {found.state if found.ended else 'cancelling'}")


@job_app.command("pause")
def job_pause(job: JobIdArgument, url: Url = URL) -> None:
    """Let a job wait; a running one saves a checkpoint first, and gives its device free."""
    with _client(url) as client:
        found = client.pause(job)
    _line(f"{found.id}  {'pausing' if found.state == 'running' else found.state}")


@job_app.command("resume")
def job_resume(job: JobIdArgument, url: Url = URL) -> None:
    """Let a paused job go on, from its last checkpoint."""
    with _client(url) as client:
        found = client.resume(job)
    _line(f"{found.id}  {found.state}")


@job_app.command("stop")
def job_stop(job: JobIdArgument, url: Url = URL) -> None:
    """Finish a job early: its best weights until now become the result.

    `cancel` ends a job without a result.
    """
    with _client(url) as client:
        found = client.stop(job)
    _line(f"{found.id}  {found.state if found.ended else 'finishing early'}")


@job_app.command("attempts")
def job_attempts(job: JobIdArgument, as_json: AsJson = False, url: Url = URL) -> None:
    """List each time that a worker took the job: where, how it ended, what was lost with it."""
    with _client(url) as client:
        attempts = client.attempts(job)
    if as_json:
        _print_json(attempts)
        return
    _print_table(
        {
            "attempt": "right", "host": None, "device": None, "started": None, "ended": None, "outcome": None,
            "exit": None, "steps": "right", "lost": "right", "reason": None,
        },
        (
            [
                str(found.attempt),
                found.host,
                found.device or "-",
                _clock(found.started_at),
                _clock(found.finished_at) if found.finished_at else "-",
                found.outcome or "running",
                found.signal or ("-" if found.exit is None else str(found.exit)),
                str(found.steps_done),
                str(found.lost_steps),
                f"{found.code}: {found.reason}" if found.code else found.reason or "",
            ]
            for found in attempts
        ),
    )  # fmt: skip


@job_app.command("checkpoints")
def job_checkpoints(job: JobIdArgument, as_json: AsJson = False, url: Url = URL) -> None:
    """List the weights of a job that can be promoted to a model: the last, the best, and the pinned checkpoints."""
    with _client(url) as client:
        found = client.checkpoints(job)
    if as_json:
        _print_json(found)
        return
    _print_table(
        {"id": None, "step": "right", "MB": "right", "kept as": None, "created": None},
        (
            [
                each.id,
                "-" if each.step is None else str(each.step),
                f"{each.size / 1e6:.1f}",
                " ".join(word for word, true in (("best", each.best), ("pinned", each.pinned)) if true) or "-",
                f"{each.created_at.astimezone():%Y-%m-%d %H:%M}",
            ]
            for each in found
        ),
    )


@job_app.command("pin")
def job_pin(
    job: JobIdArgument,
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Its id: ckpt_...", show_default=False)],
    off: Annotated[bool, typer.Option("--off", help="Unpin it: keep it no longer than others.")] = False,
    url: Url = URL,
) -> None:
    """Keep a checkpoint when newer ones come, and after the job's end."""
    with _client(url) as client:
        found = client.unpin(job, checkpoint) if off else client.pin(job, checkpoint)
    _line(f"{found.id}  {'pinned' if found.pinned else 'not pinned'}")


@job_app.command("events")
def job_events(
    job: JobIdArgument,
    after: Annotated[int, typer.Option(min=0, help="Only those with a higher number.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Print the history of a job, one event a line.

    Examples: `fgd job events JOB --follow`; `fgd job events JOB --follow --after 17 --json | jq .type`
    """

    def show(event: StoredEvent) -> None:
        if event.seq > after:
            _line(event.model_dump_json() if as_json else _event_line(event))

    with _client(url) as client:
        if follow:
            for event in client.follow(job, after):
                show(event)
            return
        for event in client.events(job, after):
            show(event)


@job_app.command("logs")
def job_logs(
    job: JobIdArgument,
    attempt: Annotated[int | None, typer.Option(min=1, help="Which attempt; the last by default.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    url: Url = URL,
) -> None:
    """Print what the trainer wrote to its log."""
    write = _log_writer()
    with _client(url) as client:
        offset, reading = 0, attempt
        while True:
            ended = not follow or client.job(job).ended  # asked before reading: then nothing is missed
            while (chunk := client.logs(job, attempt, offset)).content or chunk.attempt != reading:
                if chunk.attempt != reading:  # a new attempt has a new log
                    offset, reading = 0, chunk.attempt
                    continue
                write(chunk.content)
                offset = chunk.next_offset
            sys.stdout.buffer.flush()
            if ended:
                return
            time.sleep(1.0)


@job_app.command("metrics")
def job_metrics(
    job: JobIdArgument,
    name: Annotated[str | None, typer.Option(help="All points of this series, not the last of each.")] = None,
    split: Annotated[str | None, typer.Option(help="Only of this split: val, test.")] = None,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Print the last value of every series, or all values of one."""
    with _client(url) as client:
        points = client.metrics(job, name, split) if name else client.latest(job)
    points = [point for point in points if split is None or point.split == split]
    if as_json:
        _print_json(points)
        return
    _print_table(
        {"series": None, "split": None, "step": "right", "value": "right"},
        (
            [point.name, point.split or "", str(point.step), "-" if point.value is None else f"{point.value:.6g}"]
            for point in points
        ),
    )


# --- models ---------------------------------------------------------------------------------------------------


@model_app.command("add")
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
        Path | None, typer.Option(help="File with one class name a line, instead.", exists=True, dir_okay=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call it. [default: the file's name]")] = None,
    detector: Annotated[str, typer.Option(help="Family, as in the catalogue; or its whole spec as JSON.")] = "fcos",
    backbone: Annotated[str | None, typer.Option(help="Trunk: resnet18, resnet34, resnet50, ...")] = None,
    fpn_channels: Annotated[int | None, typer.Option(help="Width of the pyramid.")] = None,
    norm: Annotated[str | None, typer.Option(help="Normalisation of the trunk: batch, group, frozen.")] = None,
    min_size: Annotated[int | None, typer.Option(help="Shorter side it was trained with. [default: 800]")] = None,
    max_size: Annotated[int | None, typer.Option(help="Longer side at most. [default: 1333]")] = None,
    anchors: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help='Anchors it was trained with: {"anchor_sizes": [[32], [64], ...], "anchor_ratios": [0.5, 1, 2]}. '
            "[default: torchvision's]",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it is checked.")] = True,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Upload weights; the service checks them strictly against the detector you name.

    A rejected file is told with every key that is missing, unexpected or of another shape.
    """
    if (classes is None) == (classes_from is None):
        _fail("name the classes: --classes a,b,c, or --classes-from FILE", REFUSED)
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
    file = _weights_source(weights)
    with _client(url) as client:
        with err.status(f"uploading {file.name}"):
            names = [each.strip() for each in text if each.strip()]
            model = client.add_model(file, name or file.stem[:100], spec, names, **sizes)
        if wait:
            with err.status(f"checking {model.id}"):
                model = client.wait_model(model.id)
    _tell_model(model, as_json)


@model_app.command("promote")
def model_promote(
    job: JobIdArgument,
    checkpoint: Annotated[str, typer.Option(help="last, best, or the id of a checkpoint of a running job.")] = "last",
    name: Annotated[str | None, typer.Option(help="What to call it. [default: the job's name]")] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it is ready.")] = True,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Make a model of a job's weights."""
    with _client(url) as client:
        model = client.promote(job, checkpoint, name)
        if wait and not model.ended:
            with err.status(f"checking {model.id}"):
                model = client.wait_model(model.id)
    _tell_model(model, as_json)


@model_app.command("list")
def model_list(
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """List models."""
    with _client(url) as client:
        found = client.models(limit)
    if as_json:
        _print_json(found)
        return
    _print_table(
        {"id": None, "name": None, "state": None, "detector": None, "classes": "right", "MB": "right"},
        (
            [
                model.id,
                model.name,
                model.state,
                " ".join(str(model.recipe.get("detector", {}).get(key, "")) for key in ("kind", "backbone")),
                str(len(model.classes)),
                f"{model.size / 1e6:.1f}" if model.size else "-",
            ]
            for model in found
        ),
    )


@model_app.command("show")
def model_show(model: ModelIdArgument, url: Url = URL) -> None:
    """Print a model, with what its check found, as JSON."""
    with _client(url) as client:
        _print_json(client.model(model))


@model_app.command("remove")
def model_remove(model: ModelIdArgument, url: Url = URL) -> None:
    """Forget a model. One that a job still needs stays, and the job is named."""
    with _client(url) as client:
        client.delete_model(model)
    out.print(f"{model}  removed", highlight=False, markup=False)


def _tell_model(model: Model, as_json: bool) -> NoReturn:
    if as_json:
        _print_json(model)
    else:
        for note in (model.report or {}).get("notes", []):
            _line(note)
        if model.error:
            _line(model.error)
        out.print(f"{model.id}  {model.state}", highlight=False, markup=False)
    _exit(FAILED if model.state == "rejected" else DONE)


# --- artifacts ------------------------------------------------------------------------------------------------


@artifact_app.command("list")
def artifact_list(job: JobIdArgument, as_json: AsJson = False, url: Url = URL) -> None:
    """List the files a job made."""
    with _client(url) as client:
        artifacts = client.artifacts(job)
    if as_json:
        _print_json(artifacts)
        return
    _print_table(
        {"id": None, "name": None, "MB": "right", "sha256": None},
        ([found.id, found.name, f"{found.size / 1e6:.2f}", found.sha256] for found in artifacts),
    )


@artifact_app.command("download")
def artifact_download(
    job: JobIdArgument,
    to: Annotated[Path, typer.Option(help="Folder to write to; it is made if need be.", file_okay=False)] = Path(),
    name: Annotated[list[str] | None, typer.Option(help="Only the file of this name; may be given often.")] = None,
    url: Url = URL,
) -> None:
    """Download what a job made, and verify every checksum.

    An interrupted download goes on where it stopped; a file that is already there is not fetched again.
    """
    with _client(url) as client:
        artifacts = client.artifacts(job)
        if missing := set(name or ()) - {found.name for found in artifacts}:
            have = ", ".join(found.name for found in artifacts) or "none"
            _fail(f"job {job} has no artifact {', '.join(sorted(missing))}; it has: {have}", FAILED)
        if not artifacts:
            _fail(f"job {job} has no artifacts yet; it is {client.job(job).state}", FAILED)
        to.mkdir(parents=True, exist_ok=True)
        for artifact in artifacts:
            if not name or artifact.name in name:
                _line(f"{_download(client, artifact, to)}  {artifact.size / 1e6:.2f} MB  sha256 {artifact.sha256} ok")


# --- talking to the service -----------------------------------------------------------------------------------


def _client(url: str) -> Client:
    from fgd.client import Client

    return Client(url, _api_key())


def _api_key() -> str | None:
    """Only from the environment: every user of a machine can read what stands on a command line."""
    return os.environ.get("FGD_API_KEY") or None


def _watch(client: Client, job_id: str) -> int:
    from fgd.cli.watch import Board, told

    job = client.job(job_id)
    with Board(out, [job.name]) as board:

        def on_event(event: StoredEvent) -> None:
            if text := told(event):
                board.say(job.name, text)

        job = client.wait(job_id, on_event, lambda seen: board.show(job.name, seen))
    if job.state == "succeeded":
        _line(f"{job.id} succeeded; next: fgd artifact download {job.id} --to .")
        return DONE
    reason = f": {job.failure.code}: {job.failure.message}" if job.failure else ""
    err.print(Text(printable(f"{job.id} {job.state}{reason}", keep="\n"), style="red"))
    if job.failure:
        if job.failure.advice:
            err.print(Text(printable(f"advice: {job.failure.advice}", keep="\n")), soft_wrap=True)
        err.print(Text(printable(f"next: fgd job logs {job.id}")))
    return FAILED


def _download(client: Client, artifact: Artifact, folder: Path) -> Path:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        task = bars.add_task(printable(artifact.name), total=artifact.size)
        return client.download(artifact, folder, lambda there: bars.update(task, completed=there))


def _read_json(source: str) -> Mapping[str, Any]:
    from fgd.text.strict_json import NotJSON, parse

    try:
        body = parse(sys.stdin.read() if source == "-" else Path(source).read_bytes())
    except OSError as error:
        _fail(f"{source}: {error.strerror}", REFUSED)
    except UnicodeError:
        _fail(f"{source}: not UTF-8", REFUSED)
    except NotJSON as error:
        _fail(f"{source}: {error}", REFUSED)
    if not isinstance(body, dict):
        _fail(f"{source}: a spec is an object, {{...}}", REFUSED)
    return body


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        _fail(f"--metadata {text}: write KEY=VALUE, as in --metadata owner=ada", REFUSED)
    return key, value


def _read_object(text: str, option: str) -> Mapping[str, Any]:
    try:
        body = json.loads(text)
    except ValueError as error:
        _fail(f"{option}: not JSON: {error}", REFUSED)
    if not isinstance(body, dict):
        _fail(f"{option}: an object is expected, {{...}}", REFUSED)
    return body


# --- printing -------------------------------------------------------------------------------------------------


def _line(text: str, keep: str = "\t") -> None:
    """One line as it is: neither wrapped nor coloured, tabs kept."""
    typer.echo(printable(text, keep))


def _log_writer() -> Callable[[bytes], None]:
    """Writes pieces of a log: as they are into a file or pipe, to a screen without what would steer it."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a piece may end within a character

    def write(piece: bytes) -> None:
        if sys.stdout.isatty():
            typer.echo(printable(decoder.decode(piece), keep="\n\t"), nl=False)
        else:
            sys.stdout.buffer.write(piece)

    return write


def _event_line(event: StoredEvent) -> str:
    data = " ".join(f"{key}={_short(value)}" for key, value in event.data.items())
    attempt = f"attempt {event.attempt}" if event.attempt else ""
    return f"{event.seq:>5}  {event.at.astimezone():%H:%M:%S}  {attempt:<10}  {event.type}  {data}".rstrip()


def _clock(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _print_json(value: BaseModel | Iterable[BaseModel]) -> None:
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        _line(value.model_dump_json(indent=2), keep="\n")
        return
    _line(json.dumps([item.model_dump(mode="json") for item in value], indent=2), keep="\n")


def _print_table(columns: Mapping[str, Literal["left", "right"] | None], rows: Iterable[list[str]]) -> None:
    """A table on a screen; tab-separated lines, uncut, for the next program."""
    if not out.is_terminal:
        for row in rows:
            _line("\t".join(map(printable, row)))
        return
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title, side in columns.items():
        table.add_column(title, justify=side or "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    out.print(table)


def _print_report(report: Report) -> None:
    from fgd.cli.watch import report_lines

    for line in report_lines(report):
        _line(line)


# --- ends -----------------------------------------------------------------------------------------------------


def _settings(**given: Any) -> Settings:
    """FGD_* variables, overruled by the options that were given."""
    from pydantic import ValidationError

    from api.core.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        lines = [
            f"FGD_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" if e["loc"] else e["msg"]
            for e in error.errors(include_input=False)
        ]
        _fail("\n".join(["a setting is wrong", *lines]), REFUSED)


def _become(module: str, *arguments: str) -> NoReturn:
    """Replace this process: signals, exit code and terminal are then the trainer's own."""
    from fgd.process import children

    sys.stdout.flush()
    os.execve(sys.executable, children.command(module, *arguments), children.environment())


def _exit(code: int | None) -> NoReturn:
    raise typer.Exit(code or DONE)


def _fail(message: str, code: int) -> NoReturn:
    _print_error(message)
    raise typer.Exit(code)


def _print_error(message: str) -> None:
    err.print("error:", style="bold red", end=" ")
    err.print(Text(printable(message, keep="\n")), soft_wrap=True)


def main() -> None:
    """Entry point of the console script. Errors that were foreseen end in a message, not a traceback."""
    from fgd.errors import FGDError

    try:
        app(prog_name="fgd")
    except (FGDError, OSError) as error:
        sys.exit(_tell(error))


def _tell(error: Exception) -> int:
    _print_error(str(error))
    from fgd.client import ApiError, Unreachable

    if isinstance(error, ApiError):
        if error.status == 401:
            err.print("set FGD_API_KEY to the service's key", highlight=False)
        if error.status >= 500:
            err.print(Text(printable(f"request id: {error.request_id or 'none'}; the service's log says more")))
            return UNREACHABLE
        return REFUSED
    return UNREACHABLE if isinstance(error, Unreachable) else FAILED


if __name__ == "__main__":
    main()
