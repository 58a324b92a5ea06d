"""Metric curves, read in pieces: all points, or few that show every peak. Knows rows. Knows nothing of HTTP.

A million points never lie in memory at once, and no session stays open while a slow reader reads: each piece is a
short look of its own, and the next begins behind its last step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Engine, Select, literal, select
from sqlalchemy.orm import Session, aliased

from api.core.jobs.history import LatestPoint
from api.core.jobs.metric_blocks import SIZE
from api.core.rows import db
from api.core.rows.tables import MetricBlock, MetricPoint, Series

Rows = Select[int, float | None, datetime]
"""Step, value, time."""
PIECE = 5000
"""Points read at once."""
_BATCH = 500
"""Blocks whose points are read at once: databases bound the number of parameters."""
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


def points(engine: Engine, found: Sequence[Curve], window: Window) -> Iterator[list[LatestPoint]]:
    """The points of each curve in turn, by step, a piece at a time."""
    for curve in found:
        if window.most is None:
            yield from _all(engine, curve, window)
        else:
            yield _few(engine, curve, window, window.most)


def _all(engine: Engine, curve: Curve, window: Window) -> Iterator[list[LatestPoint]]:
    first = window.first
    while True:
        with db.reading(engine) as s:
            piece = _read(s, curve, _rows(curve, first, window.last).limit(PIECE))
        if piece:
            yield piece
        if len(piece) < PIECE:
            return
        first = piece[-1].step + 1


def _few(engine: Engine, curve: Curve, window: Window, most: int) -> list[LatestPoint]:
    """At most `most` points: first and last, and of each of equally wide buckets of steps the least and the greatest,
    so that no peak is lost. Blocks say where those are: a million points would be too many to read."""
    with db.reading(engine) as s:
        rows = _rows(curve, window.first, window.last)
        in_order = _only_steps(rows).order_by(MetricPoint.step)
        first = s.scalar(in_order.limit(1))
        if first is None:
            return []
        last = s.scalars(_only_steps(rows).order_by(MetricPoint.step.desc()).limit(1)).one()
        blocks = s.execute(_blocks(curve, first, last)).all()
        # Blocks tell of many points at once; counting them is dear for a planner that has not seen the table of late.
        if len(blocks) * SIZE <= most and len(s.scalars(in_order.limit(most + 1)).all()) <= most:
            return _read(s, curve, rows)
        steps = sorted({first, last, *_extremes(s, curve, first, last, (most - 2) // 2, blocks)})
        # With a range besides, SQLite would go through the range.
        return _read(s, curve, _rows(curve, None, None).where(MetricPoint.step.in_(steps)))


def _extremes(s: Session, curve: Curve, first: int, last: int, buckets: int, blocks: Sequence[Any]) -> set[int]:
    """The steps of the least and the greatest value of each bucket. Values that are not finite are neither."""
    width = -(-(last - first + 1) // buckets)
    if len(blocks) < 2 * buckets:  # most of them would lie across a border
        return _of_points(s, curve, first, last, width)
    return _of_blocks(s, curve, first, last, width, blocks)


def _of_points(s: Session, curve: Curve, first: int, last: int, width: int) -> set[int]:
    """The database finds them by itself."""
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


def _of_blocks(s: Session, curve: Curve, first: int, last: int, width: int, blocks: Sequence[Any]) -> set[int]:
    """Of whole blocks, of the points beside them, and of those blocks across a border whose points may matter."""
    peaks = _Peaks(first, width)
    for _, _, least, least_step, greatest, greatest_step in blocks:
        if least is not None:
            peaks.offer(least_step, least)
            peaks.offer(greatest_step, greatest)
    for beside in ((first, blocks[0].first_step - 1), (blocks[-1].last_step + 1, last)):
        for step, value in s.execute(_values(curve).where(MetricPoint.step.between(*beside))):
            peaks.offer(step, value)
    across = [block.last_step for block in blocks if peaks.may_hide(block)]
    for start in range(0, len(across), _BATCH):
        for step, value in s.execute(_within(curve, across[start : start + _BATCH])):
            peaks.offer(step, value)
    return peaks.steps()


class _Peaks:
    """The least and the greatest of each bucket, of what was offered until now."""

    def __init__(self, first: int, width: int) -> None:
        self._first, self._width = first, width
        self._least: dict[int, tuple[float, int]] = {}
        self._greatest: dict[int, tuple[float, int]] = {}

    def offer(self, step: int, value: float | None) -> None:
        if value is None:
            return
        bucket = (step - self._first) // self._width
        known = self._least.get(bucket)
        if known is None or (value, step) < known:
            self._least[bucket] = value, step
        known = self._greatest.get(bucket)
        if known is None or value > known[0] or (value == known[0] and step < known[1]):
            self._greatest[bucket] = value, step

    def may_hide(self, block: Any) -> bool:
        """Does the block lie across a border, and may its part on one side hold a peak there? Its own extremes are
        peaks of the buckets they lie in; in another, they bound what is there."""
        begin, end = ((step - self._first) // self._width for step in (block.first_step, block.last_step))
        if begin == end or block.least is None:
            return False
        for bucket in range(begin, end + 1):
            least, greatest = self._least.get(bucket), self._greatest.get(bucket)
            if least is None or greatest is None or block.least < least[0] or block.greatest > greatest[0]:
                return True
        return False

    def steps(self) -> set[int]:
        return {step for _, step in (*self._least.values(), *self._greatest.values())}


def _blocks(
    curve: Curve, first: int, last: int
) -> Select[int, int, float | None, int | None, float | None, int | None]:
    """Those that lie wholly between two steps, in order."""
    return (
        select(
            MetricBlock.first_step,
            MetricBlock.last_step,
            MetricBlock.least,
            MetricBlock.least_step,
            MetricBlock.greatest,
            MetricBlock.greatest_step,
        )
        .where(
            MetricBlock.job_id == curve.job_id,
            MetricBlock.series_id == curve.series_id,
            MetricBlock.last_step.between(first, last),
            MetricBlock.first_step >= first,
        )
        .order_by(MetricBlock.last_step)
    )


def _within(curve: Curve, last_steps: Sequence[int]) -> Select[int, float | None]:
    """The points of these blocks."""
    return _values(curve).join(
        MetricBlock,
        (MetricBlock.job_id == MetricPoint.job_id)
        & (MetricBlock.series_id == MetricPoint.series_id)
        & MetricPoint.step.between(MetricBlock.first_step, MetricBlock.last_step)
        & MetricBlock.last_step.in_(last_steps),
    )


def _values(curve: Curve) -> Select[int, float | None]:
    return select(MetricPoint.step, MetricPoint.value).where(
        MetricPoint.job_id == curve.job_id, MetricPoint.series_id == curve.series_id
    )


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


def _read(s: Session, curve: Curve, rows: Rows) -> list[LatestPoint]:
    return [LatestPoint(curve.name, curve.split, step, value, at) for step, value, at in s.execute(rows)]
