"""`fgd job detections`: the images on which a student and its control, or its teacher, differ most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgd.cli.connection import URL, client_of
from fgd.cli.options import AsJson, JobId, Url
from fgd.cli.printing import Columns, answer, note, table

if TYPE_CHECKING:
    from fgd.client import ComparedDetections, ComparedImage


def job_detections(
    job: JobId,
    against: Annotated[str | None, typer.Option(help="control or teacher. Default: the control, if any.")] = None,
    class_name: Annotated[str | None, typer.Option("--class", metavar="NAME", help="Look at one class alone.")] = None,
    worse: Annotated[bool, typer.Option("--worse", help="Only images on which the student is worse.")] = False,
    score: Annotated[float, typer.Option(min=0.05, max=1, help="Detections with a lower score do not count.")] = 0.3,
    split: Annotated[str, typer.Option(help="val or test.")] = "val",
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many to list at most.")] = 20,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """List the images on which a student and its control differ most.

    Counted are the boxes that one of the two alone finds, and how many false detections one has more, at IoU 0.5. The
    dashboard draws them side by side. Example: `fgd job detections JOB --against teacher --worse`
    """
    chosen: dict[str, Any] = {"against": against, "split": split, "only": "worse" if worse else None}
    with client_of(url) as client:
        found = client.compare_detections(job, limit, class_name=class_name, score=score, **chosen)
    answer(found, as_json, _show)


def _show(found: ComparedDetections) -> None:
    roles = [each.role for each in found.items[0].counts] if found.items else []
    more: Columns = {f"{role}: missed, false": "right" for role in roles}
    columns: Columns = {"image": None, "boxes": "right", "differ by": "right", **more}
    table(columns, _cells)(found.items)
    for network in found.networks:
        if network.get("reason"):
            note(f"{network.get('role')}: {network['reason']}")
    if found.against is not None:
        note(
            f"the student makes more mistakes than the {found.against} on {found.worse} images, fewer on {found.better}"
        )


def _cells(image: ComparedImage) -> list[str]:
    apart = "" if image.apart is None else str(image.apart)
    return [image.name, str(image.boxes), apart, *(f"{each.missed}, {each.false}" for each in image.counts)]
