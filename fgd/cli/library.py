"""`fgd train|plan|parity|export`: the library's own programs, on this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from fgd.cli import tasks
from fgd.cli.artifacts import artifact_download
from fgd.cli.connection import URL, client_of
from fgd.cli.options import AsJson, Budget, RuntimeOption, SearchSeconds, StudentSize, StudentThreads, Url
from fgd.cli.printing import fail
from fgd.process import children
from fgd.process.exit_codes import REFUSED
from fgd.result_files import MANIFEST, RECIPE, Which, file_with

JOB_ID, MODEL_ID = re.compile(r"job_[0-9a-f]{32}"), re.compile(r"mdl_[0-9a-f]{32}")

app = typer.Typer()


@app.command(
    rich_help_panel="Without a service",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(
    context: typer.Context,
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC", help="A job's spec, YAML or JSON, whose references are paths.")
    ],
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for checkpoints and the result. [default: runs/SPEC]")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Checkpoint to continue from. [default: the last one in --out]")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over, and delete what an earlier training left in --out.")
    ] = False,
) -> None:
    """Train on this machine without a service.

    Run the same command again to continue from the last checkpoint. A folder with the training of another spec is
    refused. Exit codes: 0 finished, 1 failed, 2 refused, 75 stopped by Ctrl-C after saving a checkpoint. Further
    options are passed on to `python -m fgd.train`.
    """
    options = ["--out", str(to)] if to else []
    options += ["--resume", str(resume)] if resume else []
    children.become("fgd.train", str(spec), *options, *["--overwrite"] * overwrite, *context.args)


@app.command(rich_help_panel="Without a service")
def plan(
    spec: Annotated[
        Path | None,
        typer.Argument(
            metavar="SPEC", help="A job's spec, YAML or JSON, whose references are paths.", show_default=False
        ),
    ] = None,
    budget: Budget = None,
    dataset: Annotated[
        Path | None, typer.Option(help="With --budget: folder of the data set.", show_default=False)
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="With --budget: folder of the teacher.", show_default=False)
    ] = None,
    runtime: RuntimeOption = "onnxruntime",
    threads: StudentThreads = None,
    size: StudentSize = None,
    seconds: SearchSeconds = None,
    as_json: AsJson = False,
) -> None:
    """Try a few steps on this machine and print as JSON what the whole training would cost.

    With --budget 15ms --dataset FOLDER instead of a spec: build, export and time students on this machine, and show
    which fit, the largest first. --json adds a spec for each.
    """
    if (spec is None) == (budget is None):
        raise typer.BadParameter("give either a spec or --budget")
    if spec is not None:
        children.become("fgd.plan", str(spec))
    if dataset is None:
        raise typer.BadParameter("--budget needs --dataset, the folder of a data set")
    options = ["--budget", str(budget), "--dataset", str(dataset), "--runtime", runtime]
    options += ["--teacher", str(teacher)] if teacher else []
    options += ["--threads", str(threads)] if threads else []
    options += ["--size", *map(str, size)] if size else []
    options += ["--seconds", str(seconds)] if seconds else []
    children.become("fgd.plan", *options, *[] if as_json else ["--table"])


@app.command(
    rich_help_panel="Without a service",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def parity(context: typer.Context) -> None:
    """Compare a method with recorded numbers of its authors' code: `fgd parity FILE.npz FILE.json`.

    Prints the largest error of each quantity; exits 1 if one is too large.
    """
    children.become("fgd.parity", *context.args)


@app.command(rich_help_panel="Without a service")
def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|JOB|MODEL",
            help="Folder with a job's result, or the id or name of a job or model.",
            show_default=False,
        ),
    ],
    onnx: Annotated[Path, typer.Option(help="The file to write; must end in .onnx.", show_default=False)],
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="H W", help="Image size. [default: that of --image in evaluation, otherwise min_size max_size]"
        ),
    ] = None,
    batch: Annotated[str, typer.Option(help="Images per batch: a number, or dynamic (not for faster_rcnn).")] = "1",
    opset: Annotated[int, typer.Option(help="Version of ONNX's operators, 16 to 20.")] = 18,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="Compare on this image instead of a synthetic one; may be given several times."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise the file: smaller, and faster on most processors.")
    ] = False,
    max_ap_loss: Annotated[
        float | None, typer.Option(min=0, max=100, help="AP of 100 that --int8 may lose. [default: 0.5]")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|DATASET",
            help="Compare on its pictures, and calibrate and judge --int8 on its training and validation images: a "
            "folder, or of a service an id. [default: the job's own; a folder of weights has none]",
        ),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Export the best weights, which are often those of the last step.")
    ] = False,
    teacher: Annotated[bool, typer.Option("--teacher", help="Of a job the teacher, not the student.")] = False,
    here: Annotated[
        bool, typer.Option("--here", help="Download the job's weights and write the file on this machine.")
    ] = False,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Export a network to ONNX for onnxruntime: final boxes, scores and labels, as torch finds them.

    Normalisation and suppression are inside. The file is written only if onnxruntime finds the same detections as
    torch. Next to it, `NAME_onnx.py` shows how to use it.

    With --int8 as many layers are quantised as keep the AP; `NAME_int8.json` and a table say what AP and latency were
    before and after. A file that would be slower and worse is not written.

    Of a job or a model a worker of the service writes the file: nothing needs to be installed here. A folder, or a job
    with --here, is exported on this machine, which needs the extra `export`; a job's files are downloaded into a folder
    named after its id. A folder comes before a job of the same name; write ./job_... for a folder named as an
    id.
    """
    folder = Path(source)
    if max_ap_loss is not None and not int8:
        fail("--max-ap-loss is of --int8: add it, or leave this out", REFUSED)
    if not folder.exists() and "/" not in source and not source.startswith(("job_", "mdl_")):
        source = _id_of(source, url)
    if MODEL_ID.fullmatch(source) or (JOB_ID.fullmatch(source) and not here):
        if image:
            fail("--image is for exports on this machine: add --here to a job", REFUSED)
        if here:
            fail("a model's file is written by a worker: leave out --here", REFUSED)
        more: dict[str, Any] = {"batch": int(batch) if batch.isdecimal() else batch, "opset": opset}
        more |= {"size": size} if size else {}
        more |= {"dataset": dataset} if dataset else {}
        more |= {"format": "onnx-int8"} if int8 else {}
        more |= {"max_ap_loss": max_ap_loss} if max_ap_loss is not None else {}
        tasks.export(tasks.named_network(source, teacher, best), onnx, more, as_json, url)
    if teacher:
        fail("--teacher is for a job whose file a worker writes: leave out --here", REFUSED)
    if int8 and dataset is None:
        fail("--int8 here needs --dataset FOLDER, to judge on; a worker has it for a job: give the job's id", REFUSED)
    if JOB_ID.fullmatch(source):
        folder = onnx.parent / source
        _fetch_result(source, folder, "best" if best else "last", url)
    options = ["--onnx", str(onnx), "--batch", batch, "--opset", str(opset)]
    options += ["--size", *map(str, size)] if size else []
    options += [part for path in image or () for part in ("--image", str(path))]
    options += ["--dataset", dataset] if dataset else []
    options += ["--int8"] * int8 + ["--max-ap-loss", str(max_ap_loss)] * (max_ap_loss is not None)
    options += ["--best"] * best + ["--json"] * as_json
    children.become("fgd.export", *options, "--", str(folder))


def _id_of(source: str, url: str) -> str:
    """Of what is not a folder here: the job or model with this name."""
    from fgd.cli.names import id_of
    from fgd.client import Unreachable

    try:
        with client_of(url) as client:
            return id_of(client, source, "job", "model")
    except Unreachable as error:
        fail(
            f"{source}: there is no such folder, and no service to ask for a job or model of this name: {error}",
            REFUSED,
        )


def _fetch_result(job: str, folder: Path, which: Which, url: str) -> None:
    """Download what an export reads."""
    with client_of(url) as client:
        names = [artifact.name for artifact in client.artifacts(job)]
    artifact_download(job, folder, [RECIPE, MANIFEST, file_with(which, names)], url)
