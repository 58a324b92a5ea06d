"""Short reads for those who poll: no transaction, no objects, and on SQLite no thread. Knows no table.

A thread costs several times what such a read does. On SQLite a look waits for nobody: no writer keeps a reader waiting,
and if the file is busy all the same, because its log is being recovered, a thread tries again and waits. PostgreSQL may
be on the other side of a network, for which the event loop never waits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError
from starlette.concurrency import run_in_threadpool

from api.core.rows import db

T = TypeVar("T")


class Looks:
    """Of one event loop. Works inside `with`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._here: Connection | None = None

    def __enter__(self) -> Self:
        if self._engine.dialect.name == "sqlite":
            self._here = db.looking(self._engine)
            self._here.detach()  # it differs from those of the pool
            self._here.exec_driver_sql("PRAGMA busy_timeout=0")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._here is not None:
            self._here.close()

    async def look(self, read: Callable[[Connection], T]) -> T:
        """What `read` finds. It takes well under a millisecond; what may take longer belongs into a thread."""
        if self._here is not None:
            with suppress(OperationalError):
                return read(self._here)
        return await run_in_threadpool(self.look_here, read)

    def look_here(self, read: Callable[[Connection], T]) -> T:
        """The same in a thread that may wait."""
        with db.looking(self._engine) as connection:
            return read(connection)
