"""`fgd job focus`: what a job's methods look at, drawn over the images. Knows the files of fgd.focus_files."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgd.cli.connection import URL, client_of
from fgd.cli.options import AsJson, JobId, Url
from fgd.cli.printing import Columns, answer, fail, print_line, table
from fgd.process.exit_codes import REFUSED

if TYPE_CHECKING:
    from PIL import Image

    from fgd.client import FocusStep

WIDTH = 320
"""Of one picture on the sheet."""
HEAD = 20
USUAL = "spatial attention"


def job_focus(
    job: JobId,
    draw: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Draw it into this PNG.", dir_okay=False)
    ] = None,
    step: Annotated[int | None, typer.Option(help="After which step. Default: the last.")] = None,
    method: Annotated[str | None, typer.Option(help="Of which method. Default: the first.")] = None,
    what: Annotated[str | None, typer.Option(help="Such as foreground. Default: spatial attention.")] = None,
    level: Annotated[str | None, typer.Option(help="Such as p3. Default: the finest.")] = None,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Draw what a job's methods look at over its images; without --out, list the steps that can be drawn.

    Example: `fgd job focus JOB --out focus.png --what foreground --level p4`
    """
    with client_of(url) as client:
        steps = client.focus(job)
        if draw is None:
            columns: Columns = {"step": "right", "epoch": "right", "bytes": "right"}
            answer(steps, as_json, table(columns, _cells))
            return
        known = [each.step for each in steps]
        if not known:
            fail(f"{job}: nothing was noted of what its methods look at; a job without a teacher has nothing", REFUSED)
        if step is not None and step not in known:
            fail(f"--step {step}: there are {', '.join(map(str, known))}", REFUSED)
        maps = client.focus_maps(job, step if step is not None else known[-1])
        photos = client.focus_photos(job)["photos"]
    everything = [each for image in maps["images"] for each in image["shown"] if len(each["shape"]) == 2]
    if not everything:
        fail(f"{job}: no map was noted after step {maps['step']}", REFUSED)
    chosen = _chosen("--method", method, [each["method"] for each in everything])
    of_method = [each for each in everything if each["method"] == chosen]
    name = _chosen("--what", what, [each["name"] for each in of_method], USUAL)
    of_name = [each for each in of_method if each["name"] == name]
    at = _chosen("--level", level, [each["level"] for each in of_name])
    if not draw.absolute().parent.is_dir():
        fail(f"--out {draw}: there is no folder {draw.absolute().parent}", REFUSED)
    sheet([(photos[each["photo"]], each, _shown(each, chosen, name, at)) for each in maps["images"]]).save(draw, "PNG")
    print_line(f"{draw}: {name} of {chosen} at {at} after step {maps['step']}")


def _cells(step: FocusStep) -> list[str]:
    return [str(step.step), str(step.epoch), str(step.size)]


def _chosen(option: str, wanted: str | None, there: Sequence[str], usual: str = "") -> str:
    known = list(dict.fromkeys(there))
    if wanted is not None and wanted not in known:
        fail(f"{option} {wanted}: there are {', '.join(known)}", REFUSED)
    return wanted or (usual if usual in known else known[0])


def _shown(image: Mapping[str, Any], method: str, name: str, level: str) -> list[Mapping[str, Any]]:
    wanted = (method, name, level)
    return [
        each
        for each in image["shown"]
        if (each["method"], each["name"], each["level"]) == wanted and len(each["shape"]) == 2
    ]


def sheet(
    rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any], Sequence[Mapping[str, Any]]]],
) -> Image.Image:
    """A row for each image: it alone, then under the map of each network. Bright is much; the maps of one image have
    one scale."""
    from PIL import Image, ImageDraw

    heights = [max(1, round(WIDTH * photo["height"] / photo["width"])) for photo, *_ in rows]
    columns = 1 + max(len(shown) for *_, shown in rows)
    drawn = Image.new("RGB", (WIDTH * columns, sum(heights) + HEAD * len(rows)), "white")
    pen, top = ImageDraw.Draw(drawn), 0
    for (photo, image, shown), height in zip(rows, heights, strict=True):
        picture = _picture(photo, height)
        parts = [(str(photo["name"]), picture)]
        low, high = (pick((each[end] for each in shown), default=0.0) for pick, end in ((min, "low"), (max, "high")))
        parts += [(each["network"] or each["name"], _over(picture, image, each, low, high)) for each in shown]
        for place, (title, part) in enumerate(parts):
            drawn.paste(part, (place * WIDTH, top + HEAD))
            pen.text((place * WIDTH + 4, top + 4), title[:48], "black")
        top += HEAD + height
    return drawn


def _picture(photo: Mapping[str, Any], height: int) -> Image.Image:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (WIDTH, height), "gray")
    if photo["jpeg"]:
        with Image.open(io.BytesIO(base64.b64decode(photo["jpeg"]))) as opened:
            picture = opened.convert("RGB").resize((WIDTH, height))
    pen, right, down = ImageDraw.Draw(picture), WIDTH / photo["width"], height / photo["height"]
    for x1, y1, x2, y2 in photo["boxes"]:
        pen.rectangle((x1 * right, y1 * down, x2 * right, y2 * down), outline="white")
    return picture


def _over(
    picture: Image.Image, image: Mapping[str, Any], shown: Mapping[str, Any], low: float, high: float
) -> Image.Image:
    """The map covers the padded input; the picture is the part without padding."""
    from PIL import Image, ImageOps

    from fgd.focus_files import values

    height, width = shown["shape"]
    cells = bytes(round(255 * _share(value, shown["by_magnitude"], low, high)) for value in values(shown))
    size = [
        round(side * padded / own)
        for side, padded, own in zip(picture.size, reversed(image["padded"]), reversed(image["size"]), strict=True)
    ]
    grey = Image.frombytes("L", (width, height), cells).resize((size[0], size[1]), Image.Resampling.NEAREST)
    hot = ImageOps.colorize(grey.crop((0, 0, *picture.size)), "#000004", "#fcffa4", mid="#dd513a")
    return Image.blend(picture, hot, 0.65)


def _share(value: float, by_magnitude: bool, low: float, high: float) -> float:
    """0 to 1."""
    if by_magnitude:
        share = math.log(value / low) / (math.log(high / low) or 1) if 0 < low < value else 0.0
    else:
        share = (value - low) / (high - low) if high > low else float(value > 0)
    return min(1.0, max(0.0, share))
