"""The bell: a Celery message that says "look at this id". Knows no rows: a lost, doubled or forged one does no harm.

Early ack, no results, JSON only, nothing prefetched: each alternative was seen to lose or double long tasks on Redis.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from celery import Celery

WAKE = "fgd.wake"
"""Name of the one task; its one argument is {"id": a job's or a data set's}."""
EXPIRES_S = 60.0
"""A consumer that comes back later drops the bell unheard: every worker has looked for itself many times by then."""
QUEUE = "fgd"

_IMPATIENT = {
    "socket_connect_timeout": 0.4,
    "socket_timeout": 0.4,
    "max_retries": 1,
    "interval_start": 0,
    "interval_step": 0,
    "interval_max": 0,
}
"""Of one ring, in seconds: a broker that swallows packets must not hold up an answer."""

log = logging.getLogger(__name__)


def make_app(broker_url: str | None) -> Celery:
    """A Celery app; nothing connects before the first message."""
    app = Celery("fgd", broker=broker_url or "memory://", set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        result_backend=None,
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        task_default_queue=QUEUE,
        task_create_missing_queues=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "global_keyprefix": "fgd.",
            "socket_keepalive": True,
            "socket_connect_timeout": 2,
            "socket_timeout": 30,
            "health_check_interval": 25,
        },
        task_publish_retry=False,
        broker_pool_limit=4,
    )
    return app


app = make_app(os.environ.get("FGD_BROKER_URL"))
"""The worker's app. It does not connect by being imported."""


def ring(app: Celery | None, id: str) -> bool:
    """Wake a worker for `id`, best effort, within about a second. False: nobody heard; a poll will find the row."""
    return ring_all(app, [id])


def ring_all(app: Celery | None, ids: Sequence[str]) -> bool:
    """One bell each, over one connection; the first that is not heard is the last that is tried."""
    if app is None:
        return False
    if not ids:
        return True
    options = {**app.conf.broker_transport_options, **_IMPATIENT}
    try:
        with app.connection_for_write(transport_options=options) as connection, connection.Producer() as producer:
            for id in ids:
                told = {"id": id}
                app.send_task(WAKE, kwargs=told, queue=QUEUE, producer=producer, retry=False, expires=EXPIRES_S)
    except Exception as error:  # whatever is wrong with the bell, the row stands and a poll finds it
        log.warning("workers could not be notified about %s: %s", ", ".join(ids), error)
        return False
    return True


def reachable(app: Celery) -> bool:
    """Whether the broker answers, within about a second."""
    options = {**app.conf.broker_transport_options, **_IMPATIENT}
    try:
        with app.connection_for_write(transport_options=options) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, interval_max=0)
    except Exception as error:
        log.warning("the broker is not reachable: %s", error)
        return False
    return True
