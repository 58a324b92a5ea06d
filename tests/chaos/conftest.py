"""A rig on each database, and the table of cases at the end of `make chaos`."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from api.core.rows import db
from tests.chaos.parts import Rig, copy_rows
from tests.e2e.conftest import home, pictures, template  # noqa: F401
from tests.e2e.parts import processes_of, until
from tests.postgres import DURABLE, Postgres, running

DATABASES = ("sqlite", "postgres")


@pytest.fixture
def rig(request: pytest.FixtureRequest, database: str, template: tuple[Path, str], home: Path) -> Iterator[Rig]:  # noqa: F811
    """On each database, unless a test is parametrised with one; nothing runs yet."""
    with rig_on(database, request, template[1], home) as rig:
        yield rig


@contextmanager
def rig_on(database: str, request: pytest.FixtureRequest, dataset: str, home: Path) -> Iterator[Rig]:  # noqa: F811
    sqlite = f"sqlite:///{home}/fgd.db"
    if database == "sqlite":
        with opened(home, dataset, sqlite) as rig:
            yield rig
        return
    with request.getfixturevalue("postgres").migrated() as url:
        filled(sqlite, url)
        with opened(home, dataset, url) as rig:
            yield rig


@pytest.fixture
def durable_rig(template: tuple[Path, str], home: Path) -> Iterator[tuple[Rig, Postgres]]:  # noqa: F811
    """A PostgreSQL server of this test's own, which it may stop, crash and start again."""
    with running(DURABLE) as server, server.empty() as url:
        db.upgrade(url)
        filled(f"sqlite:///{home}/fgd.db", url)
        with opened(home, template[1], url) as rig:
            yield rig, server


def filled(source: str, target: str) -> None:
    old, new = db.make_engine(source), db.make_engine(target)
    copy_rows(old, new)
    old.dispose()
    new.dispose()


@contextmanager
def opened(home: Path, dataset: str, url: str) -> Iterator[Rig]:  # noqa: F811
    rig = Rig(home, dataset, db.make_engine(url), url=url)
    try:
        yield rig
    finally:
        rig.close()
    until(lambda: not processes_of(home), timeout_s=5, what="the end of every process")


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def not_on_sqlite(reason: str) -> pytest.MarkDecorator:
    """On PostgreSQL only; SQLite is told as skipped."""
    sqlite = pytest.param("sqlite", marks=pytest.mark.skip(reason=f"not applicable on SQLite: {reason}"))
    return pytest.mark.parametrize("database", [sqlite, "postgres"])


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Counts by case and database."""
    table: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if "tests/chaos" in report.nodeid and (report.when == "call" or outcome != "passed"):
                case, database = case_of(report.nodeid)
                table[case][database][outcome] += 1
    if not table:
        return
    columns = ("sqlite", "postgres", "both")
    terminalreporter.section("chaos")
    terminalreporter.write_line(f"{'case':24} {''.join(f'{name:>22}' for name in columns)}")
    for case in sorted(table):
        told = [", ".join(f"{n} {what}" for what, n in table[case][name].items()) for name in columns]
        terminalreporter.write_line(f"{case:24} {''.join(f'{each:>22}' for each in told)}")


def case_of(nodeid: str) -> tuple[str, str]:
    """("F12", "sqlite") of a test's name; "both" for one that needs no particular database."""
    name, _, parameters = nodeid.rpartition("::")[2].partition("[")
    number = re.match(r"test_f(\d+)_", name)
    case = f"F{int(number[1]):02d}" if number else "crash matrix" if "crash_matrix" in nodeid else name[5:29]
    words = re.split(r"[-\]]", parameters)
    return case, next((word for word in words if word in DATABASES), "both")
