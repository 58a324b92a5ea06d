"""What the first look at the dashboard costs: the table of 10,000 jobs, and a job with a million points.

    python -m tests.studies.bench_dashboard

Asks a real server for what a browser asks for, and prints processor seconds (of server and client together), seconds
until each answer is there, and bytes on the wire. The rows are written directly; nothing is trained.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from sqlalchemy import insert, select

from api.core.jobs import record
from api.core.rows import db
from api.core.rows.ids import new_id
from api.core.rows.tables import Job, MetricPoint, Series
from api.core.settings import Settings
from api.http import web
from tests.browser.conftest import Server

JOBS = 10_000
SERIES = 10
POINTS = 100_000
"""Of each series."""
EPOCHS = 12
TIMES = 5
"""The median counts."""
BATCH = 5_000


def fill(server: Server, jobs: int, points: int) -> str:
    """The jobs: a control and three that learn, again and again. The id of one with many points."""
    seeds = server.seeds
    seeds.worker()
    data = seeds.dataset()
    control = seeds.finished(seeds.job(data, name="control"), [10.0 + epoch for epoch in range(EPOCHS)])
    student = seeds.taught(data, control, name="student")
    seeds.run(student, [11.0 + epoch for epoch in range(EPOCHS - 1)], total=EPOCHS)
    copies(server, control, student, jobs - 2)
    with db.transaction(server.engine) as s:
        s.execute(Series.__table__.delete().where(Series.job_id == student, Series.split == "train"))  # type: ignore[attr-defined]
    for number in range(SERIES):
        curve(server, student, f"loss/fgd/term{number}" if number else "loss/total", points)
    return student


def copies(server: Server, control: str, student: str, many: int) -> None:
    with db.transaction(server.engine) as s:
        patterns = {
            of: s.execute(select(Job.__table__).where(Job.id == of)).one()._asdict() for of in (control, student)
        }
        rows, series, points = [], [], []
        for number in range(many):
            row = dict(patterns[control if number % 4 == 0 else student])
            row |= {"id": new_id("job"), "name": f"run {number // 4} of a larger study", "twin": f"{number // 4:032}"}
            row["created_at"] = row["created_at"] - timedelta(minutes=number)
            row["ap"] = 20.0 + 10 * math.sin(number)
            if row["state"] == "running":
                row |= {"state": "paused", "lease_owner": None, "lease_expires": None, "phase": None}
            rows.append(row)
            series.append({"id": 10**6 + number, "project_id": row["project_id"], "job_id": row["id"], "name": "ap"})
            for epoch in range(1, EPOCHS + 1):
                point = {"job_id": row["id"], "series_id": 10**6 + number, "step": 100 * epoch, "value": row["ap"]}
                points.append(
                    point | {"project_id": row["project_id"], "attempt": 1, "finite": True, "at": row["created_at"]}
                )
        for start in range(0, many, BATCH):
            s.execute(insert(Job.__table__), [_stored(row) for row in rows[start : start + BATCH]])
            s.execute(insert(Series.__table__), [{**each, "split": "val"} for each in series[start : start + BATCH]])
        for start in range(0, len(points), BATCH):
            s.execute(insert(MetricPoint.__table__), points[start : start + BATCH])


def _stored(row: dict[str, Any]) -> dict[str, Any]:
    return {"metadata" if name == "labels" else name: value for name, value in row.items()}


def curve(server: Server, job: str, name: str, points: int) -> None:
    """As a trainer's reports leave it, its blocks included."""
    for start in range(1, points + 1, BATCH):
        with db.transaction(server.engine) as s:
            row = s.get_one(Job, job)
            samples = [
                ((name, "train"), step, math.exp(-step / points) * (1 + 0.1 * math.sin(step * 12.9898)))
                for step in range(start, min(start + BATCH, points + 1))
            ]
            record._write_points(s, row, row.created_at, samples)


def asked(server: Server, path: str, times: int) -> tuple[float, float, int]:
    """Medians of processor seconds and seconds, and bytes on the wire without the headers."""
    took, size = [], 0
    with httpx.Client(base_url=server.url, headers={"Accept-Encoding": "gzip"}) as client:
        for _ in range(times):
            began, used = time.perf_counter(), time.process_time()
            with client.stream("GET", path) as answer:
                answer.raise_for_status()
                size = sum(len(piece) for piece in answer.iter_raw())
            took.append((time.process_time() - used, time.perf_counter() - began))
    cpu, wall = (sorted(each)[len(took) // 2] for each in zip(*took, strict=True))
    return cpu, wall, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--points", type=int, default=POINTS, help=f"of each of {SERIES} series")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        db.upgrade(f"sqlite:///{folder}/fgd.db")
        server = Server(Settings(home=Path(folder), sweep_s=3600.0))
        try:
            student = fill(server, given.jobs, given.points)
            show(server, student)
        finally:
            server.close()


def show(server: Server, student: str) -> None:
    held = web.files()
    shell = [
        f"/web/{held.version}/{name}" for name in held.by_name if "pages/" not in name and name not in ("charts.js",)
    ]
    of_jobs = [
        "/",
        *shell,
        f"/web/{held.version}/pages/jobs.js",
        "/v1/summaries?limit=1",
        "/v1/summaries?sort=-created&limit=50",
    ]
    of_job = [
        *(f"/web/{held.version}/{name}" for name in ("charts.js", "pages/job.js", "pages/job/curves.js")),
        f"/v1/jobs/{student}", f"/v1/summaries?id={student}", f"/v1/jobs/{student}/metrics?max_points=500",
    ]  # fmt: skip
    table = Table("what", "processor s", "s", "bytes")
    for title, paths in (("the table of jobs", of_jobs), ("a job, from nothing", [*of_jobs[:-2], *of_job])):
        each = [(path, *asked(server, path, TIMES)) for path in paths]
        for path, cpu, wall, size in each:
            if "/web/" not in path:
                table.add_row(path, f"{cpu:.3f}", f"{wall:.3f}", f"{size:,}")
        sums = [sum(row[place] for row in each) for place in (1, 2, 3)]
        table.add_row(title, f"{sums[0]:.3f}", f"{sums[1]:.3f}", f"{sums[2]:,}", style="bold", end_section=True)
    for path in ("sort=-gain", "sort=-ap", "sort=gain&worse=true", "search=larger&sort=name", "offset=9950"):
        cpu, wall, size = asked(server, f"/v1/summaries?limit=50&{path}", TIMES)
        table.add_row(path, f"{cpu:.3f}", f"{wall:.3f}", f"{size:,}")
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
