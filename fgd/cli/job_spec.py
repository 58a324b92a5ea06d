"""`fgd job spec`: a spec to begin with, filled in from the data set and the teacher."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from fgd.cli.connection import URL, client_of
from fgd.cli.names import named
from fgd.cli.options import Url
from fgd.cli.printing import print_line

if TYPE_CHECKING:
    from fgd.client import Client
    from fgd.data.index import Report

LARGEST = (800, 1333)
"""Shorter and longer side of an image, as torchvision's own detectors have it."""


def job_spec(
    dataset: Annotated[
        str,
        typer.Option(help="Id or name of the data set.", show_default=False, callback=named("dataset")),
    ],
    teacher: Annotated[
        str | None,
        typer.Option(
            help="The teacher, a job or a model. [default: none; the job trains one]",
            show_default=False,
            callback=named("job", "model"),
        ),
    ] = None,
    url: Url = URL,
) -> None:
    """Print a spec to begin with, as YAML: change it, look at its plan, submit it.

    Image sizes are those of the teacher, or of the data set's images. What is not in it has the defaults of
    `GET /v1/catalogue`.

    Examples:

    - `fgd job spec --dataset cells > teacher.yaml`
    - `fgd job spec --dataset cells --teacher JOB > student.yaml`
    """
    with client_of(url) as client:
        found, size = client.dataset(dataset), _size(client.report(dataset))
        if teacher is None:
            print_line(_of_teacher(found.name, found.id, size), keep="\n")
        else:
            print_line(_of_student(found.name, found.id, teacher, _network(client, teacher, size)), keep="\n")


def _of_teacher(name: str, dataset: str, size: tuple[int, int]) -> str:
    shorter, longer = size
    return f"""\
name: {_quoted(f"{name}-teacher")}
dataset: {dataset}
teacher: null        # plain training, without a teacher
methods: []
student:             # the network that is trained; here it becomes the teacher
  kind: fcos         # or retinanet, faster_rcnn
  backbone: resnet50
  weights: none      # IMAGENET1K_V1: the worker needs the network once, and training needs fewer epochs
schedule:
  epochs: 24
  batch_size: 8
  min_size: {shorter}
  max_size: {longer}"""


def _of_student(name: str, dataset: str, teacher: str, network: tuple[str, int, int]) -> str:
    kind, shorter, longer = network
    noun = "job" if teacher.startswith("job_") else "model"
    return f"""\
name: {_quoted(f"{name}-student")}
dataset: {dataset}
teacher: {{{noun}: {teacher}}}
methods:
  - kind: fgd        # its strength is measured (rho 30); docs/methods.md has the other methods
student:
  kind: {kind}
  backbone: resnet18 # fgd job plan --budget 15ms --dataset ... finds one that is fast enough
  weights: none
schedule:            # for the control: fgd job submit FILE --set name=control --set teacher=null --set methods=[]
  epochs: 24
  batch_size: 8
  min_size: {shorter}
  max_size: {longer}"""


def _network(client: Client, teacher: str, images: tuple[int, int]) -> tuple[str, int, int]:
    """Family of the teacher, and the image size that it was made for."""
    if teacher.startswith("job_"):
        spec = client.job(teacher).spec
        detector, size = spec.get("student", {}), spec.get("schedule", {})
    else:
        recipe = client.model(teacher).recipe
        detector, size = recipe.get("detector", {}), recipe
    shorter, longer = images
    return (
        str(detector.get("kind", "fcos")),
        int(size.get("min_size") or shorter),
        int(size.get("max_size") or longer),
    )


def _size(report: Report) -> tuple[int, int]:
    """Of the largest images of train, but at most LARGEST, in the same shape."""
    split = report.splits["train"]
    sides = sorted((split.width[1], split.height[1]))
    scale = min(1.0, LARGEST[0] / sides[0], LARGEST[1] / sides[1])
    shorter, longer = (max(32, round(side * scale)) for side in sides)
    return shorter, longer


def _quoted(name: str) -> str:
    """As JSON, which is YAML whatever the name is."""
    return json.dumps(name[-100:], ensure_ascii=False)
