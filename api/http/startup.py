"""A start that fails for a reason that a person can mend is told in one line, whichever server runs the application."""

from __future__ import annotations

import sys

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.core.errors import DriverMissing, Unfit


class PlainStart:
    """Starlette tells its server the traceback of a failed start; of these errors the sentence says it all."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_plain(message: Message) -> None:
            error = sys.exc_info()[1]  # Starlette sends from the block that caught it
            if message["type"] == "lifespan.startup.failed" and isinstance(error, (Unfit, DriverMissing)):
                message = {**message, "message": f"fgd api: {error}"}
            await send(message)

        await self.app(scope, receive, send_plain if scope["type"] == "lifespan" else send)
