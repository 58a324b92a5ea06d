"""The periodic sweep: what the silent left behind is put right, and the bell rings again for what nobody took."""

from __future__ import annotations

import logging

from api.core import jobs
from api.core.queue import ring
from worker.host import Host

logger = logging.getLogger(__name__)


def sweep(host: Host) -> None:
    """Idempotent; may run anywhere, and twice at once."""
    swept = host.write(jobs.sweep)
    for job in swept.lost:
        logger.warning("%s: its worker was lost; it goes on elsewhere or here", job)
    for waiting in swept.ring:
        if not ring(host.app, waiting):
            return  # nobody hears; every worker looks for itself
