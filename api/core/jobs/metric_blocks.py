"""Blocks of metric points: the least and the greatest of 64 and more neighbours, kept with the points they are of.

The blocks of a series and the loose points behind the last one are all of its points: a block holds what lies behind
the block before it, up to its own last step. Written in the transaction of the points, so that a plot may trust them.
Knows rows. Knows nothing of HTTP, or of what a plot looks like.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.orm import Session

from api.core.rows.tables import Job, MetricBlock, MetricPoint, Series

SIZE = 64
"""Points of a block, at least; fewer than twice as many. A plot reads a row a block, and points where one lies across
the border of two buckets. Half of it costs the writer twice the rows."""


@dataclass(frozen=True)
class Extent:
    """A series before a batch is written to it."""

    id: int
    latest_step: int | None
    covered: int | None
    loose: int


def keep(s: Session, job: Job, written: Mapping[int, set[int]], before: Mapping[int, Extent]) -> None:
    """The points are stored: bring the blocks up to them. `written`: the steps of each series."""
    changed: list[dict[str, Any]] = []
    for id, steps in written.items():
        series = before[id]
        if series.latest_step is None or min(steps) > series.latest_step:
            covered, loose = series.covered, series.loose + len(steps)
        else:  # written over, or between: what is sent twice
            covered = series.covered
            _renew(s, job, id, covered, sorted(steps))
            loose = _count_loose(s, job.id, id, covered)
        if loose >= SIZE:
            covered, loose = _close(s, job, id, covered)
        changed.append({"of": id, "now_covered": covered, "now_loose": loose})
    s.connection().execute(
        update(Series)
        .where(Series.id == bindparam("of"))
        .values(covered=bindparam("now_covered"), loose=bindparam("now_loose")),
        changed,
    )


def rewind(s: Session, job_id: str, step: int) -> None:
    """The points behind `step` were removed: so are the blocks that had any of them."""
    s.execute(delete(MetricBlock).where(MetricBlock.job_id == job_id, MetricBlock.last_step > step))
    of_series = (MetricBlock.job_id == Series.job_id, MetricBlock.series_id == Series.id)
    covered = select(func.max(MetricBlock.last_step)).where(*of_series).scalar_subquery()
    of_job = update(Series).where(Series.job_id == job_id).execution_options(synchronize_session=False)
    s.execute(of_job.values(covered=covered))
    points = (MetricPoint.job_id == Series.job_id, MetricPoint.series_id == Series.id)
    behind = or_(Series.covered.is_(None), MetricPoint.step > Series.covered)
    s.execute(of_job.values(loose=select(func.count()).where(*points, behind).scalar_subquery()))


def _close(s: Session, job: Job, id: int, covered: int | None) -> tuple[int | None, int]:
    """Make blocks of the loose points; what is left is fewer than a block. The new `covered` and `loose`."""
    points = _points(s, *_behind(job.id, id, covered))
    whole = len(points) - len(points) % SIZE
    _add(s, job, id, [points[start : start + SIZE] for start in range(0, whole, SIZE)])
    return (points[whole - 1].step if whole else covered), len(points) - whole


def _renew(s: Session, job: Job, id: int, covered: int | None, steps: Sequence[int]) -> None:
    """Rebuild the blocks that contain one of these steps."""
    if covered is None or steps[0] > covered:
        return
    of_series = (MetricBlock.job_id == job.id, MetricBlock.series_id == id)
    # One more on the left: a block begins behind the one before it.
    start = s.scalar(select(func.max(MetricBlock.last_step)).where(*of_series, MetricBlock.last_step < steps[0]))
    lasts = list(
        s.scalars(
            select(MetricBlock.last_step)
            .where(*of_series, MetricBlock.last_step >= steps[0], MetricBlock.last_step <= covered)
            .order_by(MetricBlock.last_step)
        )
    )
    for number in sorted({bisect_left(lasts, step) for step in steps if step <= covered}):
        before = lasts[number - 1] if number else start
        points = _points(s, *_behind(job.id, id, before), MetricPoint.step <= lasts[number])
        s.execute(delete(MetricBlock).where(*of_series, MetricBlock.last_step == lasts[number]))
        count = max(1, len(points) // SIZE)
        _add(s, job, id, [points[len(points) * n // count : len(points) * (n + 1) // count] for n in range(count)])


def _count_loose(s: Session, job_id: str, id: int, covered: int | None) -> int:
    return s.scalar(select(func.count()).select_from(MetricPoint).where(*_behind(job_id, id, covered))) or 0


def _behind(job_id: str, id: int, step: int | None) -> list[ColumnElement[bool]]:
    found = [MetricPoint.job_id == job_id, MetricPoint.series_id == id]
    return found if step is None else [*found, MetricPoint.step > step]


def _points(s: Session, *of: ColumnElement[bool]) -> Sequence[Any]:
    rows = s.connection().execute(select(MetricPoint.step, MetricPoint.value).where(*of).order_by(MetricPoint.step))
    return rows.all()


def _add(s: Session, job: Job, id: int, blocks: Iterable[Sequence[Any]]) -> None:
    rows = [{"job_id": job.id, "series_id": id, "project_id": job.project_id, **summary(block)} for block in blocks]
    if rows:
        s.connection().execute(insert(MetricBlock), rows)


def summary(points: Sequence[tuple[int, float | None]]) -> dict[str, float | int | None]:
    """What a block says of its points, which are in order: of equal values the first counts."""
    finite = [(value, step) for step, value in points if value is not None]
    least = min(finite, default=(None, None))
    greatest = max(finite, key=lambda found: found[0], default=(None, None))
    return {
        "first_step": points[0][0],
        "last_step": points[-1][0],
        "least": least[0],
        "least_step": least[1],
        "greatest": greatest[0],
        "greatest_step": greatest[1],
    }
