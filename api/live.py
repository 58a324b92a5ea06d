"""Waiting for rows to change: one look at the database a second for all who wait, however many they are.

Who waits holds no session and no thread. The database is the truth: a look compares versions, so that nothing is
missed, no matter who made the change on which host. Knows rows and asyncio. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from api.core.errors import Busy
from api.core.rows import db, lookup
from api.core.rows.columns import Noun
from api.core.rows.lookup import Seen

logger = logging.getLogger(__name__)

_BATCH = 500
"""Ids in one query: SQLite bounds the number of its parameters."""


Of = tuple[type[Noun], str]
"""A table, and the id of a row."""


@dataclass(eq=False)
class _Waiter:
    of: Of
    changed: Callable[[Seen | None], bool]
    woken: asyncio.Event


class Changes:
    """The change poll of one process. It runs inside `async with`; `end_waits` may be called anywhere."""

    def __init__(self, engine: Engine, every_s: float) -> None:
        self._engine = engine
        self._every_s = every_s
        self._waiters: set[_Waiter] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._needed = asyncio.Event()
        self.ending = False
        """The server goes down: streams and long polls are to end now."""

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._poll())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def end_waits(self) -> None:
        """From a signal handler, or any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end)

    async def wait(self, kind: type[Noun], id: str, changed: Callable[[Seen | None], bool], timeout_s: float) -> bool:
        """True once a look at the row satisfies `changed` (None: it is gone); False after `timeout_s` seconds, or when
        the server goes down."""
        if self.ending:
            return False
        waiter = _Waiter((kind, id), changed, asyncio.Event())
        self._waiters.add(waiter)
        self._needed.set()
        try:
            await asyncio.wait_for(waiter.woken.wait(), timeout_s)
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)
        return not self.ending

    def _end(self) -> None:
        self.ending = True
        for waiter in self._waiters:
            waiter.woken.set()

    async def _poll(self) -> None:
        while True:
            await self._needed.wait()
            if not self._waiters:
                self._needed.clear()
                continue
            try:
                wanted = {waiter.of for waiter in self._waiters}
                # A thread of its own: requests that wait for the database must not keep it from looking.
                self._wake(wanted, await asyncio.to_thread(self._look, wanted))
            except SQLAlchemyError as error:
                logger.warning("could not look for changes, trying again: %s", str(error).partition("\n")[0])
            except Exception:
                logger.exception("could not look for changes, trying again")
            await asyncio.sleep(self._every_s)

    def _look(self, wanted: Set[Of]) -> dict[Of, Seen]:
        found: dict[Of, Seen] = {}
        with db.looking(self._engine) as connection:
            for kind in {kind for kind, _ in wanted}:
                ids = sorted(id for each, id in wanted if each is kind)
                for start in range(0, len(ids), _BATCH):
                    seen = lookup.seen(connection, kind, ids[start : start + _BATCH])
                    found |= {(kind, id): what for id, what in seen.items()}
        return found

    def _wake(self, wanted: Set[Of], found: Mapping[Of, Seen]) -> None:
        for waiter in self._waiters:
            if waiter.of in wanted and waiter.changed(found.get(waiter.of)):
                waiter.woken.set()


class Places:
    """So many at once in this process, no more; and for one client no more than half of them."""

    def __init__(self, most: int, code: str, what: str) -> None:
        self._most = most
        self._code = code
        self._what = what
        self._lock = threading.Lock()
        self._each = max(1, most // 2)
        self._by_client: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        return self._by_client.total()

    def take(self, client: str) -> Callable[[], None]:
        """What gives the place back; calling it twice does no harm. Raises Busy if all are taken, or all that this
        client may have."""
        with self._lock:
            if self.taken >= self._most:
                detail = f"this server keeps {self._most} {self._what} open at a time; try again later, or poll"
                raise Busy(self._code, detail)
            if self._by_client[client] >= self._each:
                detail = f"this server keeps {self._each} {self._what} per client open at a time; close some, or poll"
                raise Busy(self._code, detail)
            self._by_client[client] += 1
        returned = False

        def give_back() -> None:
            nonlocal returned
            with self._lock:
                if not returned:
                    self._by_client -= Counter((client,))  # one that has none left is forgotten
                returned = True

        return give_back


@contextmanager
def told_of_signals(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` at SIGTERM and SIGINT, before anyone else handles them. A server first waits for open answers to
    end and then tells the application: streams would keep it waiting for each other. Does nothing off the main thread,
    where no server receives signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def first_tell(number: int, frame: FrameType | None) -> None:
        tell()
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)
        elif handler == signal.SIG_DFL:  # nobody else handles it: it does what it would have done
            signal.signal(number, handler)
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, first_tell)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is first_tell and handler is not None:
                signal.signal(number, handler)
