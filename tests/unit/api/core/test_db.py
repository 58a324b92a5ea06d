from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, func, inspect, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import OperationalError, StatementError
from sqlalchemy.schema import CreateIndex, CreateTable

from api.core.errors import DriverMissing, SchemaOutOfDate, SchemaTooNew
from api.core.jobs import attempts, record
from api.core.rows import db
from api.core.rows.tables import (
    Attempt,
    Base,
    Checkpoint,
    Dataset,
    IdempotencyKey,
    Job,
    JobEvent,
    JobParent,
    MetricBlock,
    MetricPoint,
    Project,
    Series,
)
from fgd.events import Stepped


def migrate(engine: Engine, work: Any, *arguments: str) -> None:
    with db.migrating(engine) as connection:
        config = db.alembic_config()
        config.attributes["connection"] = connection
        work(config, *arguments)


def _where(options: Any) -> str:
    return str(options.get("sqlite_where", options.get("postgresql_where")))


def whatever_the_order(constraints: Any) -> list[str]:
    return sorted(str(sorted(constraint.items())) for constraint in constraints)


on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


def shape(engine: Engine) -> Any:
    inspector = inspect(engine)
    return {
        table: (
            sorted((c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)),
            sorted((c["name"], c["sqltext"]) for c in inspector.get_check_constraints(table)),
            whatever_the_order(inspector.get_foreign_keys(table)),
            whatever_the_order(inspector.get_unique_constraints(table)),
            sorted((str(c["name"]), c["unique"], _where(c["dialect_options"])) for c in inspector.get_indexes(table)),
            inspector.get_pk_constraint(table),
        )
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


def test_alembic_sees_no_drift(engine: Engine) -> None:
    migrate(engine, command.check)


def test_migrations_make_exactly_the_tables_of_the_code_checks_included(engine: Engine, empty_database: str) -> None:
    plain = db.make_engine(empty_database)
    Base.metadata.create_all(plain)

    assert shape(engine) == shape(plain)
    plain.dispose()


def test_down_and_up_again_ends_where_it_began(engine: Engine) -> None:
    before = shape(engine)

    migrate(engine, command.downgrade, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    migrate(engine, command.upgrade, "head")

    assert shape(engine) == before
    db.check_schema(engine)


def test_a_key_kept_by_an_older_version_still_replays_its_job(client: Any, given: Any, engine: Engine) -> None:
    body, headers = given.body(), {"Idempotency-Key": "once"}
    job = client.post("/v1/jobs", json=body, headers=headers).json()["id"]
    (given.roots / "cells").mkdir()
    client.post(
        "/v1/datasets", json={"name": "c", "path": f"{given.roots}/cells"}, headers={"Idempotency-Key": "other"}
    )

    migrate(engine, command.downgrade, "0001")
    migrate(engine, command.upgrade, "head")

    again = client.post("/v1/jobs", json=body, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, job)


def test_keys_of_every_kind_outlive_the_step_down_and_those_of_deleted_things_are_forgotten(
    client: Any, given: Any, engine: Engine
) -> None:
    """Before 0012 a key referred to what it made: a column for each kind, with a foreign key."""
    made = {
        "/v1/jobs": given.body(),
        "/v1/datasets": {"name": "c"},
        "/v1/models": {"name": "m", "detector": {"kind": "fcos"}, "classes": ["a"]},
    }
    ids = {url: client.post(url, json=made[url], headers={"Idempotency-Key": url}).json()["id"] for url in made}
    gone = client.post("/v1/datasets", json={"name": "gone"}, headers={"Idempotency-Key": "gone"}).json()["id"]
    client.delete(f"/v1/datasets/{gone}")

    migrate(engine, command.downgrade, "0011")
    migrate(engine, command.upgrade, "head")

    for url, body in made.items():
        again = client.post(url, json=body, headers={"Idempotency-Key": url})
        assert again.json()["id"] == ids[url]
    with db.reading(engine) as s:
        assert set(s.execute(select(IdempotencyKey.made_kind, IdempotencyKey.made_id))) == {
            ("job", ids["/v1/jobs"]),
            ("dataset", ids["/v1/datasets"]),
            ("model", ids["/v1/models"]),
        }


def test_an_upload_whose_import_is_due_is_remembered_by_its_digest(client: Any, engine: Engine) -> None:
    """Before 0013 a data set forgot it with the end of the import."""
    url = client.post("/v1/datasets", json={"name": "c"}).json()["upload_url"]
    client.put(url, content=b"zip")

    migrate(engine, command.downgrade, "0012")
    migrate(engine, command.upgrade, "head")

    with db.reading(engine) as s:
        (row,) = s.scalars(select(Dataset))
    assert row.upload_sha256 == row.upload_digest is not None


def test_jobs_that_a_job_refers_to_outlive_the_step_down_and_those_it_begins_from_are_found(
    client: Any, given: Any, engine: Engine
) -> None:
    """Before 0014 a job had a column for its teacher, one for what it inherits from, and none for student.weights."""
    parents = {role: given.succeeded() for role in ("teacher", "inherit", "weights")}
    gone = given.succeeded()
    student = {"inherit": {"job": parents["inherit"]}, "weights": {"job": parents["weights"]}}
    body = given.body(teacher={"job": parents["teacher"]}, methods=[{"kind": "fgd"}], student=student)
    child = client.post("/v1/jobs", json=body).json()["id"]
    orphan = client.post("/v1/jobs", json=given.body(student={"weights": {"job": gone}})).json()["id"]
    client.post(f"/v1/jobs/{orphan}/cancel")
    assert client.delete(f"/v1/jobs/{gone}").status_code == 204

    migrate(engine, command.downgrade, "0013")
    migrate(engine, command.upgrade, "head")

    with db.reading(engine) as s:
        rows = s.execute(select(JobParent.job_id, JobParent.role, JobParent.parent_id)).all()
    assert set(rows) == {(child, role, parent) for role, parent in parents.items()}
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            (made,) = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'ix_jobs_queued'").one()
            assert "priority DESC" in made
            assert "state = 'queued'" in made


def test_rows_outlive_every_step_down_and_up_again(given: Any, engine: Engine) -> None:
    """Back to the tables before pauses, kept checkpoints, blocks and restores, one step at a time."""
    runs = given.running()
    waits = given.job()
    with db.transaction(engine) as s:
        record.record(s, runs, 1, [Stepped(step=n, epoch=1, values={"loss": float(n % 50)}) for n in range(1, 201)])
        attempts.checkpoint(s, runs, 1, 200, f"jobs/{runs}/a1/ckpt-200.pt", "c" * 64, 1)
    counted = (Job, Attempt, JobEvent, Checkpoint, MetricPoint, MetricBlock, Series)

    def state() -> tuple[list[int | None], list[Any]]:
        blocks = select(MetricBlock.last_step, MetricBlock.least, MetricBlock.greatest_step)
        with db.reading(engine) as s:
            counts = [s.scalar(select(func.count()).select_from(table)) for table in counted]
            return counts, list(s.execute(blocks.order_by(MetricBlock.last_step)))

    before = state()
    for revision in ("0010", "0009", "0008", "0007", "0006"):
        migrate(engine, command.downgrade, revision)
    migrate(engine, command.upgrade, "head")

    assert state() == before
    with db.transaction(engine) as s:
        assert [row.best or row.pinned for row in s.scalars(select(Checkpoint))] == [False]
        assert s.scalars(select(Series.loose)).all() == [200 - 3 * 64]
        attempts.beat(s, runs, 1, "wrk_a", lease_s=20.0)
    claimed = given.claim("wrk_b")
    assert claimed is not None
    assert claimed.job_id == waits


def test_the_tables_compile_for_postgresql_too() -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    for table in Base.metadata.sorted_tables:
        text = str(CreateTable(table).compile(dialect=dialect))
        assert "TIMESTAMP WITHOUT TIME ZONE" not in text
        for index in table.indexes:
            assert "CREATE" in str(CreateIndex(index).compile(dialect=dialect))


def test_an_upgrade_makes_the_one_project_with_a_key_of_its_own(tmp_path: Path) -> None:
    keys = set()
    for name in ("a", "b"):
        db.upgrade(f"sqlite:///{tmp_path}/{name}.db")
        engine = db.make_engine(f"sqlite:///{tmp_path}/{name}.db")
        with db.reading(engine) as s:
            keys.add(s.get_one(Project, "prj_default").cursor_key)
        engine.dispose()

    assert len(keys) == 2


def test_a_new_file_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def write(url: str) -> None:
        engine = db.make_engine(url)
        try:
            with engine.begin() as connection:
                connection.execute(text("CREATE TABLE IF NOT EXISTS seen (id INTEGER)"))
        except Exception as error:
            errors.append(error)
        engine.dispose()

    for number in range(40):
        threads = [threading.Thread(target=write, args=(f"sqlite:///{tmp_path}/{number}.db",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert errors == []


def test_upgrades_at_once_do_it_once(empty_database: str) -> None:
    url, errors = empty_database, []

    def upgrade() -> None:
        try:
            db.upgrade(url)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=upgrade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    engine = db.make_engine(url)
    db.check_schema(engine)
    engine.dispose()


def test_an_empty_an_older_and_a_newer_database_are_told_apart(
    engine: Engine, empty_database: str, settings: Any
) -> None:
    empty = db.make_engine(empty_database)
    with pytest.raises(SchemaOutOfDate, match="empty"):
        db.check_schema(empty)
    empty.dispose()

    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999_future'")
    for look in (lambda: db.check_schema(engine), lambda: db.upgrade(settings.database_url)):
        with pytest.raises(SchemaTooNew, match=r"9999_future.*newer version"):
            look()


def test_times_are_aware_utc_from_the_database_s_clock(engine: Engine) -> None:
    with db.reading(engine) as s:
        now, created = db.now(s), s.get_one(Project, "prj_default").created_at

    assert now.tzinfo is UTC
    assert created.tzinfo is UTC
    assert abs((datetime.now(UTC) - now).total_seconds()) < 5


def test_a_time_without_a_zone_is_refused(engine: Engine) -> None:
    with db.transaction(engine) as s:
        s.add(Project(id="p", name="p", cursor_key=b"", created_at=datetime(2026, 1, 1)))
        with pytest.raises(StatementError, match="no time zone"):
            s.flush()
        s.rollback()


def test_a_transaction_that_raises_leaves_nothing(engine: Engine) -> None:
    def write_and_raise() -> None:
        with db.transaction(engine) as s:
            s.add(Project(id="p", name="p", cursor_key=b"", created_at=db.now(s)))
            s.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_raise()

    with db.reading(engine) as s:
        assert s.get(Project, "p") is None


def test_a_reader_neither_waits_for_a_writer_nor_sees_half_of_it(engine: Engine) -> None:
    with db.transaction(engine) as writer:
        writer.get_one(Project, "prj_default").name = "changed"
        writer.flush()
        start = time.monotonic()
        with db.reading(engine) as reader:
            assert reader.get_one(Project, "prj_default").name == "default"
        assert time.monotonic() - start < db.BUSY_MS / 1000


@on_sqlite
def test_a_second_writer_waits_from_its_first_moment(
    engine: Engine, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "BUSY_MS", 100)
    other = db.make_engine(settings.database_url)
    with db.transaction(engine), pytest.raises(OperationalError, match="locked"), db.transaction(other):
        pass
    other.dispose()


@on_sqlite
def test_sqlite_runs_as_it_should(engine: Engine) -> None:
    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
        }

    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 5000, "synchronous": 1}


@on_postgresql
def test_postgresql_runs_as_it_should(engine: Engine) -> None:
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "application_name")
    with engine.connect() as connection:
        set_to = [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names]

    assert set_to == ["30s", "5s", "1min", "fgd"]


@on_postgresql
def test_options_of_the_url_stand(database: str) -> None:
    engine = db.make_engine(f"{database}&options=-c%20lock_timeout%3D123ms&application_name=mine")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "123ms"
        assert connection.exec_driver_sql("SHOW application_name").scalar() == "mine"
    engine.dispose()


@on_postgresql
def test_a_row_that_is_held_is_waited_for_only_so_long(
    engine: Engine, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "BUSY_MS", 100)
    other = db.make_engine(database)
    rename = text("UPDATE projects SET name = 'x'")
    with db.transaction(engine) as first:
        first.execute(rename)
        with pytest.raises(OperationalError, match="lock timeout"), db.transaction(other) as second:
            second.execute(rename)
    other.dispose()


@on_postgresql
def test_a_server_that_never_answers_is_not_waited_for_and_the_next_call_has_a_new_connection(database: str) -> None:
    engine = db.make_engine(database, answer_s=0.5)
    with db.reading(engine) as s:
        before = s.scalar(text("SELECT pg_backend_pid()"))
    began = time.monotonic()
    with pytest.raises(OperationalError, match="did not answer within"), db.reading(engine) as s:
        s.execute(text("SELECT pg_sleep(20)"))  # to the client the same as a server that is stopped
    assert time.monotonic() - began < 15
    with db.reading(engine) as s:
        assert s.scalar(text("SELECT pg_backend_pid()")) != before
    engine.dispose()


@on_postgresql
def test_a_connection_that_the_server_dropped_is_replaced(engine: Engine, database: str) -> None:
    with engine.connect() as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    other = db.make_engine(database)
    with other.connect() as connection:
        connection.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 5000)")
    other.dispose()

    with db.reading(engine) as s:
        assert s.get(Project, "prj_default")


def test_reading_sees_one_moment_however_often_it_looks(engine: Engine) -> None:
    with db.reading(engine) as reader:
        before = reader.execute(text("SELECT name FROM projects")).scalar()
        with db.transaction(engine) as writer:
            writer.execute(text("UPDATE projects SET name = 'changed'"))
        assert reader.execute(text("SELECT name FROM projects")).scalar() == before

    with db.reading(engine) as reader:
        assert reader.execute(text("SELECT name FROM projects")).scalar() == "changed"


def test_a_nul_in_a_text_is_kept_or_replaced_but_never_an_error(engine: Engine) -> None:
    with db.transaction(engine) as s:
        s.get_one(Project, "prj_default").name = "a\0b"
    with db.reading(engine) as s:
        assert s.get_one(Project, "prj_default").name in ("a\0b", "a\ufffdb")
        assert s.get(Project, "prj\0") is None


@on_postgresql
def test_a_url_without_a_driver_gets_ours(engine: Engine, database: str) -> None:
    other = db.make_engine(database.replace("postgresql+psycopg:", "postgresql:"))
    assert other.dialect.driver == "psycopg"
    db.check_schema(other)
    other.dispose()


@on_postgresql
def test_an_upgrade_waits_for_the_one_that_runs(empty_database: str) -> None:
    engine = db.make_engine(empty_database)
    upgrade = threading.Thread(target=db.upgrade, args=(empty_database,))
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": db._UPGRADE_LOCK})
        upgrade.start()
        upgrade.join(0.5)
        assert upgrade.is_alive()
        with pytest.raises(SchemaOutOfDate):
            db.check_schema(engine)
    upgrade.join(10)

    db.check_schema(engine)
    engine.dispose()


def test_the_history_is_one_line() -> None:
    scripts = list(ScriptDirectory.from_config(db.alembic_config()).walk_revisions())

    assert len([script for script in scripts if script.is_head]) == 1
    assert all(isinstance(script.down_revision, str | None) for script in scripts)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(DriverMissing, match=r"fgd-service\[postgres\]"):
        db.make_engine("postgresql+psycopg://u@h/d")
