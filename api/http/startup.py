"""What an application sees of the server that runs it: how its start fails, and where it listens."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psutil
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.core.errors import DriverMissing, Unfit
from api.core.settings import Settings, UnsafeBind, check_bind

log = logging.getLogger(__name__)

LOOK_S = 0.1
LOOKS = 100
"""A server that has not bound anything after so many looks is served by others, such as a test's client."""


class PlainStart:
    """A start that fails for a reason that a person can mend is reported in one line. Starlette tells its server the
    traceback; of these errors the sentence says it all."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_plain(message: Message) -> None:
            error = sys.exc_info()[1]  # Starlette sends from the block that caught it
            if message["type"] == "lifespan.startup.failed" and isinstance(error, (Unfit, DriverMissing)):
                message = {**message, "message": f"fgd api: {error}"}
            await send(message)

        await self.app(scope, receive, send_plain if scope["type"] == "lifespan" else send)


@asynccontextmanager
async def ending_if_unsafe(settings: Settings) -> AsyncIterator[None]:
    """End the process if it binds another address than FGD_HOST says, one that others reach without a key.

    A server binds after the application's start, so this looks for a while. It does nothing off the main thread, where
    no server receives signals; the border refuses every request that came by such an address meanwhile, and there.
    """
    if settings.api_key is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    task = asyncio.get_running_loop().create_task(_end_if_unsafe(settings))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _end_if_unsafe(settings: Settings) -> None:
    for _ in range(LOOKS):
        await asyncio.sleep(LOOK_S)
        if bound := listening():
            break
    else:
        return
    if (unsafe := unsafe_of(settings, bound)) is not None:
        log.critical("fgd api: %s", unsafe)
        signal.raise_signal(signal.SIGTERM)


def listening() -> list[str]:
    """Addresses on which this process accepts connections."""
    with suppress(psutil.Error, OSError):
        found = psutil.Process().net_connections("tcp")
        return [each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN]
    return []


def unsafe_of(settings: Settings, bound: list[str]) -> UnsafeBind | None:
    """Why the server may not listen there; None: it may."""
    try:
        for address in bound:
            check_bind(settings.model_copy(update={"host": address}))
    except UnsafeBind as unsafe:
        return unsafe
    return None
