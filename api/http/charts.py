"""Charts as SVG text, for a page that needs nothing else. Colours are the page's variables. All text is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from fgd.text.printable import printable

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 560, 300, 48, 40, 14, 14
ROW = 22


@dataclass(frozen=True)
class Line:
    name: str
    colour: str
    """A variable of the page, such as --student."""
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bar:
    name: str
    value: float
    colour: str


def text(value: object) -> str:
    """For an element or an attribute in quotes; what steers or turns text around is written out."""
    return escape(printable(str(value)), quote=True)


def lines(what: str, x: str, y: str, shown: Sequence[Line], *, x_most: float | None = None, y_most: float) -> str:
    """From 0 on, on both axes. x_most: None: as far as the lines go."""
    drawn = [line for line in shown if line.points]
    furthest = x_most or max((point[0] for line in drawn for point in line.points), default=0.0) or 1.0

    def place(point: tuple[float, float]) -> str:
        across = LEFT + point[0] / furthest * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f},{_down(point[1], y_most):.1f}"

    def inside() -> Iterator[str]:
        for part in (0.0, 0.25, 0.5, 0.75, 1.0):
            down, across = _down(part * y_most, y_most), LEFT + part * (WIDTH - LEFT - RIGHT)
            yield f'<path class="grid" d="M{LEFT} {down:.1f}H{WIDTH - RIGHT}"/>'
            yield f'<text x="{LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{part * y_most:.3g}</text>'
            label = f"{part * furthest:.3g}" if furthest <= 1 else f"{part * furthest:.0f}"
            yield f'<text x="{across:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{label}</text>'
        yield f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{text(x)}</text>'
        yield f'<text x="{LEFT}" y="{TOP - 3}">{text(y)}</text>'
        for line in drawn:
            path = " ".join(map(place, line.points))
            yield f'<polyline class="line" style="stroke:var({line.colour})" points="{path}"/>'
            if len(line.points) < 60:
                for point in line.points:
                    cx, _, cy = place(point).partition(",")
                    yield f'<circle r="2.5" cx="{cx}" cy="{cy}" style="fill:var({line.colour})"/>'

    return _svg(what, WIDTH, HEIGHT, inside())


def bars(what: str, groups: Sequence[tuple[str, Sequence[Bar]]], *, most: float) -> str:
    """Groups of bars below each other, each with its name."""
    tall = sum(10 + ROW * 0.6 * max(1, len(group)) for _, group in groups) + 24
    label, span = 180, WIDTH - 180 - 60

    def inside() -> Iterator[str]:
        top = 4.0
        for name, group in groups:
            middle = top + ROW * 0.3 * max(1, len(group)) + 4
            yield f'<text x="{label - 8}" y="{middle:.1f}" text-anchor="end">{text(_cut(name))}</text>'
            for bar in group:
                wide = max(0.0, bar.value / most) * span
                yield (
                    f'<rect x="{label}" y="{top:.1f}" width="{wide:.1f}" height="{ROW * 0.6 - 3:.1f}" '
                    f'style="fill:var({bar.colour})"><title>{text(bar.name)}</title></rect>'
                    f'<text x="{label + wide + 5:.1f}" y="{top + 9:.1f}">{bar.value:.1f}</text>'
                )
                top += ROW * 0.6
            top += 10

    return _svg(what, WIDTH, math.ceil(tall), inside())


def intervals(what: str, unit: str, rows: Sequence[tuple[str, float, float | None, float | None]]) -> str:
    """Name, value and the ends of its interval, beside zero."""
    ends = [end for _, value, low, high in rows for end in (value, low, high, 0.0) if end is not None]
    low_end, high_end = min(ends), max(ends)
    room = max(high_end - low_end, 1e-9) * 0.08
    low_end, high_end = low_end - room, high_end + room
    label, span, tall = 220, WIDTH - 220 - 20, 34 * len(rows) + 34

    def across(value: float) -> float:
        return label + (value - low_end) / (high_end - low_end) * span

    def inside() -> Iterator[str]:
        yield f'<path class="zero" d="M{across(0.0):.1f} 4V{tall - 26}"/>'
        yield f'<text x="{across(0.0):.1f}" y="{tall - 10}" text-anchor="middle">0 {text(unit)}</text>'
        for place, (name, value, low, high) in enumerate(rows):
            y = 20 + 34 * place
            yield f'<text x="{label - 8}" y="{y + 4}" text-anchor="end">{text(name)}</text>'
            if low is not None and high is not None:
                yield f'<path class="whisker" d="M{across(low):.1f} {y}H{across(high):.1f}"/>'
            yield f'<circle r="5" cx="{across(value):.1f}" cy="{y}" style="fill:var(--student)"/>'

    return _svg(what, WIDTH, tall, inside())


def _svg(what: str, wide: int, tall: int, inside: Iterable[str]) -> str:
    body = "".join(inside)
    return f'<svg viewBox="0 0 {wide} {tall}" role="img" aria-label="{text(what)}">{body}</svg>'


def _down(value: float, most: float) -> float:
    return HEIGHT - BOTTOM - min(value / most, 1.0) * (HEIGHT - BOTTOM - TOP)


def _cut(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
