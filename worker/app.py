"""The worker process: `celery -A worker.app worker`, or `python -m worker`, which also lives without a broker.

Celery brings bells and nothing else. The poller starts before Celery connects and ends after its last task.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

from celery import signals
from celery.exceptions import CPendingDeprecationWarning

from api.core.errors import DriverMissing, Unfit
from api.core.queue import WAKE, make_app
from api.core.rows import db
from api.core.settings import Settings
from fgd.process.private import keep_private
from fgd.process.secrets import hide_secrets
from worker import bell_consumer
from worker.host import DATABASE_AWAY, Host
from worker.poller import Poller
from worker.slots import BESIDE
from worker.take import look

logger = logging.getLogger(__name__)

settings = Settings()
app = make_app(settings.broker_url)
app.conf.update(worker_pool="threads", worker_redirect_stdouts=False, worker_consumer=bell_consumer.CLASS)
drain_s: float | None = None
"""Seconds that trainers have to save when the worker ends; None: as long as for a cancel. `__main__` sets it."""
poller: Poller | None = None
"""Of this process, once it is a worker."""


@app.task(name=WAKE)  # type: ignore[untyped-decorator]
def wake(id: str) -> None:
    """Someone says there is work. The id is a hint; the rows say what is to be done."""
    if poller is None:
        return
    logger.debug("notified about %s", id)
    try:
        look(poller.host)
    except DATABASE_AWAY as error:
        logger.warning("notified, but the database does not answer: %s", error)


def open_poller() -> Poller:
    """Start to look for work. Exits with one line if the database does not fit this code."""
    hide_secrets()
    try:
        engine = db.make_engine(settings.database_url)
    except DriverMissing as error:
        sys.exit(f"fgd worker: {error}")
    try:
        db.check_schema(engine)
    except Unfit as error:
        sys.exit(f"fgd worker: {error}")
    except DATABASE_AWAY as error:
        logger.warning("the database does not answer yet: %s", error)
    finally:
        engine.dispose()
    try:
        host = Host.create(settings, app if settings.broker_url else None, drain_s)
    except DriverMissing as error:
        sys.exit(f"fgd worker: {error}")
    started = Poller(host)
    started.start()
    return started


def log_plainly(**_: Any) -> None:
    """Lines for people. Celery's own chatter only from warnings on."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr)
    for chatty in ("celery", "kombu", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)  # about a setting that we do set


def on_init(conf: Any = None, **_: Any) -> None:
    global poller
    keep_private()
    log_plainly()
    poller = open_poller()
    conf.worker_concurrency = poller.host.trainings + sum(BESIDE.values())  # a full worker leaves bells to others


def on_shutting_down(**_: Any) -> None:
    if poller is not None:
        poller.stop()


def on_shutdown(**_: Any) -> None:
    if poller is not None:
        poller.stop()  # if Celery ended by itself, so does this worker, and its supervisor restarts it
        poller.join()


signals.setup_logging.connect(log_plainly, weak=False)
signals.celeryd_init.connect(on_init, weak=False)
signals.worker_shutting_down.connect(on_shutting_down, weak=False)
signals.worker_shutdown.connect(on_shutdown, weak=False)
