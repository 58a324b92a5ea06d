"""`fgd train|plan|parity|export`: the library's own programs, on this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from fgd.cli.artifacts import artifact_download
from fgd.cli.options import URL, AsJson, Url, client_of
from fgd.process import children
from fgd.result_files import MANIFEST, RECIPE, Which, file_with

JOB_ID = re.compile(r"job_[0-9a-f]{32}")

app = typer.Typer()


@app.command(
    rich_help_panel="Without a service",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(
    context: typer.Context,
    spec: Annotated[Path, typer.Argument(metavar="SPEC.json", help="A JobSpec whose references are paths.")],
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for checkpoints and the result. [default: runs/SPEC]")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Checkpoint to go on from. [default: the last one in --out]")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over, and lose what an earlier training left in --out.")
    ] = False,
) -> None:
    """Train on this machine, no service involved.

    The same command typed again goes on from the last checkpoint; a folder with the training of another spec is
    refused. Exit codes: 0 finished, 1 failed, 2 refused, 75 stopped by Ctrl-C after writing a checkpoint. Further
    options go to `python -m fgd.train`.
    """
    options = ["--out", str(to)] if to else []
    options += ["--resume", str(resume)] if resume else []
    children.become("fgd.train", str(spec), *options, *["--overwrite"] * overwrite, *context.args)


@app.command(rich_help_panel="Without a service")
def plan(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.json", help="A JobSpec whose references are paths.")],
) -> None:
    """Try a few steps on this machine and print what the whole training would cost, as JSON: `python -m fgd.plan`."""
    children.become("fgd.plan", str(spec))


@app.command(
    rich_help_panel="Without a service",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def parity(context: typer.Context) -> None:
    """Compare our FGD with recorded numbers of the reference: `fgd parity FILE.npz FILE.json`.

    Prints the largest error of each quantity; exits 1 if one is off.
    """
    children.become("fgd.parity", *context.args)


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
    best: Annotated[
        bool, typer.Option("--best", help="Take the best weights, which are often those of the last step too.")
    ] = False,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Write a student as ONNX, for onnxruntime: final boxes, scores and labels, as torch finds them.

    Normalisation and suppression are inside. The file is written only if onnxruntime finds in it what torch does, and
    beside it, as `NAME_onnx.py`, how to feed it. A job's files are downloaded into a folder of its id beside it; write
    ./job_... for a folder of such a name.
    """
    folder = Path(source)
    if JOB_ID.fullmatch(source):
        folder = onnx.parent / source
        _fetch_result(source, folder, "best" if best else "last", url)
    options = ["--onnx", str(onnx), "--batch", batch, "--opset", str(opset)]
    options += ["--size", *map(str, size)] if size else []
    options += [part for path in image or () for part in ("--image", str(path))]
    options += ["--best"] * best + ["--json"] * as_json
    children.become("fgd.export", *options, "--", str(folder))


def _fetch_result(job: str, folder: Path, which: Which, url: str) -> None:
    """Download what an export reads."""
    with client_of(url) as client:
        names = [artifact.name for artifact in client.artifacts(job)]
    artifact_download(job, folder, [RECIPE, MANIFEST, file_with(which, names)], url)
