"""Engines, transactions, the database's clock and its schema version. Knows no table but alembic's."""

from __future__ import annotations

import importlib.util
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    URL,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Row,
    Select,
    create_engine,
    event,
    func,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeDecorator

from api.core.errors import DriverMissing, NotADatabase, SchemaOutOfDate, SchemaTooNew

MIGRATIONS = Path(__file__).parents[2] / "migrations"
BUSY_MS = 5000
"""How long a statement waits for another's lock."""
STATEMENT_MS = 30_000
IDLE_MS = 60_000
"""A transaction of ours that does nothing for so long is a process that hangs; its locks must not stay."""
ANSWER_S = STATEMENT_MS / 1000 + 10
"""No call waits longer for its answer. A server that is stopped, or hangs behind a proxy, keeps its connections alive:
neither TCP nor the server's own limit would ever end the wait."""
SILENCE_S = 10.0
"""A server whose host sends nothing at all for so long is gone."""
_CLIENT = {"application_name": "fgd", "keepalives_interval": 2, "keepalives_count": 3}
"""libpq's; seconds."""
UPGRADE_WAIT_S = 120
UPGRADE_S = 86_400.0
"""A change of a large table may take as long as it takes."""
_UPGRADE_LOCK = 0x666764  # any constant of our own: serialises concurrent upgrades on PostgreSQL


Reader = Session | Connection
"""Whoever can be asked: both know execute and scalar."""
Query = Select[*tuple[Any, ...]]
Columns = Row[*tuple[Any, ...]]
"""Of a query for columns, whichever."""


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC in and out; SQLite keeps it as text that sorts by time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:  # noqa: ARG002
        """For either kind of database one function: an answer of fifty jobs has hundreds of times."""
        return _from_text if dialect.name == "sqlite" else _in_utc


def _from_text(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(f"{value}+00:00")


def _in_utc(value: datetime | None) -> datetime | None:
    return None if value is None else value.astimezone(UTC)


def make_engine(url: str, silence_s: float = SILENCE_S, answer_s: float | None = None) -> Engine:
    """SQLite in WAL with foreign keys, or PostgreSQL. Creates the folder of a SQLite file; connects to nothing.

    Every call comes back: at once where the server refuses, after about `silence_s` where its host says nothing, after
    `answer_s` (ANSWER_S) where the host lives and the server does not answer. A lease needs `silence_s` shorter than
    its freeze.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        return _make_postgresql(parsed, silence_s, ANSWER_S if answer_s is None else answer_s)
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, pool_size=10, max_overflow=40, pool_timeout=BUSY_MS / 1000)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_postgresql(url: URL, silence_s: float, answer_s: float) -> Engine:
    if importlib.util.find_spec("psycopg") is None:
        raise DriverMissing("PostgreSQL needs its driver: pip install 'fgd-service[postgres]'")
    idle_s, silence_ms = max(2, int(silence_s / 2)), int(silence_s * 1000)
    silence = {"tcp_user_timeout": silence_ms, "keepalives_idle": idle_s, "connect_timeout": idle_s}
    told: dict[str, Any] = {name: value for name, value in (_CLIENT | silence).items() if name not in url.query}
    if "options" not in url.query:
        limits = {"statement": STATEMENT_MS, "lock": BUSY_MS, "idle_in_transaction_session": IDLE_MS}
        session = {f"{name}_timeout": value for name, value in limits.items()}
        # The server's side too: a host that was cut off in a transaction must not keep its job's row locked.
        session |= {"tcp_user_timeout": silence_ms, "tcp_keepalives_idle": idle_s}
        session |= {"tcp_keepalives_interval": 2, "tcp_keepalives_count": 3}
        told["options"] = " ".join(f"-c {name}={value}" for name, value in session.items())
    url = url.set(drivername="postgresql+psycopg")
    pool = {"pool_pre_ping": True, "pool_size": 10, "max_overflow": 40, "pool_timeout": BUSY_MS / 1000}
    engine = create_engine(url, connect_args=told, **pool)
    event.listen(engine, "do_connect", lambda _dialect, _record, given, options: _connect(answer_s, *given, **options))
    event.listen(engine, "connect", _prepare_postgresql)
    return engine


def _connect(answer_s: float, *given: Any, **options: Any) -> Any:
    """A connection of psycopg's whose every wait ends."""
    import psycopg

    class Impatient(psycopg.Connection):  # type: ignore[misc]
        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            try:
                return super().wait(gen, interval, answer_s if timeout is None else timeout)
            except psycopg.errors._WaitTimeout:
                if timeout is not None:
                    raise
                self.pgconn.finish()  # what it would still say is the answer to a question nobody asks any more
                raise psycopg.OperationalError(f"the server did not answer within {answer_s:g} s") from None

    return Impatient.connect(*given, **options)


def _prepare_postgresql(connection: Any, _record: Any) -> None:
    """PostgreSQL's text knows no NUL. People's ids and trainers' last words may hold one; SQLite takes it."""
    from psycopg.types.string import StrDumperUnknown

    class WithoutNul(StrDumperUnknown):  # type: ignore[misc]
        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", "\ufffd"))

    connection.adapters.register_dumper(str, WithoutNul)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    assert isinstance(connection, sqlite3.Connection)
    connection.isolation_level = None  # we say BEGIN ourselves; the driver's own would be deferred
    connection.execute(f"PRAGMA busy_timeout={BUSY_MS}").close()
    _write_ahead(connection)
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _write_ahead(connection: sqlite3.Connection) -> None:
    """WAL mode. Two that turn a new file over at once meet SQLITE_BUSY, which no busy_timeout waits for."""
    give_up = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= give_up:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that turns into a write fails at once with "database is locked", busy_timeout or not.
    options = connection.get_execution_options()
    if not options.get("looking", False):
        connection.exec_driver_sql("BEGIN" if options.get("reading", False) else "BEGIN IMMEDIATE")


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """Commits at the end, rolls back on any exception. On SQLite it holds the write lock from the start."""
    with _session(engine) as session, session.begin():
        session.connection()  # the session itself would begin at its first statement only
        yield session


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """One consistent view for reading; never waits for a writer."""
    with _session(engine.execution_options(**_reading(engine))) as session, session.begin():
        yield session


def looking(engine: Engine) -> Connection:
    """A connection for single reads, without a transaction and without objects: each statement sees its own moment.
    Never waits for a writer. Close it."""
    sqlite = engine.dialect.name == "sqlite"
    options: dict[str, Any] = {"looking": True} if sqlite else {"isolation_level": "AUTOCOMMIT"}
    return engine.connect().execution_options(**options)


def _reading(engine: Engine) -> dict[str, Any]:
    if engine.dialect.name == "sqlite":
        return {"reading": True}
    return {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}


def _session(engine: Engine) -> Session:
    # No autoflush: half of a move, written because a query came between, would meet the CHECK constraints.
    # The verbs flush when a row is whole.
    return Session(engine, expire_on_commit=False, autoflush=False)


def now(s: Reader) -> datetime:
    """The database's clock, aware UTC: hosts may disagree about the time, leases may not."""
    dialect = s.dialect if isinstance(s, Connection) else s.get_bind().dialect
    if dialect.name == "sqlite":
        stamp = s.scalar(text("SELECT strftime('%Y-%m-%dT%H:%M:%f', 'now')"))
        return datetime.fromisoformat(str(stamp)).replace(tzinfo=UTC)
    moment = s.scalar(select(func.clock_timestamp()))
    assert isinstance(moment, datetime)
    return moment.astimezone(UTC)


def alembic_config() -> Config:
    """For alembic's commands; the connection travels in `attributes`."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def check_schema(engine: Engine) -> None:
    """Raise Unfit unless the database is at this code's revision: SchemaOutOfDate, SchemaTooNew, NotADatabase."""
    with _file_named(engine), engine.execution_options(**_reading(engine)).connect() as connection:
        _compare(connection)


def upgrade(url: str) -> None:
    """Bring the database to this code's revision; does nothing if it is there. Safe to run twice at once.

    Raises SchemaTooNew, or NotADatabase, which has left the file as it was.
    """
    engine = make_engine(url, answer_s=UPGRADE_S)
    try:
        with _file_named(engine), migrating(engine) as connection:
            if connection.dialect.name == "postgresql":
                _wait_for_other_upgrades(connection)
            try:
                _compare(connection)
            except SchemaOutOfDate:
                config = alembic_config()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
    finally:
        engine.dispose()


@contextmanager
def migrating(engine: Engine) -> Iterator[Connection]:
    """One transaction for migrations, which waits for another's. SQLite changes a table by rewriting it; foreign keys
    are checked at its end only, for dropping the old table would take along the rows that refer to it."""
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        sqlite = driver if isinstance(driver, sqlite3.Connection) else None
        if sqlite is not None:
            sqlite.execute("PRAGMA foreign_keys=OFF").close()  # heeded outside of transactions only
            sqlite.execute(f"PRAGMA busy_timeout={UPGRADE_WAIT_S * 1000}").close()
        try:
            with connection.begin():
                yield connection
                broken = connection.execute(text("PRAGMA foreign_key_check")).first() if sqlite is not None else None
                if broken is not None:
                    raise SchemaOutOfDate(
                        f"a migration left a row of {broken[0]} that refers to nothing in {broken[2]}"
                    )
        finally:
            if sqlite is not None:
                sqlite.execute("PRAGMA foreign_keys=ON").close()
                sqlite.execute(f"PRAGMA busy_timeout={BUSY_MS}").close()


@contextmanager
def _file_named(engine: Engine) -> Iterator[None]:
    """What SQLite says of a file that it cannot read becomes NotADatabase, which names the file."""
    try:
        yield
    except DatabaseError as error:
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF  # the rest of it only says where
        if code not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise
        raise NotADatabase(
            f"{engine.url.database}: {error.orig}. The file was left as it is: put a backup of it in its place, or "
            "move it away to start with an empty database, which does not have the earlier jobs and data sets"
        ) from error


def _wait_for_other_upgrades(connection: Connection) -> None:
    """Until none runs; the lock goes with our transaction. A change of a large table may take as long as it takes."""
    connection.execute(text(f"SET LOCAL lock_timeout = '{UPGRADE_WAIT_S}s'"))
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})


@cache
def head() -> str:
    """This code's revision. Read once: it takes longer than all else that a check of the schema does."""
    return str(_scripts().get_current_head())


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(alembic_config())


def _compare(connection: Connection) -> None:
    current = MigrationContext.configure(connection).get_current_revision()
    if current == head():
        return
    if current is None:
        raise SchemaOutOfDate(
            "the database is empty; `fgd serve` creates the tables, and so does `python -m deploy.migrate`"
        )
    if current not in {script.revision for script in _scripts().walk_revisions()}:
        raise SchemaTooNew(
            f"the database is at revision {current}, which this version does not know: it was written by a newer "
            "version of the service. Upgrade this installation, or restore a backup made before that upgrade."
        )
    raise SchemaOutOfDate(
        f"the database is at revision {current}, this version needs {head()}; "
        "`fgd serve` upgrades it, and so does `python -m deploy.migrate`"
    )
