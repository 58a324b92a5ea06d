"""Metric curves, read in pieces: all points, or few that show every peak. Knows rows. Knows nothing of HTTP.

A million points never lie in memory at once, and no session stays open while a slow reader reads: each piece is a
short look of its own, and the next begins behind its last step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import BigInteger, Engine, Select, literal, select
from sqlalchemy.orm import Session, aliased

from api.core import db
from api.core.history import Point
from api.core.tables import MetricPoint, Series

Rows = Select[int, float | None, datetime]
"""Step, value, time."""
PIECE = 5000
"""Points read at once."""
FEWEST = 4
"""The first, the last, and one bucket's least and greatest."""


@dataclass(frozen=True)
class Window:
    """Which points. Steps are inclusive."""

    name: str | None = None
    split: str | None = None
    first: int | None = None
    last: int | None = None
    most: int | None = None
    """Points of one series, at least FEWEST; None: all."""


@dataclass(frozen=True)
class Curve:
    job_id: str
    series_id: int
    name: str
    split: str


def curves(s: Session, job_id: str, window: Window) -> list[Curve]:
    """The series of a job, by name, then split."""
    query = select(Series.job_id, Series.id, Series.name, Series.split).where(Series.job_id == job_id)
    if window.name is not None:
        query = query.where(Series.name == window.name)
    if window.split is not None:
        query = query.where(Series.split == window.split)
    return [Curve(*row) for row in s.execute(query.order_by(Series.name, Series.split))]


def points(engine: Engine, found: Sequence[Curve], window: Window) -> Iterator[list[Point]]:
    """The points of each curve in turn, by step, a piece at a time."""
    for curve in found:
        if window.most is None:
            yield from _all(engine, curve, window)
        else:
            yield _few(engine, curve, window, window.most)


def _all(engine: Engine, curve: Curve, window: Window) -> Iterator[list[Point]]:
    first = window.first
    while True:
        with db.reading(engine) as s:
            piece = _read(s, curve, _rows(curve, first, window.last).limit(PIECE))
        if piece:
            yield piece
        if len(piece) < PIECE:
            return
        first = piece[-1].step + 1


def _few(engine: Engine, curve: Curve, window: Window, most: int) -> list[Point]:
    """At most `most` points: first and last, and of each of equally wide buckets of steps the least and the greatest,
    so that no peak is lost. Which the database finds by itself: a million rows would be too many to move."""
    with db.reading(engine) as s:
        rows = _rows(curve, window.first, window.last)
        whole = _read(s, curve, rows.limit(most + 1))
        if len(whole) <= most:
            return whole
        first = whole[0].step
        last = s.scalars(_only_steps(rows).order_by(MetricPoint.step.desc()).limit(1)).one()
        steps = sorted({first, last, *_extremes(s, curve, first, last, (most - 2) // 2)})
        found = _rows(curve, first, last).where(MetricPoint.step.in_(steps))
        return _read(s, curve, found)


def _extremes(s: Session, curve: Curve, first: int, last: int, buckets: int) -> set[int]:
    """The steps of the least and the greatest value of each bucket. Values that are not finite are neither."""
    width = -(-(last - first + 1) // buckets)
    bucket = select(literal(first, BigInteger).label("start")).cte("bucket", recursive=True)
    bucket = bucket.union_all(select(bucket.c.start + width).where(bucket.c.start + width <= last))
    inner = aliased(MetricPoint)
    within = select(inner.step).where(
        inner.job_id == curve.job_id,
        inner.series_id == curve.series_id,
        inner.step >= bucket.c.start,
        inner.step < bucket.c.start + width,
        inner.step <= last,
        inner.value.is_not(None),
    )
    least = within.order_by(inner.value, inner.step).limit(1).scalar_subquery()
    greatest = within.order_by(inner.value.desc(), inner.step).limit(1).scalar_subquery()
    return {
        step for pair in s.execute(select(least, greatest).select_from(bucket)) for step in pair if step is not None
    }


def _rows(curve: Curve, first: int | None, last: int | None) -> Rows:
    query = select(MetricPoint.step, MetricPoint.value, MetricPoint.at).where(
        MetricPoint.job_id == curve.job_id, MetricPoint.series_id == curve.series_id
    )
    if first is not None:
        query = query.where(MetricPoint.step >= first)
    if last is not None:
        query = query.where(MetricPoint.step <= last)
    return query.order_by(MetricPoint.step)


def _only_steps(rows: Rows) -> Select[int]:
    return rows.with_only_columns(MetricPoint.step).order_by(None)


def _read(s: Session, curve: Curve, rows: Rows) -> list[Point]:
    return [Point(curve.name, curve.split, step, value, at) for step, value, at in s.execute(rows)]
