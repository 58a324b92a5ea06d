"""The pictures of a job's report: each image once, and over it as lines what there is and what each network found.

All text is escaped; an image is a JPEG that a worker has encoded.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator

from api.core.report_views import JobReport
from api.http.charts import text
from fgd.inspected import Picture, PicturedNetwork

STYLE = """
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .6rem; }
figure { margin: 0; break-inside: avoid; } figcaption { font-size: .86em; } .panels svg { max-width: none; }
.store { position: absolute; width: 0; height: 0; }
.boxes { fill: none; stroke-width: 2px; filter: drop-shadow(0 0 1px #fff); }
.boxes rect { vector-effect: non-scaling-stroke; } .boxes .wrong { stroke-dasharray: 4 3; }
.of-truth { stroke: #1b8a3a; } .of-teacher { stroke: #5b4a9c; } .of-control { stroke: #d96c00; }
.of-student { stroke: #0b5fa5; }
.panels svg text.name { fill: #fff; stroke: #000; stroke-width: 3px; paint-order: stroke;
  vector-effect: non-scaling-stroke; }
"""
MOST_NAMED = 12
"""Boxes whose class stands beside them; where there are more, pointing at one shows it."""
NAMED = {"teacher": "of-teacher", "control": "of-control", "student": "of-student"}


def section(report: JobReport) -> Iterator[str]:
    if report.pictures is None:
        yield f'<p class="dim">There are no pictures: {text(report.pictures_reason or "nobody knows why")}.</p>'
        return
    shown = report.pictures
    order = (
        f"Images on which {shown.differ[0]} and {shown.differ[1]} differ most come first, whichever is better"
        if shown.differ is not None
        else "The images are evenly spaced over the split"
    )
    yield (
        f'<p class="dim">{text(order)}. Shown are detections with a score of at least {shown.score:g}: with an '
        f"unbroken line those of a box of their class (IoU {shown.iou:g}), with a broken one the others.</p>"
    )
    for place, picture in enumerate(shown.pictures):
        if _is_jpeg(picture.jpeg):
            yield from _picture(picture, f"p{place}")


def _is_jpeg(told: str) -> bool:
    try:
        return base64.b64decode(told, validate=True).startswith(b"\xff\xd8\xff")
    except (binascii.Error, ValueError):
        return False


def _picture(picture: Picture, id: str) -> Iterator[str]:
    wide, tall = picture.width, picture.height
    yield f"<h3><bdi>{text(picture.name)}</bdi></h3>"
    yield (
        f'<svg class="store" aria-hidden="true"><defs><image id="{id}" width="{wide}" height="{tall}" '
        f'preserveAspectRatio="none" href="data:image/jpeg;base64,{text(picture.jpeg)}"/></defs></svg>'
    )
    truth = [(each.box, each.name, each.name, True) for each in picture.boxes]
    panels = [_panel(picture, id, "of-truth", f"ground truth: {_count(len(truth), 'box', 'boxes')}", truth)]
    panels += [_of_network(picture, id, each) for each in picture.networks]
    yield f'<div class="panels">{"".join(panels)}</div>'


def _of_network(picture: Picture, id: str, found: PicturedNetwork) -> str:
    drawn = [(each.box, each.name, f"{each.name} {each.score:.2f}", each.right) for each in found.detections]
    said = f"{found.role}: {found.right} right, {found.wrong} wrong, {found.missed} missed"
    return _panel(picture, id, NAMED.get(found.role.partition(" ")[0], "of-student"), said, drawn)


Drawn = tuple[tuple[float, float, float, float], str, str, bool]
"""A box, its class, what is shown of it, and whether it is right."""


def _panel(picture: Picture, id: str, colour: str, said: str, drawn: Iterable[Drawn]) -> str:
    boxes = list(drawn)
    size = picture.width / 24
    parts = []
    for (left, top, right, bottom), name, more, fits in boxes:
        wrong = "" if fits else ' class="wrong"'
        parts.append(
            f'<rect{wrong} x="{left:.1f}" y="{top:.1f}" width="{max(0.0, right - left):.1f}" '
            f'height="{max(0.0, bottom - top):.1f}"><title>{text(more)}</title></rect>'
        )
        if len(boxes) <= MOST_NAMED:
            parts.append(
                f'<text class="name" x="{left + size / 6:.1f}" y="{min(top + size, picture.height - 2):.1f}" '
                f'style="font-size:{size:.1f}px">{text(_short(name))}</text>'
            )
    return (
        f'<figure><svg viewBox="0 0 {picture.width} {picture.height}" role="img" '
        f'aria-label="{text(picture.name)}, {text(said)}"><use href="#{id}"/>'
        f'<g class="boxes {colour}">{"".join(parts)}</g></svg><figcaption>{text(said)}</figcaption></figure>'
    )


def _short(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:13]}…"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
