"""The blocks against the points they are of, and plots against the slow obvious way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text

from api.core.jobs import curves, metric_blocks, record
from api.core.rows import db
from api.core.rows.tables import MetricBlock, MetricPoint, Series
from fgd.events import Started, Stepped

Values = dict[int, float | None]


def started(step: int) -> Started:
    return Started(step=step, total_steps=40, epochs=4, device="cpu", threads=1, precision="float32", versions={})


def tell(engine: Any, id: str, *events: Any) -> None:
    with db.transaction(engine) as s:
        record.record(s, id, 1, list(events))


def plot(engine: Any, id: str, **window: Any) -> Values:
    seen = curves.Window(**window)
    with db.reading(engine) as s:
        found = curves.curves(s, id, seen)
    return {p.step: p.value for piece in curves.points(engine, found, seen) for p in piece}


def check_blocks(engine: Any, id: str) -> int:
    """Every block says of its points what they are; blocks and loose points are all points, and none twice."""
    with db.reading(engine) as s:
        query = select(MetricPoint.step, MetricPoint.value).where(MetricPoint.job_id == id)
        points = [tuple(row) for row in s.execute(query.order_by(MetricPoint.step))]
        found = s.scalars(select(MetricBlock).where(MetricBlock.job_id == id).order_by(MetricBlock.last_step)).all()
        series = s.scalars(select(Series).where(Series.job_id == id)).one()
    behind = -1
    for block in found:
        inside = [point for point in points if behind < point[0] <= block.last_step]
        assert {name: getattr(block, name) for name in metric_blocks.summary(inside)} == metric_blocks.summary(inside)
        behind = block.last_step
    assert series.covered == (behind if found else None)
    assert series.loose == sum(step > behind for step, _ in points) < 2 * metric_blocks.SIZE
    return len(found)


def least_and_greatest(values: Values, most: int) -> list[set[float]]:
    """The slow obvious way: of each of equally wide buckets."""
    steps, count = sorted(values), (most - 2) // 2
    width = -(-(steps[-1] - steps[0] + 1) // count)
    buckets: dict[int, list[float]] = {}
    for step, value in values.items():
        if value is not None:
            buckets.setdefault((step - steps[0]) // width, []).append(value)
    return [{min(inside), max(inside)} for inside in buckets.values()]


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[int, Sequence[float]]]:
    """Where each begins (-1: behind the last), and its values: mostly in order, some again, some over older ones."""
    value = st.floats(width=32) | st.just(0.0)
    start = st.just(-1) | st.just(-1) | st.integers(0, 900)
    return draw(st.lists(st.tuples(start, st.lists(value, min_size=1, max_size=150)), min_size=1, max_size=12))


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(told=batches(), stride=st.integers(1, 7), most=st.integers(4, 60), rewind=st.integers(0, 1500))
def test_whatever_is_written_blocks_tell_the_truth_and_plots_keep_every_peak(
    given: Any, told: list[tuple[int, Sequence[float]]], stride: int, most: int, rewind: int
) -> None:
    with db.transaction(given.engine) as s:
        s.execute(text("UPDATE jobs SET state = 'cancelled', lease_owner = NULL, lease_expires = NULL, phase = NULL,"
                       " requested = NULL, finished_at = created_at WHERE state = 'running'"))  # fmt: skip
    id = given.running()
    values: Values = {}
    for number, (start, some) in enumerate(told):
        first = max(values, default=0) + stride if start < 0 else start
        steps = [first + n * stride for n in range(len(some))]
        tell(given.engine, id, *(Stepped(step=n, epoch=1, values={"x": v}) for n, v in zip(steps, some, strict=True)))
        values |= {n: v if math.isfinite(v) else None for n, v in zip(steps, some, strict=True)}
        if number == len(told) // 2:  # the job was resumed
            tell(given.engine, id, started(rewind))
            values = {step: value for step, value in values.items() if step <= rewind}
        check_blocks(given.engine, id) if values else None
    if not values:
        return

    seen = plot(given.engine, id, name="x", most=most)

    assert len(seen) <= most
    assert seen.items() <= values.items()
    assert {min(values), max(values)} <= seen.keys()
    if len(values) > most:
        for peaks in least_and_greatest(values, most):
            assert peaks <= set(seen.values())


@pytest.mark.parametrize(("first", "last"), [(None, None), (100, 4321), (64, None)])
def test_a_long_curve_is_drawn_from_blocks_and_few_points(given: Any, first: int | None, last: int | None) -> None:
    id = given.running()
    curve = {n: math.sin(n / 300) + (n * 7919 % 101) / 1000 for n in range(1, 6001)}
    curve[777], curve[5003 if last is None else 4003] = 9.0, -9.0
    for begin in range(1, 6001, 500):
        steps = range(begin, begin + 500)
        tell(given.engine, id, *(Stepped(step=n, epoch=1, values={"x": curve[n]}) for n in steps))
    wanted = {n: v for n, v in curve.items() if (first or 0) <= n <= (last or 10**9)}
    moved: list[int] = []

    class Counting(curves._Peaks):
        def offer(self, step: int, value: float | None) -> None:
            moved.append(step)
            super().offer(step, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "_Peaks", Counting)
        seen = plot(given.engine, id, name="x", first=first, last=last, most=20)

    assert len(seen) <= 20
    assert {9.0, -9.0} <= set(seen.values())
    for peaks in least_and_greatest(wanted, 20):
        assert peaks <= set(seen.values())
    assert 0 < len(moved) < len(wanted) / 3


def test_a_plot_goes_through_no_table_as_a_whole(given: Any) -> None:
    if given.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL plans by statistics, which an empty table does not have")
    one = curves.Curve("job_x", 1, "x", "train")
    for query in (
        curves._blocks(one, 1, 9),
        curves._within(one, [5, 9]),
        curves._rows(one, None, None).where(MetricPoint.step.in_([3, 4])),
    ):
        told = str(query.compile(given.engine, compile_kwargs={"literal_binds": True}))
        with given.engine.connect() as connection:
            plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {told}")]
        assert all(line.startswith("SEARCH") and "step" in line for line in plan), plan
