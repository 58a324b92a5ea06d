"""Celery's consumer, which goes on hearing whatever lies in the queue.

A message that is not one of ours is dropped before Celery looks into it; what breaks the consumer all the same is
answered like a lost connection: it connects again. No job depends on it: the poller finds them too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer

from api.core.queue import WAKE

logger = logging.getLogger(__name__)

CLASS = f"{__name__}:BellConsumer"
"""For Celery's setting worker_consumer."""
_TEXT = (str, type(None))
_HEADERS: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "task": (str,),
    "root_id": _TEXT,
    "expires": _TEXT,
    "argsrepr": _TEXT,
    "kwargsrepr": _TEXT,
    "origin": _TEXT,
    "lang": _TEXT,
    "retries": (int,),
    "timelimit": (list, tuple),
    "ignore_result": (bool, type(None)),
    "replaced_task_nesting": (int,),
    "stamped_headers": (list, type(None)),
    "stamps": (dict,),
}
"""What a bell's headers may be; all others are null. As `api.core.queue.ring_all` sends them."""


class BellConsumer(Consumer):  # type: ignore[misc]
    connection_errors: tuple[type[BaseException], ...]

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.connection_errors = (*self.connection_errors, Exception)

    def create_task_handler(self, *given: Any, **more: Any) -> Callable[[Any], object]:
        handle = super().create_task_handler(*given, **more)

        def on_message(message: Any) -> object:
            if (complaint := complaint_about(message)) is None:
                return handle(message)
            logger.warning("dropped a message that is not a notification: %s", complaint)
            return message.ack_log_error(logger, self.connection_errors)

        return on_message


def complaint_about(message: Any) -> str | None:
    """What keeps a message from being a bell; None: it is one."""
    headers = message.headers
    if not isinstance(headers, dict) or headers.get("task") != WAKE:
        return "it is for another task"
    for name, value in headers.items():
        if not isinstance(value, _HEADERS.get(name, (type(None),))):
            return f"its header {str(name)[:40]!r} is of another kind"
    if not isinstance(headers.get("id"), str) or any(headers.get("timelimit") or ()) or headers.get("stamps"):
        return "its headers are not ours"
    if message.content_type != "application/json":
        return "it is not JSON"
    try:
        args, kwargs, embedded = message.decode()
        right = list(args) == [] and kwargs.keys() == {"id"} and isinstance(kwargs["id"], str)
        return None if right and not any(embedded.values()) else "it says something else"
    except Exception as error:  # a stranger's bytes, read by whatever they say they are
        return f"it cannot be read ({type(error).__name__})"
